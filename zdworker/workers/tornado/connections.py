"""Connections of Tornado's server, as far as the drain must know them: the one file that reads their attributes.

Rules:

* The class of which Tornado makes an object for each request is replaced, in this process, by a subclass of it
  (:class:`Request`). Giving each object that class later, by ``__class__``, makes all access to it slower (6 %). What
  only a drain needs is put into that class when it begins; and what runs with each request names the base instead of
  calling ``super()``, which would cost as much again.
* Whether a response ends its connection is decided when its head is written, not before: until then the drain may
  begin, and more of the client may arrive.
* No connection is closed on unread data (:mod:`zdworker.workers.closing`). Tornado closes when an answer is done before
  the request's body; here it goes on reading, for a bounded time.

Known: Tornado 6.5 and 6.6.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import socket
import time
from collections.abc import Callable
from typing import Any, ClassVar

from tornado import http1connection
from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders
from tornado.iostream import SSLIOStream, StreamClosedError

from zdworker import syscalls
from zdworker.ipc.hand_over import Connection
from zdworker.workers.bounded import done_within
from zdworker.workers.closing import LINGER_S, ConnectionState


class Request(HTTP1Connection):
    """One request of a connection."""

    ends: ClassVar[bool] = False
    """Whether responses end their connections, in a drain; for all of them."""
    told_to_close: ClassVar[int] = 0
    """How many have done so."""
    hand_over: ClassVar[Callable[[Connection], None]]
    """What is called with a connection whose response is written, once :func:`hand_over_with_responses` was."""

    zd_idle_s = 0.0
    """For how many seconds the connection waits behind this request for the next one."""
    zd_ends = False
    """The client has asked for the end of the connection behind this request."""

    def zd_write_last_headers(self, start_line: Any, headers: HTTPHeaders, chunk: bytes | None = None) -> Any:
        """Write the response's head in a drain: it says that the connection ends, if it can."""
        if not self.is_client and start_line.code != 101 and self._nothing_follows():
            self._disconnect_on_finish = True
            headers["Connection"] = "close"
            Request.told_to_close += 1
            # Tornado answers a client of HTTP/1.0 that has asked for Keep-Alive with Keep-Alive, even where it closes
            # the connection then: `ab -k` would lose its next request. The application has these headers in an object
            # of its own.
            self._request_headers = HTTPHeaders()
        return HTTP1Connection.write_headers(self, start_line, headers, chunk)

    def _nothing_follows(self) -> bool:
        """Return whether all that the client has sent is this request, and all of that has arrived."""
        return (self._read_finished or not self._has_body()) and not _buffered(self.stream) and not unread(self.stream)

    def _has_body(self) -> bool:
        headers = self._request_headers
        return headers is not None and ("Content-Length" in headers or "Transfer-Encoding" in headers)

    def _finish_request(self, future: Any) -> None:
        """Go on to the next request, or close; called when the response is written."""
        if self._disconnect_on_finish and not self.is_client and not self.stream.closed():
            if not self._read_finished:
                self._read_on()
            elif self.ends and unread(self.stream):
                _half_close(self.stream)
                _background.add(task := asyncio.ensure_future(self._read_to_end()))
                task.add_done_callback(_background.discard)
                return
        HTTP1Connection._finish_request(self, future)  # noqa: SLF001  # the base's

    def zd_finish_and_let_go(self, future: Any) -> None:
        """Let go of the connection when the response is written, in a drain that hands connections over.

        Later would be too late for a client that never rests: Tornado watches the socket between two requests, too, so
        the next turn of the loop reads the next one.
        """
        switches = self._response_start_line is not None and self._response_start_line.code == 101
        waits = self._read_finished and not self._disconnect_on_finish and not self.is_client and not switches
        _finish_request(self, future)
        detached = _let_go(self.stream, time.monotonic() + self.zd_idle_s) if waits else None
        if detached is not None:
            Request.hand_over(detached)

    def _read_on(self) -> None:
        """Have the rest of the request read and dropped before the connection ends or is used again."""
        if self._request_start_line is not None and self._request_headers is not None:
            self.zd_ends = not self._can_keep_alive(self._request_start_line, self._request_headers)
        self._disconnect_on_finish = False
        asyncio.get_running_loop().call_later(LINGER_S, self._give_up_body)

    def _give_up_body(self) -> None:
        if not self._read_finished and self.stream is not None:
            self.stream.close()

    async def _read_to_end(self) -> None:
        end = time.monotonic() + LINGER_S
        with contextlib.suppress(StreamClosedError):
            data = asyncio.ensure_future(self.stream.read_bytes(65536, partial=True))
            while await done_within(data, end - time.monotonic()):
                data.result()
                data = asyncio.ensure_future(self.stream.read_bytes(65536, partial=True))
        self.close()


_background: set[asyncio.Future[None]] = set()
"""Tasks that nothing awaits; the event loop itself keeps only weak references to them."""

http1connection.HTTP1Connection = Request  # type: ignore[misc]
_finish_request = Request._finish_request  # noqa: SLF001


class Server(HTTPServer):
    """Tornado's server, which knows what each of its connections is in the middle of."""

    answered = 0
    """Requests answered since boot."""
    draining = False
    """Whether accepting has stopped."""

    @property
    def connections(self) -> set[Any]:
        """The open connections, each of which reads or waits for a request. A WebSocket is no longer among them."""
        return self._connections

    def take(self, stream: Any, connection: Connection) -> None:
        """Serve a connection that was handed over. It waits as long for its next request as it has time left."""
        usual = self.conn_params
        if connection.idle_until is not None:
            self.conn_params = copy.copy(usual)
            self.conn_params.header_timeout = max(0.0, connection.idle_until - time.monotonic())
        try:
            self.handle_stream(stream, connection.client())
        finally:
            self.conn_params = usual

    def start_request(self, server_conn: Any, request_conn: Any) -> Any:
        """Begin to wait for a connection's next request."""
        last = getattr(server_conn, "zd_request", None)
        server_conn.zd_request = request_conn
        server_conn.zd_waits_until = time.monotonic() + server_conn.params.header_timeout
        server_conn.params = self.conn_params  # those of the next request
        request_conn.zd_idle_s = self.conn_params.header_timeout
        if last is not None:
            self.answered += 1
            server_conn.zd_used = True
            if self.draining:
                server_conn.zd_since = time.monotonic()
            if last.zd_ends:
                server_conn.stream.close()
        return HTTPServer.start_request(self, server_conn, request_conn)

    def begin_drain(self) -> None:
        """Stop accepting."""
        self.stop()
        self.draining = True
        now = time.monotonic()
        for server_conn in self.connections:
            server_conn.zd_since = now


def end_with_responses() -> None:
    """Have each response of this process end its connection from now on, if it can."""
    Request.ends = True
    Request.write_headers = Request.zd_write_last_headers  # type: ignore[assignment, method-assign]


def hand_over_with_responses(hand_over: Callable[[Connection], None]) -> None:
    """Have ``hand_over`` called with each connection of this process whose response is written, if that can move."""
    Request.hand_over = staticmethod(hand_over)
    Request._finish_request = Request.zd_finish_and_let_go  # type: ignore[method-assign]  # noqa: SLF001


def keep_connections() -> None:
    """Take :func:`hand_over_with_responses` back."""
    Request._finish_request = _finish_request  # type: ignore[method-assign]  # noqa: SLF001


def state_of(server_conn: Any) -> ConnectionState:
    """Return what a connection, a member of ``Server.connections``, is in the middle of."""
    request = getattr(server_conn, "zd_request", None)
    if request is not None and request._request_start_line is not None:  # noqa: SLF001  # see the module's rules
        return ConnectionState.BUSY
    if _buffered(server_conn.stream) or (request is not None and _has_read(server_conn.stream)):
        return ConnectionState.READING  # a connection without a request was accepted in this turn of the loop
    return ConnectionState.IDLE if getattr(server_conn, "zd_used", False) else ConnectionState.UNUSED


def request_of(server_conn: Any) -> tuple[str, str]:
    """Return method and target of the request that a busy connection answers, whatever handles it."""
    start_line = server_conn.zd_request._request_start_line  # noqa: SLF001  # see the module's rules
    return start_line.method, start_line.path


def detach(server_conn: Any) -> Connection | None:
    """Let go of a connection, if it is between two requests and its last response is written out."""
    if server_conn.stream.closed() or state_of(server_conn) not in (ConnectionState.IDLE, ConnectionState.UNUSED):
        return None
    return _let_go(server_conn.stream, getattr(server_conn, "zd_waits_until", None))


def _let_go(stream: Any, idle_until: float | None) -> Connection | None:
    """Let go of a connection of whose next request nothing was read, if its last response is written out.

    Tornado takes the end of its own descriptor for the client's.
    """
    if isinstance(stream, SSLIOStream) or stream.closed() or stream.writing() or _buffered(stream):
        return None
    try:
        sock = stream.socket.dup()
    except OSError:
        return None
    stream.close()
    return Connection(sock, idle_until)


def can_move(server_conn: Any) -> bool:
    """Return whether a connection can be handed over, now or later: it has no TLS."""
    return not isinstance(server_conn.stream, SSLIOStream)


def unread(stream: Any) -> int:
    """Return how many bytes of a connection the kernel and TLS hold unread; 0 if unknown."""
    if stream.closed():
        return 0
    pending = getattr(stream.socket, "pending", None)
    return syscalls.unread(stream) + (pending() if pending is not None else 0)


def _has_read(stream: Any) -> bool:
    """Return whether a read has just ended: the head is on its way to the request, which does not show it yet."""
    return stream._read_future is None  # noqa: SLF001  # see the module's rules


def _buffered(stream: Any) -> int:
    return int(stream._read_buffer_size)  # noqa: SLF001  # see the module's rules


def _half_close(stream: Any) -> None:
    with contextlib.suppress(OSError, AttributeError):
        # The base's method: that of a TLS socket would forget its keys first.
        socket.socket.shutdown(stream.socket, socket.SHUT_WR)
