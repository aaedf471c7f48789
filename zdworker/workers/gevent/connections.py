"""Connections of a gevent worker, as far as the drain must know them.

Rules:

* A connection's socket is gevent's own, with a note about what the connection is in the middle of (:class:`Standing`).
  The note is kept by the worker; the socket itself only adds when it last heard something.
* No close on unread data: the kernel would answer it with a reset, and the client lose a response that was sent
  (RFC 9112 9.6). What is still to come is read first, for a bounded time (:func:`linger`).
* A greenlet that waits for its client is told to end by an end of file (:func:`silence`), never by an exception: that
  would hit the application if the request had come in the same moment.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any

import gevent
import gevent.socket
from gevent import monkey
from gevent.server import StreamServer
from gevent.ssl import SSLSocket

from zdworker.workers.wsgi.request_heads import LINGER, LINGER_IN_ALL


class Standing:
    """What a connection is in the middle of. Times by ``time.monotonic()``."""

    # In the class, since one is made for each connection.
    heard = 0.0
    """When something was last read from it."""
    answered = False
    busy = False
    """A request is being answered."""
    cut = False
    """The drain's deadline is over: nothing more is done for it."""
    leaving = False
    """GOAWAY was said: the client knows that nothing more is done for it."""
    noticed = False
    """The client was asked to open no more streams."""
    http2: Any = None
    """True when it speaks HTTP/2, and Gunicorn's ``HTTP2ServerConnection`` as soon as that is known."""
    greenlet: Any = None

    def __init__(self, now: float) -> None:
        self.since = now
        """When it began to wait for its client: at accept, or with the end of the last response."""

    def end(self, more: bool) -> None:
        """Note that a request is answered. ``more``: some of the next one has come already."""
        now = time.monotonic()
        self.busy, self.answered, self.since = False, True, now
        if more:
            self.heard = now

    @property
    def begun(self) -> bool:
        """Whether some of a request has come that is not whole yet."""
        return self.heard >= self.since


class _Hearing:
    """Mixin for sockets: notes when something was read, and passes over what comes after GOAWAY."""

    __slots__ = ()

    def recv(self, *args: Any) -> bytes:
        standing: Standing = self.standing  # type: ignore[attr-defined]
        data: bytes = super().recv(*args)  # type: ignore[misc]
        while standing.leaving and data:
            data = super().recv(*args)  # type: ignore[misc]
        standing.heard = time.monotonic()
        return data


class ClientSocket(_Hearing, gevent.socket.socket):  # type: ignore[misc]  # gevent has no types
    """The socket of an accepted connection."""

    __slots__ = ("standing",)


class TLSClientSocket(_Hearing, SSLSocket):  # type: ignore[misc]  # gevent has no types
    """The same with TLS, once that was begun."""


class Listener(StreamServer):  # type: ignore[misc]  # gevent has no types
    """A stream server that can stop accepting and nothing else."""

    def __init__(self, *args: Any, ssl_context: Any = None, **kwargs: Any) -> None:
        tls = {}
        if ssl_context is not None:
            ssl_context.sslsocket_class = TLSClientSocket
            # The handshake is left to the connection's handler, where it is seen and bounded.
            tls = {"ssl_context": ssl_context, "do_handshake_on_connect": False}
        super().__init__(*args, **kwargs, **tls)

    def do_read(self) -> tuple[Any, Any] | None:
        """Accept a connection, as the base does."""
        try:
            number, address = self.socket._accept()  # noqa: SLF001  # as the base does
        except BlockingIOError:
            return None
        listener = self.socket
        client = ClientSocket(listener.family, listener.type, listener.proto, fileno=number)
        client.standing = Standing(time.monotonic())
        return client, address

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> Any:
        """Begin TLS and handle the connection; its standing goes over to the new socket."""
        standing = client_socket.standing
        with self.wrap_socket(client_socket, **self.ssl_args) as tls:
            tls.standing = standing
            return self.handle(tls, address)

    def retire(self) -> None:
        """Stop accepting. Not ``close()``, which also takes from the connections what they need to be handled."""
        self._stop_event.set()
        self.stop_accepting()
        self._leave_epoll()
        self.socket.close()

    def _leave_epoll(self) -> None:
        # libev takes no descriptor out by itself; the kernel does when all have closed it, and the others have this one
        # too: each connection of theirs would wake this worker.
        with contextlib.suppress(OSError):
            epoll = monkey.get_original("select", "epoll").fromfd(os.dup(self.loop.fileno()))
            epoll.unregister(self.socket.fileno())
            epoll.close()


def silence(client: Any) -> None:
    """Have whoever reads from a connection see its end, after what has come."""
    if isinstance(client, SSLSocket):
        # OpenSSL 3 would take the end for an attack, and tell the client so by an alert instead of a close_notify.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            client._sslobj.shutdown()  # noqa: SLF001  # unwrap() would wait for the client
        _shut(client, socket.SHUT_WR)
    _shut(client, socket.SHUT_RD)


def _shut(client: Any, how: int) -> None:
    # The bare socket: that of TLS would forget its keys first.
    with contextlib.suppress(OSError, AttributeError):
        client._sock.shutdown(how)  # noqa: SLF001  # see above


def linger(client: Any) -> None:
    """Close the writing half, and read until the client closes, or has sent nothing for :data:`LINGER` seconds."""
    _shut(client, socket.SHUT_WR)
    with gevent.Timeout(LINGER_IN_ALL, False), contextlib.suppress(OSError, gevent.GreenletExit):
        client.settimeout(LINGER)
        while client.recv(65536):
            pass
