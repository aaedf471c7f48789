"""The gevent worker as it serves and drains: imported only where a worker boots.

Rules:

* This is a subclass of Gunicorn's ``GeventWorker``. Only its ``run()`` is replaced, which would close the listeners
  with what their connections need, and wait in steps of a second.
* The main greenlet sends the heartbeat, watches the master and ends idle connections; it never waits for a client.
* ``alive`` stays true in the drain: otherwise Gunicorn would end HTTP/2 connections and responses without notice.
* ``run()`` returns in time whatever greenlets do: they are killed at the deadline, and waited for only for a moment.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import gevent
from gevent.event import Event
from gevent.pool import Group, Pool
from gevent.ssl import SSLSocket
from gunicorn import http
from gunicorn.sock import ssl_context
from gunicorn.workers import ggevent
from gunicorn.workers.base_async import AsyncWorker

from zdworker.ipc.hand_over import BATCH, Connection
from zdworker.syscalls import unread
from zdworker.workers.answers import REPORT_INTERVAL_S
from zdworker.workers.drain import CHECK_INTERVAL_S, UNUSED_CONNECTION_S, Drain, InFlight
from zdworker.workers.gevent.connections import ConnectionRecord, Listener, detach, end_input, linger, taken
from zdworker.workers.gevent.http2 import Http2Drain
from zdworker.workers.gevent.schedule import BUCKET_S, Schedule
from zdworker.workers.wsgi.calls import request_of
from zdworker.workers.wsgi.drain import WsgiDrain
from zdworker.workers.wsgi.request_heads import body_is_read
from zdworker.workers.wsgi.taken import listening_name

HEARTBEAT_INTERVAL_S = 1.0
"""Seconds between two heartbeats while it serves, Gunicorn's own measure."""

REQUESTS_IN_A_TURN = 8
"""Requests of one connection that are answered, if they are there, before the loop takes a turn."""

TURN_S = 0.001
"""Seconds to sleep so that the loop has polled meanwhile: any time above 0 is enough."""

CUT_LIMIT_S = 0.2
"""Seconds that what is cut at the deadline has to end; the rest ends with the process."""


class _UnwatchedGeventWorker(ggevent.GeventWorker):  # type: ignore[misc]  # Gunicorn has no types
    """Gunicorn's worker without its check of the parent, which would end the worker in the middle of its requests."""

    def notify(self) -> None:
        AsyncWorker.notify(self)


class DrainingGeventWorker(WsgiDrain, _UnwatchedGeventWorker):
    """The worker; ``zdworker.GeventWorker`` makes its objects of this class and itself."""

    zd_ready_at_first_beat: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clients: set[Any] = set()
        self._schedule = Schedule()
        # No pool, which would have to be waited for: these connections come from a worker that had room for them.
        self._taken = Group()
        self._pools: list[Any] = [self._taken]
        self._listeners: list[Listener] = []
        self._told_to_leave: Any = None  # an Event, once run() has a hub for it
        self._offered: Any = None  # the same; set when a connection may move
        self._names: list[Any] = []
        self._next_look_s = float(self.cfg.keepalive) or math.inf  # without keepalive there is no limit
        self._drain = Drain(self, self, keepalive_s=float(self.cfg.keepalive))
        self._http2_drain = Http2Drain(self._drain)

    # -- serving -----------------------------------------------------------------------------------------------------

    def init_signals(self) -> None:
        """Install the signal handlers without Gunicorn's wake-up pipe: no greenlet reads it, and it would fill up."""
        super().init_signals()
        signal.set_wakeup_fd(-1)

    def run(self) -> None:
        """Serve until the drain is over.

        :raises SystemExit: the warm-up failed, or TLS cannot be loaded (code 3, reported).
        """
        self.zd_refuse_bad_tls()
        self._told_to_leave = Event()
        self._offered = Event()
        _count_requests_of_taken_connections()
        self.zd_warmed_up()
        if self.zd_leaving:
            return  # told to leave during the warm-up
        self._listeners = [self._listener(sock) for sock in self.sockets]
        for listener in self._listeners:
            listener.start()
        # The loop registers a listener when it next polls, which it has done when a timer fires; sleep(0) is earlier.
        gevent.sleep(TURN_S)
        self.zd_ready()
        watcher = self._watch_queue()
        while self.alive and not self.zd_leaving:
            self.notify()
            now = time.monotonic()
            for client in self._schedule.due(now):
                self._look(client, now)
            # No connection that is made meanwhile has an earlier time: `keepalive` is a second at least.
            heartbeat_s = HEARTBEAT_INTERVAL_S if self.zd_counter is None else REPORT_INTERVAL_S
            self._told_to_leave.wait(min(heartbeat_s, self._schedule.due_in(now)))
        if not self.zd_leaving:
            self.zd_leave(0.0)  # Gunicorn's reloader asks for it by ``alive``, when a file has changed
        if watcher is not None:
            watcher.stop()
        for pause_s in self._drain.steps():
            self.notify()
            if self._offered.wait(max(pause_s, TURN_S)):
                self._offered.clear()

    def _listener(self, sock: Any) -> Listener:
        sock.setblocking(1)
        pool = Pool(self.worker_connections)
        self._pools.append(pool)
        # Every connection asks for the listener's name, also when the listener is closed.
        name = sock.getsockname()
        self._names.append(name)
        named = SimpleNamespace(getsockname=lambda: name)
        context = ssl_context(self.cfg) if self.cfg.is_ssl else None
        listener = Listener(sock, partial(self.handle, named), spawn=pool, ssl_context=context)
        if self.cfg.workers > 1:
            listener.max_accept = 1  # as Gunicorn does, to share the load
        return listener

    def timeout_ctx(self) -> Any:
        """Return no limit: :meth:`zd_tend` ends connections that wait too long, and sees what they wait for."""
        return _NO_LIMIT

    def zd_load(self) -> tuple[int, int]:
        """Return the open connections and the requests answered since the worker booted."""
        return sum(len(pool) for pool in self._pools), self.nr

    def zd_on_leave(self) -> None:
        """Wake the main greenlet, which drains."""
        if self._told_to_leave is not None:
            gevent.get_hub().loop.run_callback_threadsafe(self._told_to_leave.set)

    # -- connections -------------------------------------------------------------------------------------------------

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Handle a connection, from the TLS handshake on."""
        client.record.greenlet = gevent.getcurrent()
        self._clients.add(client)
        self._schedule.put(client, client.record.since + self._next_look_s)
        try:
            if isinstance(client, SSLSocket):
                client.do_handshake()
        except OSError as error:
            self.log.debug("TLS handshake failed: %s", error)
        else:
            super().handle(listener, client, addr)
        finally:
            self._clients.discard(client)
            self._schedule.discard(client)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Answer a request.

        :raises StopIteration: the connection ends with it.
        """
        record: ConnectionRecord = sock.record
        record.busy, record.movable, record.idle_until = True, False, None
        if req.proxy_protocol_info:
            record.proxy = req.proxy_protocol_info
        elif record.proxy:
            req.proxy_protocol_info = record.proxy
        try:
            super().handle_request(listener_name, req, sock, addr)
            record.movable = body_is_read(req)
        except StopIteration:
            if not body_is_read(req) or (self.zd_leaving and unread(sock)):
                linger(sock)
            raise
        finally:
            record.note_answered(more=req.unreader.buf.tell() > 0)
            record.requests += 1
            if self._drain.gives:
                self._offered.set()
        # A client that never rests has often sent its next request by now. This greenlet would find it without a turn
        # of the loop, and leave none to the listeners, to the other clients and to the drain. A turn costs about a
        # tenth of a small request, so not each of them pays for one.
        if record.requests % REQUESTS_IN_A_TURN == 0 or self.zd_leaving:
            gevent.sleep(0)
        if record.cut:
            raise StopIteration  # the greenlet was killed, which Gunicorn's method ignores; or the drain has ended

    def handle_http2(self, listener: Any, client: Any, addr: Any, *args: Any, **kwargs: Any) -> None:
        """Handle an HTTP/2 connection."""
        client.record.http2 = True
        with contextlib.suppress(gevent.GreenletExit):
            super().handle_http2(listener, client, addr, *args, **kwargs)
            if client.record.goaway_sent and self._drain.has_begun:
                self._http2_drain.wait_for_close(client)

    def handle_http2_request(self, listener_name: Any, req: Any, sock: Any, addr: Any, h2_conn: Any) -> None:
        """Answer a request of an HTTP/2 connection."""
        record: ConnectionRecord = sock.record
        if record.http2 is not h2_conn:
            self._http2_drain.follow(record, h2_conn)
        record.busy = True
        try:
            super().handle_http2_request(listener_name, req, sock, addr, h2_conn)
        finally:
            record.note_answered(more=False)
        if self._drain.has_begun:
            self._http2_drain.end_between_streams(sock)

    def zd_tend(self, now: float) -> None:
        """End the connections whose time is over at ``now``, by ``time.monotonic()``; in the drain, which is short."""
        for client in list(self._clients):
            self._tend(client, client.record, now)

    def _look(self, client: Any, now: float) -> None:
        """End a connection if its time is over, and else say when it is looked at next, while the worker serves.

        That is at its limit, or after ``keepalive`` seconds: whatever happens to it meanwhile, its limit is no earlier.
        """
        record = client.record
        self._tend(client, record, now)
        limit = math.inf if record.busy or record.http2 is not None else self._limit(record)
        self._schedule.put(client, min(max(limit, now + BUCKET_S), now + self._next_look_s))

    def _tend(self, client: Any, record: ConnectionRecord, now: float) -> None:
        """End a connection that waits for its client, when it has waited long enough."""
        if record.http2 is not None:
            if self._drain.has_begun:
                self._http2_drain.tend(client, now)
            return
        if record.busy or (not self.cfg.keepalive and not self.zd_leaving):
            return  # without keepalive Gunicorn sets no limit either
        if now >= self._limit(record) and not unread(client):
            end_input(client)

    def _limit(self, record: ConnectionRecord) -> float:
        """Return when a connection has waited long enough.

        Gunicorn gives all of them ``keepalive`` seconds. Here this is the limit of a connection that is idle since a
        request. One never used has 5 seconds more. A head has ``keepalive`` seconds from its last byte, and ``timeout``
        seconds in all. In a drain one never used is kept until the drain's ``unused_until`` at least, and a head for as
        long from its last byte.
        """
        drain, since, keepalive_s = self._drain, record.since, float(self.cfg.keepalive)
        if record.begun:
            if drain.has_begun:
                return max(since + (float(self.cfg.timeout) or math.inf), record.received_at + drain.unused_s)
            return min(since + (float(self.cfg.timeout) or math.inf), record.received_at + keepalive_s)
        if record.idle_until is not None:
            return record.idle_until
        if record.answered:
            return since + keepalive_s
        limit = since + keepalive_s + UNUSED_CONNECTION_S
        return max(limit, drain.unused_until) if drain.has_begun else limit

    # -- the hand-over -----------------------------------------------------------------------------------------------

    def _watch_queue(self) -> Any:
        if self.zd_queue is None or not self.zd_takes:
            return None
        watcher = gevent.get_hub().loop.io(self.zd_queue.fileno(), 1)  # 1: reading

        def take() -> None:
            if not self.zd_take_or_stop():
                watcher.stop()

        watcher.start(take)
        return watcher

    def zd_take(self, connection: Connection) -> None:
        """Serve a connection that another worker has handed over, in a greenlet of its own."""
        address = connection.client()
        client = taken(connection)
        name = listening_name(client, self._names)
        listener = SimpleNamespace(getsockname=lambda: name)
        self._taken.start(gevent.Greenlet(self._serve_taken, listener, client, address))

    def _serve_taken(self, listener: Any, client: Any, address: Any) -> None:
        with contextlib.closing(client):
            self.handle(listener, client, address)

    def zd_give(self) -> list[Connection]:
        """Return the connections that can move now: those whose greenlets wait for a request of which nothing came."""
        given: list[Connection] = []
        for client in list(self._clients):
            record = client.record
            idle = not record.busy and record.movable and not record.begun and record.http2 is None
            if not idle or record.moved or isinstance(client, SSLSocket):
                continue
            until = self._limit(record) if record.answered else None
            sock = detach(client)
            if sock is not None:
                given.append(Connection(sock, until, record.requests, record.proxy or None))
            if len(given) == BATCH:
                break
        return given

    def zd_keep(self) -> None:
        """Do nothing: responses end their connections from now on (``zd_ends``)."""

    # -- draining ----------------------------------------------------------------------------------------------------

    def zd_stop_accepting(self) -> tuple[()]:
        """Close the listeners, and nothing that their connections need."""
        for listener in self._listeners:
            listener.retire()
        return ()

    def zd_in_flight(self) -> InFlight:
        """Return the open connections, and the requests that are being answered."""
        return InFlight(self.zd_load()[0], sum(client.record.busy for client in self._clients))

    def zd_requests(self) -> Iterable[tuple[str, str]]:
        """Return method and path of the request that each greenlet answers."""
        kind = DrainingGeventWorker
        answering = kind.handle_request, kind.handle_http2_request
        busy = [client.record.greenlet for client in self._clients if client.record.busy]
        return filter(None, (request_of(greenlet.gr_frame, answering) for greenlet in busy))

    def zd_begin_drain(self) -> None:
        """Do nothing: each connection's limit is computed when it is compared."""

    def zd_is_empty(self) -> bool:
        """Tell whether the greenlet of every connection has ended."""
        return not any(self._pools)

    def zd_cut(self) -> Iterator[float]:
        """Kill the greenlets of requests, end the other connections, and wait for :data:`CUT_LIMIT_S` at most."""
        for client in list(self._clients):
            client.record.cut = True
            if client.record.busy:
                client.record.greenlet.kill(block=False)
            else:
                end_input(client)
        end = time.monotonic() + CUT_LIMIT_S
        while not self.zd_is_empty() and time.monotonic() < end:
            yield CHECK_INTERVAL_S


_NO_LIMIT = contextlib.nullcontext()


def _count_requests_of_taken_connections() -> None:
    """Have Gunicorn's parser go on counting where another worker has stopped: only the first request of a connection
    may have a PROXY header. This changes a function of Gunicorn's, in the worker's own process only.
    """
    get_parser = http.get_parser

    def counting(cfg: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
        parser = get_parser(cfg, source, *args, **kwargs)
        record = getattr(source, "record", None)
        if record is not None and record.requests:
            parser.req_count = record.requests
        return parser

    http.get_parser = counting
