"""Workers that crash, are too many or too few, or tire, as stories (see ``test_rollout.py``)."""

from __future__ import annotations

import pytest

from tests.harness.core_stage import Stage, roll_on, steady
from zdworker.core.events import Drain, Halt, Kill, KillReason, Policy, Reload, Spawn, Start, WorkerReady
from zdworker.core.steps import KILL_MARGIN_S


class TestCrash:
    """A worker that served dies."""

    def test_it_is_replaced_at_once(self) -> None:
        stage = steady(2).crash(1)
        assert stage.took(Spawn) == [Spawn(3, 1, 1)]
        assert stage.boot().slots() == [1, 1]

    def test_repeated_deaths_back_off(self) -> None:
        stage = steady(1)
        waits = []
        for _ in range(5):
            stage.crash(0)
            due = stage.core.next_deadline()
            assert due is not None
            waits.append(0.0 if stage.coming() else due - stage.now)
            stage.passes(waits[-1]).boot()
        assert waits == [0.0, 0.5, 1.0, 2.0, 4.0]

    def test_in_development_a_worker_that_leaves_by_itself_is_replaced_without_a_wait(self) -> None:
        stage = steady(1, development=True)
        for _ in range(5):
            stage.leave(0)
            assert stage.coming() == [(0, 1)]
            stage.gone().boot()

    def test_one_that_says_that_it_leaves_and_goes_on_is_told_to_before_it_is_killed(self) -> None:
        stage = steady(2).leave(0).boot()
        time = stage.fleet.policy.graceful_timeout + KILL_MARGIN_S
        assert stage.passes(time - 0.1).took(Drain, Kill) == []
        assert stage.passes(0.1).took(Drain, Kill) == [Drain(1)]
        assert stage.passes(time - 0.1).took(Drain, Kill) == []
        assert stage.passes(0.1).took(Drain, Kill) == [Kill(1, KillReason.NOT_DRAINED)]

    def test_one_that_leaves_by_itself_is_told_to_at_the_end(self) -> None:
        stage = steady(2).leave(0).stop()
        assert stage.took(Drain) == [Drain(1), Drain(2), Drain(3)]
        assert stage.stop().took(Drain) == []

    def test_stable_uptime_resets_the_backoff(self) -> None:
        stage = steady(1)
        for _ in range(5):
            stage.crash(0).passes(8.0).boot()
        assert stage.passes(10.0).crash(0).coming() == [(0, 1)]

    def test_so_does_a_stable_worker_that_was_replaced(self) -> None:
        stage = steady(1)
        for _ in range(5):
            stage.crash(0).passes(8.0).boot()
        stage.passes(10.0).tire(0).boot().gone()
        assert stage.crash(0).coming() == [(0, 1)]

    def test_so_does_a_reload(self) -> None:
        stage = steady(1)
        for _ in range(5):
            stage.crash(0).passes(8.0).boot()
        roll_on(stage.reload())
        assert stage.crash(0).coming() == [(0, 2)]

    def test_an_order_for_the_old_code_is_called_off_when_the_canary_gets_its_slot(self) -> None:
        """In the step in which the canary is ordered, because the next event may be long in coming."""
        stage = steady(1)
        stage.tell(Reload())
        stage.leave(0)
        stage.load()
        assert (stage.coming(), stage.going()) == ([(0, 1)], [(0, 1)]), "there is no room for the canary"
        stage.lose_server(1).gone()
        assert (stage.coming(), stage.going()) == ([(0, 2)], [(0, 1)])

    def test_the_replacement_does_not_boot(self) -> None:
        stage = steady(2).crash(0).fail()
        assert stage.fleet.state == "degraded"
        assert stage.slots() == [1]
        assert stage.halted is None
        assert stage.passes(1.0).boot().fleet.state == "steady"

    def test_one_that_leaves_unasked_is_replaced(self) -> None:
        stage = steady(2).leave(0)
        assert stage.coming() == [(0, 1)]
        assert stage.boot().slots() == [1, 1]
        assert stage.going() == [(0, 1)]
        assert stage.core.next_deadline() == stage.now + stage.fleet.policy.graceful_timeout + KILL_MARGIN_S

    def test_leaving_unasked_again_and_again_backs_off(self) -> None:
        stage = steady(1).leave(0).boot().gone().leave(0).gone()
        assert stage.coming() == []
        assert stage.passes(0.5).coming() == [(0, 1)]

    def test_exit_on_crash(self) -> None:
        stage = steady(2, exit_on_crash=True).crash(0)
        assert stage.going() == [(1, 1)]
        halt = stage.gone().halted
        assert halt == Halt(1, "a worker was killed by signal 9, and zd_on_crash is 'exit'")

    def test_while_the_new_code_is_on_trial(self) -> None:
        stage = steady(3).reload().born().crash(2)
        assert stage.coming() == [(0, 2), (2, 1)], "the code that works fills the gap"
        stage.boot()
        assert roll_on(stage).slots() == [2, 2, 2]

    def test_a_stand_in_that_does_not_boot_is_not_the_new_codes_fault(self) -> None:
        stage = steady(3).reload().born().crash(2).fail()
        assert stage.reloads == {2: ""}
        assert stage.fleet.state == "degraded"
        assert stage.all_goes_well().slots() == [2, 2, 2]

    def test_a_stand_in_is_not_needed_once_the_new_code_is_proven(self) -> None:
        stage = steady(3).reload().born().crash(2)
        stage.tell(WorkerReady(4))
        assert (2, 1) in stage.going()
        assert roll_on(stage).slots() == [2, 2, 2]

    def test_while_rolling_after_proof(self) -> None:
        stage = steady(3).reload().boot().gone().crash(2)
        assert stage.coming() == [(1, 2), (2, 2)]
        assert roll_on(stage).slots() == [2, 2, 2]

    def test_of_the_new_worker_after_proof(self) -> None:
        stage = steady(3).reload().boot().gone().boot().gone().crash(0)
        assert stage.reloads == {2: ""}
        assert roll_on(stage).slots() == [2, 2, 2]

    def test_of_the_only_worker_and_its_code_during_the_trial(self) -> None:
        """Nothing is left to go back to: what is on disk is loaded."""
        stage = steady(1).reload().born().lose_server(1).crash(0)
        stage.fail()
        assert stage.reloads == {2: "failed"}
        assert stage.load().boot().slots() == [3]


class TestScale:
    """TTIN and TTOU."""

    def test_more(self) -> None:
        assert steady(1).scale(3).boot().slots() == [1, 1, 1]

    def test_fewer(self) -> None:
        stage = steady(3).scale(1)
        assert stage.going() == [(1, 1), (2, 1)]
        assert stage.gone().fleet.state == "steady"

    def test_none_and_back(self) -> None:
        stage = steady(2).scale(0).gone()
        assert stage.slots() == []
        assert stage.scale(2).boot().slots() == [1, 1]

    def test_fewer_while_one_is_missing(self) -> None:
        """No worker leaves as long as one of those that stay has yet to come."""
        stage = steady(2).crash(0).scale(1)
        assert stage.going() == []
        assert stage.boot().going() == [(1, 1)]

    def test_more_while_the_new_code_is_on_trial(self) -> None:
        stage = steady(2).reload().scale(3)
        assert stage.coming() == [(0, 2), (2, 1)]
        assert roll_on(stage).slots() == [2, 2, 2]

    def test_fewer_while_rolling(self) -> None:
        stage = steady(4).reload().boot().scale(2)
        assert stage.going() == [(0, 1), (2, 1), (3, 1)]
        assert roll_on(stage).slots() == [2, 2]

    def test_the_slot_of_the_trial_goes(self) -> None:
        stage = steady(4).reload()
        assert stage.scale(0).going() == [(0, 1), (0, 2), (1, 1), (2, 1), (3, 1)]
        assert stage.gone().reloads == {2: "done"}
        assert roll_on(stage.scale(2)).slots() == [2, 2]

    def test_during_the_first_load(self) -> None:
        stage = Stage(Policy(workers=1))
        stage.tell(Start())
        stage.scale(2).load()
        assert stage.coming() == [(0, 1), (1, 1)]
        assert stage.scale(3).boot().slots() == [1, 1, 1]

    def test_fewer_during_the_canary_of_a_reload_that_brings_fewer(self) -> None:
        """None of the old ones can be spared until the new code is verified."""
        stage = steady(4).reload(policy=Policy(workers=2)).scale(1)
        assert stage.going() == []
        assert stage.slots() == [1, 1, 1, 1]
        assert roll_on(stage).slots() == [2]

    def test_fewer_during_the_canary_of_such_a_reload_that_fails(self) -> None:
        stage = steady(4).reload(policy=Policy(workers=2)).scale(1).fail()
        assert roll_on(stage).slots() == [1, 1, 1]

    @pytest.mark.parametrize("brought", [1, 2, 4])
    def test_more_during_a_canary_that_a_newer_reload_supersedes_and_that_fails_too(self, brought: int) -> None:
        """As after the failure of the first one alone, the number that was asked for last stays."""
        stage = steady(2).reload(policy=Policy(workers=brought)).scale(3)
        stage.reload(policy=Policy(workers=brought)).gone()
        stage.fail(next(w.worker_id for w in stage.fleet.workers.values() if w.generation == 3))
        assert stage.reloads == {2: "superseded", 3: "failed"}
        assert stage.all_goes_well().slots() == [1, 1, 1]

    @pytest.mark.parametrize("workers", [0, 1, 4])
    def test_from_none_with_percentages(self, workers: int) -> None:
        """The percentages are those of the number of workers of the moment."""
        shares: dict[str, float] = {
            "surge": 25,
            "surge_is_percentage": True,
            "unavailable": 10,
            "unavailable_is_percentage": True,
        }
        stage = steady(0, preloaded=False, **shares).scale(workers).boot()
        assert stage.slots() == [1] * workers
        stage.reload(policy=stage.fleet.policy)
        assert stage.all_goes_well().fleet.state == "steady"


class TestQueuePerSlot:
    """With ``reuse_port`` a slot that goes away takes its queue along, which is to be emptied first."""

    def test_who_empties_a_queue_has_twice_the_time(self) -> None:
        stage = steady(2, queue_per_slot=True, graceful_timeout=30.0).scale(1)
        assert stage.took(Drain) == [Drain(2)]
        assert stage.passes(60.0).took(Kill) == []
        assert stage.passes(1.0).took(Kill) == [Kill(2, KillReason.NOT_DRAINED)]

    def test_whose_slot_stays_has_not(self) -> None:
        stage = steady(2, queue_per_slot=True, graceful_timeout=30.0).reload().boot()
        assert stage.passes(31.0).took(Kill) == [Kill(1, KillReason.NOT_DRAINED)]

    def test_nor_at_the_end(self) -> None:
        stage = steady(2, queue_per_slot=True, graceful_timeout=30.0).stop()
        assert stage.passes(31.0).took(Kill) == [Kill(1, KillReason.NOT_DRAINED), Kill(2, KillReason.NOT_DRAINED)]


class TestRecycling:
    """A worker asks to be replaced."""

    def test_the_replacement_comes_first(self) -> None:
        stage = steady(2).tire(0)
        assert stage.took(Spawn, Drain) == [Spawn(3, 0, 1)]
        assert stage.boot().took(Spawn, Drain) == [Drain(1)]
        assert stage.gone().fleet.state == "steady"

    def test_one_at_a_time(self) -> None:
        stage = steady(3).tire(0).tire(1).tire(2)
        assert stage.coming() == [(0, 1)]
        stage.boot()
        assert stage.coming() == []
        assert stage.gone().coming() == [(1, 1)]
        assert roll_on(stage).slots() == [1, 1, 1]

    def test_without_surge_one_leaves_first(self) -> None:
        stage = steady(3, surge=0, unavailable=2).tire(0).tire(1)
        assert stage.going() == [(0, 1)]
        assert stage.gone().boot().going() == [(1, 1)]

    def test_even_where_one_may_be_missing_the_replacement_comes_first(self) -> None:
        assert steady(3, unavailable=1).tire(0).going() == []

    def test_a_replacement_that_does_not_boot_harms_nobody(self) -> None:
        stage = steady(2).tire(0).fail()
        assert stage.slots() == [1, 1]
        assert stage.fleet.state == "degraded"
        assert roll_on(stage.passes(1.0)).fleet.state == "steady"

    def test_the_one_on_trial_is_tired_already(self) -> None:
        stage = steady(2, min_ready=5.0).reload().boot().tire(0)
        stage.fleet.workers[3].replacement_requested = True
        assert stage.all_goes_well().slots() == [2, 2]
