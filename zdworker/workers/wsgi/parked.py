"""Parked connections: those that the poll of a worker watches, because no thread should wait for their clients.

Rules:

* A connection waits here until the head of its request is whole. One whose time is over is handed back to the worker.
* A connection lingers here when its response is sent and its client still sends: the kernel answers a close on unread
  data with a reset, and the client may lose the response (RFC 9112 9.6). The writing half is closed, and what arrives
  is read and dropped until the client closes, for a bounded time.
* Nothing here waits for a client. The worker runs the poll, and calls :meth:`Parked.expire` about ten times a second.
"""

from __future__ import annotations

import functools
import itertools
import selectors
import socket
import time
from typing import Any, Protocol

from zdworker.syscalls import unread
from zdworker.workers.closing import LINGER_S, LINGER_TOTAL_S
from zdworker.workers.wsgi.request_heads import has_begun, is_readable, read_head, shows_heads, speaks_proxy_protocol


class Connection(Protocol):
    """What is needed of a connection; a ``gunicorn.workers.gthread.TConn``, or a socket that is its own."""

    zd_head: bytearray
    """What was read of the next request's head."""

    @property
    def sock(self) -> Any:
        """The client's socket."""


class ParkingWorker(Protocol):
    """What is needed of the worker, which gets a connection back by one of these calls."""

    def zd_serve(self, conn: Any) -> None:
        """Serve a request that has arrived."""

    def zd_expired(self, conn: Any) -> None:
        """End a connection that has waited until its time was over."""

    def zd_close(self, conn: Any) -> None:
        """Close a connection at once."""

    def zd_wait_until(self, conn: Any) -> float:
        """Return until when a connection may wait, by ``time.monotonic()``."""


def speaks_http2(conn: Any) -> bool:
    """Return whether a connection is one of HTTP/2."""
    return bool(getattr(conn, "is_http2", False))


class Parked:
    """The parked connections of one worker.

    :param worker: gets them back.
    :param poller: what ``zdworker.workers.wsgi.poller.make()`` returns; its events carry a function of the socket.
    :param cfg: Gunicorn's configuration.
    """

    def __init__(self, worker: ParkingWorker, poller: Any, cfg: Any) -> None:
        self._worker = worker
        self._poller = poller
        self.shows_heads = shows_heads(cfg)  # kept, because Gunicorn's configuration is slow to read
        self._proxied = speaks_proxy_protocol(cfg)
        self.waiting: dict[Any, float] = {}
        """Connections without a whole request, with the moment until which they may wait."""
        self.lingering: dict[Any, tuple[float, float]] = {}
        """Answered connections with two moments: when they are closed if silent, and when they are in any case."""

    def __len__(self) -> int:
        return len(self.waiting) + len(self.lingering)

    def has_request(self, conn: Connection) -> bool:
        """Tell whether a request has arrived; adds to ``conn.zd_head`` where heads can be seen."""
        if not self.shows_heads:
            return is_readable(conn.sock)
        return read_head(conn.sock, conn.zd_head, self._proxied)

    def has_begun(self, conn: Connection) -> bool:
        """Tell whether a part of a request has been read."""
        return has_begun(conn.zd_head, self._proxied)

    def wait(self, conn: Connection, until: float | None = None) -> None:
        """Keep ``conn`` until its request has arrived, or its time is over.

        :param until: when that is, by ``time.monotonic()``, if it is known already.
        """
        self.waiting[conn] = self._worker.zd_wait_until(conn) if until is None else until
        self._poller.register(conn.sock, selectors.EVENT_READ, functools.partial(self._on_readable, conn))

    def limit_silent(self, *, but_movable: bool = False) -> None:
        """Ask the worker again until when those connections may wait that have not begun a request.

        :param but_movable: leave out those that can be handed over.
        """
        for conn in self.waiting:
            if not self.has_begun(conn) and (not but_movable or speaks_http2(conn)):
                self.waiting[conn] = self._worker.zd_wait_until(conn)

    def detach_silent(self, most: int) -> list[tuple[Any, float]]:
        """Let go of connections, at most so many, of whose next request nothing has been read.

        :return: each with the time until which it would be kept, by ``time.monotonic()``.
        """
        silent = ((conn, until) for conn, until in self.waiting.items() if not conn.zd_head and not speaks_http2(conn))
        found = list(itertools.islice(silent, most))
        for conn, _until in found:
            self._leave(self.waiting, conn)
        return found

    def end(self, conn: Connection, body_read: bool) -> None:
        """Close ``conn`` behind its last response; what its client still sends is read first.

        :param body_read: the body of the last request has been read to its end.
        """
        sock = conn.sock
        if sock.fileno() < 0 or (body_read and not unread(sock)):
            self._worker.zd_close(conn)
            return
        try:
            socket.socket.shutdown(sock, socket.SHUT_WR)  # the base class's method, as in _discard()
            sock.setblocking(False)
        except OSError:  # the client is gone
            self._worker.zd_close(conn)
            return
        now = time.monotonic()
        self.lingering[conn] = (now + LINGER_S, now + LINGER_TOTAL_S)
        self._poller.register(sock, selectors.EVENT_READ, functools.partial(self._discard, conn))

    def expire(self, now: float) -> None:
        """Hand back the connections whose time is over at ``now``, by ``time.monotonic()``."""
        for conn in [conn for conn, until in self.waiting.items() if until <= now]:
            if is_readable(conn.sock):  # since the last turn of the poll
                self._on_readable(conn, conn.sock)
            else:
                self._leave(self.waiting, conn)
                self._worker.zd_expired(conn)
        for conn in [conn for conn, (until, _limit) in self.lingering.items() if until <= now]:
            self._close(conn)

    def _on_readable(self, conn: Connection, _sock: Any) -> None:
        if self.has_request(conn):
            self._leave(self.waiting, conn)
            self._worker.zd_serve(conn)
        elif self.has_begun(conn):
            self.waiting[conn] = self._worker.zd_wait_until(conn)

    def _discard(self, conn: Connection, sock: Any) -> None:
        try:
            # The base class's method: what a TLS client sends now need not be decrypted.
            ended = not socket.socket.recv(sock, 65536)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            self._close(conn)
        else:
            limit = self.lingering[conn][1]
            self.lingering[conn] = (min(time.monotonic() + LINGER_S, limit), limit)

    def _close(self, conn: Connection) -> None:
        self._leave(self.lingering, conn)
        self._worker.zd_close(conn)

    def _leave(self, group: dict[Any, Any], conn: Connection) -> None:
        del group[conn]
        self._poller.unregister(conn.sock)
