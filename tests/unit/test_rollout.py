"""Starts, reloads and stops, as stories: what happens to a fleet, and what it does about it.

Rules: each test tells one story on a ``Stage``, which holds the core to the invariant all the way. ``slots()`` are the
generations that serve, slot by slot.
"""

from __future__ import annotations

import pytest

from tests.harness.core_stage import Stage, roll_on, started, steady
from zdworker.core.events import (
    Drain,
    EndGeneration,
    GenerationFailed,
    GenerationLoaded,
    Halt,
    Kill,
    KillReason,
    Outcome,
    Policy,
    Reload,
    ReloadFinished,
    ReloadStarted,
    Scale,
    Spawn,
    Start,
    StartGeneration,
    Stop,
    TakeConfiguration,
    WorkerFailed,
    WorkerForked,
    WorkerGone,
    WorkerLeaving,
    WorkerReady,
    WorkerReplacementRequested,
)
from zdworker.core.fleet import Phase, WorkerState
from zdworker.core.rollout import START_ATTEMPTS
from zdworker.core.steps import EXIT_TIMEOUT_S, KILL_MARGIN_S, QUICK_STOP_TIMEOUT_S


class TestStart:
    """From nothing to the first workers."""

    def test_it_serves(self) -> None:
        stage = Stage(Policy(workers=3))
        assert stage.tell(Start()) == [StartGeneration(1)]
        assert stage.tell(GenerationLoaded(1, preloaded=False)) == [
            Spawn(1, 0, 1),
            Spawn(2, 1, 1),
            Spawn(3, 2, 1),
        ]
        stage.born()
        assert stage.fleet.phase is Phase.STARTING
        stage.boot()
        assert stage.fleet.state == "steady"
        assert stage.slots() == [1, 1, 1]
        assert stage.core.next_deadline() is None

    def test_of_no_workers_at_all(self) -> None:
        stage = Stage(Policy(workers=0))
        stage.tell(Start())
        assert stage.fleet.phase is Phase.STARTING, "there may be code to complain about"
        assert stage.load().fleet.state == "steady"
        assert stage.scale(2).boot().slots() == [1, 1]

    @pytest.mark.parametrize("exit_code", [1, 3, 4])
    def test_code_that_does_not_load_ends_the_master_with_its_code(self, exit_code: int) -> None:
        stage = Stage(Policy(workers=2))
        stage.tell(Start())
        stage.fail_load("SyntaxError", exit_code)
        assert stage.halted == Halt(exit_code, "SyntaxError")

    def test_code_that_hangs_while_loading(self) -> None:
        stage = Stage(Policy(workers=2, boot_timeout=20.0))
        stage.tell(Start())
        assert stage.passes(19.0).halted is None
        stage.passes(1.0)
        assert stage.halted == Halt(3, "not loaded within 20 s (zd_boot_timeout)")

    @pytest.mark.parametrize(("exit_code", "status"), [(3, 3), (4, 4), (1, 3), (0, 3)])
    def test_a_worker_that_fails_ends_the_master(self, exit_code: int, status: int) -> None:
        stage = started(workers=2).born()
        for _ in range(START_ATTEMPTS if exit_code == 0 else 1):
            worker_id = max(stage.processes)
            stage.tell(WorkerFailed(worker_id, "ImportError: no", "", exit_code))
            stage.tell(WorkerGone(worker_id, "exited", exit_code))
            if not exit_code:
                stage.passes(1.0).born()
        assert stage.halted is None
        assert [w.state for w in stage.fleet.workers.values()] == [WorkerState.DRAINING]
        assert stage.gone().halted == Halt(status, "a worker failed to boot: ImportError: no")

    def test_a_worker_that_ends_without_a_word(self) -> None:
        stage = started(workers=1).born()
        stage.tell(WorkerGone(1, "exited with code 4", 4))
        assert stage.halted == Halt(4, "a worker failed to boot: exited with code 4 before it was ready")

    def test_a_worker_that_a_signal_ends_is_tried_again(self) -> None:
        """Maybe the kernel was short of memory: not the code's fault, the first times."""
        stage = started(workers=1)
        for _attempt in range(START_ATTEMPTS):
            assert stage.halted is None
            stage.passes(1.0).born()
            stage.tell(WorkerGone(max(stage.processes), "was killed by signal 9", -9))
        assert stage.halted
        assert stage.halted.status == 3

    def test_a_term_to_the_whole_group_while_booting_is_one_end(self) -> None:
        """The workers, told by the same signal, are faster than the master's own event."""
        stage = started(workers=2).born()
        stage.tell(WorkerGone(1, "exited with code 0", 0))
        stage.tell(WorkerLeaving(2))
        assert stage.stop().halted is None
        assert stage.gone().halted == Halt(0, "")

    def test_a_worker_that_hangs_ends_the_master(self) -> None:
        stage = started(workers=2, boot_timeout=20.0).born().passes(20.0)
        assert Kill(1, KillReason.NOT_READY) in stage.log
        assert stage.gone().halted == Halt(3, "a worker failed to boot: not ready within 20 s (zd_boot_timeout)")

    def test_once_one_has_served_a_failure_only_degrades(self) -> None:
        stage = started(workers=2).born()
        stage.tell(WorkerReady(1))
        stage.fail()
        assert stage.fleet.state == "degraded"
        assert stage.halted is None
        assert stage.boot().fleet.state == "steady"

    def test_newer_code_may_mend_a_start_that_is_stuck(self) -> None:
        stage = started(workers=2).born()
        stage.tell(WorkerReady(1))
        for _ in range(10):
            stage.fail()
            if not stage.coming():
                stage.until_due()
        assert stage.fleet.phase is Phase.STARTING
        stage.reload()
        assert roll_on(stage).slots() == [2, 2]
        assert stage.fleet.state == "steady"

    def test_a_reload_that_comes_while_starting_waits_for_the_first_worker(self) -> None:
        stage = started(workers=2)
        stage.tell(Reload())
        assert not stage.loads()
        assert roll_on(stage).slots() == [1, 1]
        assert roll_on(stage.load()).slots() == [2, 2]

    def test_a_reload_before_the_start_is_no_second_one(self) -> None:
        stage = Stage(Policy(workers=1))
        stage.tell(Reload())
        assert stage.start().fleet.state == "steady"
        assert stage.reloads == {}

    def test_its_fork_server_dies_before_any_worker_is_ready(self) -> None:
        stage = started(workers=1).lose_server(1)
        stage.tell(Reload())  # must not keep the fork server from being replaced
        stage.tell(WorkerGone(1, "was never born"))
        assert stage.took(StartGeneration)[-1] == StartGeneration(2)
        assert stage.load().boot().slots() == [2]

    def test_neither_does_the_second_fork_server_load(self) -> None:
        stage = started(workers=1).lose_server(1).fail_load("ImportError", 4)
        assert stage.passes(EXIT_TIMEOUT_S).gone().halted == Halt(4, "ImportError")


class TestHandOver:
    """The order to leave says whether another worker of the slot takes connections over."""

    def test_only_to_a_ready_one_that_takes(self) -> None:
        stage = steady(2)
        stage.tell(Reload())
        stage.tell(GenerationLoaded(2, False))
        stage.tell(WorkerForked(3))
        assert stage.tell(WorkerReady(3, takes=True)) == [Drain(1, hand_over=True)]
        assert stage.fleet.workers[3].takes
        stage.tell(WorkerGone(1, "exited with code 0", 0))
        stage.tell(WorkerForked(4))
        assert stage.tell(WorkerReady(4)) == [Drain(2)]

    def test_not_to_one_of_another_slot_nor_at_the_end(self) -> None:
        stage = started(workers=2)
        for worker_id in (1, 2):
            stage.tell(WorkerForked(worker_id))
            stage.tell(WorkerReady(worker_id, takes=True))
        assert stage.tell(Scale(1)) == [Drain(2)]
        stage.tell(WorkerGone(2, "exited with code 0", 0))
        stage.tell(WorkerReplacementRequested(1))
        stage.tell(WorkerForked(3))
        assert stage.tell(WorkerReady(3, takes=True)) == [Drain(1, hand_over=True)]
        assert Drain(3) in stage.tell(Stop())

    def test_one_that_leaves_by_itself_leaves_the_queue_to_the_one_that_boots(self) -> None:
        """It gives nothing, since the master has not told it to."""
        stage = steady(1).tire(0)
        stage.tell(WorkerForked(2))
        stage.tell(WorkerLeaving(1))
        stage.passes(stage.fleet.policy.graceful_timeout + KILL_MARGIN_S)
        assert stage.took(Drain) == [Drain(1, hand_over=True)]


class TestReload:
    """All goes well."""

    def test_step_by_step(self) -> None:
        stage = steady(2)
        assert stage.tell(Reload()) == [StartGeneration(2), ReloadStarted(2)]
        assert stage.fleet.state == "rolling"
        assert stage.tell(GenerationLoaded(2, False)) == [TakeConfiguration(2, 2), Spawn(3, 0, 2)]
        assert stage.tell(WorkerForked(3)) == []
        assert stage.tell(WorkerReady(3)) == [Drain(1)]
        assert stage.tell(WorkerLeaving(1)) == []
        assert stage.tell(WorkerGone(1, "exited with code 0", 0)) == [Spawn(4, 1, 2)]
        stage.tell(WorkerForked(4))
        assert stage.tell(WorkerReady(4)) == [Drain(2)]
        assert stage.fleet.state == "rolling", "the old code still answers"
        assert stage.tell(WorkerGone(2, "exited with code 0", 0)) == [ReloadFinished(2, Outcome.DONE), EndGeneration(1)]
        assert stage.fleet.state == "steady"
        assert stage.core.next_deadline() is None

    def test_the_new_policy_counts_from_then_on(self) -> None:
        stage = steady(2).reload(policy=Policy(workers=4, surge=2))
        assert stage.coming() == [(2, 2), (3, 1)], (
            "the first new worker goes where one is missing, an old one stands in"
        )
        assert roll_on(stage).slots() == [2, 2, 2, 2]
        assert roll_on(stage.reload(policy=Policy(workers=1))).slots() == [3]

    def test_of_no_workers_at_all(self) -> None:
        stage = steady(0).reload()
        assert stage.reloads == {2: "done"}
        assert stage.boot().servers == {2: True}

    def test_soak_time(self) -> None:
        stage = steady(2, min_ready=10.0).reload().boot()
        assert stage.slots() == [1, 2, 1]
        assert stage.passes(9.0).going() == []
        assert stage.passes(1.0).going() == [(0, 1)]

    def test_within_the_soak_time_of_the_old_workers(self) -> None:
        """They serve, so they leave as any others: when the new one is verified."""
        stage = started(workers=2, min_ready=10.0).boot().passes(3.0)
        stage.reload().boot()
        assert stage.going() == []
        stage.tell(WorkerGone(3, "was killed by signal 11", -11))
        assert stage.slots() == [1, 1]
        assert roll_on(stage.reload()).going() == []
        assert stage.all_goes_well().slots() == [3, 3]

    def test_a_worker_that_does_not_outlive_its_soak_time(self) -> None:
        stage = steady(2, min_ready=10.0).reload().boot().passes(5.0)
        stage.tell(WorkerGone(3, "was killed by signal 11", -11))
        assert stage.slots() == [1, 1]
        assert stage.fleet.state == "failed"
        assert stage.fleet.trouble
        assert "signal 11 too soon" in stage.fleet.trouble.reason

    def test_a_worker_that_leaves_within_its_soak_time(self) -> None:
        stage = steady(2, min_ready=10.0).reload().boot()
        stage.tell(WorkerLeaving(3))
        assert stage.reloads == {2: "failed"}
        assert stage.slots() == [1, 1]


class TestSurgeAndUnavailable:
    """The shapes a rollout can have; the stage checks the bounds."""

    @pytest.mark.parametrize("surge", [0, 1, 2, 4, 9])
    @pytest.mark.parametrize("unavailable", [0, 1, 3, 9])
    @pytest.mark.parametrize("min_ready", [0.0, 5.0])
    @pytest.mark.parametrize("workers", [1, 4])
    def test_every_combination_gets_there(self, workers: int, surge: int, unavailable: int, min_ready: float) -> None:
        if surge or unavailable:
            stage = steady(workers, surge=surge, unavailable=unavailable, min_ready=min_ready)
            stage.reload().all_goes_well()
            assert stage.slots() == [2] * workers
            assert stage.reloads == {2: "done"}

    def test_a_surge_of_three_starts_one_then_three(self) -> None:
        stage = steady(4, surge=3).reload()
        assert stage.coming() == [(0, 2)]
        stage.boot()
        assert stage.going() == [(0, 1)]
        assert stage.coming() == [(1, 2), (2, 2)], "the one that drains counts"
        stage.gone()
        assert stage.coming() == [(1, 2), (2, 2), (3, 2)]

    def test_a_full_surge_starts_all_the_others_at_once(self) -> None:
        stage = steady(4, surge=4).reload().boot()
        assert stage.coming() == [(1, 2), (2, 2), (3, 2)]

    def test_stop_first(self) -> None:
        stage = steady(4, surge=0, unavailable=1).reload()
        assert stage.going() == [(0, 1)]
        assert stage.coming() == []
        assert stage.gone().coming() == [(0, 2)]
        stage.boot()
        assert stage.going() == [(1, 1)]

    def test_stop_first_by_two_tries_one_first(self) -> None:
        stage = steady(4, surge=0, unavailable=2).reload()
        assert stage.going() == [(0, 1)]
        stage.gone().boot()
        assert stage.going() == [(1, 1), (2, 1)]

    def test_surge_and_unavailable_together(self) -> None:
        stage = steady(4, surge=1, unavailable=1).reload()
        assert stage.going() == [], "the trial costs nobody"
        stage.boot()
        assert stage.going() == [(0, 1), (1, 1)], "its predecessor, and one that may be missing"

    def test_one_worker_stop_first(self) -> None:
        stage = steady(1, surge=0, unavailable=1).reload()
        assert stage.going() == [(0, 1)]
        assert stage.gone().boot().slots() == [2]


class TestSupersedingReload:
    """The newest code wins."""

    def test_ten_reloads_make_one_further_generation(self) -> None:
        stage = steady(2)
        for _ in range(10):
            stage.tell(Reload())
        assert stage.took(StartGeneration) == [StartGeneration(2)]
        assert stage.load().took(StartGeneration, ReloadFinished, EndGeneration) == [
            ReloadFinished(2, Outcome.SUPERSEDED),
            StartGeneration(3),
            EndGeneration(2),
        ]
        assert roll_on(stage.load()).slots() == [3, 3]
        assert stage.reloads == {2: "superseded", 3: "done"}
        assert stage.servers == {3: True}

    def test_while_the_first_new_worker_boots(self) -> None:
        stage = steady(2).reload().born()
        stage.tell(Reload())
        assert stage.coming() == [(0, 2)], "until the newest has loaded the newer one goes on"
        stage.load()
        assert stage.going() == [(0, 2)]
        assert stage.reloads == {2: "superseded", 3: ""}
        assert roll_on(stage).slots() == [3, 3]

    def test_while_the_first_new_worker_soaks(self) -> None:
        stage = steady(2, min_ready=10.0).reload().boot().reload()
        assert stage.going() == [(0, 2)], "it makes room, nobody proved it"
        stage.gone()
        assert stage.coming() == [(0, 3)]
        assert stage.all_goes_well().slots() == [3, 3]

    def test_while_slots_are_of_both(self) -> None:
        stage = steady(3).reload().boot().gone()
        assert stage.slots() == [2, 1, 1]
        stage.reload()
        assert roll_on(stage).slots() == [3, 3, 3]
        assert stage.reloads == {2: "superseded", 3: "done"}

    def test_the_newest_fails_and_the_newer_one_goes_on(self) -> None:
        stage = steady(3).reload().boot().gone().reload()
        stage.gone().fail()
        assert stage.reloads == {2: "superseded", 3: "failed"}
        assert roll_on(stage).slots() == [2, 2, 2]
        assert stage.fleet.state == "failed"

    def test_the_newer_one_gets_there_while_the_newest_loads(self) -> None:
        stage = steady(2).reload()
        stage.tell(Reload())
        assert roll_on(stage).slots() == [2, 2]
        assert stage.reloads == {2: "done", 3: ""}
        assert stage.fleet.state == "rolling"

    def test_the_newest_does_not_load_and_the_newer_one_goes_on(self) -> None:
        stage = steady(2).reload()
        stage.tell(Reload())
        stage.fail_load()
        assert roll_on(stage).slots() == [2, 2]
        assert stage.reloads == {2: "done", 3: "failed"}

    def test_neither_newer_one_works_and_the_oldest_serves_on(self) -> None:
        stage = steady(2).reload().reload()
        stage.gone().fail()
        assert stage.slots() == [1, 1]
        assert stage.reloads == {2: "superseded", 3: "failed"}

    def test_a_reload_between_a_tired_worker_and_its_replacement(self) -> None:
        """Two of the old code stand in one slot, and none makes room by itself."""
        stage = steady(4).tire(2).born().reload()
        assert stage.going() == [(2, 1)], "the replacement gives way"
        stage.gone()
        assert stage.coming() == [(0, 2)]
        assert roll_on(stage).slots() == [2, 2, 2, 2]


class TestStop:
    """The end."""

    def test_graceful(self) -> None:
        stage = steady(2).stop()
        assert stage.took(Drain, EndGeneration) == [Drain(1), Drain(2), EndGeneration(1)]
        assert stage.fleet.state == "stopping"
        assert stage.halted is None
        assert stage.gone().halted == Halt(0, "")
        assert stage.core.next_deadline() is None

    def test_what_does_not_leave_is_killed(self) -> None:
        stage = steady(1, graceful_timeout=3.0).stop().passes(3.0)
        assert stage.took(Kill) == []
        assert stage.passes(KILL_MARGIN_S).took(Kill) == [Kill(1, KillReason.NOT_DRAINED)]
        assert stage.gone().halted

    def test_what_cannot_be_killed_is_left_behind(self) -> None:
        """A process in state D; its end comes too late, if ever."""
        stage = steady(2, graceful_timeout=3.0).stop().passes(3.0 + KILL_MARGIN_S)
        assert stage.passes(EXIT_TIMEOUT_S - 0.1).halted is None
        assert stage.passes(0.1).halted == Halt(0, "")
        assert stage.took(Kill) == [Kill(1, KillReason.NOT_DRAINED), Kill(2, KillReason.NOT_DRAINED)]
        assert stage.tell(WorkerGone(1, "was killed by SIGKILL", -9)) == []

    def test_what_was_not_killed_before_the_end_is_killed_then(self) -> None:
        stage = started(workers=1).stop().passes(EXIT_TIMEOUT_S)
        assert stage.took(Kill) == [Kill(1, KillReason.STILL_THERE)]
        assert stage.halted is None
        assert stage.passes(EXIT_TIMEOUT_S).halted

    def test_quick(self) -> None:
        stage = steady(1).stop(quick=True)
        assert stage.took(Drain) == [Drain(1, quick=True)]
        assert stage.passes(QUICK_STOP_TIMEOUT_S).took(Kill) == [Kill(1, KillReason.NOT_DRAINED)]

    def test_escalation(self) -> None:
        stage = steady(2).stop().stop(quick=True)
        assert stage.took(Drain) == [Drain(1), Drain(2), Drain(1, quick=True), Drain(2, quick=True)]
        assert stage.core.next_deadline() == stage.now + QUICK_STOP_TIMEOUT_S

    def test_the_first_word_about_the_status_counts(self) -> None:
        stage = steady(1)
        stage.tell(Stop(status=7, reason="first"))
        stage.tell(Stop(quick=True, status=1, reason="second"))
        assert stage.gone().halted == Halt(7, "first")

    def test_again_and_again_changes_nothing(self) -> None:
        stage = steady(1).stop()
        stage.took()
        stage.stop().passes(2.0).stop()
        assert stage.stop(quick=True).stop(quick=True).stop().took(Drain) == [Drain(1, quick=True)]
        stage.gone().stop().stop(quick=True)
        assert stage.took(Halt) == [Halt(0, "")]

    def test_before_the_start(self) -> None:
        assert Stage(Policy()).stop().halted == Halt(0, "")

    def test_while_the_first_generation_loads(self) -> None:
        stage = Stage(Policy())
        stage.tell(Start())
        assert stage.stop().halted
        assert stage.tell(GenerationLoaded(1, preloaded=False)) == []
        assert stage.tell(GenerationFailed(1, "too late")) == []

    def test_while_the_first_workers_are_forked(self) -> None:
        stage = started(workers=2).stop()
        assert stage.fleet.workers[1].state is WorkerState.DYING
        assert stage.core.next_deadline() == stage.now + EXIT_TIMEOUT_S, "there is no drain to be waited for"
        assert stage.gone().halted

    @pytest.mark.parametrize("quick", [False, True])
    def test_while_rolling(self, quick: bool) -> None:
        stage = steady(2).reload().boot().stop(quick=quick)
        assert stage.servers == {}
        assert stage.gone().halted == Halt(0, "")

    def test_while_a_reload_loads(self) -> None:
        stage = steady(1)
        stage.tell(Reload())
        stage.tell(Reload())
        stage.stop()
        assert stage.servers == {}
        assert not stage.loads()
        assert not stage.fleet.reload_again
        assert stage.gone().halted

    def test_who_was_killed_already_is_told_nothing(self) -> None:
        stage = steady(1, boot_timeout=20.0).reload().born().passes(20.0)
        stage.took()
        assert stage.stop(quick=True).took(Drain) == [Drain(1, quick=True)]

    def test_while_degraded(self) -> None:
        stage = steady(2).crash(0).fail().stop()
        assert stage.gone().halted == Halt(0, "")

    def test_whatever_comes_then_starts_nothing(self) -> None:
        stage = steady(2).stop()
        stage.took()
        stage.tell(Reload())
        stage.scale(4)
        stage.gone()
        stage.tell(Reload())
        stage.scale(5)
        assert stage.took() == []
        assert stage.halted
