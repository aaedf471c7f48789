"""A fork server forks one worker after the other: how many orders it has, and when the time for one begins."""

from __future__ import annotations

import pytest

from tests.harness.core_stage import UNBORN, Stage, started, steady
from zdworker.core.events import (
    EndGeneration,
    GenerationFailed,
    Kill,
    Policy,
    Spawn,
    WorkerForked,
    WorkerGone,
)
from zdworker.core.plan import FORKS_AT_A_TIME
from zdworker.core.steps import FORK_TIMEOUT_S

SLOW_FORK_S = 0.9 * FORK_TIMEOUT_S


def unborn(stage: Stage) -> list[int]:
    """The workers that the fork server has not forked, in the order of their orders."""
    return [number for number, state in stage.processes.items() if state == UNBORN]


class TestOrders:
    """Not more at a time than a fork server can hold."""

    def test_the_others_wait_until_one_is_forked(self) -> None:
        stage = started(workers=FORKS_AT_A_TIME + 2)
        assert len(unborn(stage)) == FORKS_AT_A_TIME
        assert stage.tell(WorkerForked(3)) == [Spawn(FORKS_AT_A_TIME + 1, FORKS_AT_A_TIME, 1)]
        assert stage.tell(WorkerForked(1)) == [Spawn(FORKS_AT_A_TIME + 2, FORKS_AT_A_TIME + 1, 1)]
        assert stage.tell(WorkerForked(2)) == []

    def test_one_that_could_not_be_forked_makes_room(self) -> None:
        stage = steady(FORKS_AT_A_TIME + 1)
        for slot in range(FORKS_AT_A_TIME + 1):
            stage.crash(slot)
        first, *others = unborn(stage)
        assert len(others) == FORKS_AT_A_TIME - 1
        assert stage.core.next_deadline() == stage.now + FORK_TIMEOUT_S
        stage.took()
        stage.tell(WorkerGone(first, "could not be forked: no memory"))
        assert [action.slot for action in stage.took(Spawn) if isinstance(action, Spawn)] == [FORKS_AT_A_TIME]

    def test_a_rollout_with_a_large_surge_comes_to_its_end(self) -> None:
        workers = 3 * FORKS_AT_A_TIME
        stage = steady(workers, surge=workers).reload(policy=Policy(workers=workers, surge=workers))
        stage.boot()
        assert len(unborn(stage)) == FORKS_AT_A_TIME
        assert stage.all_goes_well().slots() == [2] * workers

    def test_one_fork_server_does_not_wait_for_another(self) -> None:
        """While the canary is tried out, what a crash empties is filled from the generation before."""
        stage = steady(FORKS_AT_A_TIME + 1).reload()
        for slot in range(FORKS_AT_A_TIME):
            stage.crash(slot)
        assert [generation for _, generation in stage.coming()].count(1) == FORKS_AT_A_TIME - 1


class TestTime:
    """It counts from the moment at which the fork server can begin."""

    def test_slow_forks_of_many_workers(self) -> None:
        stage = started(workers=3 * FORKS_AT_A_TIME, boot_timeout=9000.0)
        while waiting := unborn(stage):
            stage.passes(SLOW_FORK_S)
            stage.tell(WorkerForked(waiting[0]))
        assert stage.took(Kill, EndGeneration) == []
        assert stage.boot().slots() == [1] * 3 * FORKS_AT_A_TIME

    def test_one_that_could_not_be_forked_took_its_time_too(self) -> None:
        stage = steady(2).crash(0).crash(1).passes(SLOW_FORK_S)
        stage.tell(WorkerGone(3, "could not be forked: no memory"))
        stage.passes(SLOW_FORK_S)
        assert stage.servers == {1: True}

    def test_one_that_died_at_once_was_forked_all_the_same(self) -> None:
        stage = steady(2).crash(0).crash(1)
        stage.tell(WorkerForked(3))
        stage.passes(SLOW_FORK_S)
        stage.tell(WorkerGone(4, "was killed by SIGKILL", -9))
        assert stage.servers == {1: True}

    def test_only_those_behind_get_new_time(self) -> None:
        """A fork server that has gone on to the next one owes nothing for the one before."""
        stage = steady(2).crash(0).crash(1).passes(SLOW_FORK_S)
        stage.tell(WorkerForked(4))
        stage.passes(FORK_TIMEOUT_S - SLOW_FORK_S)
        assert stage.servers == {2: False}

    def test_another_generation_gets_none(self) -> None:
        stage = steady(2).crash(0).reload()
        first, canary = unborn(stage)
        assert (stage.going(), stage.coming()) == ([(0, 1)], [(0, 2)])
        ordered_at = stage.now
        stage.passes(1.0)
        stage.tell(WorkerForked(first))
        assert stage.fleet.workers[canary].deadline == ordered_at + FORK_TIMEOUT_S

    def test_one_that_is_stuck_is_given_up_once(self) -> None:
        stage = started(workers=3)
        stage.passes(SLOW_FORK_S)
        stage.tell(WorkerForked(1))
        stage.passes(SLOW_FORK_S)
        assert stage.servers == {1: True}
        stage = steady(3).crash(0).crash(1).crash(2).passes(FORK_TIMEOUT_S)
        assert stage.servers == {2: False}
        assert [stage.fleet.slot(number).failures for number in range(3)] == [2, 1, 1]


class TestLoss:
    """A fork server that reports a failure after it has loaded is lost, like one whose process has ended."""

    FAILED = GenerationFailed(1, "RuntimeError: enough", "Traceback ...")

    def test_it_is_replaced(self) -> None:
        stage = steady(2)
        stage.tell(self.FAILED)
        assert stage.servers == {2: False}
        assert stage.fleet.state == "steady"
        assert stage.load().crash(0).boot().slots() == [2, 1]

    def test_the_end_of_its_process_is_nothing_new(self) -> None:
        stage = steady(2)
        stage.tell(self.FAILED)
        stage.lose_server(1)
        assert stage.fleet.restore_failures == 1

    def test_nor_is_its_report_after_that(self) -> None:
        stage = steady(2).lose_server(1)
        stage.tell(self.FAILED)
        assert stage.fleet.restore_failures == 1

    def test_before_its_first_worker_was_ready_the_reload_has_failed(self) -> None:
        stage = steady(2).reload()
        stage.tell(GenerationFailed(2, "RuntimeError: enough"))
        assert stage.reloads[2] == "failed"
        assert stage.servers == {1: True}

    @pytest.mark.parametrize("fails", [True, False])
    def test_one_that_is_kept_for_a_rollback_is_not_replaced(self, fails: bool) -> None:
        stage = steady(1, preloaded=True, rollback_window=300.0)
        stage.reload(preloaded=True, policy=Policy(workers=1, rollback_window=300.0)).boot().gone()
        assert stage.kept() == {1}
        stage.tell(self.FAILED) if fails else stage.lose_server(1)
        assert stage.kept() == set()
        assert stage.servers == {2: True}
        assert stage.fleet.restore_failures == 0
