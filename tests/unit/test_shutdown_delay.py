"""TERM with ``zd_shutdown_delay``: the master says that it ends, keeps serving, and then ends."""

from __future__ import annotations

import pytest

from tests.harness.core_stage import Stage, steady
from zdworker.core.events import Drain, Halt, Policy, Reload, Rollback, Start
from zdworker.errors import IllegalEvent
from zdworker.plain import decode, encode

DELAY = 10.0


def told(window: float = 0.0) -> Stage:
    """A fleet that got the order to end just now."""
    stage = steady(workers=2, shutdown_delay=DELAY, rollback_window=window).stop()
    assert stage.fleet.state == "stopping"
    return stage


def test_it_serves_on_for_the_delay_and_then_ends() -> None:
    stage = told()
    assert stage.core.next_deadline() == stage.now + DELAY
    stage.passes(DELAY - 0.1)
    assert stage.took() == []
    assert stage.slots() == [1, 1]
    assert stage.passes(0.1).took(Drain) == [Drain(1), Drain(2)]
    assert stage.gone().halted == Halt(0, "")


def test_asked_again_it_does_not_begin_anew() -> None:
    stage = told().passes(DELAY - 1).stop().passes(1)
    assert stage.took(Drain) == [Drain(1), Drain(2)]


def test_a_quick_end_does_not_wait() -> None:
    stage = told().stop(quick=True)
    assert stage.took(Drain) == [Drain(1, quick=True), Drain(2, quick=True)]


def test_a_worker_that_dies_meanwhile_is_replaced() -> None:
    stage = told().crash(0).passes(1).boot()
    assert stage.slots() == [1, 1]


def test_no_reload_begins_and_none_is_undone() -> None:
    stage = told(window=100.0)
    stage.tell(Reload())
    assert not stage.loads()
    with pytest.raises(IllegalEvent, match="the master is stopping"):
        stage.tell(Rollback())


def test_where_nothing_ever_served_there_is_nothing_to_wait_for() -> None:
    stage = Stage(Policy(shutdown_delay=DELAY))
    stage.tell(Start())
    assert stage.stop().halted == Halt(0, "")


def test_before_the_start_either() -> None:
    assert Stage(Policy(shutdown_delay=DELAY)).stop().halted == Halt(0, "")


def test_it_is_among_the_facts() -> None:
    assert decode(encode(told().fleet)).stopping
