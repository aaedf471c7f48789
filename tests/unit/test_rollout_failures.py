"""New code that does not work, and fork servers that die, as stories (see ``test_rollout.py``)."""

from __future__ import annotations

import pytest

from tests.harness.core_stage import UNBORN, Stage, give_time, roll_on, steady
from zdworker.core.events import (
    Degraded,
    Drain,
    EndGeneration,
    Kill,
    KillReason,
    LocateHang,
    Outcome,
    Policy,
    Reload,
    ReloadFinished,
    Spawn,
    Start,
    StartGeneration,
    WorkerFailed,
    WorkerForked,
    WorkerGone,
)
from zdworker.core.fleet import Phase, Trouble
from zdworker.core.rollout import ROLL_ATTEMPTS, START_ATTEMPTS
from zdworker.core.steps import EXIT_TIMEOUT_S, FORK_TIMEOUT_S, LOCATE_HANG_S


class TestFailedReload:
    """A broken deploy changes nothing."""

    def test_it_does_not_load(self) -> None:
        stage = steady(2)
        stage.tell(Reload())
        stage.fail_load("SyntaxError")
        assert stage.took(EndGeneration, ReloadFinished, Spawn, Drain) == [
            EndGeneration(2),
            ReloadFinished(2, Outcome.FAILED, "SyntaxError", "Traceback ..."),
        ]
        assert stage.fleet.state == "failed"
        assert stage.fleet.phase is Phase.STEADY

    def test_it_dies_while_loading(self) -> None:
        stage = steady(2)
        stage.tell(Reload())
        assert stage.lose_server(2).reloads == {2: "failed"}

    def test_its_configuration_cannot_be_taken_over(self) -> None:
        stage = steady(2)
        stage.takes_at_once = False
        stage.reload().refuse("the address is in use")
        assert stage.reloads == {2: "failed"}
        assert stage.servers == {1: True}

    def test_it_hangs_while_loading(self) -> None:
        stage = steady(2, boot_timeout=20.0)
        stage.tell(Reload())
        assert stage.passes(19.9).reloads == {2: ""}
        assert stage.passes(0.1).reloads == {2: "failed"}
        assert stage.servers == {1: True}

    def test_where_it_hangs_is_a_part_of_the_reason(self) -> None:
        stage = steady(2, boot_timeout=20.0)
        stage.place = ": it hangs at app.py"
        stage.tell(Reload())
        stage.passes(20.0)
        assert stage.took(LocateHang) == [LocateHang(2, "not loaded within 20 s (zd_boot_timeout)")]
        assert stage.fleet.failure == Trouble("not loaded within 20 s (zd_boot_timeout): it hangs at app.py")

    def test_where_it_hangs_is_not_waited_for_long(self) -> None:
        stage = steady(2, boot_timeout=20.0)
        stage.locates_at_once = False
        stage.tell(Reload())
        stage.passes(20.0)
        assert stage.reloads == {2: ""}
        stage.passes(LOCATE_HANG_S)
        assert stage.fleet.failure == Trouble("not loaded within 20 s (zd_boot_timeout)")
        assert stage.took(LocateHang) == [LocateHang(2, "not loaded within 20 s (zd_boot_timeout)")], "once"

    def test_one_that_loads_after_all_has_what_is_left_for_its_configuration(self) -> None:
        stage = steady(2, boot_timeout=20.0)
        stage.locates_at_once = False
        stage.tell(Reload())
        stage.passes(20.0).load()
        assert not stage.fleet.generations[2].overdue
        assert stage.all_goes_well().reloads == {2: "done"}

    @pytest.mark.parametrize("surge", [1, 3])
    def test_its_first_worker_fails(self, surge: int) -> None:
        stage = steady(3, surge=surge).reload().fail()
        assert stage.took(Spawn, Drain, ReloadFinished, EndGeneration) == [
            Spawn(4, 0, 2),
            EndGeneration(2),
            ReloadFinished(2, Outcome.FAILED, "the first new worker failed: lifespan failed", "Traceback ...", slot=0),
        ]
        assert stage.slots() == [1, 1, 1]
        assert stage.fleet.state == "failed"

    def test_its_first_worker_fails_stop_first(self) -> None:
        stage = steady(3, surge=0, unavailable=1).reload().gone().fail()
        assert stage.fleet.state == "rolling", "one slot is still on its way back"
        assert stage.coming() == [(0, 1)]
        assert stage.boot().slots() == [1, 1, 1]
        assert stage.fleet.state == "failed"

    def test_its_first_worker_hangs(self) -> None:
        stage = steady(2, boot_timeout=20.0).reload().born().passes(20.0)
        assert stage.reloads == {2: "failed"}
        assert stage.took(Kill) == [Kill(3, KillReason.NOT_READY)]
        assert stage.passes(EXIT_TIMEOUT_S).took(Kill) == [Kill(3, KillReason.STILL_THERE)], "as long as it is there"

    def test_its_first_worker_says_that_it_ends_and_does_not(self) -> None:
        stage = steady(2).reload().born()
        stage.tell(WorkerFailed(3, "lifespan failed"))
        stage.took()
        assert stage.passes(EXIT_TIMEOUT_S).took(Kill) == [Kill(3, KillReason.STILL_THERE)]

    def test_its_first_worker_is_not_forked(self) -> None:
        stage = steady(2).reload().passes(FORK_TIMEOUT_S)
        assert stage.reloads == {2: "failed"}
        assert stage.took(Kill) == [Kill(3, KillReason.NOT_FORKED)]
        assert stage.servers == {1: True}

    def test_its_fork_server_dies_before_the_first_worker_is_ready(self) -> None:
        stage = steady(2).reload().born().lose_server(2)
        assert stage.reloads == {2: "failed"}
        assert stage.going() == [(0, 2)]
        assert stage.gone().slots() == [1, 1]

    def test_it_is_remembered_whatever_else_happens(self) -> None:
        stage = steady(2).reload().fail().crash(0).fail()
        assert any(isinstance(action, Degraded) for action in stage.log)
        assert stage.fleet.state == "degraded", "a worker is missing, which is the more urgent"
        stage.all_goes_well()
        assert stage.fleet.state == "failed"

    def test_the_next_good_one_goes_through(self) -> None:
        stage = steady(2).reload().fail().reload()
        assert roll_on(stage).slots() == [3, 3]
        assert stage.fleet.state == "steady"

    def test_it_is_superseded_while_loading_and_fails(self) -> None:
        stage = steady(2)
        stage.tell(Reload())
        stage.tell(Reload())
        stage.fail_load()
        assert roll_on(stage.load()).slots() == [3, 3]
        assert stage.reloads == {2: "failed", 3: "done"}


class TestPolicyOfAFailedReload:
    """A broken deploy changes nothing: neither do its settings."""

    def test_it_goes_back_with_the_code(self) -> None:
        stage = steady(3)
        before = stage.fleet.policy
        stage.reload(policy=Policy(workers=2, surge=2, graceful_timeout=99.0))
        assert stage.going() == []
        stage.fail()
        assert stage.fleet.policy == before
        assert roll_on(stage).slots() == [1, 1, 1]

    def test_fewer_workers_come_only_with_code_that_has_proved_itself(self) -> None:
        stage = steady(3).reload(policy=Policy(workers=2))
        assert stage.fleet.size == 3
        assert roll_on(stage).slots() == [2, 2]

    def test_a_number_that_was_asked_for_meanwhile_stays(self) -> None:
        stage = steady(3).reload(policy=Policy(workers=2)).scale(4).fail(4)
        assert roll_on(stage).slots() == [1, 1, 1, 1]

    def test_over_two_that_fail(self) -> None:
        stage = steady(3).reload(policy=Policy(workers=2)).gone().born().reload(policy=Policy(workers=1))
        stage.gone().fail()
        assert roll_on(stage).slots() == [1, 1, 1]

    def test_of_one_that_was_superseded_while_loading(self) -> None:
        stage = steady(1)
        stage.tell(Reload())
        stage.tell(Reload())
        stage.load(policy=Policy(workers=3))
        assert stage.fleet.size == 1


class TestLaterWorkerFails:
    """The generation has worked once: it is tried again, then given up."""

    def test_it_is_retried_with_backoff(self) -> None:
        stage = steady(3).reload().boot().gone()
        stage.fail()
        assert stage.coming() == [(1, 2)], "the first failure costs no wait"
        stage.fail()
        assert stage.coming() == []
        assert stage.core.next_deadline() == stage.now + 0.5
        assert stage.passes(0.5).coming() == [(1, 2)], "nor was another slot begun meanwhile"
        assert stage.reloads == {2: ""}
        assert roll_on(stage).slots() == [2, 2, 2]

    def test_it_is_turned_back_to_preloaded_code(self) -> None:
        stage = steady(3, preloaded=True).reload().boot().gone()
        for _ in range(ROLL_ATTEMPTS):
            give_time(stage).fail()
        assert stage.reloads == {2: "failed"}
        assert stage.coming() == [(0, 1)]
        assert stage.fleet.state == "rolling"
        assert roll_on(stage).slots() == [1, 1, 1]
        assert stage.fleet.state == "failed"
        assert stage.servers == {1: True}

    def test_without_a_way_back_it_is_degraded(self) -> None:
        stage = steady(3).reload().boot().gone()
        for _ in range(ROLL_ATTEMPTS):
            give_time(stage).fail()
        assert stage.fleet.state == "degraded"
        assert stage.reloads == {2: ""}, "new code is under way as long as it is tried"
        assert stage.slots() == [2, 1, 1]
        assert stage.until_due().coming() == [(1, 2)], "it goes on being tried"
        stage.took()
        assert len(stage.fail().took(Degraded)) == 1
        assert stage.all_goes_well().slots() == [2, 2, 2]
        assert stage.fleet.state == "steady"
        assert stage.reloads == {2: "done"}

    def test_the_way_back_has_died(self) -> None:
        stage = steady(3, preloaded=True).reload().boot().gone().lose_server(1)
        for _ in range(ROLL_ATTEMPTS):
            give_time(stage).fail()
        assert stage.fleet.state == "degraded"

    def test_success_in_between_starts_the_count_anew(self) -> None:
        stage = steady(4, preloaded=True).reload().boot().gone()
        for _ in range(ROLL_ATTEMPTS - 1):
            give_time(stage).fail()
        give_time(stage).boot().gone()
        for _ in range(ROLL_ATTEMPTS - 1):
            give_time(stage).fail()
        assert stage.reloads == {2: ""}

    def test_a_later_worker_is_not_forked(self) -> None:
        """Its fork server is stuck: a fresh one goes on with the rollout."""
        stage = steady(3).reload().boot().gone().passes(FORK_TIMEOUT_S)
        assert stage.fleet.phase is Phase.ROLLING
        stage.gone().load()
        assert roll_on(stage).slots() == [2, 3, 3]
        assert stage.reloads == {2: "done"}


class TestForkServerLost:
    """The workers keep serving; a fresh fork server is started."""

    def test_while_steady(self) -> None:
        stage = steady(2).lose_server(1)
        assert stage.took(StartGeneration) == [StartGeneration(2)]
        assert stage.slots() == [1, 1]
        assert stage.fleet.state == "steady"
        stage.load()
        assert stage.coming() == []
        assert stage.crash(0).boot().slots() == [2, 1]

    def test_the_fresh_one_does_not_load(self) -> None:
        stage = steady(2).lose_server(1).fail_load()
        assert stage.fleet.state == "degraded"
        assert not stage.loads()
        stage.passes(0.5)
        assert stage.loads()
        assert stage.fleet.state == "degraded", "not before it has loaded"
        stage.fail_load()
        due = stage.core.next_deadline()
        assert due == stage.now + 1.0
        stage.passes(1.0).load()
        assert stage.fleet.state == "steady"
        assert stage.slots() == [1, 1]

    def test_fork_servers_that_die_again_and_again(self) -> None:
        stage = steady(1).lose_server(1).load().lose_server(2)
        assert not stage.loads()
        assert stage.core.next_deadline() == stage.now + 0.5
        stage.passes(0.5).load().passes(10.0).lose_server(3)
        assert stage.loads(), "it stood for long enough"

    def test_a_reload_goes_before_its_replacement(self) -> None:
        stage = steady(2).lose_server(1).fail_load()
        stage.tell(Reload())
        assert roll_on(stage.load()).slots() == [3, 3]
        assert stage.fleet.state == "steady"

    def test_a_reload_waits_for_the_one_that_loads(self) -> None:
        stage = steady(2).lose_server(1)
        stage.tell(Reload())
        assert roll_on(stage.load().load()).slots() == [3, 3]

    def test_while_rolling_after_proof(self) -> None:
        stage = steady(3).reload().boot().lose_server(2)
        stage.gone()
        assert stage.coming() == []
        stage.load()
        assert roll_on(stage).slots() == [2, 3, 3]
        assert stage.reloads == {2: "done"}

    def test_a_rollout_that_lost_its_server_is_turned_back(self) -> None:
        stage = steady(3, preloaded=True).reload().boot().lose_server(2).gone().load()
        for _ in range(ROLL_ATTEMPTS):
            give_time(stage).fail()
        assert stage.reloads == {2: "failed"}
        assert roll_on(stage).slots() == [1, 1, 1]
        assert stage.servers == {1: True}

    def test_the_old_one_during_the_trial(self) -> None:
        stage = steady(2).reload().lose_server(1).fail()
        assert stage.reloads == {2: "failed"}
        assert stage.slots() == [1, 1]
        stage.load()
        assert stage.servers == {3: True}
        assert stage.crash(0).boot().slots() == [3, 1]

    def test_one_that_does_not_fork(self) -> None:
        stage = steady(1).crash(0).passes(FORK_TIMEOUT_S)
        assert stage.took(EndGeneration, Kill) == [Kill(2, KillReason.NOT_FORKED), EndGeneration(1)]
        stage.load().gone().passes(1.0)
        assert stage.boot().slots() == [2]

    def test_one_that_does_not_fork_any_of_several(self) -> None:
        """One stuck server is one loss, however many workers wait for it."""
        stage = steady(3).crash(0).crash(1).crash(2).passes(FORK_TIMEOUT_S)
        assert stage.fleet.restore_failures == 1
        assert stage.loads()

    def test_a_worker_that_is_born_although_nobody_waits_any_more(self) -> None:
        stage = steady(1).crash(0).passes(FORK_TIMEOUT_S)
        stage.took()
        assert stage.tell(WorkerForked(2)) == [Kill(2, KillReason.FORKED_TOO_LATE)]


def test_boots_that_are_called_off_with_their_fork_server_are_one_failure_of_it() -> None:
    """However many workers it was to fork: their code is not to blame, and the rollout goes on."""
    stage = steady(8, preloaded=True, surge=8).reload(preloaded=True, policy=Policy(workers=8, surge=8)).boot().gone()
    waiting = [number for number, state in stage.processes.items() if state == UNBORN]
    assert len(waiting) >= ROLL_ATTEMPTS
    stage.lose_server(2)
    for worker_id in waiting:
        stage.tell(WorkerGone(worker_id, "lost its fork server", called_off=True))
    assert stage.reloads[2] == ""
    assert stage.fleet.restore_failures == 1
    assert stage.all_goes_well().fleet.state == "steady"
    assert stage.reloads[2] == "done"


def test_at_the_first_start_boots_that_are_called_off_count() -> None:
    """Else a fork server that always dies would keep the master from ever ending."""
    stage = Stage(Policy(workers=1))
    stage.tell(Start())
    stage.load()
    for _ in range(START_ATTEMPTS):
        stage.lose_server(stage.fleet.current[-1])
        stage.tell(WorkerGone(max(stage.fleet.workers), "lost its fork server", called_off=True))
        if stage.fleet.running:
            stage.until_due() if not stage.loads() else None
            stage.load()
            stage.until_due() if not stage.coming() else None
    assert stage.fleet.exit_status == 3


def test_reloads_that_are_asked_for_faster_than_one_loads_roll_all_the_same() -> None:
    stage = steady(2)
    for number in (2, 3):
        stage.tell(Reload())
        stage.tell(Reload())
        stage.load()
        assert stage.reloads[number] == "superseded"
    stage.tell(Reload())
    stage.load()
    assert stage.coming() == [(0, 4)]
    assert stage.all_goes_well().slots() == [5, 5]


def test_a_fork_server_that_cannot_be_replaced_shows_although_a_reload_has_failed() -> None:
    stage = steady(2).reload().fail().gone()
    assert stage.fleet.state == "failed"
    stage.lose_server(1)
    while not stage.loads():
        stage.until_due()
    stage.fail_load()
    assert stage.fleet.state == "degraded"
    stage.all_goes_well()
    assert stage.fleet.state == "failed", "which is remembered until the next reload"
