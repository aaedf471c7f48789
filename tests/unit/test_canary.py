"""The canary phase of a rollout: the first new worker beside all old ones, a hold, and giving up."""

from __future__ import annotations

import pytest

from tests.harness.core_stage import Stage, in_slot, roll_on, steady
from zdworker.core.events import (
    CanaryReady,
    Degraded,
    Drain,
    GenerationJudged,
    Kill,
    Outcome,
    Policy,
    Reload,
    ReloadFinished,
    Resume,
    Rollback,
    Scale,
    Spawn,
    WorkerGone,
)
from zdworker.core.rollout import ROLL_ATTEMPTS
from zdworker.errors import IllegalEvent


def with_canary(workers: int = 2, preloaded: bool = False, hold: float | None = None, **settings: float) -> Stage:
    """A fleet whose canary has just got ready, and serves for 20 seconds."""
    stage = steady(workers, preloaded=preloaded, **{"canary": 20.0, **settings})
    return stage.reload(preloaded, hold=hold).boot()


def outcome(stage: Stage) -> ReloadFinished:
    (finished,) = (action for action in stage.log if isinstance(action, ReloadFinished))
    return finished


def test_the_canary_serves_beside_all_old_workers_for_its_time() -> None:
    stage = with_canary(4)
    assert stage.slots() == [1, 2, 1, 1, 1]
    assert CanaryReady(2, 5, 20.0) in stage.log
    stage.passes(19.9)
    assert stage.slots() == [1, 2, 1, 1, 1]
    assert stage.took(Drain, Spawn) == [Spawn(5, 0, 2)]
    stage.passes(0.2)
    assert len(stage.took(Drain)) == 1
    roll_on(stage)
    assert stage.slots() == [2, 2, 2, 2]
    assert stage.reloads == {2: "done"}


def test_without_canary_seconds_nobody_learns_of_a_canary() -> None:
    stage = roll_on(steady(2).reload())
    assert stage.reloads == {2: "done"}
    assert stage.took(CanaryReady) == []


def test_min_ready_is_the_least_that_a_canary_serves() -> None:
    stage = with_canary(canary=3.0, min_ready=10.0)
    stage.passes(9.0)
    assert stage.took(Drain) == []
    stage.passes(2.0)
    assert len(stage.took(Drain)) == 1


def test_only_the_first_new_worker_is_a_canary() -> None:
    stage = with_canary(2)
    stage.passes(20.0)
    roll_on(stage)
    assert stage.slots() == [2, 2], "the second slot does not wait"


def test_a_start_has_no_canary() -> None:
    stage = Stage(Policy(workers=2, canary=20.0)).start()
    stage.boot()
    assert stage.fleet.state == "steady"
    assert stage.took(CanaryReady) == []


def test_a_rollback_has_no_canary() -> None:
    """Its code served before, and is wanted now."""
    stage = with_canary(2, preloaded=True, rollback_window=300.0)
    stage.passes(20.0)
    roll_on(stage)
    stage.took()
    stage.tell(Rollback())
    roll_on(stage)
    assert stage.slots() == [1, 1]
    assert stage.took(CanaryReady) == []


def test_where_there_is_no_room_the_canary_takes_the_place_of_an_old_worker() -> None:
    stage = steady(3, surge=0, unavailable=1, canary=20.0).reload()
    assert stage.going() == [(0, 1)]
    stage.gone().boot()
    assert stage.slots() == [2, 1, 1]
    stage.passes(19.0)
    assert stage.slots() == [2, 1, 1]
    stage.judge()
    roll_on(stage)
    assert stage.slots() == [1, 1, 1]


# -- giving up ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preloaded", [False, True])
def test_a_bad_canary_is_given_up_and_costs_nobody_a_boot(preloaded: bool) -> None:
    stage = with_canary(3, preloaded=preloaded)
    stage.took()
    stage.judge("41 of 120 answers of generation 2 failed")
    assert stage.took(Spawn, Kill) == []
    assert stage.going() == [(0, 2)]
    assert stage.slots() == [1, 1, 1]
    assert stage.reloads == {2: "failed"}
    assert stage.fleet.trouble is not None
    assert stage.fleet.trouble.reason == "41 of 120 answers of generation 2 failed"
    stage.gone().passes(1000.0)
    assert stage.fleet.state == "failed"
    assert stage.slots() == [1, 1, 1]
    assert stage.took(Spawn) == []
    assert 2 not in stage.fleet.generations


def test_a_good_deploy_after_a_bad_one_goes_through() -> None:
    stage = with_canary(2).judge().gone().reload().boot()
    stage.passes(20.0)
    roll_on(stage)
    assert stage.slots() == [3, 3]
    assert stage.fleet.state == "steady"
    assert stage.reloads == {2: "failed", 3: "done"}


def test_later_the_slots_go_back_if_the_old_code_is_in_memory() -> None:
    stage = with_canary(3, preloaded=True)
    stage.passes(20.0)
    stage.gone().boot()
    assert 1 in stage.slots()
    stage.judge("worse")
    assert stage.reloads == {2: "failed"}
    assert outcome(stage).reason == "worse"
    roll_on(stage)
    assert stage.slots() == [1, 1, 1]


def test_later_without_preloading_what_is_new_stays_and_what_is_old_too() -> None:
    """A worker that is made of the old generation now would read the new code from disk."""
    stage = with_canary(3)
    stage.passes(20.0)
    stage.gone().boot()
    new = stage.slots().count(2)
    assert 0 < new < 3
    stage.took()
    stage.judge("worse")
    assert stage.reloads == {2: "failed"}
    (finished,) = stage.took(ReloadFinished)
    assert isinstance(finished, ReloadFinished)
    assert finished.reason == (
        f"worse; {new} of 3 workers are of it and stay, "
        "since the generation before is not preloaded, or its fork server is gone"
    )
    stage.all_goes_well()
    assert sorted(stage.slots()) == sorted([2] * new + [1] * (3 - new))
    assert stage.fleet.state == "failed"
    stage.took()
    die(stage, of_generation(stage, 2))
    roll_on(stage)
    assert [order.generation for order in stage.took(Spawn) if isinstance(order, Spawn)] == [1]
    assert 2 not in stage.servers


@pytest.mark.parametrize(("old", "new"), [(4, 2), (2, 4)])
def test_what_is_given_up_has_the_smaller_number_of_workers(old: int, new: int) -> None:
    """A further worker of the old configuration would be made of the new code on disk."""
    stage = steady(old).reload(policy=Policy(workers=new, canary=20.0)).boot()
    stage.passes(20.0)
    stage.gone().boot()
    stage.took()
    stage.judge("worse")
    assert stage.fleet.trouble is not None
    assert " of 2 workers are of it and stay, " in stage.fleet.trouble.reason
    stage.all_goes_well()
    assert len(stage.slots()) == 2
    assert stage.took(Spawn) == []


def test_what_is_given_up_keeps_the_number_that_was_asked_for_since() -> None:
    stage = with_canary(2, canary=20.0)
    stage.passes(20.0)
    stage.gone().boot()
    stage.tell(Scale(3))
    stage.judge("worse")
    stage.all_goes_well()
    assert len(stage.slots()) == 3


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("new", [2, 6])
def test_a_number_that_was_named_stays_when_a_canary_is_given_up(new: int, number: int) -> None:
    """Whether it is more or less than the number that the canary's configuration brings, or the same."""
    stage = steady(4).reload(policy=Policy(workers=new))
    stage.tell(Scale(number, absolute=True))
    assert stage.fleet.wanted_size == number
    stage.boot().judge("worse")
    stage.all_goes_well()
    assert len(stage.slots()) == number


def test_a_new_worker_whose_old_one_is_still_there_does_not_stay() -> None:
    stage = with_canary(3, min_ready=5.0)
    stage.passes(20.0)
    stage.gone().boot()
    assert stage.slots() == [2, 1, 2, 1], "in the second slot both serve"
    stage.judge("worse")
    assert stage.fleet.trouble is not None
    assert "; 1 of 3 workers are of it and stay, " in stage.fleet.trouble.reason
    stage.all_goes_well()
    assert stage.slots() == [2, 1, 1]
    assert stage.fleet.state == "failed"


def test_a_verdict_that_comes_too_late_changes_nothing() -> None:
    stage = with_canary(2)
    stage.passes(20.0)
    roll_on(stage)
    assert stage.reloads == {2: "done"}
    assert stage.tell(GenerationJudged(2, "worse")) == []
    assert stage.tell(GenerationJudged(1, "worse")) == []
    with pytest.raises(IllegalEvent, match="no generation 3"):
        stage.tell(GenerationJudged(3, "worse"))


def test_a_verdict_while_the_master_ends_changes_nothing() -> None:
    stage = with_canary(2).stop()
    assert stage.tell(GenerationJudged(2, "worse")) == []


# -- crashes -----------------------------------------------------------------------------------------------------


def of_generation(stage: Stage, generation: int) -> int:
    """The first worker of a generation that is not leaving."""
    return next(w.worker_id for w in stage.fleet.workers.values() if w.generation == generation and not w.leaving)


def die(stage: Stage, worker_id: int) -> Stage:
    stage.tell(WorkerGone(worker_id, "was killed by SIGSEGV", -11))
    return stage


def test_a_canary_that_crashes_is_given_up() -> None:
    stage = with_canary(2).passes(10.0)
    die(stage, of_generation(stage, 2))
    assert stage.reloads == {2: "failed"}
    assert outcome(stage).reason == "the first new worker failed: was killed by SIGSEGV as the canary"
    stage.passes(100.0)
    assert stage.slots() == [1, 1]


def test_a_canary_that_crashes_at_once_is_given_up() -> None:
    stage = with_canary(2, min_ready=5.0).passes(2.0)
    die(stage, of_generation(stage, 2))
    assert outcome(stage).reason == "the first new worker failed: was killed by SIGSEGV too soon"


def test_where_old_workers_crash_as_well_there_is_another_canary() -> None:
    stage = with_canary(2).passes(10.0)
    stage.crash(1).boot()
    die(stage, of_generation(stage, 2))
    assert stage.reloads == {2: ""}
    stage.boot()
    assert sorted(stage.slots()) == [1, 1, 2]
    stage.passes(19.0)
    assert sorted(stage.slots()) == [1, 1, 2], "it has a time of its own"
    stage.passes(1.0)
    roll_on(stage)
    assert stage.slots() == [2, 2]


def test_that_does_not_go_on_for_ever() -> None:
    stage = with_canary(2, canary=10_000.0)
    for _ in range(ROLL_ATTEMPTS):
        assert stage.reloads == {2: ""}
        stage.crash(1)
        die(stage, of_generation(stage, 2))
        for _ in range(5):
            stage.boot().passes(10.0)
    assert stage.reloads == {2: "failed"}
    assert outcome(stage).reason == f"{ROLL_ATTEMPTS} canaries have died, the last one was killed by SIGSEGV"


def test_an_old_worker_that_crashes_comes_back_as_the_old_code() -> None:
    stage = with_canary(3)
    stage.crash(2)
    assert stage.coming() == [(2, 1)]


def test_the_log_names_a_slot_that_nothing_may_fill_once() -> None:
    """The canary's code may have no second worker, and the old fork server is gone."""
    stage = with_canary(3, canary=60.0).passes(10.0)
    stage.lose_server(1).crash(2).passes(20.0)
    (degraded,) = [action for action in stage.log if isinstance(action, Degraded)]
    assert (degraded.slot, degraded.next_try_s) == (2, 50.0)
    assert "the fork server of generation 1 is gone: until the canary of 2 is verified" in degraded.reason
    assert stage.fleet.state == "degraded"
    stage.passes(31.0)
    roll_on(stage)
    assert (stage.slots(), stage.fleet.state) == ([2, 2, 2], "steady")


@pytest.mark.parametrize("canary_is_there", [True, False])
def test_a_canary_without_its_fork_server_is_given_up_whatever_else_loads(canary_is_there: bool) -> None:
    stage = steady(2, preloaded=True).reload(preloaded=True, hold=600.0)
    if canary_is_there:
        stage.boot()
    stage.tell(Reload())
    stage.lose_server(2)
    assert stage.reloads == {2: "failed", 3: ""}
    stage.crash(1)
    stage.fail_load()
    while stage.coming() or stage.going():
        stage.boot().gone()
    assert stage.slots() == [1, 1]
    assert stage.servers == {1: True}, "nothing is loaded from the disk in its place"


# -- holding -----------------------------------------------------------------------------------------------------


def test_a_hold_ends_by_itself_with_the_old_code() -> None:
    stage = with_canary(2, hold=600.0)
    assert CanaryReady(2, 3, 600.0, held=True) in stage.log
    stage.passes(599.0)
    assert sorted(stage.slots()) == [1, 1, 2]
    stage.passes(2.0)
    assert stage.reloads == {2: "failed"}
    assert outcome(stage).reason == "given up: it was not resumed within 600 s (zdworker resume)"
    stage.gone()
    assert stage.slots() == [1, 1]


@pytest.mark.parametrize("hold", [None, 600.0])
def test_resume_lets_the_rollout_go_on_at_once(hold: float | None) -> None:
    stage = with_canary(2, hold=hold).passes(1.0).resume()
    roll_on(stage)
    assert stage.slots() == [2, 2]
    assert stage.reloads == {2: "done"}


def test_resume_does_not_shorten_min_ready() -> None:
    stage = with_canary(2, hold=600.0, min_ready=10.0).passes(4.0).resume()
    assert sorted(stage.slots()) == [1, 1, 2]
    stage.passes(5.0)
    assert sorted(stage.slots()) == [1, 1, 2]
    stage.passes(2.0)
    stage.gone().boot().passes(11.0)
    roll_on(stage)
    assert stage.slots() == [2, 2]


def test_resume_before_the_canary_is_ready() -> None:
    stage = steady(2).reload(hold=600.0).resume()
    stage.boot()
    roll_on(stage)
    assert stage.slots() == [2, 2]


def test_rollback_ends_a_hold() -> None:
    stage = with_canary(2, hold=600.0)
    stage.tell(Rollback())
    stage.gone()
    assert stage.slots() == [1, 1]
    assert outcome(stage).outcome is Outcome.ROLLED_BACK


def test_a_second_reload_supersedes_a_hold() -> None:
    stage = with_canary(2, hold=600.0).reload()
    assert stage.reloads == {2: "superseded", 3: ""}
    while stage.coming() or stage.going():
        stage.boot().gone()
    assert 2 not in stage.slots()
    stage.passes(20.0)
    roll_on(stage)
    assert stage.slots() == [3, 3]


def test_the_newest_order_says_whether_it_holds() -> None:
    stage = steady(2)
    stage.tell(Reload(600.0))
    stage.tell(Reload(600.0))
    stage.tell(Reload())
    stage.load()  # which is superseded
    stage.load()
    roll_on(stage)
    assert stage.slots() == [3, 3]
    assert stage.took(CanaryReady) == []


def test_without_workers_nothing_is_held() -> None:
    stage = steady(0).reload(hold=600.0)
    assert stage.reloads == {2: "done"}


def test_scaled_to_nothing_a_held_reload_is_done() -> None:
    stage = with_canary(1, hold=600.0).scale(0)
    stage.gone()
    assert stage.reloads == {2: "done"}
    assert not stage.fleet.held


def test_what_cannot_be_resumed_says_why() -> None:
    stage = steady(2)
    assert stage.core.resume_refusal() == "no canary is held: there is no reload under way, or it has gone on already"
    with pytest.raises(IllegalEvent, match="no canary is held"):
        stage.tell(Resume())
    stage.tell(Reload(600.0))
    assert stage.core.resume_refusal() == "the new code is still loading, and has no canary yet"
    stage.load()
    assert stage.core.resume_refusal() == ""
    stage.stop()
    assert stage.core.resume_refusal() == "the master is stopping"


def test_an_old_worker_that_wants_to_be_replaced_waits_for_the_canary() -> None:
    stage = with_canary(2)
    stage.tire(1)
    assert stage.coming() == []
    assert len(in_slot(stage.fleet, 1)) == 1
    stage.passes(20.0)
    roll_on(stage)
    assert stage.slots() == [2, 2]
