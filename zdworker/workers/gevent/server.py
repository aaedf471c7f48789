"""Gunicorn's gevent worker, as a zero-downtime worker runs it: imported only where a worker boots.

Rules:

* A subclass of Gunicorn's ``GeventWorker``; of it only ``run()`` is replaced, which would close its stream servers with
  what their connections need, and wait in steps of a second.
* The main greenlet beats the heart, watches the parent and lets idle connections end; it never waits for a client.
* ``alive`` stays true in the drain: Gunicorn would leave HTTP/2 connections and end responses without notice.
* ``run()`` returns in time whatever greenlets do: they are killed at the deadline and not waited for.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.ssl import SSLSocket
from gunicorn.sock import ssl_context
from gunicorn.workers import ggevent
from gunicorn.workers.base_async import AsyncWorker

from zdworker.syscalls import unread
from zdworker.workers.base import UNUSED
from zdworker.workers.gevent.connections import Listener, linger, silence
from zdworker.workers.gevent.http2 import Farewell, name_last_stream
from zdworker.workers.wsgi.drain import WsgiDrain
from zdworker.workers.wsgi.request_heads import body_has_come

READY = 0.001
"""Seconds until a listener that was started accepts: any time above 0 will do."""

TICK = 0.1
"""Seconds between two looks at the connections, and two beats of the heart."""

GLANCE = 0.02
"""Seconds between two looks at whether the last connection is gone: a reload waits for it."""

CUT = 0.2
"""Seconds that what is cut at the deadline has to end; what does not is left to the end of the process."""


class _Stock(ggevent.GeventWorker):  # type: ignore[misc]  # Gunicorn has no types
    """Gunicorn's, less the look at the parent, which would end the worker in the middle of its requests."""

    def notify(self) -> None:
        AsyncWorker.notify(self)


class DrainingGeventWorker(WsgiDrain, _Stock):
    """The worker; ``zdworker.GeventWorker`` makes its objects of this class and itself."""

    zd_ready_at_first_beat: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clients: set[Any] = set()
        self._pools: list[Any] = []
        self._told: Any = None
        self._begun = 0.0
        self._farewell: Farewell | None = None
        self._patience = max(UNUSED, float(self.cfg.keepalive))

    # -- serving -----------------------------------------------------------------------------------------------------

    def init_signals(self) -> None:
        """Gunicorn's signals without its wake-up pipe, which nobody would read here and signals would fill."""
        super().init_signals()
        signal.set_wakeup_fd(-1)

    def run(self) -> None:
        """Serve until the drain is over.

        :raises SystemExit: the warm-up failed (code 3, reported).
        """
        self._told = Event()
        self.zd_warmed_up()
        if self.zd_deadline != math.inf:
            return  # told to leave meanwhile
        listeners = [self._listener(sock) for sock in self.sockets]
        for listener in listeners:
            listener.start()
        # The loop takes a listener up when it next polls, which it has done when a timer fires; sleep(0) comes before.
        gevent.sleep(READY)
        self.zd_ready()
        while self.alive and not self.zd_leaving:
            self._tick()
            self._told.wait(TICK)
        if not self.zd_leaving:
            self.zd_leave(0.0)  # Gunicorn's reloader says so, of a file that changed
        self._drain(listeners)

    def _listener(self, sock: Any) -> Listener:
        sock.setblocking(1)
        pool = Pool(self.worker_connections)
        self._pools.append(pool)
        # Asked for its name by every connection, also when the socket is closed.
        name = sock.getsockname()
        named = SimpleNamespace(getsockname=lambda: name)
        context = ssl_context(self.cfg) if self.cfg.is_ssl else None
        listener = Listener(sock, partial(self.handle, named), spawn=pool, ssl_context=context)
        if self.cfg.workers > 1:
            listener.max_accept = 1  # as Gunicorn does, to share the load
        return listener

    def timeout_ctx(self) -> Any:
        """Return no limit: :meth:`_tick` looks after connections that wait, and sees what they wait for."""
        return _NO_LIMIT

    def zd_load(self) -> tuple[int, int]:
        """Return the open connections and the requests answered since birth."""
        return sum(len(pool) for pool in self._pools), self.nr

    def zd_on_leave(self) -> None:
        """Wake the main greenlet; it drains."""
        if self._told is not None:
            gevent.get_hub().loop.run_callback_threadsafe(self._told.set)

    # -- connections -------------------------------------------------------------------------------------------------

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Handle a connection, from the TLS handshake on."""
        client.standing.greenlet = gevent.getcurrent()
        self._clients.add(client)
        try:
            if isinstance(client, SSLSocket):
                client.do_handshake()
        except OSError as error:
            self.log.debug("TLS handshake failed: %s", error)
        else:
            super().handle(listener, client, addr)
        finally:
            self._clients.discard(client)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Answer a request.

        :raises StopIteration: the connection ends with it.
        """
        standing = sock.standing
        standing.busy = True
        try:
            super().handle_request(listener_name, req, sock, addr)
        except StopIteration:
            if not body_has_come(req) or (self.zd_leaving and unread(sock)):
                linger(sock)
            raise
        finally:
            standing.end(more=req.unreader.buf.tell() > 0)
        if standing.cut:
            raise StopIteration  # killed, which the base passes over

    def handle_http2(self, listener: Any, client: Any, addr: Any, *args: Any, **kwargs: Any) -> None:
        """Handle an HTTP/2 connection."""
        client.standing.http2 = True
        with contextlib.suppress(gevent.GreenletExit):
            super().handle_http2(listener, client, addr, *args, **kwargs)
            if client.standing.leaving and self._farewell is not None:
                self._farewell.see_off(client)

    def handle_http2_request(self, listener_name: Any, req: Any, sock: Any, addr: Any, h2_conn: Any) -> None:
        """Answer a request of an HTTP/2 connection."""
        standing = sock.standing
        if standing.http2 is not h2_conn:
            standing.http2 = h2_conn
            name_last_stream(h2_conn)
        standing.busy = True
        try:
            super().handle_http2_request(listener_name, req, sock, addr, h2_conn)
        finally:
            standing.end(more=False)
        if self._farewell is not None:
            self._farewell.end_between_streams(standing)

    def _tick(self) -> None:
        self.notify()
        now = time.monotonic()
        for client in list(self._clients):
            self._tend(client, client.standing, now)

    def _tend(self, client: Any, standing: Any, now: float) -> None:
        """Let a connection end that waits for its client, when it has waited long enough."""
        if standing.http2 is not None:
            if self._farewell is not None:
                self._farewell.tend(client, now, self.zd_deadline)
            return
        if standing.busy or (not self.cfg.keepalive and not self.zd_leaving):
            return  # without keepalive Gunicorn sets no limit either
        if now >= self._limit(standing) and not unread(client):
            silence(client)

    def _limit(self, standing: Any) -> float:
        """Return when a connection has waited long enough.

        Gunicorn gives all of them ``keepalive`` seconds. Here it is so for one that was used and is idle since; one
        never used has 5 seconds more, and a head has ``timeout``, as in ThreadWorker. In a drain it is never less than
        patience from its beginning, or from the last byte.
        """
        since, keepalive = float(standing.since), float(self.cfg.keepalive)
        if standing.begun:
            own, at_least = since + (float(self.cfg.timeout) or math.inf), float(standing.heard)
        elif standing.answered:
            return since + keepalive
        else:
            own, at_least = since + keepalive + UNUSED, self._begun
        return max(own, at_least + self._patience) if self.zd_leaving else own

    # -- draining ----------------------------------------------------------------------------------------------------

    def _drain(self, listeners: list[Listener]) -> None:
        """Stop accepting, wait for the connections until the deadline, and cut what is left."""
        self._begun = time.monotonic()
        self._farewell = Farewell(self._begun, self._patience, float(self.cfg.keepalive))
        for listener in listeners:
            listener.retire()
        self.zd_draining()
        self.log.info("Draining: %d connections, %d requests under way", self.zd_load()[0], self._requests())
        next_tick = 0.0
        while any(self._pools) and (now := time.monotonic()) < self.zd_deadline:
            if now >= next_tick:
                next_tick = now + TICK
                self._tick()
            gevent.sleep(GLANCE)
        if any(self._pools):
            self._cut()

    def _requests(self) -> int:
        return sum(client.standing.busy for client in self._clients)

    def _cut(self) -> None:
        self.log.warning(
            "graceful_timeout is over: %d requests and %d connections in all are cut",
            self._requests(),
            self.zd_load()[0],
        )
        for client in list(self._clients):
            client.standing.cut = True
            if client.standing.busy:
                client.standing.greenlet.kill(block=False)
            else:
                silence(client)
        end = time.monotonic() + CUT
        while any(self._pools) and time.monotonic() < end:
            self.notify()
            gevent.sleep(GLANCE)


_NO_LIMIT = contextlib.nullcontext()
