"""Booting and draining on an event loop, with a server made of lists: who is waited for, and for how long."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from zdworker.ipc.hand_over import Connection as HandedOver
from zdworker.ipc.hand_over import HandOverQueue
from zdworker.ipc.messages import Drained
from zdworker.settings import Settings
from zdworker.workers import drain
from zdworker.workers.applications import Receive, Scope, Send
from zdworker.workers.asgi.drain import AsgiDrain
from zdworker.workers.event_loop import serving
from zdworker.workers.event_loop.asgi_serving import AsgiServing
from zdworker.workers.event_loop.serving import LeaveRequested, shares, wind_up


class Worker:
    """What a server asks of its worker."""

    alive = True
    max_requests = 10
    cfg = SimpleNamespace(graceful_timeout=20)
    log = logging.getLogger("test")

    def __init__(self, **settings: Any) -> None:
        self.zd_settings = Settings(**settings)
        self.zd_boot_started_at = time.monotonic()
        self.zd_deadline = float("inf")
        self.reported: list[str] = []
        self.beats = 0
        self.failure: Exception | None = None
        self.zd_queue: HandOverQueue | None = None
        self.zd_takes = self.zd_gives = False
        self.server: ListServer

    @property
    def zd_leaving(self) -> bool:
        return self.zd_deadline != float("inf")

    def zd_leave(self, grace: float) -> None:
        self.zd_deadline = min(self.zd_deadline, time.monotonic() + grace)
        self.server.wake()

    def notify(self) -> None:
        self.beats += 1

    zd_counter = None

    def zd_count_if_wanted(self) -> None:
        pass

    def zd_stopping(self) -> bool:
        return False

    def zd_take_signals_back(self) -> None:
        self.reported.append("signals")

    def zd_ready(self) -> None:
        self.reported.append("ready")

    def zd_draining(self) -> None:
        self.reported.append("draining")

    def zd_drained(self, drained: Drained) -> None:
        self.drained = drained

    def zd_take_or_stop(self) -> bool:
        return False

    def zd_warmup_failed(self, error: Exception) -> None:
        self.failure = error
        raise SystemExit(3)


class ListServer(AsgiServing):
    """Connections are what a test puts into the lists."""

    def __init__(self, worker: Worker, app: Any = None, keepalive: float = 2.0) -> None:
        super().__init__(worker, keepalive)
        worker.server = self
        self.application = app or answering
        self.asgi = AsgiDrain(self.application)
        self.open: list[Any] = []
        self.calls = self.answered = 0
        self.announced: list[Any] = []
        self.tended: list[Any] = []

    def connections(self) -> Collection[Any]:
        return self.open

    def load(self) -> tuple[int, int]:
        return len(self.open), self.answered

    def running(self) -> int:
        return self.calls

    def announce(self, connection: Any) -> None:
        self.announced.append(connection)

    def prepare(self, send: Send) -> None:
        """Nothing."""

    def tend(self, connection: Any, now: float) -> None:
        self.tended.append(connection)

    def warm_up_basis(self) -> Mapping[str, Any]:
        return {}

    def can_move(self, connection: Any) -> bool:
        return False

    def detach(self, connection: Any) -> HandedOver | None:
        return None

    async def attach(self, connection: HandedOver) -> None:
        self.open.append(connection)


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    status = 500 if scope["path"] == "/bad" else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def starts() -> bool:
    return True


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario()

    asyncio.run(main())


def test_a_worker_that_has_to_leave_before_the_loop_runs_does_not_boot() -> None:
    async def scenario() -> None:
        worker = Worker()
        server = ListServer(worker)
        worker.zd_leave(1.0)
        with pytest.raises(LeaveRequested):
            server.begin_boot()

    run(scenario)


def test_a_worker_that_has_to_leave_during_lifespan_startup_breaks_it_off() -> None:
    async def scenario() -> None:
        worker = Worker()
        server = ListServer(worker)

        async def for_ever() -> bool:
            await asyncio.sleep(60)
            return True

        server.begin_boot()
        asyncio.get_running_loop().call_later(0.01, worker.zd_leave, 1.0)
        with pytest.raises(LeaveRequested):
            await server.boot(for_ever)

    run(scenario)


def test_ready_comes_last() -> None:
    async def scenario() -> None:
        worker = Worker(warmup=["/a"])
        server = ListServer(worker)
        server.begin_boot()
        await server.boot(starts)
        assert worker.reported == ["signals"], "which lifespan startup may have set are the worker's again"
        assert not server.is_open
        await server.opened()
        assert worker.reported == ["signals", "ready"]
        assert server.is_open

    run(scenario)


@pytest.mark.parametrize("lifespan", [True, False])
def test_the_warm_up_comes_after_a_lifespan_that_has_started(lifespan: bool) -> None:
    async def scenario() -> None:
        worker = Worker(warmup=["/bad"])
        server = ListServer(worker)

        async def start() -> bool:
            return lifespan

        server.begin_boot()
        if lifespan:
            with pytest.raises(SystemExit):
                await server.boot(start)
            assert "/bad was answered with status 500" in str(worker.failure)
        else:
            await server.boot(start)
            assert worker.failure is None

    run(scenario)


def test_heartbeats_go_on_until_the_worker_has_to_leave() -> None:
    async def scenario() -> None:
        worker = Worker()
        server = ListServer(worker)
        server.begin_boot()
        asyncio.get_running_loop().call_later(0.1, worker.zd_leave, 5.0)
        begun = time.monotonic()
        await asyncio.wait_for(server.until_leaving(0.02), 5.0)
        assert time.monotonic() - begun < 3.0
        assert worker.beats >= 3

    run(scenario)


def test_the_reloader_ends_a_worker_at_once() -> None:
    async def scenario() -> None:
        worker = Worker()
        server = ListServer(worker)
        server.begin_boot()
        worker.alive = False
        await asyncio.wait_for(server.until_leaving(60.0), 5.0)
        assert worker.zd_deadline <= time.monotonic()

    run(scenario)


def test_without_our_arbiter_a_worker_leaves_by_itself_after_max_requests() -> None:
    async def scenario() -> None:
        worker = Worker()
        server = ListServer(worker)
        server.begin_boot()
        server.answered = 10
        worker.alive = False  # as the protocols of Gunicorn's ASGI stack have it then
        await asyncio.wait_for(server.until_leaving(60.0), 5.0)
        assert worker.zd_deadline > time.monotonic() + 10

    run(scenario)


def test_the_drain_ends_with_the_last_connection_and_call() -> None:
    async def scenario() -> None:
        worker = Worker()
        server = ListServer(worker)
        server.begin_boot()
        server.open, server.calls = ["one"], 1
        listener = SimpleNamespace(sockets=[], closed=False)
        listener.close = lambda: setattr(listener, "closed", True)
        worker.zd_leave(30.0)
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, server.open.clear)
        loop.call_later(0.1, setattr, server, "calls", 0)
        begun = time.monotonic()
        server.listeners = [listener]
        assert await server.drain_connections()
        assert 0.09 <= time.monotonic() - begun < 5.0
        assert listener.closed
        assert worker.reported == ["draining"]
        assert server.draining
        assert set(server.tended) == {"one"}

    run(scenario)


def test_responses_end_their_connections_before_the_loop_turns() -> None:
    """A handler may hold the loop until its response is written."""

    async def scenario() -> None:
        worker = Worker()
        server = ListServer(worker)
        server.begin_boot()
        await server.opened()
        assert not server.draining
        worker.zd_leave(30.0)
        assert server.draining

    run(scenario)


def test_the_drain_ends_at_its_deadline_even_if_that_comes_nearer(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        worker = Worker()
        server = ListServer(worker)
        server.begin_boot()
        server.open, server.calls = ["one", "two"], 1
        worker.zd_leave(30.0)
        asyncio.get_running_loop().call_later(0.05, worker.zd_leave, 0.05)
        begun = time.monotonic()
        assert not await server.drain_connections()
        assert time.monotonic() - begun < 5.0
        assert worker.beats >= 1

    run(scenario)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "graceful_timeout is over: 1 request, 0 WebSockets and 2 connections in all are cut"
    ]


def test_handshakes_are_waited_for_until_unused_connections_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "UNUSED_CONNECTION_S", 0.2)

    async def scenario() -> None:
        worker = Worker()
        server = ListServer(worker, keepalive=0.0)
        server.begin_boot()
        never_ended = Handshake()
        server.handshakes.add(never_ended)
        worker.zd_leave(30.0)
        begun = time.monotonic()
        assert await server.drain_connections()
        assert 0.2 <= time.monotonic() - begun < 5.0

    run(scenario)


class Handshake:
    """A protocol before its handshake."""

    transport = None


def test_lifespan_shutdown_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SHUTDOWN_MIN_S", 0.1)

    async def scenario() -> None:
        worker = Worker()
        server = ListServer(worker)
        server.begin_boot()
        worker.zd_leave(0.0)
        begun = time.monotonic()
        await server.until_done(asyncio.sleep(60))
        assert 0.1 <= time.monotonic() - begun < 5.0
        done: list[bool] = []

        async def shutdown() -> None:
            done.append(True)

        await server.until_done(shutdown())
        assert done == [True]

    run(scenario)


def test_asyncio_listens_once_and_uvloop_more_often() -> None:
    with socket.socket() as bare:
        wrapped = SimpleNamespace(sock=bare)

        async def copies() -> list[socket.socket]:
            return shares([wrapped])

        assert asyncio.run(copies()) == [bare]
        uvloop = pytest.importorskip("uvloop")
        loop = uvloop.new_event_loop()
        listening = loop.run_until_complete(copies())
        loop.close()
        assert listening[0] is bare
        assert len({sock.fileno() for sock in listening}) == serving.UVLOOP_ACCEPTS
        for copy in listening[1:]:
            copy.close()


def test_what_the_application_left_running_is_cancelled_and_not_waited_for() -> None:
    loop = asyncio.new_event_loop()
    cancelled: list[str] = []

    async def stubborn() -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append("stubborn")

    async def begin() -> asyncio.Task[None]:
        task = asyncio.ensure_future(stubborn())
        await asyncio.sleep(0)
        return task

    task = loop.run_until_complete(begin())
    begun = time.monotonic()
    wind_up(loop)
    assert time.monotonic() - begun < 5.0
    assert cancelled == ["stubborn"]
    task.cancel()
    loop.run_until_complete(asyncio.wait({task}))
    loop.close()


def test_what_the_server_has_let_go_of_is_given_or_served_again() -> None:
    async def scenario() -> None:
        server = ListServer(Worker())
        first, second = socket.socketpair()
        with first, second:
            moved = HandedOver(first, None)
            server.hand_over(moved)
            assert not server.zd_is_empty()
            assert server.zd_give() == [moved]
            assert server.zd_is_empty()
            server.hand_over(moved)
            server.zd_keep()  # no successor comes any more
            assert server.zd_give() == []
            await asyncio.sleep(0.01)
            assert server.open == [moved]

    run(scenario)


class HoldingServer(ListServer):
    """Notes which connections are held."""

    movable = True

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self.held: set[Any] = set()
        self.answered_calls: list[Callable[[], None]] = []

    def can_move(self, connection: Any) -> bool:
        return self.movable

    def when_answered(self, connection: Any, offer: Callable[[], None]) -> None:
        self.answered_calls.append(offer)

    def hold(self, connection: Any) -> None:
        self.held.add(connection)

    def read_on(self, connection: Any) -> None:
        self.held.discard(connection)


@pytest.mark.parametrize("change", ["none", "upgraded", "kept"])
def test_no_connection_is_held_that_nothing_would_read_on(change: str) -> None:
    async def scenario() -> None:
        server = HoldingServer(Worker())
        server.open.append("connection")
        server.drain.gives = True
        server.announce_or_offer("connection")
        if change == "upgraded":
            server.movable = False
        elif change == "kept":
            server.drain.gives = False
            server.zd_keep()
        (answered,) = server.answered_calls
        answered()
        assert server.held == ({"connection"} if change == "none" else set())

    run(scenario)
