"""The sockets of a gevent worker: clients and listeners, with what the drain must know and do.

Rules:

* The socket of a connection is gevent's own, with a record of what the connection is in the middle of
  (:class:`ConnectionRecord`). The worker keeps the record; the socket itself only notes when it last received data.
* The worker does not close a socket with unread data: the kernel would answer that with a reset, and the client could
  lose a response that was sent (RFC 9112 9.6). What still arrives is read first, for a bounded time (:func:`linger`).
* A greenlet that waits for its client is ended by an end of file (:func:`end_input`), never by an exception. That would
  interrupt the application if the request had arrived in the same moment.
"""

from __future__ import annotations

import contextlib
import os
import socket
from time import monotonic
from typing import Any

import gevent
import gevent.socket
from gevent import monkey
from gevent.server import StreamServer
from gevent.ssl import SSLSocket

from zdworker.ipc.hand_over import Connection
from zdworker.workers.closing import LINGER_S, LINGER_TOTAL_S


class ConnectionRecord:
    """What a connection is in the middle of. Times are those of ``time.monotonic()``."""

    # Defaults are kept in the class, because a record is made for each connection.
    received_at = 0.0
    """When something was last read from it."""
    answered = False
    """A request was answered."""
    busy = False
    """A request is being answered."""
    cut = False
    """The drain's deadline is over: no further request is answered."""
    goaway_sent = False
    """The client has a GOAWAY: no further stream is answered (HTTP/2)."""
    notice_sent = False
    """The client was asked to open no more streams (HTTP/2)."""
    http2: Any = None
    """True when it speaks HTTP/2, and Gunicorn's ``HTTP2ServerConnection`` as soon as that is known."""
    liveness: Any = None
    """The client's :class:`zdworker.workers.http2.Liveness`, as soon as its first request has come (HTTP/2)."""
    greenlet: Any = None
    """The greenlet that handles it."""
    movable = True
    """Between two requests it can be handed over: nothing of the last one is still to come."""
    moved = False
    """It was handed over; the greenlet sees its end."""
    requests = 0
    """Requests answered on it, also by the workers that have handed it over."""
    proxy: Any = None
    """What the PROXY protocol said of the client."""
    idle_until: float | None = None
    """When its time is over, if it was handed over to this worker and no request has come since."""

    def __init__(self, now: float) -> None:
        self.since = now
        """When it began to wait for its client: when it was accepted, or at the end of the last response."""

    def note_answered(self, more: bool) -> None:
        """Note that a request was answered.

        :param more: a part of the next request has arrived already.
        """
        now = monotonic()
        self.busy, self.answered, self.since = False, True, now
        if more:
            self.received_at = now

    @property
    def begun(self) -> bool:
        """Whether a request has arrived in part."""
        return self.received_at >= self.since


class _RecordingSocket:
    """Mixin for sockets that notes when something was read, and drops what arrives after GOAWAY was sent."""

    __slots__ = ()

    def recv(self, *args: Any) -> bytes:
        record: ConnectionRecord = self.record  # type: ignore[attr-defined]
        try:
            data: bytes = super().recv(*args)  # type: ignore[misc]
        except OSError:
            if record.moved:
                return b""
            raise
        while record.goaway_sent and data:
            data = super().recv(*args)  # type: ignore[misc]
        record.received_at = monotonic()
        return data


class ClientSocket(_RecordingSocket, gevent.socket.socket):  # type: ignore[misc]  # gevent has no types
    """The socket of an accepted connection."""

    __slots__ = ("record",)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all of ``data``, as gevent does, but first with one call of the kernel's: most answers fit its buffer.

        gevent asks for the buffer's size with each call, and works in pieces of it (``_sendall()`` in its
        ``_socketcommon.py``). An answer is two calls, and that would be a twentieth of a small one.

        :param data: any object with bytes in it.
        :raises OSError: the connection is broken, or its timeout is over.
        """
        if data and type(data) is bytes:
            try:
                sent = self._sock.send(data, flags)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        super().sendall(data, flags)


class TLSClientSocket(_RecordingSocket, SSLSocket):  # type: ignore[misc]  # gevent has no types
    """The socket of an accepted connection from the beginning of TLS on."""


class Listener(StreamServer):  # type: ignore[misc]  # gevent has no types
    """A stream server that can stop accepting and leave its connections as they are."""

    def __init__(self, *args: Any, ssl_context: Any = None, **kwargs: Any) -> None:
        tls = {}
        if ssl_context is not None:
            ssl_context.sslsocket_class = TLSClientSocket
            # The connection's handler does the handshake, because there the worker sees it and bounds it.
            tls = {"ssl_context": ssl_context, "do_handshake_on_connect": False}
        super().__init__(*args, **kwargs, **tls)

    def do_read(self) -> tuple[Any, Any] | None:
        """Accept a connection with a record; called by gevent's loop."""
        try:
            number, address = self.socket._accept()  # noqa: SLF001  # as gevent's own do_read() does
        except BlockingIOError:
            return None
        listener = self.socket
        client = ClientSocket(listener.family, listener.type, listener.proto, fileno=number)
        client.record = ConnectionRecord(monotonic())
        return client, address

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> Any:
        """Begin TLS and handle the connection; its record moves to the new socket."""
        record = client_socket.record
        with self.wrap_socket(client_socket, **self.ssl_args) as tls:
            tls.record = record
            return self.handle(tls, address)

    def retire(self) -> None:
        """Stop accepting, and leave the connections what their handlers need; ``close()`` would take that away."""
        self._stop_event.set()
        self.stop_accepting()
        self._leave_epoll()
        self.socket.close()

    def _leave_epoll(self) -> None:
        # libev does not unregister a descriptor that is closed, and the kernel does only when every process has closed
        # the socket. The other workers keep theirs, so each of their connections would wake this worker.
        with contextlib.suppress(OSError):
            epoll = monkey.get_original("select", "epoll").fromfd(os.dup(self.loop.fileno()))
            epoll.unregister(self.socket.fileno())
            epoll.close()


def detach(client: Any) -> socket.socket | None:
    """Return a copy of a connection's socket, and have the greenlet that waits for its next request see its end.

    None, and nothing has changed, if no descriptor is left.
    """
    try:
        descriptor = os.dup(client.fileno())
    except OSError:
        return None
    client.record.moved = True
    client.close()  # which wakes the greenlet, with an error, and sends nothing, since the copy is open
    return monkey.get_original("socket", "socket")(fileno=descriptor)  # type: ignore[no-any-return]


def taken(connection: Connection) -> Any:
    """Return the socket of a connection that another worker has handed over, with its record."""
    sock = connection.sock
    client = ClientSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    client.record = record = ConnectionRecord(monotonic())
    record.requests, record.proxy, record.idle_until = connection.requests, connection.proxy, connection.idle_until
    record.answered = connection.requests > 0
    return client


def end_input(client: Any) -> None:
    """Have the greenlet that reads from a connection see its end, behind what has arrived."""
    if isinstance(client, SSLSocket):
        # OpenSSL 3 would take the end for a truncation attack, and send the client an alert instead of close_notify.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            client._sslobj.shutdown()  # noqa: SLF001  # unwrap() would wait for the client
        _shut(client, socket.SHUT_WR)
    _shut(client, socket.SHUT_RD)


def _shut(client: Any, how: int) -> None:
    # The bare socket, because the shutdown() of a TLS socket first drops the TLS session.
    with contextlib.suppress(OSError, AttributeError):
        client._sock.shutdown(how)  # noqa: SLF001  # gevent has no public name for it


def linger(client: Any) -> None:
    """Close the writing half, and read until the client closes, or has sent nothing for :data:`LINGER_S` seconds.

    It ends after :data:`LINGER_TOTAL_S` seconds in any case.
    """
    _shut(client, socket.SHUT_WR)
    with gevent.Timeout(LINGER_TOTAL_S, False), contextlib.suppress(OSError, gevent.GreenletExit):
        client.settimeout(LINGER_S)
        while client.recv(65536):
            pass
