"""What is said of each failure, to the letter: in the outcome, and in the state until the next reload."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.core_stage import Stage, give_time, roll_on, started, steady
from zdworker.core.events import (
    Degraded,
    GenerationGone,
    Halt,
    Outcome,
    Reload,
    ReloadFinished,
    Rollback,
    Scale,
    Start,
    WorkerFailed,
    WorkerGone,
    WorkerLeaving,
    WorkerReady,
)
from zdworker.core.fleet import Trouble
from zdworker.core.rollout import ROLL_ATTEMPTS
from zdworker.errors import IllegalEvent

TRACEBACK = "Traceback ..."
LOST = "the generation before is not preloaded (--preload), or its fork server is gone"

NO_WAY_BACK = "there is no way back, since the generation before is not preloaded, or its fork server is gone"


def load_that_fails() -> Stage:
    stage = steady(2)
    stage.tell(Reload())
    return stage.fail_load("ImportError: nothing")


def server_that_dies_while_it_loads() -> Stage:
    stage = steady(2)
    stage.tell(Reload())
    return stage.lose_server(2)


def server_that_dies_on_trial() -> Stage:
    return steady(2).reload().born().lose_server(2)


def first_worker_that_fails() -> Stage:
    return steady(2).reload().fail()


def first_worker_that_is_told_to_leave() -> Stage:
    stage = steady(2, min_ready=5.0).reload().boot()
    stage.tell(WorkerLeaving(max(stage.processes)))
    return stage


def first_worker_that_dies_too_soon() -> Stage:
    stage = steady(2, min_ready=5.0).reload().boot()
    newest = max(stage.processes)
    stage.tell(WorkerGone(newest, "was killed by SIGKILL", -9))
    return stage


def first_worker_that_is_late() -> Stage:
    return steady(2).reload().born().passes(60.0)


def first_worker_that_is_never_forked() -> Stage:
    return steady(2).reload().passes(10.0)


def later_workers_that_fail() -> Stage:
    stage = steady(2, preloaded=True).reload(preloaded=True)
    stage.boot().gone()
    for _ in range(ROLL_ATTEMPTS):
        give_time(stage).fail()
    return stage


SLOTS: dict[Callable[[], Stage], int] = {
    first_worker_that_fails: 0,
    first_worker_that_is_told_to_leave: 0,
    first_worker_that_dies_too_soon: 0,
    first_worker_that_is_late: 0,
    first_worker_that_is_never_forked: 0,
    later_workers_that_fail: 1,
}
"""The slot whose worker has failed, where one has."""


@pytest.mark.parametrize(
    ("story", "reason", "traceback"),
    [
        (load_that_fails, "ImportError: nothing", TRACEBACK),
        (server_that_dies_while_it_loads, "the fork server died while loading", ""),
        (server_that_dies_on_trial, "its fork server died before the first new worker was ready", ""),
        (first_worker_that_fails, "the first new worker failed: lifespan failed", TRACEBACK),
        (
            first_worker_that_is_told_to_leave,
            "the first new worker failed: it got the order to leave before it was verified",
            "",
        ),
        (first_worker_that_dies_too_soon, "the first new worker failed: was killed by SIGKILL too soon", ""),
        (first_worker_that_is_late, "the first new worker failed: not ready within 60 s (zd_boot_timeout)", ""),
        (first_worker_that_is_never_forked, "the first new worker failed: not forked within 10 s", ""),
        (
            later_workers_that_fail,
            f"{ROLL_ATTEMPTS} new workers in a row failed, the last one: lifespan failed",
            TRACEBACK,
        ),
    ],
)
def test_a_reload_that_failed(story: Callable[[], Stage], reason: str, traceback: str) -> None:
    stage = story()
    finished = ReloadFinished(2, Outcome.FAILED, reason, traceback, SLOTS.get(story))
    assert stage.took(ReloadFinished)[-1:] == [finished]
    assert stage.fleet.trouble == Trouble(reason, traceback)


def test_a_reload_that_a_rollback_has_ended_has_not_failed() -> None:
    stage = steady(2, preloaded=True)
    stage.tell(Reload())
    stage.tell(Rollback())
    outcome = ReloadFinished(2, Outcome.ROLLED_BACK, "called off: a rollback was asked for")
    assert stage.took(ReloadFinished)[-1:] == [outcome]
    assert stage.fleet.trouble is None


def worker_that_cannot_boot() -> Stage:
    return give_time(steady(2).crash(0)).fail()


def server_that_cannot_be_replaced() -> Stage:
    stage = steady(2).lose_server(1)
    while not stage.loads():
        stage.until_due()
    return stage.fail_load("ImportError: nothing")


def later_workers_without_a_way_back() -> Stage:
    stage = steady(2).reload()
    stage.boot().gone()
    for _ in range(ROLL_ATTEMPTS):
        give_time(stage).fail()
    return stage


@pytest.mark.parametrize(
    ("story", "reason", "slot", "next_try_s"),
    [
        (worker_that_cannot_boot, "a worker failed to boot: lifespan failed", 0, 0.5),
        (server_that_cannot_be_replaced, "the fork server cannot be replaced: ImportError: nothing", None, 0.5),
        (
            later_workers_without_a_way_back,
            f"{ROLL_ATTEMPTS} new workers in a row failed, the last one: lifespan failed; {NO_WAY_BACK}",
            1,
            4.0,
        ),
    ],
)
def test_a_fleet_that_is_degraded(story: Callable[[], Stage], reason: str, slot: int | None, next_try_s: float) -> None:
    stage = story()
    assert stage.took(Degraded)[-1:] == [Degraded(reason, TRACEBACK, slot, next_try_s)]
    assert stage.fleet.trouble == Trouble(reason, TRACEBACK)


@pytest.mark.parametrize(("said", "exit_code"), [(3, 3), (4, 4), (1, 3)])
def test_a_start_that_failed(said: int, exit_code: int) -> None:
    """A worker that boots beside it is not waited for."""
    stage = started(workers=2).born()
    first, second = sorted(stage.processes)
    stage.tell(WorkerFailed(first, "lifespan failed", TRACEBACK, said))
    assert stage.fleet.quick
    stage.tell(WorkerGone(first, f"exited with code {said}", said))
    stage.tell(WorkerGone(second, "exited with code 0", 0))
    assert stage.halted == Halt(exit_code, "a worker failed to boot: lifespan failed")


def test_a_first_load_that_failed() -> None:
    stage = Stage()
    stage.tell(Start())
    stage.fail_load("ImportError: nothing", 4)
    assert stage.fleet.quick
    assert stage.halted == Halt(4, "ImportError: nothing")


def test_refusals() -> None:
    stage = steady(2)
    with pytest.raises(IllegalEvent) as refusal:
        stage.core.handle(Scale(-1), stage.now)
    assert str(refusal.value) == "a fleet of -1 workers"
    with pytest.raises(IllegalEvent, match="no worker 9"):
        stage.core.handle(WorkerReady(9), stage.now)
    with pytest.raises(IllegalEvent, match="no generation 9"):
        stage.core.handle(GenerationGone(9), stage.now)
    assert roll_on(stage.reload()).fleet.state == "steady"
    stage = steady(2).reload()
    stage.boot()
    assert stage.core.rollback_refusal() == LOST
    stage = steady(2, rollback_window=10.0)
    assert stage.core.rollback_refusal() == (
        "no generation is kept: none was replaced within zd_rollback_window, or it was not preloaded (--preload)"
    )
