"""Gunicorn's own ASGI stack, as a zero-downtime worker runs it: imported only where a worker boots.

Rules:

* Gunicorn's functions are used as they stand where the drain is not concerned: event loop, error page, lifespan,
  parsers.
* The drain is in :mod:`zdworker.workers.event_loop.serving`, what it does to a connection in
  :mod:`zdworker.workers.gunicorn_asgi.connections`; this file connects them with Gunicorn's stack.
* A worker that cannot serve does not boot: where Gunicorn logs an error and goes on serving (a TLS file that is
  missing, lifespan startup that failed or never ended), this fails with exit code 3.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from gunicorn import sock
from gunicorn.asgi.lifespan import LifespanManager
from gunicorn.workers import gasgi

from zdworker.errors import GenerationError
from zdworker.ipc.hand_over import Connection as HandedOver
from zdworker.workers.answers import AnswerCounter
from zdworker.workers.applications import Event, Send
from zdworker.workers.asgi.drain import AsgiDrain
from zdworker.workers.base import BOOT_FAILURE
from zdworker.workers.event_loop.asgi_serving import AsgiServing
from zdworker.workers.event_loop.serving import (
    CUT_S,
    HEARTBEAT_INTERVAL_S,
    ServedWorker,
    Serving,
    run_to_end,
    shares,
)
from zdworker.workers.event_loop.transports import TlsCloseTimeout
from zdworker.workers.gunicorn_asgi.connections import Connection
from zdworker.workers.health import HealthWorker, asgi_with_health
from zdworker.workers.requirements import refuse_missing, require_parser


class Worker(ServedWorker, HealthWorker, Protocol):
    """What the server needs of its worker, a :class:`zdworker.workers.gunicorn_asgi.worker.ASGIWorker`."""

    zd_serving: Serving | None
    sockets: list[Any]
    asgi: Any
    loop: asyncio.AbstractEventLoop
    state: dict[str, Any]
    nr: int

    def zd_failed(self, reason: str, traceback: str = "", exit_code: int = 3) -> None:
        """Report that the worker cannot boot."""


def preload(cfg: Any) -> None:
    """Import what this module does not import at its top. The fork server calls it.

    :raises GenerationError: the configuration asks for a parser or a library that cannot be used.
    """
    require_parser(cfg)
    if getattr(cfg, "http_parser", "") == "fast" and cfg.proxy_protocol != "off":
        raise GenerationError("http_parser = 'fast' knows no proxy_protocol in ASGIWorker: use http_parser = 'auto'")
    for name in ("gunicorn.asgi.websocket", "gunicorn.instrument.statsd", "gunicorn_h1c"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if cfg.asgi_loop != "asyncio":
        try:
            importlib.import_module("uvloop")
        except ImportError as error:
            if cfg.asgi_loop == "uvloop":
                refuse_missing(error, "asgi_loop = 'uvloop'")
                raise
    if "h2" in cfg.http_protocols:
        try:
            for name in ("config", "connection", "events", "exceptions"):
                importlib.import_module(f"h2.{name}")
        except ImportError as error:
            refuse_missing(error, "http_protocols with 'h2'")
            raise
        importlib.import_module("gunicorn.http2.async_connection")


def set_up_loop(worker: Any) -> None:
    """Make the event loop that the settings ask for."""
    gasgi.ASGIWorker._setup_event_loop(worker)


def load(worker: Any) -> None:
    """Load the application; with ``reload`` a syntax error becomes a page."""
    worker._make_error_app = lambda text: gasgi.ASGIWorker._make_error_app(worker, text)
    gasgi.ASGIWorker.load_wsgi(worker)


def run(worker: Worker) -> None:
    """Serve until the drain is over.

    :raises SystemExit: 3, lifespan startup or warm-up failed (reported); 0, it had to end before it was ready.
    """
    server = worker.zd_serving = AsgiServer(worker)
    run_to_end(worker.loop, server.serve())


class Lifespan(LifespanManager):  # type: ignore[misc]  # Gunicorn has no types
    """Runs the lifespan, and notes whether the application sent ``lifespan.startup.failed``."""

    zd_startup_failed_sent = False

    async def _send(self, message: Event) -> None:
        self.zd_startup_failed_sent |= message["type"] == "lifespan.startup.failed"
        await super()._send(message)

    @property
    def zd_unsupported(self) -> bool:
        """Whether a failed startup only means that the application has no lifespan: it raised, or returned."""
        return self._startup_failed and not self.zd_startup_failed_sent


class AsgiServer(AsgiServing):
    """The server of one worker."""

    worker: Worker

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker, float(worker.cfg.keepalive))
        self.open: set[Connection] = set()
        self._lifespan: Lifespan | None = None
        self._tls_close_timeout = TlsCloseTimeout()
        self.application = worker.asgi
        self.asgi = AsgiDrain(asgi_with_health(self.application, worker), _tell_closed)
        self.websocket_app = self.asgi.websocket
        worker.asgi = self.asgi.app  # a call of the wrapper would do nothing for a request that is no WebSocket

    def count(self, counter: AnswerCounter) -> None:
        """Have the answers of the application counted from now on, also on the connections that are open."""
        super().count(counter)
        self.worker.asgi = self.asgi.app
        for connection in self.open:
            connection.use(self.asgi.app)

    async def serve(self) -> None:
        """Boot, serve, drain, and run lifespan shutdown.

        :raises LeaveRequested: before connections were accepted.
        :raises SystemExit: (3) the worker cannot serve; it is reported.
        """
        self.begin_boot()
        await self.boot(self._start_lifespan)
        self.listeners = await self._listen()
        await self.opened()
        await self.until_leaving(HEARTBEAT_INTERVAL_S)
        await self.drain_connections()
        if self._lifespan is not None:
            await self.until_done(self._lifespan.shutdown())

    # -- booting -----------------------------------------------------------------------------------------------------

    async def _start_lifespan(self) -> bool:
        mode = self.worker.cfg.asgi_lifespan
        if mode == "off":
            return True
        lifespan = Lifespan(self.asgi.app, self.worker.log, self.worker.state)
        try:
            await lifespan.startup()
        except Exception as error:  # noqa: BLE001  # whatever it is, the application did not start
            if mode == "auto" and lifespan.zd_unsupported:
                self.worker.log.debug("ASGI lifespan is not supported by the application: %s", error)
                return True
            self._fail(str(error))
        self._lifespan = lifespan
        return True

    def _fail(self, text: str) -> None:
        self.worker.log.error("Application startup failed: %s", text)
        lines = [line for line in text.splitlines() if line and not line.startswith(" ")]
        self.worker.zd_failed(f"application startup failed: {lines[-1] if lines else ''}", text, BOOT_FAILURE)
        raise SystemExit(BOOT_FAILURE)

    async def _listen(self) -> list[Any]:
        cfg = self.worker.cfg
        context = sock.ssl_context(cfg) if cfg.is_ssl else None
        return [
            await self.worker.loop.create_server(
                self._connection_in_tls if context else self._connection,
                sock=listener,
                ssl=context,
                backlog=cfg.backlog,  # asyncio's default would shorten the queue that all workers share
            )
            for listener in shares(self.worker.sockets)
        ]

    def _connection(self) -> Connection:
        return Connection(self.worker, self)

    def _connection_in_tls(self) -> Connection:
        connection = Connection(self.worker, self)
        self.handshakes.add(connection)
        return connection

    def warm_up_basis(self) -> Mapping[str, Any]:
        """Return what Gunicorn puts into a scope."""
        return {
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "root_path": self.worker.cfg.root_path or "",
            "state": self.worker.state,
        }

    # -- serving and draining ----------------------------------------------------------------------------------------

    def connections(self) -> Collection[Connection]:
        """Return the connections after their handshake, until they are lost and their calls have returned."""
        return self.open

    def load(self) -> tuple[int, int]:
        """Return open connections and Gunicorn's count of requests."""
        return len(self.open), self.worker.nr

    def running(self) -> int:
        """Return how many calls of the application run."""
        return sum(connection.zd_running() for connection in self.open)

    def zd_requests(self) -> Iterable[tuple[str, str]]:
        """Return method and path of each request for which a call of the application runs."""
        return (request for connection in list(self.open) for request in connection.zd_requests())

    def announce(self, protocol: Connection) -> None:
        """Have the responses of a connection announce the end in their head."""
        protocol.zd_end_responses()

    def prepare(self, send: Send) -> None:
        """Do nothing: see :meth:`announce`."""

    def zd_begin_drain(self) -> None:
        """Follow the HTTP/2 connections from now on, too."""
        super().zd_begin_drain()
        for connection in self.open:
            if connection._zd_http2 is not None:
                connection._zd_http2.begin()

    def can_move(self, connection: Connection) -> bool:
        """Return whether a connection can be handed over."""
        return connection.zd_can_move()

    def when_answered(self, connection: Connection, offer: Callable[[], None]) -> None:
        """Have ``offer`` called with each response from now on."""
        connection.zd_offer_when_answered(offer)

    def hold(self, connection: Connection) -> None:
        """Leave the next request in the socket."""
        connection.zd_hold()

    def read_on(self, connection: Connection) -> None:
        """Read the next request after all."""
        connection.zd_read_on()

    def detach(self, connection: Connection) -> HandedOver | None:
        """Let go of a connection that can move now."""
        return connection.zd_detach()

    async def attach(self, connection: HandedOver) -> None:
        """Serve a connection that was handed over."""
        _transport, served = await self.worker.loop.connect_accepted_socket(self._connection, connection.sock)
        served.zd_resume(connection)

    def tend(self, connection: Connection, now: float) -> None:
        """End a connection whose time is over."""
        self._tls_close_timeout.check(connection, now)
        connection.zd_tend(now, self.drain)
        if connection._zd_http2 is not None:
            connection._zd_http2.tend(now, self.drain)

    def zd_cut(self) -> Iterable[float]:
        """End what the deadline has found: tell the applications, then cancel them, then close."""
        connections = list(self.open)
        for connection in connections:
            connection.zd_signal_disconnect()
        yield CUT_S
        tasks = {task for connection in connections for task in connection.zd_tasks()}
        for task in tasks:
            task.cancel()
        if tasks:
            yield CUT_S
        for connection in connections:
            if connection._zd_http2 is not None:
                connection._zd_http2.end()
            if connection.transport is not None:
                connection.transport.close()


def _tell_closed(send: Send) -> None:
    """Let the application see the end of its WebSocket: until 26.1 Gunicorn reports only an end by the client."""
    queue = getattr(getattr(send, "__self__", None), "_receive_queue", None)
    if queue is not None:
        queue.put_nowait({"type": "websocket.disconnect", "code": 1012})
