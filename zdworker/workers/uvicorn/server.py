"""uvicorn's server, as a zero-downtime worker runs it: imported only where a worker boots.

Rules:

* The server is a subclass of :class:`uvicorn.Server`, and nothing of it is copied: the base starts, ticks and cuts what
  is left at the end.
* The drain is in :mod:`zdworker.workers.event_loop.serving`, what it does to a connection in
  :mod:`zdworker.workers.uvicorn.connections`; this file connects them with uvicorn.
* Signals stay with the worker: uvicorn would raise them again after its end, and the hook ``worker_exit`` and exit code
  0 would be lost.
* Idle connections are not closed unannounced: ``protocol.shutdown()``, which does that, is left to the deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

import uvicorn
from uvicorn import Config, Server

from zdworker import tracebacks
from zdworker.errors import GenerationError
from zdworker.ipc.hand_over import Connection as HandedOver
from zdworker.workers.answers import REPORT_INTERVAL_S
from zdworker.workers.applications import Receive, Scope, Send
from zdworker.workers.asgi.drain import AsgiDrain
from zdworker.workers.base import BOOT_FAILURE
from zdworker.workers.event_loop.asgi_serving import AsgiServing
from zdworker.workers.event_loop.serving import CUT_S, HEARTBEAT_INTERVAL_S, ServedWorker, Serving, run_to_end, shares
from zdworker.workers.event_loop.transports import hold, read_on
from zdworker.workers.health import HealthWorker, asgi_with_health
from zdworker.workers.requirements import refuse_missing
from zdworker.workers.uvicorn.connections import (
    IdleReaper,
    announce,
    announce_current,
    can_move,
    cycle_of,
    detach,
    drainable,
    request_of,
    resume,
    when_answered,
)

logger = logging.getLogger("uvicorn.error")

UVICORN_TICK_S = 0.1
"""Seconds between two ticks of uvicorn while it serves: it counts them, and sets the date with each tenth."""

TICKS_OF_HEARTBEAT = round(HEARTBEAT_INTERVAL_S / UVICORN_TICK_S)
TICKS_OF_REPORT = round(REPORT_INTERVAL_S / UVICORN_TICK_S)

if not hasattr(Config, "get_loop_factory"):
    raise GenerationError(
        f"uvicorn {uvicorn.__version__} is installed, zdworker needs 0.36 or newer: pip install 'uvicorn>=0.36'"
    )


class Worker(ServedWorker, HealthWorker, Protocol):
    """What the server needs of its worker, a :class:`zdworker.workers.uvicorn.worker.UvicornWorker`."""

    zd_serving: Serving | None
    sockets: list[Any]
    wsgi: Any

    @property
    def config(self) -> Config:
        """Uvicorn's configuration, not loaded yet."""

    def zd_failed(self, reason: str, traceback: str = "", exit_code: int = 3) -> None:
        """Report that the worker cannot boot."""


def run(worker: Worker) -> None:
    """Serve for ``worker``, on a loop of its own, until the drain is over.

    :raises SystemExit: 3, lifespan startup or warm-up failed (reported); 0, it had to end before it was ready.
    """
    worker.config.app = worker.wsgi
    server = worker.zd_serving = DrainingServer(worker.config, worker)
    factory = worker.config.get_loop_factory()
    loop = factory() if factory is not None else asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    run_to_end(loop, server.serve(sockets=worker.sockets))


def preload(config_kwargs: Mapping[str, Any]) -> None:
    """Import everything that a worker with these keyword arguments of :class:`uvicorn.Config` needs. The fork server
    calls it.

    :raises GenerationError: a library that they name is not installed.
    """
    # Not as a factory, because no application is to be made here.
    config = Config(**{**config_kwargs, "app": _no_application, "factory": False, "log_config": None})
    try:
        config.load()
        config.get_loop_factory()
    except ImportError as error:
        refuse_missing(error, "CONFIG_KWARGS of the worker class")
        raise


async def _no_application(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand in for the application while a configuration is loaded for its imports."""


class DrainingServer(AsgiServing, Server):
    """The server of one worker.

    :param config: not loaded yet; its application gets wrapped.
    """

    worker: Worker

    def __init__(self, config: Config, worker: Worker) -> None:
        AsgiServing.__init__(self, worker, float(config.timeout_keep_alive))
        Server.__init__(self, config)
        self.idle_reaper = IdleReaper()
        self._ticks = 0

    def connections(self) -> Collection[Any]:
        """Return the connections that uvicorn knows; with TLS it knows one only after the handshake."""
        return self.server_state.connections

    def load(self) -> tuple[int, int]:
        """Return uvicorn's own counts."""
        return len(self.server_state.connections), self.server_state.total_requests

    def running(self) -> int:
        """Return how many calls of the application run."""
        return sum(not task.done() for task in self.server_state.tasks)  # uvicorn removes one a turn after its end

    # -- booting -----------------------------------------------------------------------------------------------------

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Run lifespan startup and warm-up, open for accepting, report ready.

        :raises LeaveRequested: the worker has to leave meanwhile.
        :raises SystemExit: (3) one of them failed; it is reported.
        """
        self._wrap()
        start_lifespan = self.lifespan.startup

        async def started() -> bool:
            await start_lifespan()
            return not self.lifespan.should_exit

        self.lifespan.startup = lambda: self.boot(started)
        with _errors() as errors:
            try:
                self.begin_boot()
                await super().startup(sockets=shares(sockets or ()))
            except SystemExit:
                self._fail(errors)
        if not self.started:  # uvicorn before 0.40 only says should_exit
            self._fail(errors)
        self.listeners = self.servers
        await self.opened()

    def _fail(self, errors: list[str]) -> None:
        text = "\n".join(errors)
        lines = [
            line for line in text.splitlines() if line and not line.startswith((" ", "Application startup failed"))
        ]
        reason = f"application startup failed: {lines[-1]}" if lines else "application startup failed"
        self.worker.zd_failed(reason, text, BOOT_FAILURE)  # reports nothing if a failed warm-up was reported
        raise SystemExit(BOOT_FAILURE)

    def _wrap(self) -> None:
        config = self.config
        self.application = config.loaded_app
        self.asgi = AsgiDrain(asgi_with_health(self.application, self.worker))
        config.loaded_app = self.asgi.__call__  # a bound method: calling the object takes longer, with each request
        protocol_class: Any = drainable(config.http_protocol_class)
        config.http_protocol_class = protocol_class
        if config.ssl is None:
            return
        # With TLS uvicorn knows a connection only after the handshake, but its protocol is made before.
        handshakes = self.handshakes

        def counted(*args: Any, **kwargs: Any) -> Any:
            protocol = protocol_class(*args, **kwargs)
            handshakes.add(protocol)
            return protocol

        config.http_protocol_class = counted  # type: ignore[assignment]

    def warm_up_basis(self) -> Mapping[str, Any]:
        """Return what uvicorn puts into a scope."""
        return {
            "asgi": {"version": self.config.asgi_version, "spec_version": "2.3"},
            "root_path": self.config.root_path,
            "state": self.lifespan.state,
        }

    # -- serving -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the worker's handlers."""
        yield

    async def main_loop(self) -> None:
        """Tick until the worker has to leave; uvicorn's own loop would notice that only with its next tick."""
        await self.until_leaving(UVICORN_TICK_S)

    async def tick(self) -> None:
        """Do uvicorn's tick, and our own with each tenth; more often if answers are counted, in a drain with each."""
        every = TICKS_OF_HEARTBEAT if self.worker.zd_counter is None else TICKS_OF_REPORT
        if self.draining or self._ticks % every == 0:
            await super().tick()
        if await self.on_tick(self._ticks):
            self.worker.zd_leave(self.worker.cfg.graceful_timeout)  # a library has set uvicorn's ``should_exit``
        self._ticks = (self._ticks + 1) % 864000

    # -- draining ----------------------------------------------------------------------------------------------------

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, at the deadline cut what is left, and run lifespan shutdown."""
        # Libraries that end streams with the server put a function of theirs in the place of this method. Not earlier:
        # uvicorn would not serve at all with `should_exit`, nor drain.
        self.handle_exit(signal.SIGTERM, None)
        if await self.drain_connections():
            for listener in sockets or []:
                listener.close()
            await self.until_done(self.lifespan.shutdown())
        else:
            self.config.timeout_graceful_shutdown = CUT_S  # type: ignore[assignment]  # seconds; floats do as well
            await self.until_done(super().shutdown(sockets=sockets))

    def zd_requests(self) -> Iterable[tuple[str, str]]:
        """Return method and path of each request for which a call of the application runs."""
        return filter(None, map(request_of, list(self.server_state.tasks)))

    def announce(self, protocol: Any) -> None:
        """Have the response under way on a connection end that."""
        announce_current(protocol, self.drain)

    def prepare(self, send: Send) -> None:
        """Have the response to a request that has just begun end its connection, or move that."""
        known = cycle_of(send)
        if known is not None and self.drain.gives and can_move(known[1]):
            self.announce_or_offer(known[1])
        elif known is not None:
            announce(*known, self.drain)

    def can_move(self, connection: Any) -> bool:
        """Return whether a connection is one that can be handed over."""
        return can_move(connection)

    def when_answered(self, connection: Any, offer: Callable[[], None]) -> None:
        """Have ``offer`` called when the response under way is complete."""
        when_answered(connection, offer)

    def hold(self, connection: Any) -> None:
        """Leave the next request in the socket."""
        hold(connection.transport)

    def read_on(self, connection: Any) -> None:
        """Read the next request after all, unless uvicorn itself has paused reading."""
        if not connection.flow.read_paused:
            read_on(connection.transport)

    def detach(self, connection: Any) -> HandedOver | None:
        """Let go of a connection that can move now."""
        return detach(connection)

    async def attach(self, connection: HandedOver) -> None:
        """Serve a connection that was handed over, with the keep-alive time that it has left."""
        protocol_class: Any = self.config.http_protocol_class

        def protocol() -> Any:
            return protocol_class(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

        _transport, served = await asyncio.get_running_loop().connect_accepted_socket(protocol, connection.sock)
        resume(served, connection)

    def tend(self, connection: Any, now: float) -> None:
        """End a connection that is not used."""
        self.idle_reaper.check(connection, now, self.drain)


@contextlib.contextmanager
def _errors() -> Iterator[list[str]]:
    """Collect what uvicorn logs as an error: its log alone says why lifespan startup failed."""
    texts: list[str] = []
    handler = _Collector(texts)
    # The list of handlers is Gunicorn's own, and must not be changed.
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
            self._texts.append(tracebacks.of_application(record.exc_info[1]))
