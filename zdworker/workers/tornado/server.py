"""Tornado's server, as a zero-downtime worker runs it: imported only where a worker boots.

Rules:

* The server runs on the loop that was current when the application was loaded, so what the application has scheduled
  at import runs.
* Booting and the drain are in :mod:`zdworker.workers.event_loop.serving`, what the drain does to a connection is in
  :mod:`zdworker.workers.tornado.connections`; this file connects them with Tornado, and closes its WebSockets.
* A connection ends at its own time. Tornado itself would keep one that is idle for an hour, so in a drain Gunicorn's
  ``keepalive`` counts, from the drain's beginning.
* ``run()`` returns in time, whatever handlers do: they are cancelled at the deadline and not waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from gunicorn.sock import ssl_context
from gunicorn.workers import gtornado
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, StreamClosedError
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketProtocol13
from tornado.wsgi import WSGIContainer

from zdworker.errors import WarmupFailed
from zdworker.ipc.hand_over import Connection
from zdworker.workers.answers import AnswerCounter
from zdworker.workers.asgi.warmup import warm_up
from zdworker.workers.asgi.websocket_schedule import (
    ANSWER_WAIT_S,
    SERVICE_RESTART,
    close_delays,
    delay_after_accept,
)
from zdworker.workers.closing import ConnectionState
from zdworker.workers.drain import InFlight
from zdworker.workers.event_loop.serving import CUT_S, HEARTBEAT_INTERVAL_S, ServedWorker, Serving, run_to_end
from zdworker.workers.health import HealthWorker, is_health_path, tornado_with_health
from zdworker.workers.tornado.connections import (
    Request,
    Server,
    can_move,
    detach,
    end_with_responses,
    hand_over_with_responses,
    keep_connections,
    request_of,
    state_of,
    unread,
)

gtornado.TornadoWorker.setup()  # adds Gunicorn to the header ``Server``; called here so that it happens once


class Worker(ServedWorker, HealthWorker, Protocol):
    """What the server needs of its worker, a :class:`zdworker.workers.tornado.worker.TornadoWorker`."""

    zd_serving: Serving | None
    sockets: list[Any]
    wsgi: Any


def forget_loop() -> None:
    """Replace the loop of the process that this one was forked from by a new one: no loop survives a fork."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        IOLoop.clear_current()
    asyncio.set_event_loop(asyncio.new_event_loop())


def run(worker: Worker) -> None:
    """Serve for ``worker`` until the drain is over.

    :raises SystemExit: 3, the warm-up failed (reported); 0, it had to end before it was ready.
    """
    serving = worker.zd_serving = TornadoServing(worker)
    run_to_end(asyncio.get_event_loop(), serving.serve())


class TornadoServing(Serving):
    """The server of one worker."""

    worker: Worker

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker, float(worker.cfg.keepalive))
        self.server = _make_server(worker)
        self.websockets: set[Any] = set()

    def connections(self) -> Collection[Any]:
        """Return those that Tornado's server knows: WebSockets are no longer among them."""
        return self.server.connections

    def load(self) -> tuple[int, int]:
        """Return the number of open connections, and of requests answered since boot."""
        return len(self.server.connections) + len(self.websockets), self.server.answered

    def count(self, counter: AnswerCounter) -> None:
        """Have Tornado's own log of requests count: it knows status and time, and is called for each."""
        count_logged(self.server.request_callback, counter, self.worker)

    def running(self) -> int:
        """Return how many handlers run; that of a WebSocket does as long as it is open."""
        return max(len(_running_handlers()), len(self.websockets))

    # -- serving -----------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Boot, serve and drain.

        :raises LeaveRequested: before connections were accepted.
        :raises SystemExit: (3) the warm-up failed; it is reported.
        """
        self._watch_websockets()
        self.begin_boot()
        await self.boot()
        for sock in self.worker.sockets:
            sock.setblocking(False)
            self.server.add_socket(getattr(sock, "sock", sock))
        await self.opened()
        await self.until_leaving(HEARTBEAT_INTERVAL_S)
        await self.drain_connections()

    def _watch_websockets(self) -> None:
        """Keep a record of each WebSocket until its end; Tornado's server forgets it with the upgrade."""
        serving, accept = self, WebSocketProtocol13.accept_connection

        async def accept_connection(protocol: Any, handler: Any) -> None:
            serving.websockets.add(handler)
            if serving.drain.has_begun:
                serving._close_later(handler, delay_after_accept(serving.drain.websocket_spread_s))
            try:
                await accept(protocol, handler)
            finally:
                serving.websockets.discard(handler)

        WebSocketProtocol13.accept_connection = accept_connection  # type: ignore[assignment, method-assign]

    # -- warm-up -----------------------------------------------------------------------------------------------------

    async def warm_up(self, paths: Sequence[str], timeout_s: float) -> None:
        """Have each of ``paths`` answered over a pair of sockets.

        :raises WarmupFailed: one was not answered, or with status 400 or above.
        """
        await warm_up(self._ask, paths, timeout_s)

    async def _ask(self, path: str) -> None:
        status = await self._answer(path)
        if status >= 400:
            raise WarmupFailed(f"{path} was answered with {status}: zd_warmup wants a status below 400")

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

    def end_responses(self) -> None:
        """Have Tornado's connections do that, too."""
        super().end_responses()
        keep_connections()
        end_with_responses()

    def zd_stop_accepting(self) -> Iterable[float]:
        """Close the listeners; Tornado takes a connection up in the same call that accepts it, so none is lost."""
        self.server.begin_drain()
        return ()

    def zd_in_flight(self) -> InFlight:
        """Return what is under way; WebSockets are among the connections."""
        return InFlight(self.load()[0], len(self._busy()), len(self.websockets))

    def zd_requests(self) -> Iterable[tuple[str, str]]:
        """Return method and path of the requests that are being answered."""
        return map(request_of, self._busy())

    def _busy(self) -> list[Any]:
        return [known for known in self.server.connections if state_of(known) is ConnectionState.BUSY]

    def zd_begin_drain(self) -> None:
        """Begin to close the WebSockets; responses announce the end by themselves, unless connections move."""
        if not self.drain.gives or self.worker.cfg.is_ssl:
            self.end_responses()
        else:
            self.draining = True
            hand_over_with_responses(self.hand_over)
            for connection in list(self.connections()):
                self.offer(connection)
        open_now = list(self.websockets)
        for handler, delay in zip(open_now, close_delays(len(open_now), self.drain.websocket_spread_s), strict=True):
            self._close_later(handler, delay)

    def _close_later(self, handler: Any, delay: float) -> None:
        asyncio.get_running_loop().call_later(delay, self._close_soon, handler)

    def _close_soon(self, handler: Any) -> None:
        """Close a WebSocket right behind the next message that the application writes, or after a short time."""
        loop, write = asyncio.get_running_loop(), handler.write_message

        def write_last(*arguments: Any, **options: Any) -> Any:
            loop.call_soon(handler.close, SERVICE_RESTART)
            return write(*arguments, **options)

        handler.write_message = write_last
        loop.call_later(ANSWER_WAIT_S, handler.close, SERVICE_RESTART)

    def can_move(self, connection: Any) -> bool:
        """Return whether a connection can be handed over."""
        return can_move(connection)

    def detach(self, connection: Any) -> Connection | None:
        """Let go of a connection that can move now."""
        return detach(connection)

    async def attach(self, connection: Connection) -> None:
        """Serve a connection that was handed over."""
        self.server.take(IOStream(connection.sock), connection)

    def zd_is_empty(self) -> bool:
        """Return whether nothing is left; and count the connections whose clients know by now that they close."""
        self.drain.told_to_close = Request.told_to_close
        return super().zd_is_empty()

    def tend(self, connection: Any, now: float) -> None:
        """End a connection that waits for its client, when it has waited long enough."""
        state = state_of(connection)
        if state is ConnectionState.UNUSED:
            over = now >= self.drain.unused_until
        else:
            over = state is ConnectionState.IDLE and now >= connection.zd_since + self.drain.keepalive_s
        if over and not unread(connection.stream):
            connection.stream.close()

    def zd_cut(self) -> Iterable[float]:
        """End what the deadline has found, handlers included."""
        for connection in list(self.server.connections):
            connection.stream.close()
        for handler in list(self.websockets):
            with contextlib.suppress(Exception):  # its on_close() is the application's
                handler.on_connection_close()
        for task in _running_handlers():
            task.cancel()
        yield CUT_S


def _make_server(worker: Worker) -> Server:
    cfg, app = worker.cfg, tornado_with_health(worker.wsgi, worker)
    if "h2" in cfg.http_protocols:
        worker.log.warning("Tornado knows no HTTP/2: http_protocols has no effect")
    if not isinstance(app, (WSGIContainer, Application)):
        app = WSGIContainer(app)
    return Server(app, no_keep_alive=cfg.keepalive <= 0, ssl_options=ssl_context(cfg) if cfg.is_ssl else None)


def count_logged(application: Any, counter: AnswerCounter, worker: HealthWorker) -> None:
    """Count what ``application``, Tornado's or the container of a WSGI one, logs as answered from now on.

    This changes the object, in the worker's own process only. A user's ``log_request`` is called as before.
    """
    if isinstance(application, WSGIContainer):
        log, handle = application._log, application.handle_request  # noqa: SLF001  # it has no other place for that

        def log_and_count(status: int, request: Any) -> None:
            _count(counter, worker, status, request)
            log(status, request)

        async def handle_and_count(request: Any) -> None:
            try:
                await handle(request)  # calls the application and reads its whole response
            except Exception as error:
                counter.raised(error, request.request_time(), request.method, request.path)
                raise

        application._log = log_and_count  # type: ignore[assignment, method-assign]  # noqa: SLF001
        application.handle_request = handle_and_count  # type: ignore[method-assign]
        return
    log_request = application.log_request

    def log_request_and_count(handler: Any) -> None:
        if handler.get_status() != 101:  # a WebSocket's, logged at its end
            _count(counter, worker, handler.get_status(), handler.request)
        log_request(handler)

    application.log_request = log_request_and_count


def _count(counter: AnswerCounter, worker: HealthWorker, status: int, request: Any) -> None:
    if not is_health_path(unquote(request.path), worker):
        counter.answered(status, request.request_time(), request.method, request.path)


def _running_handlers() -> list[asyncio.Task[Any]]:
    """Return the handlers that run, those included whose response is finished or whose client has gone."""
    code = RequestHandler._execute.__code__  # noqa: SLF001  # Tornado keeps no list of them
    tasks = asyncio.all_tasks()
    return [task for task in tasks if getattr(task.get_coro(), "cr_code", None) is code and not task.done()]
