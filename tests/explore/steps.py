"""Every legal event of a state.

Left out is only what cannot be told apart from an event that is tried:

* Workers that leave and of which a state says the same are one: the first of them acts for all.
* An order to end at once differs from others only in how long workers have, unless those wait for a delayed end.
* The exit code of a worker's process is read at the first start alone, and only whether it is above 0.
* What a worker that leaves, or a generation that has ended, still reports, and a tick before anything is due, change
  nothing by the state tables. They are tried in one step together.
* A deadline is over between two events. Several are over at once only as "all at once": the loop was late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tests.explore.states import BEGIN, HOLD_S, ROLES, Answer, Policies, copied, leaving_as, role, role_of, staying
from tests.harness.core_stage import UNBORN, Stage
from zdworker.core.events import (
    Event,
    GenerationFailed,
    GenerationGone,
    GenerationLoaded,
    Reload,
    Rollback,
    Scale,
    Start,
    Stop,
    Tick,
    WorkerFailed,
    WorkerForked,
    WorkerGone,
    WorkerLeaving,
    WorkerReady,
    WorkerReplacementRequested,
)
from zdworker.core.fleet import Fleet, Generation, GenerationState, Phase, Purpose, Worker, WorkerState

LONG_AGO = -1_000_000.0
"""When a worker was killed that is still there."""

TIME = 9
"""The rank of deadlines that belong to a way on which all goes well."""


class Step(NamedTuple):
    """Something that can happen.

    ``disturbs``: it is no part of the life of a fleet that is left alone. ``rank``: from states in which all goes well
    from now on, the step of the lowest rank is done first; None for what then does not happen. ``ticks``: it only moves
    deadlines, and what follows is a tick.
    """

    name: str
    disturbs: bool
    rank: int | None
    do: Callable[[Stage], object]
    ticks: bool = False

    def apply(self, stage: Stage) -> None:
        """Let it happen."""
        self.do(stage)
        if self.ticks:
            due = stage.core.next_deadline()
            actions = stage.tell(Tick())
            assert not actions or due == BEGIN, f"the core does {actions} at a time that it did not ask for"

    def is_awaited(self, stage: Stage) -> bool:
        """Return whether the core wants to be called at some time after the deadline which this step moves."""
        self.do(stage)
        return stage.core.next_deadline() is not None


def steps(stage: Stage, policies: Policies, sizes: tuple[int, ...] = ()) -> Iterator[Step]:
    """Yield every legal event; ``sizes`` are the numbers of workers that users ask for."""
    if stage.fleet.phase is Phase.NEW:
        yield Step("start", False, 0, lambda s: s.tell(Start()))
        yield Step("reload", True, None, lambda s: s.tell(Reload()))
        yield Step("stop", False, None, lambda s: s.tell(Stop()))
    elif stage.fleet.phase is not Phase.STOPPED:
        yield from _of_users(stage, sizes)
        yield from _of_generations(stage, policies)
        for place, worker in enumerate(staying(stage.fleet)):
            yield from _of_worker(stage, place, worker)
        yield from _of_leaving(stage)
        yield from _of_time(stage.fleet)
        yield Step("late reports", False, None, _late_reports)


# -- users -------------------------------------------------------------------------------------------------------


def _of_users(stage: Stage, sizes: tuple[int, ...]) -> Iterator[Step]:
    fleet = stage.fleet
    if not fleet.reload_again or fleet.hold_next is not None:
        yield Step("reload", True, None, lambda s: s.tell(Reload()))
    if fleet.policy.canary and fleet.running:
        yield from _of_canary(stage)
    if _may_roll_back(stage):
        yield Step("rollback", True, None, _roll_back)
    for size in sizes:
        if size != fleet.wanted_size:
            yield Step(f"scale to {size}", True, None, lambda s, n=size: s.tell(Scale(n)))  # type: ignore[misc]
    if fleet.ending or fleet.policy.shutdown_delay:
        yield Step("stop at once", False, None, lambda s: s.tell(Stop(quick=True)))
    yield Step("stop", False, None, lambda s: s.tell(Stop()))


def _of_canary(stage: Stage) -> Iterator[Step]:
    """Yield what users, and the judgement, do where policies have a canary serve for a time."""
    fleet = stage.fleet
    if not (fleet.reload_again and fleet.hold_next is not None):
        yield Step("reload, held", True, None, lambda s: s.tell(Reload(HOLD_S)))
    if not stage.core.resume_refusal():
        yield Step("resume", True, None, lambda s: s.resume())
    if fleet.reloading is not None:
        yield Step("the new code is judged bad", True, None, lambda s: s.judge())


def _may_roll_back(stage: Stage) -> bool:
    """Return whether a rollback is not refused, if the generation before is preloaded."""
    return not copied(stage, Answer(True)).core.rollback_refusal()


def _roll_back(stage: Stage) -> None:
    if not stage.core.rollback_refusal():
        stage.tell(Rollback())


# -- generations -------------------------------------------------------------------------------------------------


def _of_generations(stage: Stage, policies: Policies) -> Iterator[Step]:
    if stage.loading_code():
        yield Step("load", False, 1, _load)
        yield Step("load fails", True, None, lambda s: s.fail_load())
    if stage.taking:
        loading = stage.fleet.loading
        new = loading is not None and loading.purpose is Purpose.RELOAD
        for number in range(len(policies.all) if new else 1):
            yield Step(f"take configuration {number}", False, 2, lambda s, n=number: _take(s, policies, n))  # type: ignore[misc]
        yield Step("refuse configuration", True, None, lambda s: s.refuse())
    for number in stage.servers:
        name = server_name(stage.fleet, number)
        yield Step(f"{name} dies", True, None, lambda s, n=number: s.tell(GenerationGone(n)))  # type: ignore[misc]


def _load(stage: Stage) -> None:
    loading = stage.fleet.loading
    assert loading is not None
    stage.load(preloaded=stage.fleet.generations[loading.generation].preloaded)


def _take(stage: Stage, policies: Policies, place: int) -> None:
    stage.brought = policies.all[place]
    stage.take()


def server_name(fleet: Fleet, number: int) -> str:
    """Return what a fork server is called."""
    if fleet.previous is not None and fleet.previous.generation == number:
        return "fork server, previous"
    if fleet.loading is not None and fleet.loading.generation == number:
        return "fork server, next"
    return f"fork server, {ROLES[role(fleet, number)]}"


# -- workers -----------------------------------------------------------------------------------------------------


def _of_worker(stage: Stage, place: int, worker: Worker) -> Iterator[Step]:
    """Yield what a worker can do that is not leaving."""
    fleet, number = stage.fleet, worker.worker_id
    name = f"worker {place} (slot {worker.slot}, {ROLES[role_of(fleet, worker)]})"
    match worker.state:
        case WorkerState.FORKING:
            yield Step(f"{name} is forked", False, 3, lambda s: s.tell(WorkerForked(number)))
            gone = WorkerGone(number, "lost its fork server", called_off=True)
            yield Step(f"{name} is called off", True, None, lambda s: s.tell(gone))
        case WorkerState.BOOTING:
            yield Step(f"{name} is ready", False, 4, lambda s: s.tell(WorkerReady(number)))
            yield Step(f"{name} fails", True, None, lambda s: s.tell(WorkerFailed(number, "why")))
            yield Step(f"{name} leaves", True, None, lambda s: s.tell(WorkerLeaving(number)))
        case _:
            if not worker.replacement_requested:
                wish = WorkerReplacementRequested(number)
                yield Step(f"{name} wants to be replaced", True, None, lambda s: s.tell(wish))
            yield Step(f"{name} leaves", True, None, lambda s: s.tell(WorkerLeaving(number)))
    yield Step(f"{name} is killed", True, None, lambda s: s.tell(WorkerGone(number, "was killed", -9)))
    if fleet.never_served:
        yield Step(f"{name} exits with code 3", True, None, lambda s: s.tell(WorkerGone(number, "exited", 3)))
    if worker.deadline is not None:
        due = worker.state is WorkerState.READY  # it is verified
        what = "is verified" if due else f"is {worker.state.value} for too long"
        yield Step(f"{name} {what}", not due, TIME if due else None, lambda s: _worker_over(s, number), ticks=True)


def _of_leaving(stage: Stage) -> Iterator[Step]:
    """Yield what the workers that leave can do."""
    seen = set()
    for number, worker in stage.fleet.workers.items():
        alike = leaving_as(stage.fleet, worker)
        if not worker.leaving or alike in seen:
            continue
        seen.add(alike)
        name = f"leaving worker ({alike})"
        yield Step(f"{name} ends", False, 5, lambda s, n=number: s.tell(WorkerGone(n, "ended", 0)))  # type: ignore[misc]
        if stage.fleet.ending:
            yield Step(f"{name} is there for too long", True, None, lambda s, n=number: _worker_over(s, n), ticks=True)  # type: ignore[misc]
            yield Step(f"{name} is forked too late", True, None, lambda s, n=number: _forked_too_late(s, n))  # type: ignore[misc]
    if seen and stage.fleet.running:
        yield Step("leaving workers are killed", True, None, _kill_leaving)


def _forked_too_late(stage: Stage, number: int) -> None:
    stage.fleet.workers[number].state, stage.processes[number] = WorkerState.DYING, UNBORN
    stage.tell(WorkerForked(number))


def _kill_leaving(stage: Stage) -> None:
    """Let each that leaves be there for too long, and then be forked too late, as if it had waited for that."""
    for number in [number for number, worker in stage.fleet.workers.items() if worker.leaving]:
        _worker_over(stage, number)
        stage.tell(Tick())
        _forked_too_late(stage, number)


def _worker_over(stage: Stage, number: int) -> None:
    worker = stage.fleet.workers[number]
    worker.deadline = BEGIN
    if worker.killed:
        stage.killed[number] = LONG_AGO


def _late_reports(stage: Stage) -> None:
    fleet = stage.fleet
    leaving = [number for number, worker in fleet.workers.items() if worker.leaving and not worker.killed]
    lost = [number for number, generation in fleet.generations.items() if generation.state is GenerationState.LOST]
    events: list[Event] = [Tick()]
    for number in leaving:
        events += WorkerReady(number), WorkerReplacementRequested(number), WorkerFailed(number, "why")
        events.append(WorkerLeaving(number))
    for number in lost:
        events += GenerationLoaded(number, True), GenerationFailed(number, "why"), GenerationGone(number)
    for event in events:
        actions = stage.core.handle(event, BEGIN)
        assert not actions, f"{event}, which comes too late, leads to {actions}"
    stage.check()


# -- time --------------------------------------------------------------------------------------------------------

Find = Callable[[Fleet], Any]


def _of_time(fleet: Fleet) -> Iterator[Step]:
    """Yield each deadline but the workers' as the next one to be over, and all at once."""
    for number, generation in fleet.generations.items():
        if generation.deadline is not None:
            name = server_name(fleet, number)
            yield _deadline(f"{name}: too long", lambda f, n=number: f.generations[n], "deadline", disturbs=True)  # type: ignore[misc]
    for number, slot in fleet.slots.items():
        if slot.retry_at > BEGIN:
            yield _deadline(f"backoff of slot {number}", lambda f, n=number: f.slots[n], "retry_at")  # type: ignore[misc]
    for name in ("roll_at", "restore_at", "stop_at"):
        if (getattr(fleet, name) or 0.0) > BEGIN:
            yield _deadline(name, lambda f: f, name)
    if fleet.previous is not None:
        yield _deadline("the rollback window", lambda f: f.previous, "until")._replace(rank=None)
    if fleet.running:
        yield Step("all deadlines at once", True, None, _all_over, ticks=True)


def _deadline(name: str, find: Find, field: str, *, disturbs: bool = False) -> Step:
    def over(stage: Stage) -> None:
        setattr(find(stage.fleet), field, BEGIN)

    return Step(f"over: {name}", disturbs, None if disturbs else TIME, over, ticks=True)


def _all_over(stage: Stage) -> None:
    fleet = stage.fleet
    owners: list[Worker | Generation] = [*fleet.workers.values(), *fleet.generations.values()]
    for owner in owners:
        if owner.deadline is not None:
            owner.deadline = BEGIN
    for slot in fleet.slots.values():
        slot.retry_at = min(slot.retry_at, BEGIN)
    fleet.roll_at, fleet.restore_at = min(fleet.roll_at, BEGIN), min(fleet.restore_at, BEGIN)
    if fleet.stop_at is not None:
        fleet.stop_at = BEGIN
    if fleet.previous is not None:
        fleet.previous.until = BEGIN
