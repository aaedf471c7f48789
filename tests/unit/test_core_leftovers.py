"""When what an ended process has left gets TERM, is killed and is given up: without a process."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from zdworker.core.leftovers import (
    KILLED_S,
    LOOK_INTERVAL_S,
    TERM_S,
    Action,
    End,
    GiveUp,
    KillLeft,
    Leftovers,
    Process,
    Release,
    Seen,
    has_to_be_searched_for,
)


class Known(NamedTuple):
    """A process of these tests."""

    pid: int
    started: int = 0


ONE, TWO, BELOW = Known(1), Known(2), Known(3)
NOW = 100.0


def seen(*living: Process, below: tuple[Process, ...] = (), **facts: object) -> Seen:
    return Seen(dict.fromkeys(living, below), **facts)  # type: ignore[arg-type]  # as the tests name them


@pytest.fixture
def left() -> Leftovers:
    made = Leftovers()
    made.ended("a worker", [ONE, TWO])
    return made


def test_it_is_told_to_end_with_what_is_below_it_and_killed_and_given_up(left: Leftovers) -> None:
    assert left.advance(seen(ONE, TWO, below=(BELOW,)), NOW) == [End("a worker", (ONE, TWO, BELOW))]
    assert left.processes() == [ONE, TWO, BELOW]
    alive = seen(ONE, BELOW)
    assert left.advance(alive, NOW + TERM_S - 0.01) == []
    assert left.advance(alive, NOW + TERM_S) == [KillLeft("a worker", (ONE, BELOW))]
    assert left.advance(alive, NOW + TERM_S + KILLED_S - 0.01) == []
    assert left.advance(seen(BELOW), NOW + TERM_S + KILLED_S) == [GiveUp((BELOW,))]
    assert not left.waiting
    assert left.processes() == []


def test_what_has_ended_is_done_with(left: Leftovers) -> None:
    assert left.advance(seen(ONE), NOW) == [End("a worker", (ONE,))]
    assert left.advance(seen(), NOW + 0.1) == []
    assert not left.waiting


def test_what_has_ended_before_is_not_told_to(left: Leftovers) -> None:
    assert left.advance(seen(), NOW) == []
    assert not left.waiting


def test_a_worker_is_no_leftover(left: Leftovers) -> None:
    """It was forked a moment before the process ended that has left the others."""
    assert left.advance(seen(ONE, TWO, workers={1}), NOW) == [End("a worker", (TWO,))]


def test_nothing_is_ended_while_a_worker_is_not_known(left: Leftovers) -> None:
    assert left.advance(seen(ONE, TWO, unknown=True), NOW) == []
    assert left.advance(seen(ONE, TWO), NOW + 60) == [End("a worker", (ONE, TWO))]


@pytest.mark.parametrize("processes", [[ONE], []])
def test_a_fork_servers_processes_last_as_long_as_its_workers(processes: list[Process]) -> None:
    left = Leftovers()
    left.ended("generation 7", processes, 7)
    assert left.waiting
    assert left.advance(seen(*processes, generations={7, 8}), NOW) == []
    ends: list[Action] = [End("generation 7", tuple(processes))] if processes else []
    released: list[Action] = [Release(7)]
    alone = seen(*processes, generations={8})
    assert left.advance(alone, NOW) == (ends or released)
    assert left.advance(seen(), NOW + 0.1) == (released if ends else [])
    assert not left.waiting


def test_each_has_its_own_time(left: Leftovers) -> None:
    left.advance(seen(ONE, TWO), NOW)
    left.ended("another", [BELOW])
    assert left.advance(seen(ONE, BELOW), NOW + TERM_S) == [KillLeft("a worker", (ONE,)), End("another", (BELOW,))]


def test_nothing_left_is_nothing_to_wait_for() -> None:
    left = Leftovers()
    left.ended("a worker", [])
    assert not left.waiting


def test_newcomers_are_the_children_since_the_last_look() -> None:
    left = Leftovers()
    assert left.look_is_due(NOW)
    left.looked([1, 2], NOW, unreaped=False)
    assert not left.look_is_due(NOW + LOOK_INTERVAL_S - 0.01)
    assert left.look_is_due(NOW + LOOK_INTERVAL_S)
    left.started_by_master([3])
    assert left.newcomers([1, 2, 3, 4, 5], {5}) == [4]
    assert left.newcomers([1, 2, 3, 4, 5], {5}) == [], "what one process has left is not another's"


def test_a_look_while_a_dead_child_is_not_reaped_does_not_count() -> None:
    left = Leftovers()
    left.looked([1], NOW, unreaped=False)
    left.looked([1, 2], NOW + 1, unreaped=True)
    assert left.look_is_due(NOW + 1)
    assert left.newcomers([1, 2], ()) == [2]


@pytest.mark.parametrize(
    ("listed", "cleanly", "expected"),
    [(True, False, False), (True, True, False), (False, True, False), (False, False, True)],
)
def test_what_a_crash_leaves_has_to_be_searched_for(listed: bool, cleanly: bool, expected: bool) -> None:
    assert has_to_be_searched_for(listed=listed, cleanly=cleanly) is expected
