"""The worker class for WSGI applications on threads: Gunicorn's ``gthread``, with a drain that loses no request.

Rules:

* Gunicorn's loop, its pool of threads and its handling of a request stay; what happens to a connection between two
  requests is decided here.
* A thread gets a connection only when there is something to do for it. Silent, half-read and idle connections wait in
  the poll, where they take no thread; the lingering ones as well (:mod:`zdworker.workers.wsgi.parked`).
* ``alive`` stays true until the last connection is gone. Gunicorn's loop goes on, with its heartbeat, and each of its
  turns advances the drain. Its own graceful shutdown finds nothing left to do.
* The loop never waits for a client.
* No thread is waited for: ``run()`` returns at the deadline, and the process ends (``forkserver/worker_boot.py``).
"""

from __future__ import annotations

import errno
import functools
import itertools
import math
import selectors
import sys
import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from gunicorn import http
from gunicorn.workers import gthread

from zdworker import texts
from zdworker.ipc.hand_over import BATCH, HandOverQueue
from zdworker.ipc.hand_over import Connection as HandedOver
from zdworker.workers.drain import TEND_INTERVAL_S, Drain, InFlight
from zdworker.workers.http2 import Liveness, goaway_at
from zdworker.workers.thread.http2 import has_input, last_stream, open_streams
from zdworker.workers.wsgi import poller
from zdworker.workers.wsgi.calls import request_of
from zdworker.workers.wsgi.drain import OUT_OF_DESCRIPTORS, WsgiDrain
from zdworker.workers.wsgi.parked import Parked
from zdworker.workers.wsgi.request_heads import body_is_read, has_read_ahead, is_readable, wait_until
from zdworker.workers.wsgi.taken import listening_name, parser_for

Connection = Any
"""A ``gunicorn.workers.gthread.TConn``, with attributes of zdworker's:

* ``zd_head``: what was read of its next request's head,
* ``zd_request_seen``: whether the loop has seen that its request has arrived,
* ``zd_goaway_due``: its time is over, and a thread has it to send GOAWAY (HTTP/2),
* ``zd_last_stream``: the last stream that had come when it last was idle before the drain (HTTP/2),
* ``zd_liveness``: the :class:`zdworker.workers.http2.Liveness` of its client; None until a thread has it (HTTP/2).
"""


ANSWERING = [
    getattr(gthread.ThreadWorker, name)
    for name in ("handle_request", "handle_http2_request")
    if hasattr(gthread.ThreadWorker, name)
]
"""Gunicorn's methods that answer a request in a thread."""


class ReturnToPoll(BaseException):
    """Leaves Gunicorn's handling of a connection, because the thread would have to wait for the client.

    Not an ``Exception``, because Gunicorn answers those with an error page.
    """


class KeepAliveConnections(dict[Connection, None]):
    """The idle connections in the order of their coming. Gunicorn's code takes it for a ``deque``; removal is cheap."""

    def __getitem__(self, index: Any) -> Any:
        return next(itertools.islice(self, index, None))


class ThreadWorker(WsgiDrain, gthread.ThreadWorker):  # type: ignore[misc]  # Gunicorn has no types
    """Serves a WSGI application with threads, and loses no request when it is replaced."""

    zd_ready_at_first_beat = False
    zd_has_threads = True

    nr_conns: int
    poller: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keepalived_conns = KeepAliveConnections()
        self._checked_at = 0.0
        self._was_crowded = False
        # Gunicorn's configuration is slow to read.
        self._tls = bool(self.cfg.is_ssl)
        self._keepalive_s = float(self.cfg.keepalive)
        self._drain = Drain(self, self, keepalive_s=self._keepalive_s)

    def run(self) -> None:
        """Serve until the drain is over.

        :raises SystemExit: (3) ``zd_warmup`` failed, or TLS cannot be loaded; that is reported.
        """
        self.zd_warmed_up()
        self.poller.close()
        self.poller = poller.make()
        self._parked = Parked(self, self.poller, self.cfg)
        self._names = [listener.getsockname() for listener in self.sockets]
        if self.zd_queue is not None and self.zd_takes:
            self.poller.register(self.zd_queue, selectors.EVENT_READ, self._on_queue_readable)
        super().run()

    # -- accepting ---------------------------------------------------------------------------------------------------

    def set_accept_enabled(self, enabled: bool) -> None:
        """Begin or stop accepting, and report the first time; Gunicorn's loop asks for it again in a drain, in vain."""
        super().set_accept_enabled(enabled and not self.zd_leaving)
        if self._accepting:
            self.zd_ready()

    def accept(self, listener: Any) -> None:
        """Accept a connection; when the process is out of descriptors, go on with the connections that it has.

        :raises OSError: there is no descriptor left, and no connection either.
        """
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self.nr_conns:
                raise
            self.worker_connections = self.nr_conns  # until the next heartbeat
            if not self._was_crowded:
                self._was_crowded = True
                self.log.warning(OUT_OF_DESCRIPTORS, texts.counted(self.nr_conns, "connection"))

    def enqueue_req(self, conn: Connection) -> None:
        """Give a new connection to a thread, or let it wait until its first request has arrived."""
        conn.zd_goaway_due, conn.zd_last_stream, conn.zd_liveness = False, 0, None
        conn.zd_head = bytearray()
        conn.data_ready = True  # Gunicorn's thread need not wait
        if self._parked.has_request(conn):
            self.zd_serve(conn)
        else:
            self._park(conn)

    def zd_serve(self, conn: Connection) -> None:
        """Give a connection with a request to a thread."""
        conn.zd_request_seen = True
        super().enqueue_req(conn)

    # -- between two requests ----------------------------------------------------------------------------------------

    def finish_request(self, conn: Connection, fs: Future[Any]) -> None:
        """Take a connection back from a thread, and do what the thread has found; called on the main thread."""
        try:
            result = fs.result()  # zdworker cancels none
            if result is ReturnToPoll:
                self._park(conn)
            elif not result:
                request = None if conn.is_http2 else getattr(conn.parser, "mesg", None)
                self._parked.end(conn, body_is_read(request))
            elif has_read_ahead(conn.parser.unreader, conn.sock):
                self.zd_serve(conn)
            else:
                conn.timeout = time.monotonic() + self._keepalive_s
                self.poller.register(conn.sock, selectors.EVENT_READ, functools.partial(self._on_idle_readable, conn))
                self.keepalived_conns[conn] = None
        except Exception:
            self.log.exception("Connection dropped")
            self.zd_close(conn)

    def _on_idle_readable(self, conn: Connection, sock: Any) -> None:
        self.poller.unregister(sock)
        del self.keepalived_conns[conn]
        # Its head is nearly always whole. The thread checks that, so that it costs the loop nothing.
        conn.zd_request_seen = not self._parked.shows_heads
        super().enqueue_req(conn)

    def _park(self, conn: Connection) -> None:
        conn.sock.setblocking(False)  # there may be a timeout on it
        self._parked.wait(conn)

    def zd_wait_until(self, conn: Connection) -> float:
        """Return until when a parked connection is kept, by ``time.monotonic()``."""
        if conn.is_http2:
            now, last = time.monotonic(), last_stream(conn.parser)
            if open_streams(conn.parser):
                return math.inf
            if not self._drain.has_begun:  # before Gunicorn 27 an idle one is never closed
                conn.zd_last_stream = last
                return now + (getattr(conn.parser, "idle_timeout", None) or math.inf)
            if last:
                answered_in_drain = last > conn.zd_last_stream
                asked_at = conn.zd_liveness.asked_at
                return goaway_at(
                    self._drain, idle_since=now, used=True, answered_in_drain=answered_in_drain, asked_at=asked_at
                )
        return wait_until(self.cfg, self._parked.has_begun(conn), self._drain.unused_until)

    # -- connections whose time is over ------------------------------------------------------------------------------

    def murder_keepalived(self, force: bool = False) -> None:
        """End the connections whose time is over, once per heartbeat; Gunicorn's loop calls this in each turn."""
        if self._zd_next_heartbeat != self._checked_at:
            self._checked_at = self._zd_next_heartbeat
            self.zd_tend(time.monotonic())

    def murder_pending(self) -> None:
        """Do nothing: :meth:`murder_keepalived` looks after the waiting connections as well."""

    def zd_tend(self, now: float) -> None:
        """End the connections whose time is over at ``now``, by ``time.monotonic()``."""
        self.worker_connections = self.cfg.worker_connections
        for conn in [conn for conn in self.keepalived_conns if conn.timeout <= now]:
            if is_readable(conn.sock):  # since the last turn
                self._on_idle_readable(conn, conn.sock)
            else:
                self.poller.unregister(conn.sock)
                del self.keepalived_conns[conn]
                self.zd_close(conn)
        self._parked.expire(now)

    def zd_expired(self, conn: Connection) -> None:
        """Close a parked connection whose time is over; with HTTP/2 a thread sends GOAWAY first, which may block."""
        if conn.is_http2:
            conn.zd_goaway_due = True
            self.zd_serve(conn)
        else:
            self.zd_close(conn)

    def zd_close(self, conn: Connection) -> None:
        """Close a connection at once."""
        self.nr_conns -= 1
        conn.close()

    # -- in a thread -------------------------------------------------------------------------------------------------

    def handle(self, conn: Connection) -> Any:
        """Serve a connection; return whether it is kept, or :class:`ReturnToPoll` if it has to wait for its client."""
        if not conn.zd_request_seen and not self._parked.has_request(conn):
            return ReturnToPoll
        if conn.zd_head:
            self._pass_head(conn)
        if self._tls and not conn.initialized:
            conn.init = functools.partial(self._handshake, conn)
        try:
            return super().handle(conn)
        except ReturnToPoll:
            return ReturnToPoll
        except Exception:
            raise
        except BaseException:
            # An exit, or what asyncio ends its tasks with. Its future would raise it on the main thread, which would
            # end the worker, and with that all other requests.
            self.log.exception("A request has raised what is no Exception: its connection is closed")
            return False

    def _pass_head(self, conn: Connection) -> None:
        """Put the head where Gunicorn's parser reads it."""
        if conn.parser is None:
            conn.parser = http.get_parser(self.cfg, conn.sock, conn.client)
        conn.parser.unreader.buf.write(conn.zd_head)  # it is empty: no connection waits with something read ahead
        conn.zd_head.clear()

    def _handshake(self, conn: Connection) -> None:
        del conn.init
        conn.init()
        if not conn.is_http2 and not has_input(conn.sock):
            raise ReturnToPoll

    def handle_http2(self, conn: Connection) -> Any:
        """Serve what has arrived on an HTTP/2 connection. Gunicorn would block here until the connection ends."""
        protocol = conn.parser
        if conn.zd_liveness is None:
            conn.zd_liveness = Liveness(protocol.h2_conn)

        def receive_data(data: bytes | None = None) -> Any:
            queued = getattr(protocol, "pending_requests", None) or getattr(protocol, "_deferred_events", None)
            if data is None and not queued and self._goaway_sent(conn):
                return []
            return type(protocol).receive_data(protocol, data)

        protocol.receive_data = receive_data
        try:
            return super().handle_http2(conn)
        finally:
            del protocol.receive_data

    def _goaway_sent(self, conn: Connection) -> bool:
        """Send GOAWAY if it is time to, and tell whether; see :mod:`zdworker.workers.http2` for when it is.

        :raises ReturnToPoll: there is nothing to read, and GOAWAY is not due.
        """
        protocol, liveness, quiet = conn.parser, conn.zd_liveness, not has_input(conn.sock)
        last = last_stream(protocol)
        if not open_streams(protocol):
            answered = self._drain.has_begun and last > conn.zd_last_stream
            due = quiet and (conn.zd_goaway_due or liveness.shown)
            if due and answered and liveness.asked_at is None:
                liveness.ask(conn.sock)
                due, conn.zd_goaway_due = False, False
            elif not due and answered and time.monotonic() > self._drain.idle_until:
                # It had its time, but there is always a request under way.
                due = liveness.drop_until_quiet(conn.sock)
            if due:
                protocol.close(last_stream_id=last)
                return True
        if quiet:
            raise ReturnToPoll
        conn.zd_goaway_due = False
        return False

    # -- the hand-over -----------------------------------------------------------------------------------------------

    def _on_queue_readable(self, queue: HandOverQueue) -> None:
        # In a drain it is the drain that takes, and only what is left in a closed queue.
        if self.zd_leaving or not self.zd_take_or_stop():
            self.poller.unregister(queue)

    def zd_take(self, connection: HandedOver) -> None:
        """Serve a connection that another worker has handed over."""
        sock = connection.sock
        conn = gthread.TConn(self.cfg, sock, connection.client(), listening_name(sock, self._names))
        conn.zd_goaway_due, conn.zd_last_stream, conn.zd_liveness = False, 0, None
        conn.zd_head, conn.data_ready = bytearray(), True
        if connection.requests:
            conn.parser = parser_for(self.cfg, connection, sock, conn.client)
        self.nr_conns += 1
        self._parked.wait(conn, connection.idle_until)

    def zd_give(self) -> list[HandedOver]:
        """Return the connections that can move now: idle ones, and silent ones."""
        if self._tls:
            return []
        given: list[HandedOver] = []
        for conn in [conn for conn in itertools.islice(self.keepalived_conns, BATCH) if not conn.is_http2]:
            self.poller.unregister(conn.sock)
            del self.keepalived_conns[conn]
            given.append(HandedOver(conn.sock, conn.timeout, conn.parser.req_count))
        for conn, until in self._parked.detach_silent(BATCH - len(given)):
            requests = conn.parser.req_count if conn.parser is not None else 0
            given.append(HandedOver(conn.sock, until if requests else None, requests))
        self.nr_conns -= len(given)
        return given

    def zd_keep(self) -> None:
        """Limit the time of silent connections; responses end theirs from now on (:meth:`zd_ends`)."""
        self._parked.limit_silent()

    # -- draining ----------------------------------------------------------------------------------------------------

    def zd_on_leave(self) -> None:
        """Have the loop take its next turn at once."""
        self.method_queue.defer(_wake_up)

    def zd_load(self) -> tuple[int, int]:
        """Return the open connections and the requests answered since the worker booted."""
        return self.nr_conns, self.nr

    def notify(self) -> None:
        """Send the heartbeat, and advance the drain once it was asked for; the loop calls this in each turn."""
        super().notify()
        if self.zd_deadline != math.inf and self.alive:
            self.alive = self._drain.advance()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for events and call their functions; in a drain for a moment only."""
        if self.zd_deadline != math.inf:
            left = self.zd_deadline - time.monotonic()
            timeout = max(0.0, min(timeout, TEND_INTERVAL_S, left)) if self.alive else 0.0
            if self._drain.gives:
                timeout = min(timeout, self._drain.pause_s)
        super().wait_for_and_dispatch_events(timeout)

    def zd_stop_accepting(self) -> tuple[()]:
        """Close the listeners."""
        self.set_accept_enabled(False)
        for listener in self.sockets:
            listener.close()
        return ()

    def zd_in_flight(self) -> InFlight:
        """Return the open connections, and those of them that a thread has or is about to get."""
        return InFlight(self.nr_conns, self.nr_conns - len(self.keepalived_conns) - len(self._parked))

    def zd_requests(self) -> Iterable[tuple[str, str]]:
        """Return method and path of the request that each thread answers."""
        frames = sys._current_frames().values()  # noqa: SLF001  # it is documented
        return filter(None, (request_of(frame, ANSWERING) for frame in frames))

    def zd_begin_drain(self) -> None:
        """Limit the time of connections on which no request has begun, if they stay."""
        self._parked.limit_silent(but_movable=self._drain.gives and not self._tls)

    def zd_is_empty(self) -> bool:
        """Tell whether the last connection is gone."""
        return self.nr_conns <= 0

    def zd_cut(self) -> tuple[()]:
        """Count no connection any more, so that Gunicorn's own graceful shutdown does not wait for them."""
        self.nr_conns = 0
        return ()


def _wake_up() -> None:
    """Do nothing: that this was called has woken the loop."""
