"""The drain that all worker classes share: its course with a clock of its own, and both ways to take its steps."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Iterator

import pytest

from zdworker.ipc.hand_over import BATCH, Connection, HandOverQueue
from zdworker.ipc.messages import Drained
from zdworker.workers.drain import (
    CHECK_INTERVAL_S,
    CUT_LINE_WITH_WEBSOCKETS,
    QUEUE_PATIENCE_S,
    QUEUE_RETRY_S,
    TEND_INTERVAL_S,
    UNUSED_CONNECTION_S,
    Drain,
    InFlight,
)


class Worker:
    """A worker that is its own server; its clock goes on only when a test says so."""

    def __init__(self, connections: int = 0, deadline: float = 120.0) -> None:
        self.log = logging.getLogger("test.drain")
        self.now = 100.0
        self.zd_deadline = deadline
        self.zd_queue: HandOverQueue | None = None
        self.zd_takes = self.zd_gives = False
        self.connections = connections
        self.done: list[str] = []
        self.tended: list[float] = []
        self.movable: list[Connection] = []
        self.taken: list[Connection] = []
        self.drain = Drain(self, self, keepalive_s=2.0, websocket_spread_s=10.0, clock=lambda: self.now)

    def zd_draining(self) -> None:
        self.done.append("report")

    def zd_drained(self, drained: Drained) -> None:
        self.drained = drained

    def zd_stop_accepting(self) -> Iterator[float]:
        self.done.append("remove")
        yield 0.0
        self.done.append("close")

    def zd_in_flight(self) -> InFlight:
        return InFlight(self.connections, self.connections, 0)

    def zd_begin_drain(self) -> None:
        if not self.drain.gives:
            self.done.append("announce")

    def zd_give(self) -> list[Connection]:
        given, self.movable = self.movable[:BATCH], self.movable[BATCH:]
        self.connections -= len(given)
        return given

    def zd_take(self, connection: Connection) -> None:
        self.connections += 1
        self.taken.append(connection)

    def zd_keep(self) -> None:
        self.done.append("announce")

    def zd_tend(self, now: float) -> None:
        self.tended.append(now)

    def zd_is_empty(self) -> bool:
        return not self.connections

    def zd_cut(self) -> Iterable[float]:
        self.done.append("cut")
        yield 0.05
        self.connections = 0

    def sleep_through(self, steps: Iterator[float], until: float = float("inf")) -> list[float]:
        """Take ``steps`` as a loop does that sleeps between them; stop when it is ``until``."""
        pauses = []
        for pause_s in steps:
            pauses.append(pause_s)
            self.now += pause_s
            if self.now >= until:
                break
        return pauses


def test_an_empty_worker_is_done_at_once() -> None:
    worker = Worker()
    assert worker.sleep_through(worker.drain.steps()) == [0.0]
    assert worker.done == ["remove", "close", "report", "announce"]
    assert worker.drain.cut is None
    assert worker.tended == []


def test_the_pauses_of_closing_the_listeners_come_before_the_report() -> None:
    worker = Worker()
    steps = worker.drain.steps()
    assert next(steps) == 0.0
    assert worker.done == ["remove"]
    assert not worker.drain.has_begun


def test_the_end_of_the_last_connection_is_noticed_soon_and_connections_are_tended_less_often() -> None:
    worker = Worker(connections=1)
    steps = worker.drain.steps()
    worker.sleep_through(steps, until=101.0)
    assert len(worker.tended) == pytest.approx(1.0 / TEND_INTERVAL_S, abs=2)
    worker.connections = 0
    assert list(steps) == []
    assert worker.drain.cut is None
    assert "cut" not in worker.done


def test_what_is_left_at_the_deadline_is_logged_and_cut(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker(connections=3, deadline=100.5)
    with caplog.at_level(logging.DEBUG):
        pauses = worker.sleep_through(worker.drain.steps())
    assert [record.getMessage() for record in caplog.records] == [
        "Draining: 3 connections, 3 requests under way",
        "graceful_timeout is over: 3 requests and 3 connections in all are cut",
        "Drained in 0.6 s: 0 connections handed over, 0 told to close",
    ]
    assert pauses[-1] == 0.05
    assert set(pauses[1:-1]) == {CHECK_INTERVAL_S}
    assert worker.drain.at_begin == worker.drain.cut == InFlight(3, 3, 0)


def test_a_deadline_that_comes_nearer_counts() -> None:
    worker = Worker(connections=1)
    steps = worker.drain.steps()
    worker.sleep_through(steps, until=101.0)
    worker.zd_deadline = 101.1
    worker.sleep_through(steps)
    assert worker.done[-1] == "cut"
    assert worker.now < 101.3


def test_a_loop_that_turns_by_itself_takes_steps_early() -> None:
    worker = Worker(connections=1)
    assert worker.drain.advance()
    for _turn in range(10):  # the clock stands still
        assert worker.drain.advance()
    assert worker.tended == [100.0]
    worker.now += TEND_INTERVAL_S
    assert worker.drain.advance()
    assert worker.tended == [100.0, worker.now]
    worker.connections = 0
    assert not worker.drain.advance()
    assert not worker.drain.advance()  # it does not begin again
    assert worker.done.count("report") == 1


def test_the_times_of_connections_follow_from_the_beginning() -> None:
    worker = Worker(connections=1)
    drain = worker.drain
    assert drain.begun_at == drain.unused_until == drain.idle_until == drain.notice_at == float("inf")
    drain.advance()
    drain.advance()
    assert drain.has_begun
    assert drain.unused_until == 100.0 + UNUSED_CONNECTION_S
    assert drain.idle_until == 102.0
    assert drain.notice_at == 110.0
    worker.zd_deadline = 104.0
    assert drain.notice_at == 102.0


@pytest.mark.parametrize(("deadline", "spread"), [(120.0, 10.0), (105.0, 4.0), (100.0, 0.0)])
def test_websockets_are_spread_over_what_is_left_less_a_second(deadline: float, spread: float) -> None:
    worker = Worker(deadline=deadline)
    list(worker.drain.steps())
    assert worker.drain.websocket_spread_s == spread


def test_the_lines_can_name_websockets(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker(connections=2, deadline=100.0)
    drain = Drain(
        worker,
        worker,
        keepalive_s=0.0,
        begin_line="Draining: %(connections)s",
        cut_line=CUT_LINE_WITH_WEBSOCKETS,
        clock=lambda: worker.now,
    )
    with caplog.at_level(logging.DEBUG):
        list(drain.steps())
    assert [record.getMessage() for record in caplog.records] == [
        "Draining: 2 connections",
        "graceful_timeout is over: 2 requests, 0 WebSockets and 2 connections in all are cut",
        "Drained in 0.0 s: 0 connections handed over, 0 told to close",
    ]


# -- which requests are cut --------------------------------------------------------------------------------------------


class Naming(Worker):
    """A worker that knows the method and the path of each of its requests."""

    def __init__(self, *paths: str) -> None:
        super().__init__(len(paths), deadline=100.0)
        self.paths = paths
        self.asked = 0

    def zd_requests(self) -> Iterator[tuple[str, str]]:
        assert "cut" not in self.done
        self.asked += 1
        for path in self.paths:
            if path == "unknown":
                raise AttributeError(path)
            yield "GET", path


def log_of(worker: Worker, caplog: pytest.LogCaptureFixture) -> str:
    with caplog.at_level(logging.WARNING):
        list(worker.drain.steps())
    (record,) = caplog.records
    return record.getMessage()


def test_requests_that_are_cut_are_named_without_their_query(caplog: pytest.LogCaptureFixture) -> None:
    worker = Naming("/export?token=secret", "/export", "/\x1b")
    assert log_of(worker, caplog) == (
        r"graceful_timeout is over: 3 requests (among them GET /export, GET /\x1b) and 3 connections in all are cut"
    )
    assert worker.drained == Drained(cut_requests=3, cut_paths=["GET /export", r"GET /\x1b"])
    assert worker.asked == 1


def test_of_many_requests_a_few_are_named() -> None:
    worker = Naming(*map(str, range(10)))
    list(worker.drain.steps())
    assert worker.drained.cut_paths == ["GET 0", "GET 1", "GET 2"]


def test_there_are_no_more_names_than_requests() -> None:
    worker = Naming("/a", "/b")
    worker.connections = 1
    list(worker.drain.steps())
    assert worker.drained == Drained(cut_requests=1, cut_paths=["GET /a"])


def test_a_server_that_fails_to_name_its_requests_is_cut_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    worker = Naming("/a", "unknown", "/b")
    line = log_of(worker, caplog)
    assert line == "graceful_timeout is over: 3 requests (among them GET /a) and 3 connections in all are cut"
    assert worker.done[-1] == "cut"
    assert worker.drained == Drained(cut_requests=3, cut_paths=["GET /a"])


def test_nothing_is_asked_for_if_nothing_is_cut() -> None:
    worker = Naming()
    list(worker.drain.steps())
    assert (worker.asked, worker.drained) == (0, Drained())


# -- with a successor --------------------------------------------------------------------------------------------------


class Giving(Worker):
    """A worker whose connections can all move, to a successor that takes them from the queue."""

    def __init__(self, connections: int) -> None:
        super().__init__(connections)
        self.queue = self.zd_queue = HandOverQueue.open()
        self.zd_takes = self.zd_gives = True
        made = [socket.socketpair() for _ in range(connections)]
        self.clients = [client for client, _server in made]
        self.movable = [Connection(server) for _client, server in made]

    def close(self, *taken: Connection) -> None:
        self.queue.close()
        for each in (*self.clients, *(c.sock for c in (*taken, *self.taken, *self.movable))):
            each.close()


def test_connections_are_given_in_batches_with_a_turn_of_the_loop_between() -> None:
    worker = Giving(2 * BATCH + 1)
    assert worker.sleep_through(worker.drain.steps()) == [0.0, 0.0, 0.0]
    assert (worker.drained, worker.drain.cut) == (Drained(handed_over=2 * BATCH + 1), None)
    assert "announce" not in worker.done
    taken = [connection for _ in range(3) for connection in worker.queue.take()]
    assert len(taken) == 2 * BATCH + 1
    worker.close(*taken)


def test_a_connection_that_cannot_move_yet_is_waited_for() -> None:
    worker = Giving(2)
    late = worker.movable.pop()
    course = worker.drain.steps()
    worker.sleep_through(course, until=worker.now + 1)
    assert worker.drain.handed_over == 1
    worker.movable.append(late)
    worker.sleep_through(course)
    assert worker.drain.handed_over == 2
    worker.close(*worker.queue.take(), *worker.queue.take())


def test_a_full_queue_is_waited_for_and_then_the_connections_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Giving(2)
    monkeypatch.setattr(worker.queue, "give", lambda _connections: False)
    pauses = worker.sleep_through(worker.drain.steps(), until=worker.now + 2)
    assert pauses.count(QUEUE_RETRY_S) >= QUEUE_PATIENCE_S / QUEUE_RETRY_S - 1
    assert len(worker.taken) == worker.connections == 2
    assert worker.done[-1] == "announce"
    assert not worker.drain.gives
    worker.close()


def test_a_queue_that_is_closed_ends_the_giving_and_what_is_left_in_it_is_taken() -> None:
    worker = Giving(2)
    left = worker.movable.pop()
    worker.connections -= 1
    assert worker.queue.give([left])
    course = worker.drain.steps()
    worker.queue.shut()
    worker.sleep_through(course, until=worker.now + 1)
    assert worker.done[-1] == "announce"
    assert len(worker.taken) == worker.connections == 2
    worker.close()


def test_what_waits_for_a_full_queue_at_the_deadline_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Giving(1)
    monkeypatch.setattr(worker.queue, "give", lambda _connections: False)
    course = worker.drain.steps()
    worker.sleep_through(course, until=worker.now + QUEUE_RETRY_S)
    worker.zd_deadline = worker.now
    worker.sleep_through(course)
    assert worker.drain.cut == InFlight(1, 1, 0)
    assert worker.drained == Drained(cut_requests=1)
    worker.close()


def test_whoever_sees_that_a_drain_has_begun_sees_whether_it_gives() -> None:
    """Threads ask, while the main thread begins the drain: their responses would end connections that could move."""

    class Watched(Giving):
        """Looks at the drain in the moment in which that asks."""

        @property
        def zd_gives(self) -> bool:
            self.done.append(f"begun: {self.drain.has_begun}")
            return True

        @zd_gives.setter
        def zd_gives(self, _gives: bool) -> None:
            """Let it be."""

    worker = Watched(1)
    list(worker.drain.steps())
    assert [each for each in worker.done if each.startswith("begun")] == ["begun: False"]
    assert worker.drain.gives
    worker.close()
