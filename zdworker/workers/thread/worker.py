"""The worker class for WSGI applications on threads: Gunicorn's ``gthread``, with a drain that loses no request.

Rules:

* Gunicorn's loop, its pool of threads and its handling of a request stay; what happens to a connection between two
  requests is decided here.
* A thread gets a connection only when there is something to do for it. One that is silent, or whose request has come in
  part, a kept one and an idle HTTP/2 one wait in the poll, where they hold up nobody.
* ``alive`` stays true until the last connection is gone: Gunicorn's loop goes on, with its heartbeat, and the drain is
  done in its turns. Its own graceful shutdown finds nothing left to do.
* The loop never waits for a client. What has to be read before a connection may be closed (a close on unread data is a
  reset, RFC 9112 9.6) is read in the poll, for a bounded time.
* No thread is waited for: ``run()`` returns at the deadline, and the process ends (``forkserver/worker_boot.py``).
"""

from __future__ import annotations

import errno
import functools
import itertools
import math
import selectors
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from gunicorn import http
from gunicorn.workers import gthread

from zdworker.syscalls import unread
from zdworker.workers.base import UNUSED
from zdworker.workers.thread import poller
from zdworker.workers.thread.http2 import PAUSE, last_stream, open_streams, readable, settle
from zdworker.workers.wsgi.drain import WsgiDrain
from zdworker.workers.wsgi.request_heads import (
    LINGER,
    LINGER_IN_ALL,
    body_has_come,
    has_come,
    patience,
    read_ahead,
    read_head,
    shows_heads,
)

Connection = Any
"""A ``gunicorn.workers.gthread.TConn``, with attributes of ours:

* ``zd_head``, what has come of its next request's head; ``zd_come``, whether that is whole,
* ``zd_farewell``, its time is over, and a thread has it to say so (HTTP/2); ``zd_last``, the last stream that had come
  when it last rested before the drain.
"""

TURN = 0.1
"""Seconds between two turns of the loop in a drain, at most."""


class Rest(BaseException):
    """Leaves Gunicorn's handling of a connection: the thread would wait for the client now.

    Not an ``Exception``, because Gunicorn answers those with an error.
    """


class Kept(dict[Connection, None]):
    """Kept connections in the order of their coming, for Gunicorn's code a ``deque``; leaving takes no search."""

    def __getitem__(self, index: Any) -> Any:
        return next(itertools.islice(self, index, None))


class ThreadWorker(WsgiDrain, gthread.ThreadWorker):  # type: ignore[misc]  # Gunicorn has no types
    """Serves a WSGI application with threads, and loses no request when it is replaced."""

    zd_ready_at_first_beat = False

    nr_conns: int
    poller: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keepalived_conns = Kept()
        self._waiting: dict[Connection, None] = {}  # never used, half-read, or HTTP/2 and idle
        self._lingering: dict[Connection, float] = {}  # answered, but still sent to; until when at most
        self._glanced = 0.0
        self._unused_until = self._idle_until = math.inf
        # Gunicorn's configuration is slow to read.
        self._shows_heads, self._tls = shows_heads(self.cfg), bool(self.cfg.is_ssl)
        self._keepalive = float(self.cfg.keepalive)

    def run(self) -> None:
        """Serve until the drain is over.

        :raises SystemExit: (3) ``zd_warmup`` failed, which is reported.
        """
        self.zd_warmed_up()
        self.poller.close()
        self.poller = poller.make()
        super().run()

    # -- accepting ---------------------------------------------------------------------------------------------------

    def set_accept_enabled(self, enabled: bool) -> None:
        """Gunicorn's, that is asked in each turn; in a drain never again."""
        super().set_accept_enabled(enabled and not self.zd_leaving)
        if self._accepting:
            self.zd_ready()

    def accept(self, listener: Any) -> None:
        """Gunicorn's; a process that is out of descriptors goes on with the connections that it has."""
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self.nr_conns:
                raise
            self.worker_connections = self.nr_conns
            self.log.warning("Out of file descriptors: from now on %d connections at most", self.worker_connections)

    def enqueue_req(self, conn: Connection) -> None:
        """Give a new connection to a thread, or let it wait until its first request has come."""
        conn.zd_farewell, conn.zd_last = False, 0
        conn.zd_head = bytearray()
        conn.data_ready = True  # Gunicorn's thread need not wait
        if self._has_come(conn):
            self._submit(conn)
        else:
            self._wait(conn)

    def _has_come(self, conn: Connection) -> bool:
        return read_head(conn.sock, conn.zd_head) if self._shows_heads else has_come(conn.sock)

    def _submit(self, conn: Connection) -> None:
        conn.zd_come = True
        super().enqueue_req(conn)

    # -- between two requests ----------------------------------------------------------------------------------------

    def finish_request(self, conn: Connection, fs: Future[Any]) -> None:
        """Do with a connection what the thread that was busy with it says; called on the main thread."""
        try:
            result = fs.result()  # nothing of ours cancels one
            if result is Rest:
                self._wait(conn)
            elif not result:
                self._end(conn)
            elif read_ahead(conn.parser.unreader, conn.sock):
                self._submit(conn)
            else:
                conn.timeout = time.monotonic() + self._keepalive
                self.poller.register(conn.sock, selectors.EVENT_READ, functools.partial(self._on_kept_readable, conn))
                self.keepalived_conns[conn] = None
        except Exception:
            self.log.exception("Connection dropped")
            self._close(conn)

    def _on_kept_readable(self, conn: Connection, sock: socket.socket) -> None:
        self.poller.unregister(sock)
        del self.keepalived_conns[conn]
        # Its head is nearly always whole: the thread has a look, which costs the loop nothing.
        conn.zd_come = not self._shows_heads
        super().enqueue_req(conn)

    def _wait(self, conn: Connection) -> None:
        conn.timeout = self._patience(conn)
        conn.sock.setblocking(False)  # there may be a timeout on it
        self.poller.register(conn.sock, selectors.EVENT_READ, functools.partial(self._on_readable, conn))
        self._waiting[conn] = None

    def _on_readable(self, conn: Connection, sock: socket.socket) -> None:
        if self._has_come(conn):
            self.poller.unregister(sock)
            del self._waiting[conn]
            self._submit(conn)
        elif conn.zd_head:
            conn.timeout = self._patience(conn)

    def _patience(self, conn: Connection) -> float:
        """Return when a connection that waits has had its time, by ``time.monotonic()``."""
        if conn.is_http2:
            if open_streams(conn.parser):
                return math.inf
            if not self.zd_leaving:  # before Gunicorn 27 an idle one is never closed
                conn.zd_last = last_stream(conn.parser)
                return time.monotonic() + (getattr(conn.parser, "idle_timeout", None) or math.inf)
            if last_stream(conn.parser):
                return time.monotonic() + (PAUSE if last_stream(conn.parser) > conn.zd_last else self._keepalive)
        return patience(self.cfg, bool(conn.zd_head), self._unused_until)

    # -- what has had its time ---------------------------------------------------------------------------------------

    def murder_keepalived(self, force: bool = False) -> None:
        """Let connections go whose time is over."""
        if self._zd_next_beat == self._glanced:
            return
        self._glanced = self._zd_next_beat  # as often as the heart beats
        now = time.monotonic()
        for conn in [conn for conn in self.keepalived_conns if conn.timeout <= now]:
            self._dismiss(conn, self.keepalived_conns, self._on_kept_readable)
        for conn in [conn for conn in self._waiting if conn.timeout <= now]:
            self._dismiss(conn, self._waiting, self._on_readable)
        for conn in [conn for conn in self._lingering if conn.timeout <= now]:
            self._end_lingering(conn)

    def murder_pending(self) -> None:
        """Nothing: the connections that wait are looked after with the kept ones."""

    def _dismiss(self, conn: Connection, place: dict[Connection, None], take_up: Callable[..., None]) -> None:
        if has_come(conn.sock):  # since the last turn
            take_up(conn, conn.sock)
            return
        self.poller.unregister(conn.sock)
        del place[conn]
        if conn.is_http2:
            conn.zd_farewell = True  # GOAWAY may have to wait for the client to read: a thread's work
            self._submit(conn)
        else:
            self._close(conn)

    # -- closing -----------------------------------------------------------------------------------------------------

    def _end(self, conn: Connection) -> None:
        """Close a connection behind its last response; what the client is still sending is read first."""
        request = None if conn.is_http2 else getattr(conn.parser, "mesg", None)
        if conn.sock.fileno() < 0 or (body_has_come(request) and not unread(conn.sock)):
            self._close(conn)
        else:
            self._linger(conn)

    def _close(self, conn: Connection) -> None:
        self.nr_conns -= 1
        conn.close()

    def _linger(self, conn: Connection) -> None:
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
        except OSError:  # the client is gone
            self._close(conn)
            return
        now = time.monotonic()
        conn.timeout = now + LINGER
        self.poller.register(conn.sock, selectors.EVENT_READ, functools.partial(self._read_away, conn))
        self._lingering[conn] = now + LINGER_IN_ALL

    def _read_away(self, conn: Connection, sock: socket.socket) -> None:
        try:
            # The base class's method: what a TLS client sends now need not be deciphered.
            over = not socket.socket.recv(sock, 65536)
        except BlockingIOError:
            return
        except OSError:
            over = True
        if over:
            self._end_lingering(conn)
        else:
            conn.timeout = min(time.monotonic() + LINGER, self._lingering[conn])

    def _end_lingering(self, conn: Connection) -> None:
        del self._lingering[conn]
        self.poller.unregister(conn.sock)
        self._close(conn)

    # -- in a thread -------------------------------------------------------------------------------------------------

    def handle(self, conn: Connection) -> Any:
        """Serve a connection; Gunicorn's, and :class:`Rest` for a connection that has to wait."""
        if not conn.zd_come and not self._has_come(conn):
            return Rest
        if conn.zd_head:
            self._hand_over(conn)
        if self._tls and not conn.initialized:
            conn.init = functools.partial(self._shake_hands, conn)
        try:
            return super().handle(conn)
        except Rest:
            return Rest

    def _hand_over(self, conn: Connection) -> None:
        """Let Gunicorn's parser find the head where it looks for it."""
        if conn.parser is None:
            conn.parser = http.get_parser(self.cfg, conn.sock, conn.client)
        conn.parser.unreader.buf.write(conn.zd_head)  # it is empty: no connection waits with something read ahead
        conn.zd_head.clear()

    def _shake_hands(self, conn: Connection) -> None:
        del conn.init
        conn.init()
        if not conn.is_http2 and not readable(conn.sock):
            raise Rest

    def handle_http2(self, conn: Connection) -> Any:
        """Serve what has come on an HTTP/2 connection. Gunicorn would block here for as long as it lasts."""
        protocol = conn.parser

        def receive_data(data: bytes | None = None) -> Any:
            queued = getattr(protocol, "pending_requests", None) or getattr(protocol, "_deferred_events", None)
            if data is None and not queued and self._is_over(conn):
                return []
            return type(protocol).receive_data(protocol, data)

        protocol.receive_data = receive_data
        try:
            return super().handle_http2(conn)
        finally:
            del protocol.receive_data

    def _is_over(self, conn: Connection) -> bool:
        """Say GOAWAY if it is time to, and tell whether.

        It names the last stream that has come, and none is open: all that it covers is answered, and what comes later
        may be sent again elsewhere (RFC 9113 6.8). It could be said while streams are open, but httpx lets those fail.

        :raises Rest: nothing to read, and nothing to say.
        """
        protocol, quiet = conn.parser, not readable(conn.sock)
        last = last_stream(protocol)
        if not open_streams(protocol):
            busy = self.zd_leaving and last > conn.zd_last and time.monotonic() > self._idle_until
            if busy:  # it had its time, but there is always a request under way
                settle(conn.sock)
            if busy or (quiet and conn.zd_farewell):
                protocol.close(last_stream_id=last)
                return True
        if quiet:
            raise Rest
        conn.zd_farewell = False
        return False

    # -- draining ----------------------------------------------------------------------------------------------------

    def zd_on_leave(self) -> None:
        """Have the loop take its next turn at once."""
        self.method_queue.defer(_nothing)

    def zd_load(self) -> tuple[int, int]:
        """Return the open connections and the requests answered since birth."""
        return self.nr_conns, self.nr

    def notify(self) -> None:
        """Beat the heart, in each turn of the loop; and drain, once told to."""
        super().notify()
        if self.zd_deadline != math.inf and self.alive:
            self._drain()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Gunicorn's; in a drain for a moment only."""
        if self.zd_deadline != math.inf:
            timeout = max(0.0, min(timeout, TURN, self.zd_deadline - time.monotonic())) if self.alive else 0.0
        super().wait_for_and_dispatch_events(timeout)

    def is_parent_alive(self) -> bool:
        """Gunicorn's; a worker of ours looks in :meth:`notify`, and drains."""
        return bool(self.zd_master_pid) or super().is_parent_alive()

    def _drain(self) -> None:
        now = time.monotonic()
        if self._unused_until == math.inf:
            self._begin_drain(now)
        if self.nr_conns <= 0:
            self.alive = False
        elif now >= self.zd_deadline:
            self._log_cut()
            self.nr_conns = 0  # so that Gunicorn's own graceful shutdown waits no further
            self.alive = False

    def _begin_drain(self, now: float) -> None:
        self.set_accept_enabled(False)
        for listener in self.sockets:
            listener.close()
        self.zd_draining()
        self.log.info("Draining: %d connections, %d requests under way", self.nr_conns, self._requests())
        self._idle_until = now + self._keepalive
        self._unused_until = now + max(UNUSED, self._keepalive)
        for conn in self._waiting:
            if not conn.zd_head:
                conn.timeout = self._patience(conn)

    def _requests(self) -> int:
        return self.nr_conns - len(self.keepalived_conns) - len(self._waiting) - len(self._lingering)

    def _log_cut(self) -> None:
        self.log.warning(
            "graceful_timeout is over: %d requests and %d connections in all are cut", self._requests(), self.nr_conns
        )


def _nothing() -> None:
    """Wake the loop."""
