"""Tornado's server, as a zero-downtime worker runs it: imported only where a worker boots.

Rules:

* One loop, the one that is current when the application was loaded: what it has scheduled at import runs.
* The drain has one deadline, the worker's ``zd_deadline``; heart and parent are seen to until the end.
* A connection ends at its own time: Tornado itself would keep one that is idle for an hour, so in a drain Gunicorn's
  ``keepalive`` counts, from the drain's beginning.
* ``run()`` returns in time whatever handlers do: they are cancelled at the deadline and not waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gunicorn.sock import ssl_context
from gunicorn.workers import gtornado
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, StreamClosedError
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketProtocol13
from tornado.wsgi import WSGIContainer

from zdworker.errors import WarmupFailed
from zdworker.workers.asgi.websocket_schedule import SERVICE_RESTART, SOON, late, moments
from zdworker.workers.base import UNUSED
from zdworker.workers.closing import Standing
from zdworker.workers.event_loop.serving import wind_up
from zdworker.workers.health import tornado_with_health
from zdworker.workers.tornado.connections import Server, standing, unread

if TYPE_CHECKING:
    from zdworker.workers.tornado.worker import TornadoWorker

TICK = 0.1
"""Seconds between two beats of the heart, and in a drain between two looks at the connections."""

GLANCE = 0.02
"""Seconds between two looks at whether the last connection is gone: a reload waits for it."""

CUT = 0.05
"""Seconds that what is cut at the deadline has to notice before the loop is wound up."""

gtornado.TornadoWorker.setup()  # Gunicorn adds itself to the header ``Server``; once is enough


def forget_loop() -> None:
    """Leave the loop of the process that this one was forked from: none survives a fork."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        IOLoop.clear_current()
    asyncio.set_event_loop(asyncio.new_event_loop())


def run(worker: TornadoWorker) -> None:
    """Serve for ``worker`` until the drain is over. The loop is not closed: threads may still report to it.

    :raises SystemExit: (3) the warm-up failed; it is reported.
    """
    serving = TornadoServing(worker)
    loop = asyncio.get_event_loop_policy().get_event_loop()
    try:
        loop.run_until_complete(serving.serve())
    finally:
        wind_up(loop)


class TornadoServing:
    """The server of one worker."""

    def __init__(self, worker: TornadoWorker) -> None:
        self.worker = worker
        self.is_open = False
        """Connections are accepted, or have been."""
        self.server = _make_server(worker)
        self.websockets: set[Any] = set()
        self._spread: float | None = None
        self._begun = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = asyncio.Event()

    # -- for the worker ----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Take notice that the worker was told to leave; for signal handlers."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._told.set)

    def load(self) -> tuple[int, int]:
        """Return the number of open connections, and of requests answered since birth."""
        return len(self.server.connections) + len(self.websockets), self.server.answered

    # -- serving -----------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Boot, serve and drain.

        :raises SystemExit: (3) the warm-up failed; it is reported.
        """
        self._loop = asyncio.get_running_loop()
        self.worker.zd_serving = self
        self._watch_websockets()
        if self._is_told_to_leave():
            return
        await self._warm_up(self.worker.zd_settings.warmup)
        if self._is_told_to_leave():
            return
        for sock in self.worker.sockets:
            sock.setblocking(False)
            self.server.add_socket(getattr(sock, "sock", sock))
        self.is_open = True
        self.worker.zd_ready()
        while not self._is_told_to_leave():
            self._tick()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._told.wait(), TICK)
        await self._drain()

    def _is_told_to_leave(self) -> bool:
        return self.worker.zd_leaving

    def _tick(self) -> None:
        self.worker.notify()
        if not self.worker.alive:
            self.worker.zd_leave(0.0)  # Gunicorn's reloader says so, of a file that changed

    def _watch_websockets(self) -> None:
        """Know each WebSocket from its acceptance to its end; Tornado's server forgets it with the upgrade."""
        serving, accept = self, WebSocketProtocol13.accept_connection

        async def accept_connection(protocol: Any, handler: Any) -> None:
            serving.websockets.add(handler)
            if serving._spread is not None:
                serving._close_later(handler, late(serving._spread))
            try:
                await accept(protocol, handler)
            finally:
                serving.websockets.discard(handler)

        WebSocketProtocol13.accept_connection = accept_connection  # type: ignore[assignment, method-assign]

    # -- warm-up -----------------------------------------------------------------------------------------------------

    async def _warm_up(self, paths: Sequence[str]) -> None:
        try:
            for path in paths:
                status = await self._answer(path)
                if status >= 400:
                    raise WarmupFailed(f"{path} was answered with {status}: zd_warmup wants a status below 400")
        except Exception as error:  # noqa: BLE001  # whatever comes of it
            self.worker.zd_warmup_failed(error)

    async def _answer(self, path: str) -> int:
        """Send a request over a pair of sockets in this process, and return its status.

        :raises WarmupFailed: there was no whole answer.
        """
        url = urlsplit(path)
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        head = f"GET {target} HTTP/1.1\r\nHost: {url.netloc or 'localhost'}\r\nConnection: close\r\n\r\n"
        ours, theirs = socket.socketpair()
        protocol, self.server.protocol = self.server.protocol, url.scheme or None
        self.server.handle_stream(IOStream(theirs), ("127.0.0.1", 0))
        self.server.protocol = protocol
        client = IOStream(ours)
        try:
            await client.write(head.encode())
            first = await client.read_until(b"\r\n", max_bytes=65536)
            await client.read_until_close()
        except StreamClosedError as error:
            raise WarmupFailed(f"{path} was not answered") from error
        finally:
            client.close()
        return int(first.split()[1])

    # -- draining ----------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        self._begun = time.monotonic()
        self.server.begin_drain()
        self.worker.zd_draining()
        self.worker.log.info(
            "Draining: %d connections, %d requests under way", len(self.server.connections), self._requests()
        )
        self._close_websockets()
        next_tick = 0.0
        while not self._is_empty() and (now := time.monotonic()) < self.worker.zd_deadline:
            if now >= next_tick:
                next_tick = now + TICK
                self._tick()
                for connection in list(self.server.connections):
                    self._tend(connection, now)
            await asyncio.sleep(GLANCE)
        if not self._is_empty():
            await self._cut()

    def _close_websockets(self) -> None:
        # A second of what is left is for the last one's close handshake.
        left = self.worker.zd_deadline - time.monotonic() - 1.0
        self._spread = max(0.0, min(self.worker.zd_settings.websocket_drain, left))
        standing_now = list(self.websockets)
        for handler, delay in zip(standing_now, moments(len(standing_now), self._spread), strict=True):
            self._close_later(handler, delay)

    def _close_later(self, handler: Any, delay: float) -> None:
        asyncio.get_running_loop().call_later(delay, self._close_soon, handler)

    def _close_soon(self, handler: Any) -> None:
        """Close it right behind the next message that the application writes, or in a moment."""
        loop, write = asyncio.get_running_loop(), handler.write_message

        def write_last(*arguments: Any, **options: Any) -> Any:
            loop.call_soon(handler.close, SERVICE_RESTART)
            return write(*arguments, **options)

        handler.write_message = write_last
        loop.call_later(SOON, handler.close, SERVICE_RESTART)

    def _tend(self, connection: Any, now: float) -> None:
        """Let a connection end that waits for its client, when it has waited long enough."""
        keepalive = float(self.worker.cfg.keepalive)
        what = standing(connection)
        if what is Standing.UNUSED:
            over = now >= self._begun + max(UNUSED, keepalive)
        else:
            over = what is Standing.IDLE and now >= connection.zd_since + keepalive
        if over and not unread(connection.stream):
            connection.stream.close()

    def _is_empty(self) -> bool:
        return not self.server.connections and not self.websockets and not _running_handlers()

    def _requests(self) -> int:
        return sum(standing(connection) is Standing.BUSY for connection in self.server.connections)

    async def _cut(self) -> None:
        self.worker.log.warning(
            "graceful_timeout is over: %d requests, %d WebSockets and %d connections in all are cut",
            self._requests(),
            *(len(self.websockets), self.load()[0]),
        )
        for connection in list(self.server.connections):
            connection.stream.close()
        for handler in list(self.websockets):
            with contextlib.suppress(Exception):  # its on_close() is the application's
                handler.on_connection_close()
        for task in _running_handlers():
            task.cancel()
        await asyncio.sleep(CUT)


def _make_server(worker: TornadoWorker) -> Server:
    cfg, app = worker.cfg, tornado_with_health(worker.wsgi, worker)
    if "h2" in cfg.http_protocols:
        worker.log.warning("Tornado knows no HTTP/2: http_protocols has no effect")
    if not isinstance(app, (WSGIContainer, Application)):
        app = WSGIContainer(app)
    return Server(app, no_keep_alive=cfg.keepalive <= 0, ssl_options=ssl_context(cfg) if cfg.is_ssl else None)


def _running_handlers() -> list[asyncio.Task[Any]]:
    """Return the handlers that run: also those whose response is finished, or whose client has gone."""
    code = RequestHandler._execute.__code__  # noqa: SLF001  # Tornado keeps no list of them
    tasks = asyncio.all_tasks()
    return [task for task in tasks if getattr(task.get_coro(), "cr_code", None) is code and not task.done()]
