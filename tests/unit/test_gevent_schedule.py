"""When connections of a gevent worker are looked at: not before their time, once, and never after their end."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from zdworker.workers.gevent.schedule import BUCKET_S, Schedule


def test_nothing_is_due_without_connections() -> None:
    schedule = Schedule()
    assert schedule.due(1e9) == []
    assert schedule.due_in(5.0) == math.inf


def test_a_connection_is_due_once_and_not_before_its_time() -> None:
    schedule = Schedule()
    schedule.put("a", 10.0)
    assert schedule.due(9.99) == []
    assert 0 < schedule.due_in(9.5) <= 0.5 + BUCKET_S
    assert schedule.due(10.0 + BUCKET_S) == ["a"]
    assert schedule.due(1e9) == []


def test_a_connection_that_has_ended_leaves_nothing() -> None:
    schedule = Schedule()
    schedule.put("a", 10.0)
    schedule.discard("a")
    schedule.discard("a")
    assert schedule.due_in(0.0) == math.inf
    assert vars(schedule) == vars(Schedule())


def test_an_infinite_time_never_comes() -> None:
    schedule = Schedule()
    schedule.put("a", 10.0)
    schedule.put("a", math.inf)
    assert schedule.due(1e9) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 100)), max_size=30), st.floats(0, 120))
def test_the_last_time_counts(puts: list[tuple[int, float]], now: float) -> None:
    schedule = Schedule()
    for connection, at in puts:
        schedule.put(connection, at)
    due = set(schedule.due(now))
    last = dict(puts)
    assert {connection for connection, at in last.items() if at <= now - BUCKET_S - 1e-6} <= due
    assert due <= {connection for connection, at in last.items() if at <= now + 1e-6}
