"""Connections of Tornado's server, as far as the drain must know them: the one file that reads their attributes.

Rules:

* The class of which Tornado makes an object for each request is replaced, in this process, by a subclass of it
  (:class:`Request`). Giving each object that class later, by ``__class__``, makes all access to it slower (6 %).
* Whether a response ends its connection is decided when its head is written, not before: until then the drain may
  begin, and more of the client may arrive.
* No connection is closed on unread data (:mod:`zdworker.workers.closing`). Tornado closes when an answer is done before
  the request's body; here it goes on reading, for a bounded time.

Known: Tornado 6.5 and 6.6.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Any, ClassVar

from tornado import http1connection
from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders
from tornado.iostream import StreamClosedError

from zdworker import syscalls
from zdworker.workers.bounded import done_within
from zdworker.workers.closing import LINGER_S, ConnectionState


class Request(HTTP1Connection):
    """One request of a connection."""

    draining: ClassVar[bool] = False
    """Whether responses end their connections, if they can; for all of them."""

    def write_headers(self, start_line: Any, headers: HTTPHeaders, chunk: bytes | None = None) -> Any:
        """Write the response's head; one of a draining worker says that the connection ends, if it can."""
        if self.draining and not self.is_client and start_line.code != 101 and self._nothing_follows():
            self._disconnect_on_finish = True
            headers["Connection"] = "close"
            # Tornado answers a client of HTTP/1.0 that has asked for Keep-Alive with Keep-Alive, even where it closes
            # the connection then: `ab -k` would lose its next request. The application has these headers in an object
            # of its own.
            self._request_headers = HTTPHeaders()
        return super().write_headers(start_line, headers, chunk)

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
            elif self.draining and unread(self.stream):
                _half_close(self.stream)
                _background.add(task := asyncio.ensure_future(self._read_to_end()))
                task.add_done_callback(_background.discard)
                return
        super()._finish_request(future)

    def _read_on(self) -> None:
        """Have the rest of the request read and dropped before the connection ends or is used again."""
        if self._request_start_line is not None and self._request_headers is not None:
            asked = not self._can_keep_alive(self._request_start_line, self._request_headers)
            self.stream.zd_ends = asked  # type: ignore[attr-defined]
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


class Server(HTTPServer):
    """Tornado's server, which knows what each of its connections is in the middle of."""

    answered = 0
    """Requests answered since boot."""

    @property
    def connections(self) -> set[Any]:
        """The open connections, each of which reads or waits for a request. A WebSocket is no longer among them."""
        return self._connections

    def start_request(self, server_conn: Any, request_conn: Any) -> Any:
        """Begin to wait for a connection's next request."""
        if getattr(server_conn, "zd_request", None) is not None:
            self._note_answer(server_conn)
        server_conn.zd_request = request_conn
        return super().start_request(server_conn, request_conn)

    def _note_answer(self, server_conn: Any) -> None:
        self.answered += 1
        server_conn.zd_used = True
        if Request.draining:
            server_conn.zd_since = time.monotonic()
        if getattr(server_conn.stream, "zd_ends", False):
            server_conn.stream.close()

    def end_responses(self) -> None:
        """Have each response from now on end its connection, if it can."""
        Request.draining = True

    def begin_drain(self) -> None:
        """Stop accepting, and have responses end their connections."""
        self.stop()
        self.end_responses()
        now = time.monotonic()
        for server_conn in self.connections:
            server_conn.zd_since = now


def state_of(server_conn: Any) -> ConnectionState:
    """Return what a connection, a member of ``Server.connections``, is in the middle of."""
    request = getattr(server_conn, "zd_request", None)
    if request is not None and request._request_start_line is not None:  # noqa: SLF001  # see the module's rules
        return ConnectionState.BUSY
    if _buffered(server_conn.stream):
        return ConnectionState.READING
    return ConnectionState.IDLE if getattr(server_conn, "zd_used", False) else ConnectionState.UNUSED


def unread(stream: Any) -> int:
    """Return how many bytes of a connection the kernel and TLS hold unread; 0 if unknown."""
    if stream.closed():
        return 0
    pending = getattr(stream.socket, "pending", None)
    return syscalls.unread(stream) + (pending() if pending is not None else 0)


def _buffered(stream: Any) -> int:
    return int(stream._read_buffer_size)  # noqa: SLF001  # see the module's rules


def _half_close(stream: Any) -> None:
    with contextlib.suppress(OSError, AttributeError):
        # The base's method: that of a TLS socket would forget its keys first.
        socket.socket.shutdown(stream.socket, socket.SHUT_WR)
