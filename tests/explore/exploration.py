"""Breadth-first search through the states of the core.

Rules:

* A state is the core's facts and the books of its edge (``tests.harness.core_stage``), made canonical
  (:func:`canonical`): workers and generations by their order instead of their number, times by "over" or "to come",
  counters up to the value from which on nothing changes any more, and no texts.
* From each state every legal event is tried: what users ask for, what processes do, and each deadline as the next one
  to be over. So every order of deadlines is covered, also those that the present values exclude.
* ``Stage`` checks the invariant after each event. Here is checked in addition that from each state the core comes to
  rest once everything goes well, with a verified worker in each slot, or has halted when it was told to end.
* A failure is reported with the events that lead to it, the shortest way there is.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.harness.core_stage import BOOTING, READY, UNBORN, Stage
from zdworker.core.events import (
    GenerationGone,
    Policy,
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
from zdworker.core.fleet import Fleet, GenerationState, Phase, Worker, WorkerState
from zdworker.core.rollout import ROLL_ATTEMPTS, START_ATTEMPTS, Rollout

BEGIN = 1000.0
"""The time at which every exploration begins; it never passes, only deadlines are moved to it."""

LATER = 1_000_000.0
"""How far in the future everything lies that is not over yet, in seconds."""

STABLE = -1_000_000.0
"""When a worker became ready, or a generation was loaded, that has been stable for long."""


@dataclass(frozen=True)
class Limits:
    """How far is explored.

    ``policies`` are those that a configuration may bring; the first is the one at the start. ``generations`` is the
    most that may exist at a time before no further reload is asked for. ``states`` and ``seconds`` end it early.
    """

    policies: tuple[Policy, ...]
    generations: int = 2
    scales: tuple[int, ...] = ()
    states: int = 1_000_000
    seconds: float = 600.0


@dataclass
class Found:
    """What an exploration has found."""

    states: int = 0
    events: int = 0
    complete: bool = False
    failures: list[str] = field(default_factory=list)


Step = tuple[str, Callable[[Stage], object]]


def no_jitter() -> float:
    """Stand in for chance; a function with a name, so that a stage can be pickled."""
    return 0.0


def first_stage(policy: Policy) -> Stage:
    """Return the stage before anything has happened."""
    stage = Stage(policy, Rollout(Fleet(policy=policy, size=policy.workers), no_jitter))
    stage.takes_at_once, stage.drops_late_answers = False, True
    stage.now = BEGIN
    return stage


# -- canonical states --------------------------------------------------------------------------------------------


def canonical(stage: Stage, policies: tuple[Policy, ...]) -> bytes:
    """Return a digest that equivalent states have in common."""
    fleet = stage.fleet
    plain = _numbered(stage)
    generations = {number: place for place, number in enumerate(sorted(plain))}

    def generation(number: int | None) -> int | None:
        return generations.get(number, -1) if number is not None else None

    def policy(value: Policy | None) -> Any:
        return None if value is None else (_which(value, policies), generation(value.configuration))

    workers = []
    for worker in sorted(fleet.workers.values(), key=lambda w: w.worker_id):
        process = stage.processes.get(worker.worker_id), worker.worker_id in stage.leaving_only
        row: tuple[Any, ...] = (worker.slot, generation(worker.generation), worker.state.value, process)
        row += (worker.told, worker.killed)
        if not worker.leaving:  # of one that leaves nothing else matters any more
            young = worker.ready_at is not None and worker.ready_at > STABLE
            row += (worker.deadline is None, young, worker.verified, worker.replacement_requested)
        workers.append(row)
    servers = []
    for number, known in sorted(fleet.generations.items()):
        row = (generations[number], known.state.value, stage.servers.get(number))
        if known.state is not GenerationState.LOST:
            row += (known.preloaded, known.loaded_at is not None and known.loaded_at > STABLE)
        servers.append(row)
    cap = START_ATTEMPTS if fleet.never_served else 1
    slots = [(n, min(s.failures, cap), s.retry_at > BEGIN) for n, s in sorted(fleet.slots.items())]
    loading = fleet.loading and (generation(fleet.loading.generation), fleet.loading.purpose.value)
    previous = fleet.previous and (generation(fleet.previous.generation), policy(fleet.previous.policy))
    facts = (
        *(fleet.phase.value, fleet.size, fleet.shrink_to, fleet.fallback_size if fleet.fallback else 0),
        *(policy(fleet.policy), policy(fleet.fallback_policy), previous, loading),
        *([generation(n) for n in fleet.current], [generation(n) for n in fleet.fallback]),
        *(fleet.newest_verified, fleet.never_served, fleet.reload_again, generation(fleet.reloading)),
        *(min(fleet.roll_failures, ROLL_ATTEMPTS), fleet.roll_at > BEGIN, fleet.superseded_loads),
        # Left out: how often a fork server could not be restored, on which only the length of a wait depends, and the
        # failure and the degradation, which are only shown.
        fleet.restore_at > BEGIN,
        *(fleet.quick, fleet.stop_at is None, fleet.exit_status, stage.halted is None),
        *(generation(stage.in_force), [generation(order.generation) for order in stage.taking]),
    )
    return hashlib.blake2b(repr((workers, servers, slots, facts)).encode(), digest_size=12).digest()


def _numbered(stage: Stage) -> set[int]:
    """Return all numbers of generations that mean something to the state."""
    fleet = stage.fleet
    found = {*fleet.generations, *fleet.current, *fleet.fallback, *fleet.configurations(), stage.in_force}
    found |= {order.generation for order in stage.taking}
    return found | ({fleet.reloading} if fleet.reloading is not None else set())


def _which(policy: Policy, policies: tuple[Policy, ...]) -> int:
    return policies.index(dataclasses.replace(policy, configuration=0))


# -- events ------------------------------------------------------------------------------------------------------


def steps(stage: Stage, limits: Limits) -> Iterator[Step]:
    """Yield every legal event, with its name."""
    if stage.fleet.phase is Phase.NEW:
        yield "start", lambda s: s.tell(Start())
        return
    if stage.fleet.phase is not Phase.STOPPED:
        yield from _of_users(stage, limits)
        yield from _of_generations(stage, limits)
        yield from _of_workers(stage)
        yield from _of_time(stage)


def _of_users(stage: Stage, limits: Limits) -> Iterator[Step]:
    fleet = stage.fleet
    if len(fleet.generations) < limits.generations and not fleet.reload_again:
        yield "reload", lambda s: s.tell(Reload())
    if not stage.core.rollback_refusal():
        yield "rollback", lambda s: s.tell(Rollback())
    for workers in limits.scales:
        if workers != fleet.wanted_size:
            yield f"scale to {workers}", lambda s, n=workers: s.tell(Scale(n))  # type: ignore[misc]
    if not fleet.quick:
        yield "stop at once", lambda s: s.tell(Stop(quick=True))
    if not fleet.stopping:
        yield "stop", lambda s: s.tell(Stop())


def _of_generations(stage: Stage, limits: Limits) -> Iterator[Step]:
    if stage.loading_code():
        for number, policy in enumerate(limits.policies):
            for preloaded in (False, True):
                name = f"load, {'' if preloaded else 'not '}preloaded, policy {number}"
                yield name, lambda s, p=policy, q=preloaded: s.load(q, p)  # type: ignore[misc]
        yield "load fails", lambda s: s.fail_load()
    if stage.taking:
        yield "take configuration", lambda s: s.take()
        yield "refuse configuration", lambda s: s.refuse()
    for number in stage.servers:
        yield f"server {number} dies", lambda s, n=number: s.tell(GenerationGone(n))  # type: ignore[misc]


def _of_workers(stage: Stage) -> Iterator[Step]:
    for number, worker in stage.fleet.workers.items():
        state = stage.processes[number]
        if state == UNBORN and worker.state in (WorkerState.FORKING, WorkerState.DYING):
            yield f"worker {number} is forked", lambda s, n=number: s.tell(WorkerForked(n))  # type: ignore[misc]
            yield (
                f"worker {number} is called off",
                lambda s, n=number: s.tell(  # type: ignore[misc]
                    WorkerGone(n, "lost its fork server", called_off=True)
                ),
            )
        if state == BOOTING:
            yield f"worker {number} is ready", lambda s, n=number: s.tell(WorkerReady(n))  # type: ignore[misc]
            yield f"worker {number} fails", lambda s, n=number: s.tell(WorkerFailed(n, "why"))  # type: ignore[misc]
        if state == READY:
            yield (
                f"worker {number} wants to be replaced",
                lambda s, n=number: s.tell(  # type: ignore[misc]
                    WorkerReplacementRequested(n)
                ),
            )
        if state in (BOOTING, READY) and number not in stage.leaving_only:
            yield f"worker {number} leaves", lambda s, n=number: s.tell(WorkerLeaving(n))  # type: ignore[misc]
        for code in (0, 3, -9):
            yield (
                f"worker {number} ends with {code}",
                lambda s, n=number, c=code: s.tell(  # type: ignore[misc]
                    WorkerGone(n, "ended", c)
                ),
            )


def _of_time(stage: Stage) -> Iterator[Step]:
    """Yield each deadline, as the next one to be over; and that all that serves has done so for long."""
    fleet = stage.fleet
    waits: list[tuple[str, Callable[[Fleet], Any], str]] = [
        *((f"worker {n}", lambda f, n=n: f.workers[n], "deadline") for n in fleet.workers),
        *((f"generation {n}", lambda f, n=n: f.generations[n], "deadline") for n in fleet.generations),
        *((f"slot {n}", lambda f, n=n: f.slots[n], "retry_at") for n in fleet.slots),
        *(("the fleet", lambda f: f, name) for name in ("roll_at", "restore_at", "stop_at")),
        *([("previous", lambda f: f.previous, "until")] if fleet.previous is not None else []),
    ]
    for owner, find, name in waits:
        if (getattr(find(fleet), name) or 0.0) > BEGIN:
            yield f"{name} of {owner}", lambda s, find=find, name=name: _over(s, find(s.fleet), name)  # type: ignore[misc]
    served = [*(w.ready_at for w in fleet.workers.values()), *(g.loaded_at for g in fleet.generations.values())]
    if any(since is not None and since > STABLE for since in served):
        yield "all are stable", _all_stable


def _over(stage: Stage, owner: Any, name: str) -> None:
    """Let one deadline be over, and no other."""
    setattr(owner, name, BEGIN)
    if isinstance(owner, Worker) and owner.killed:
        stage.killed[owner.worker_id] = STABLE  # it was killed long ago, and is still there
    stage.tell(Tick())


def _all_stable(stage: Stage) -> None:
    for worker in stage.fleet.workers.values():
        worker.ready_at = STABLE if worker.ready_at is not None else None
    for generation in stage.fleet.generations.values():
        generation.loaded_at = STABLE if generation.loaded_at is not None else None


def _postpone(stage: Stage) -> None:
    """Move everything that is to come far away, so that an event is not taken for a later one."""
    fleet = stage.fleet
    for worker in fleet.workers.values():
        worker.deadline = LATER if worker.deadline is not None else None
    for generation in fleet.generations.values():
        generation.deadline = LATER if generation.deadline is not None else None
    for slot in fleet.slots.values():
        slot.retry_at = LATER if slot.retry_at > BEGIN else 0.0
    for name in ("roll_at", "restore_at"):
        setattr(fleet, name, LATER if getattr(fleet, name) > BEGIN else 0.0)
    if fleet.stop_at is not None:
        fleet.stop_at = LATER if fleet.stop_at > BEGIN else BEGIN
    if fleet.previous is not None:
        fleet.previous.until = LATER
    stage.log.clear()


# -- the search --------------------------------------------------------------------------------------------------


class Search:
    """One search, from the beginning of a fleet."""

    def __init__(self, limits: Limits) -> None:
        self.found = Found()
        self._limits = limits
        self._ways: dict[bytes, tuple[bytes, str]] = {}
        self._ahead: collections.deque[tuple[bytes, bytes]] = collections.deque()

    def run(self) -> Found:
        """Search until all is found, something fails, or a limit is reached."""
        end = time.monotonic() + self._limits.seconds
        self._reach(first_stage(self._limits.policies[0]), b"", "")
        while self._ahead and not self.found.failures:
            if self.found.states >= self._limits.states or time.monotonic() > end:
                return self.found
            self.found.states += 1
            self._leave(*self._ahead.popleft())
        self.found.complete = not self.found.failures
        return self.found

    def _leave(self, key: bytes, frozen: bytes) -> None:
        """Try everything that can happen in a state."""
        self._try(_all_goes_well, key, frozen, "from here all goes well")
        for name, step in steps(pickle.loads(frozen), self._limits):  # noqa: S301  # made here
            self.found.events += 1
            after = self._try(step, key, frozen, name)
            if after is not None:
                self._reach(after, key, name)

    def _reach(self, stage: Stage, key: bytes, name: str) -> None:
        _postpone(stage)
        digest = canonical(stage, self._limits.policies)
        if digest not in self._ways:
            self._ways[digest] = (key, name)
            self._ahead.append((digest, pickle.dumps(stage)))

    def _try(self, step: Callable[[Stage], object], key: bytes, frozen: bytes, name: str) -> Stage | None:
        stage: Stage = pickle.loads(frozen)  # noqa: S301  # made here
        try:
            step(stage)
        except Exception as error:  # noqa: BLE001  # whatever the core raises is what is looked for
            way = " > ".join([*self._way(key), name])
            self.found.failures.append(f"{way}: {type(error).__name__}: {error}")
            return None
        return stage

    def _way(self, key: bytes) -> list[str]:
        """Return the names of the events that lead to a state."""
        names: list[str] = []
        while key:
            key, name = self._ways[key]
            names.append(name)
        return [name for name in reversed(names) if name]


def _all_goes_well(stage: Stage) -> None:
    """Let everything that is tried work, and look at where that ends."""
    if stage.fleet.phase is Phase.NEW:
        stage.tell(Start())
    stage.all_goes_well()
    fleet = stage.fleet
    if fleet.phase is Phase.STOPPED:
        assert stage.halted is not None, "the master has not ended"
        return
    assert fleet.phase is Phase.STEADY, fleet.phase
    assert sorted(worker.slot for worker in fleet.workers.values()) == list(range(fleet.size)), "not one for each slot"
    assert all(fleet.fresh(worker) and worker.verified for worker in fleet.workers.values()), "an old worker is left"


def explore(limits: Limits) -> Found:
    """Search through all states within ``limits``, and return what was found."""
    return Search(limits).run()
