"""A rollback undoes the newest reload, whatever that has come to."""

from __future__ import annotations

import pytest

from tests.harness.core_stage import Stage, roll_on, steady
from zdworker.core.events import (
    Outcome,
    Policy,
    Reload,
    ReloadFinished,
    ReloadStarted,
    RestoreConfiguration,
    Rollback,
    TakeConfiguration,
)
from zdworker.core.rollout import Rollout
from zdworker.errors import IllegalEvent
from zdworker.plain import decode, encode

WINDOW = 100.0


def deployed(preloaded: bool = True, **settings: float) -> Stage:
    """A fleet that has just got its second generation."""
    stage = steady(workers=2, preloaded=preloaded, rollback_window=WINDOW, **settings)
    stage.reload(preloaded)
    roll_on(stage)
    assert stage.slots() == [2, 2]
    stage.took()
    return stage


def refused(stage: Stage) -> str:
    with pytest.raises(IllegalEvent) as refusal:
        stage.tell(Rollback())
    assert str(refusal.value) == stage.core.rollback_refusal()
    return str(refusal.value)


def test_the_previous_generation_is_kept_and_rolled_out_again_in_order() -> None:
    stage = deployed()
    assert stage.servers == {1: True, 2: True}
    stage.tell(Rollback())
    assert stage.fleet.state == "rolling"
    assert stage.took(ReloadStarted) == [ReloadStarted(1, rollback=True)]
    assert stage.coming() == [(0, 1)]
    roll_on(stage)
    assert stage.slots() == [1, 1]
    assert stage.took(ReloadFinished) == [ReloadFinished(1, Outcome.DONE)]
    assert stage.fleet.state == "steady"


def test_a_rollback_can_be_rolled_back() -> None:
    stage = deployed()
    stage.tell(Rollback())
    roll_on(stage)
    stage.tell(Rollback())
    roll_on(stage)
    assert stage.slots() == [2, 2]


def test_its_time_is_over_after_the_window() -> None:
    stage = deployed()
    stage.passes(WINDOW - 1)
    assert stage.core.rollback_refusal() == ""
    stage.passes(2)
    assert stage.servers == {2: True}
    assert "none was replaced within zd_rollback_window" in refused(stage)


def test_without_a_window_nothing_is_kept() -> None:
    stage = steady(workers=2, preloaded=True)
    stage.reload(preloaded=True)
    roll_on(stage)
    assert stage.servers == {2: True}
    assert refused(stage) == "no generation is kept: zd_rollback_window is 0"


def test_without_preload_nothing_is_kept() -> None:
    stage = deployed(preloaded=False)
    assert stage.servers == {2: True}
    assert "not preloaded (--preload)" in refused(stage)


def test_what_was_to_make_up_for_the_undone_code_s_fork_server_is_not_run() -> None:
    """It loads what is on disk: the very code that is to be undone."""
    stage = deployed()
    stage.lose_server(2)
    while not stage.loads():
        stage.until_due()
    stage.tell(Rollback())
    assert not stage.loads()
    roll_on(stage)
    assert stage.slots() == [1, 1]
    assert stage.servers == {1: True}


def test_a_reload_that_waits_for_such_a_fork_server_is_called_off_before_it_begins() -> None:
    """It has no outcome: a client that waits for it learns of that when the rollback begins (control.py)."""
    stage = deployed()
    stage.lose_server(2)
    while not stage.loads():
        stage.until_due()
    stage.tell(Reload())
    assert ReloadStarted(1, rollback=True) in stage.tell(Rollback())
    stage.all_goes_well()
    assert stage.reloads == {2: "done", 1: "done"}


def test_what_was_to_make_up_for_failed_code_s_fork_server_is_not_run() -> None:
    stage = steady(workers=3, preloaded=True)
    stage.reload(preloaded=True).boot().gone()
    stage.lose_server(2)
    while not stage.loads():
        stage.until_due()
    stage.tell(Rollback())
    assert not stage.loads()
    roll_on(stage)
    assert stage.slots() == [1, 1, 1]


def test_a_reload_that_fails_leaves_the_way_back_open() -> None:
    stage = deployed()
    stage.reload(preloaded=True)
    stage.born()
    stage.fail()
    roll_on(stage)
    assert stage.slots() == [2, 2]
    stage.tell(Rollback())
    roll_on(stage)
    assert stage.slots() == [1, 1]


def test_the_next_reload_takes_the_place_of_what_was_kept() -> None:
    stage = deployed()
    stage.reload(preloaded=True)
    assert stage.servers == {1: True, 2: True, 3: True}
    roll_on(stage)
    assert stage.servers == {2: True, 3: True}
    stage.tell(Rollback())
    roll_on(stage)
    assert stage.slots() == [2, 2]


def test_a_reload_that_rolls_is_turned_back() -> None:
    stage = deployed()
    stage.reload(preloaded=True)
    stage.boot()
    assert 3 in stage.slots()
    stage.took()
    stage.tell(Rollback())
    (finished,) = stage.took(ReloadFinished)
    assert finished == ReloadFinished(3, Outcome.ROLLED_BACK, "called off: a rollback was asked for")
    roll_on(stage)
    assert stage.slots() == [2, 2]
    assert stage.fleet.previous is not None
    assert stage.fleet.previous.generation == 1


def test_a_reload_on_trial_is_turned_back_without_preload_too() -> None:
    stage = steady(workers=2)
    stage.reload()
    assert stage.core.rollback_refusal() == ""
    stage.tell(Rollback())
    roll_on(stage)
    assert stage.slots() == [1, 1]


def test_a_canary_is_taken_back_although_the_old_fork_server_is_gone() -> None:
    """All old workers serve, so no code from memory is needed."""
    stage = steady(workers=2, preloaded=True).reload(preloaded=True, hold=600.0).boot().lose_server(1)
    stage.tell(Rollback())
    stage.gone()
    assert stage.slots() == [1, 1]
    assert stage.reloads == {2: "rolled_back"}


def test_a_reload_that_has_proved_itself_cannot_be_turned_back_without_preload() -> None:
    stage = steady(workers=2)
    stage.reload()
    stage.boot()
    assert "not preloaded" in refused(stage)


def test_a_reload_that_loads_is_called_off_and_no_more() -> None:
    stage = deployed()
    stage.tell(Reload())
    stage.tell(Rollback())
    assert not stage.loads()
    assert stage.servers == {1: True, 2: True}
    assert stage.slots() == [2, 2]
    outcome = ReloadFinished(3, Outcome.ROLLED_BACK, "called off: a rollback was asked for")
    assert stage.took(ReloadFinished)[-1:] == [outcome]
    assert (stage.fleet.state, stage.fleet.trouble) == ("steady", None)
    stage.tell(Rollback())
    assert stage.took(ReloadStarted)[-1:] == [ReloadStarted(1, rollback=True)]
    roll_on(stage)
    assert stage.slots() == [1, 1]


def test_a_reload_that_is_called_off_does_not_hide_the_failure_before() -> None:
    stage = deployed()
    stage.reload(preloaded=True).born()
    stage.fail()
    roll_on(stage)
    assert stage.fleet.state == "failed"
    stage.tell(Reload())
    stage.tell(Rollback())
    assert stage.fleet.state == "failed"


def test_the_configuration_that_is_taken_back_counts() -> None:
    stage = steady(workers=2, preloaded=True, rollback_window=WINDOW)
    stage.reload(preloaded=True, policy=Policy(workers=3, rollback_window=WINDOW))
    roll_on(stage)
    assert stage.slots() == [2, 2, 2]
    stage.tell(Rollback())
    roll_on(stage)
    assert stage.slots() == [1, 1]


def test_a_rollback_whose_first_worker_fails_leaves_what_served() -> None:
    stage = deployed()
    stage.tell(Rollback())
    stage.born()
    stage.fail()
    roll_on(stage)
    assert stage.slots() == [2, 2]
    assert stage.fleet.state == "failed"


def test_when_its_fork_server_dies_there_is_no_way_back_and_nothing_else_is_amiss() -> None:
    stage = deployed()
    stage.lose_server(1)
    assert refused(stage)
    assert stage.fleet.state == "steady"
    assert not stage.loads()


def test_before_the_first_generation_serves_and_at_the_end_there_is_none() -> None:
    stage = Stage(Policy(rollback_window=WINDOW))
    assert refused(stage) == "the master is new"
    assert refused(deployed().stop()) == "the master is stopping"


def test_it_is_written_out_with_the_facts() -> None:
    stage = deployed()
    again = Rollout(decode(encode(stage.fleet)), lambda: 0.0)
    assert again.fleet == stage.fleet
    assert again.rollback_refusal() == ""


def test_the_configuration_of_that_time_is_taken_back_first() -> None:
    stage = deployed()
    stage.takes_at_once = False
    assert stage.tell(Rollback()) == [ReloadStarted(1, rollback=True), TakeConfiguration(1, 0)]
    assert stage.fleet.state == "rolling"
    assert stage.slots() == [2, 2]
    assert refused(stage) == "a rollback is under way"
    stage.take()
    assert stage.coming() == [(0, 1)]


def test_a_configuration_that_cannot_be_taken_back_changes_nothing() -> None:
    stage = deployed()
    stage.takes_at_once = False
    stage.tell(Rollback())
    stage.refuse("the address is in use")
    assert stage.took(ReloadFinished) == [ReloadFinished(1, Outcome.FAILED, "the address is in use")]
    assert stage.fleet.state == "failed"
    assert stage.slots() == [2, 2]
    assert stage.core.rollback_refusal() == "", "it is still kept"
    stage.passes(WINDOW)
    assert stage.servers == {2: True}


def test_a_generation_that_dies_while_its_configuration_is_taken_back_is_not_rolled_out() -> None:
    stage = deployed()
    stage.takes_at_once = False
    stage.tell(Rollback())
    stage.lose_server(1)
    assert stage.fleet.previous is None
    assert stage.take() == [RestoreConfiguration(2)]
    assert stage.slots() == [2, 2]
    assert not stage.coming()


def test_a_configuration_that_is_taken_after_the_master_has_begun_to_end_is_not_taken_back() -> None:
    stage = deployed()
    stage.takes_at_once = False
    stage.reload(preloaded=True)
    stage.stop()
    assert stage.take() == []


def test_a_configuration_that_is_taken_after_its_reload_was_called_off_is_taken_back() -> None:
    stage = deployed()
    stage.takes_at_once = False
    stage.reload(preloaded=True)
    stage.tell(Rollback())
    assert stage.take() == [RestoreConfiguration(2)]
    assert stage.in_force == 2
