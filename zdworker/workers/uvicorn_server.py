"""uvicorn's server, as a zero-downtime worker runs it: imported only where a worker boots.

Rules:

* A subclass of :class:`uvicorn.Server`, nothing of it copied: the base starts, ticks and cuts what is left at the end.
* The drain begins with SIGTERM and has one deadline, ``graceful_timeout`` later. Everything that waits looks at it.
* ``run()`` returns in time, whatever the application does: threads are never joined, nothing is awaited unbounded.
* Idle connections are not closed unannounced: ``protocol.shutdown()``, which does that, is left to the deadline.
* The heart beats, the date header moves and the parent is watched to the end: ``on_tick`` is called all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import signal
import socket
import time
import traceback
import weakref
from collections.abc import Coroutine, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

from uvicorn import Config, Server
from uvicorn.protocols.utils import ClientDisconnected

from zdworker.workers.asgi_drain import AsgiDrain, Receive, Scope, Send
from zdworker.workers.base import ORPHAN_DRAIN
from zdworker.workers.uvicorn_connections import Tending, announce, announce_standing, cycle_of

if TYPE_CHECKING:
    from zdworker.workers.uvicorn import UvicornWorker

TICK = 0.1
"""Seconds between two ticks, uvicorn's own measure."""

GLANCE = 0.02
"""Seconds between two looks at whether the last connection is gone: a reload waits for it."""

UNUSED = 5.0
"""Seconds from the drain's beginning, at least, that a connection on which nothing came yet is kept."""

CUT = 0.05
"""Seconds that what is cut at the deadline has to notice before its tasks are cancelled."""

FAREWELL = 0.5
"""Seconds that lifespan shutdown has at least, even behind the deadline."""

LEFTOVERS = 0.1
"""Seconds that tasks of the application which outlive the server have to end when they are cancelled, and as many for
its asynchronous generators; all that comes behind the deadline is less than the second after which the master kills."""

BOOT_FAILURE = 3
"""Exit code of a worker that cannot boot: ``gunicorn.arbiter.Arbiter.WORKER_BOOT_ERROR`` and uvicorn's own."""

logger = logging.getLogger("uvicorn.error")


def run(worker: UvicornWorker) -> None:
    """Serve for ``worker``, on a loop of its own, until the drain is over.

    The loop is not closed: threads that still run (``run_in_executor``, sync endpoints) would raise when they are done,
    and the process ends right after.

    :raises SystemExit: 3, lifespan startup failed (reported); 0, told to end before it was ready.
    """
    worker.config.app = worker.wsgi
    server = DrainingServer(worker.config, worker)
    factory = worker.config.get_loop_factory()
    loop = factory() if factory is not None else asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        # Gunicorn wraps its sockets; the loop wants them bare.
        loop.run_until_complete(server.serve(sockets=[getattr(s, "sock", s) for s in worker.sockets]))
    finally:
        _wind_up(loop)


def preload(config_kwargs: Mapping[str, Any]) -> None:
    """Import all that a worker with these keyword arguments of :class:`uvicorn.Config` needs; for fork servers."""
    config = Config(**{**config_kwargs, "app": _no_application, "log_config": None})
    config.load()
    config.get_loop_factory()


async def _no_application(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand in for the application while a configuration is loaded for its imports."""


def _wind_up(loop: asyncio.AbstractEventLoop) -> None:
    leftovers = asyncio.all_tasks(loop)
    for task in leftovers:
        task.cancel()
    # asyncio.wait, since asyncio.wait_for would wait for what it has cancelled, and code can swallow that.
    if leftovers:
        loop.run_until_complete(asyncio.wait(leftovers, timeout=LEFTOVERS))
    closing = loop.create_task(loop.shutdown_asyncgens())
    loop.run_until_complete(asyncio.wait({closing}, timeout=LEFTOVERS))


class DrainingServer(Server):
    """The server of one worker.

    :param config: not loaded yet; its application gets wrapped.
    :param worker: is reported for, and asked about its master.
    """

    def __init__(self, config: Config, worker: UvicornWorker) -> None:
        super().__init__(config)
        self.worker = worker
        self.deadline = math.inf  # of the drain, by time.monotonic()
        self.asgi: AsgiDrain
        self._told = asyncio.Event()
        self._is_told = False
        self._orphaned = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._boot: asyncio.Task[Any] | None = None
        self._handshakes: weakref.WeakSet[Any] = weakref.WeakSet()

    # -- booting -----------------------------------------------------------------------------------------------------

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Run lifespan startup, open for accepting, report ready.

        :raises SystemExit: 3, lifespan startup failed; 0, told to end meanwhile.
        """
        self._loop = asyncio.get_running_loop()
        self._wrap()
        if self._is_told or not self.worker.alive:
            raise SystemExit(0)
        await self._start_lifespan_and_listen(sockets)
        # A loop takes a listener up with its next poll (libuv) or callback (asyncio): until then this is not ready.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.worker.zd_ready()

    async def _start_lifespan_and_listen(self, sockets: list[socket.socket] | None) -> None:
        start_lifespan = self.lifespan.startup

        async def cancellable() -> None:
            """From the end of this on the worker accepts: who tells it to leave then is heard by the main loop."""
            self._boot = asyncio.current_task()
            try:
                await start_lifespan()
            except asyncio.CancelledError:
                if not self._is_told:
                    raise
            finally:
                self._boot = None
            if self._is_told:
                raise _ToldToLeave

        self.lifespan.startup = cancellable
        with _errors() as errors:
            try:
                await super().startup(sockets=sockets)
            except _ToldToLeave:
                raise SystemExit(0) from None
            except SystemExit:
                self._fail(errors)
        if not self.started:  # uvicorn before 0.40 only says should_exit
            self._fail(errors)

    def _fail(self, errors: list[str]) -> None:
        text = "\n".join(errors)
        told = [line for line in text.splitlines() if line and not line.startswith((" ", "Application startup failed"))]
        reason = f"application startup failed: {told[-1]}" if told else "application startup failed"
        self.worker.zd_failed(reason, text, BOOT_FAILURE)
        raise SystemExit(BOOT_FAILURE)

    def _wrap(self) -> None:
        config = self.config
        self.asgi = AsgiDrain(config.loaded_app, ClientDisconnected)
        config.loaded_app = self.asgi.__call__  # a bound method: calling the object takes longer, with each request
        if config.ssl is None:
            return
        # With TLS uvicorn knows a connection only after the handshake, but its protocol is made before.
        protocol_class: Any = config.http_protocol_class
        handshakes = self._handshakes

        def counted(*args: Any, **kwargs: Any) -> Any:
            protocol = protocol_class(*args, **kwargs)
            handshakes.add(protocol)
            return protocol

        config.http_protocol_class = counted  # type: ignore[assignment]

    # -- signals -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's, and SIGQUIT."""
        with super().capture_signals():
            before = signal.signal(signal.SIGQUIT, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(signal.SIGQUIT, before)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM begins the drain, SIGINT and SIGQUIT end at once, after the hook ``worker_int``.

        The base is not called: it would have the signal raised again behind the server's end, and ``worker_exit`` and
        exit code 0 would be lost.
        """
        if sig == signal.SIGTERM:
            self._tell(self.worker.cfg.graceful_timeout)
        else:
            self._interrupt()
        self._look_for_parent()

    def _interrupt(self) -> None:
        first = self.deadline > time.monotonic()
        self._tell(0.0)
        if first and self.started:
            try:
                self.worker.cfg.worker_int(self.worker)
            except Exception:
                logger.exception("The hook worker_int raised")

    def _tell(self, grace: float) -> None:
        """Begin the drain, or shorten it, to ``grace`` seconds from now."""
        self.deadline = min(self.deadline, time.monotonic() + grace)
        # Not should_exit: uvicorn before 0.40 would leave without a shutdown if that came while it opens its sockets.
        self._is_told = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._told.set()
        if self._boot is not None:
            self._boot.cancel()

    def _look_for_parent(self) -> None:
        if not self._orphaned and self.worker.zd_parent_lost():
            self._orphaned = True
            self.worker.zd_end_orphaned()
            self._tell(ORPHAN_DRAIN)

    # -- serving -----------------------------------------------------------------------------------------------------

    async def main_loop(self) -> None:
        """Tick until told to drain; the base's would look for that only with its next tick."""
        counter = 0
        while not await self.on_tick(counter) and not self._is_told:
            counter = (counter + 1) % 864000
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._told.wait(), TICK)

    async def on_tick(self, counter: int) -> bool:
        """Do uvicorn's tick (ten a second), the heartbeat, the parent, and about once a second the counts."""
        self.worker.notify()
        self._look_for_parent()
        if not self.worker.alive and not self._is_told:
            self._tell(0.0)  # Gunicorn's reloader says so, of a file that changed
        if counter % 10 == 0:
            requests = self.server_state.total_requests
            self.worker.zd_counts(len(self.server_state.connections), requests)
            if requests >= min(self.worker.max_requests, self.worker.zd_max_requests):
                self._tire()
        return await super().on_tick(counter)

    def _tire(self) -> None:
        if self.worker.zd_master_pid:
            self.worker.zd_tired("max_requests")
        elif not self._is_told:
            logger.info("Autorestarting worker after max_requests.")
            self._tell(self.worker.cfg.graceful_timeout)

    # -- draining ----------------------------------------------------------------------------------------------------

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, at the deadline cut what is left, and run lifespan shutdown."""
        self._tell(self.worker.cfg.graceful_timeout)  # uvicorn may have another reason; an earlier deadline holds
        await self._stop_accepting()
        self.worker.zd_draining()
        connections = len(self.server_state.connections)
        logger.info("Draining: %d connections, %d requests under way", connections, self._requests())
        self._announce()
        await self._drain()
        if self._is_empty():
            for bare in sockets or []:
                bare.close()
            await self._until_done(self.lifespan.shutdown())
        else:
            self._log_cut()
            self.config.timeout_graceful_shutdown = CUT  # type: ignore[assignment]  # seconds; floats do as well
            await self._until_done(super().shutdown(sockets=sockets))

    async def _stop_accepting(self) -> None:
        if isinstance(self._loop, asyncio.SelectorEventLoop):
            # A close between accept and the task that takes the connection up loses it (CPython 3.10 to 3.13): first
            # nothing more is accepted, then what was accepted gets its two turns.
            for server in self.servers:
                for listener in server.sockets:
                    self._loop.remove_reader(listener.fileno())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()

    def _announce(self) -> None:
        left = self.deadline - time.monotonic()
        # A second of what is left is for the last one's close handshake.
        spread = max(0.0, min(self.worker.zd_settings.websocket_drain, left - 1.0))
        self.asgi.begin(_prepare, spread)
        for protocol in list(self.server_state.connections):
            announce_standing(protocol)

    async def _drain(self) -> None:
        begun = time.monotonic()
        unused_until = begun + max(UNUSED, float(self.config.timeout_keep_alive))
        tending = Tending(unused_until)
        counter, next_tick = 0, begun
        while not self._is_empty() and (now := time.monotonic()) < self.deadline:
            if now >= next_tick:
                next_tick = now + TICK
                await self.on_tick(counter)
                counter += 1
                for protocol in list(self.server_state.connections):
                    tending.tend(protocol, now)
                if now >= unused_until:
                    self._handshakes.clear()
                elif counter % 10 == 1:
                    self._forget_failed_handshakes()
            await asyncio.sleep(GLANCE)

    def _is_empty(self) -> bool:
        state = self.server_state
        return not state.connections and not state.tasks and not self._shaking_hands()

    def _requests(self) -> int:
        running = sum(not task.done() for task in self.server_state.tasks)  # one that is done leaves a turn later
        return max(0, running - len(self.asgi.websockets))

    def _shaking_hands(self) -> int:
        return sum(1 for protocol in self._handshakes if protocol.transport is None)

    def _forget_failed_handshakes(self) -> None:
        # The protocol of a handshake that failed is garbage, but in a reference cycle.
        state = self.server_state
        if self._shaking_hands() and not state.connections and not state.tasks:
            gc.collect()

    def _log_cut(self) -> None:
        logger.warning(
            "graceful_timeout is over: %d requests, %d WebSockets and %d connections in all are cut",
            self._requests(),
            len(self.asgi.websockets),
            len(self.server_state.connections) + self._shaking_hands(),
        )

    async def _until_done(self, farewell: Coroutine[Any, Any, None]) -> None:
        """Run ``farewell`` for what is left of the drain's time, at least :data:`FAREWELL` seconds, heart beating."""
        end = max(self.deadline, time.monotonic() + FAREWELL)
        task = asyncio.get_running_loop().create_task(farewell)
        counter = 0
        while not task.done() and (left := end - time.monotonic()) > 0:
            await self.on_tick(counter)
            counter += 1
            await asyncio.wait({task}, timeout=min(TICK, left))
            end = min(end, max(self.deadline, time.monotonic() + FAREWELL))
        if task.done():
            task.result()
        else:
            task.cancel()
            logger.error("Lifespan shutdown has not ended in time and is cut")


def _prepare(scope: Scope, receive: Receive, send: Send) -> Send:
    known = cycle_of(send)
    if known is not None:
        announce(*known)
    return send


class _ToldToLeave(Exception):
    """The worker was told to leave while its lifespan startup ran."""


@contextlib.contextmanager
def _errors() -> Iterator[list[str]]:
    """Collect what uvicorn logs as an error: it tells only its log why lifespan startup failed."""
    texts: list[str] = []
    handler = _Collector(texts)
    # The list of handlers is Gunicorn's own; this one must not get into it.
    before = logger.handlers
    logger.handlers = [*before, handler]
    try:
        yield texts
    finally:
        logger.handlers = before


class _Collector(logging.Handler):
    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage().strip())
        if record.exc_info is not None and record.exc_info[1] is not None:
            self._texts.append("".join(traceback.format_exception(record.exc_info[1])))
