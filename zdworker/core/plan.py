"""From the facts to the next steps: which worker leaves now, which slot is filled now.

Rules, all of them parts of the invariant:

* Not more than ``size + surge`` worker processes exist, those that boot or drain included.
* A worker that serves is told to leave only if ``size - unavailable`` others are ready and verified.
* Slots go in order. A worker leaves when its slot has a verified one that may stay. Before that it leaves only where
  ``unavailable`` allows it and the new generation is verified, or where nothing else would make room.
* Until the new generation is verified a single worker, the canary, tries it out. A slot that a crash empties in the
  meantime is filled from the generation before.
* A fork server has at most :data:`FORKS_AT_A_TIME` orders that it has not carried out. The other slots wait their turn.

These are questions to the facts, asked again after every event, rather than steps of a script. So whatever happens in
between (a crash, a second reload, a change of number) needs no case of its own.

Why it never stands still: as long as a worker is forked, boots, is being verified or drains, its deadline brings an
event. When none does and a slot lacks a worker that may stay, either there is room, or more than ``size - unavailable``
are ready (surge and unavailable are not both 0), so that one which may not stay can leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property

from zdworker.core.fleet import Fleet, Worker, WorkerState

FORKS_AT_A_TIME = 8
"""Workers that a fork server is asked for at a time. It forks one after the other, so more of them would not be there
sooner; but each order holds descriptors, and an order that was given cannot be taken back."""


class _Facts:
    """The facts as a question needs them, gathered once: it is asked of every worker, after every event."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.source = fleet.source(fleet.current)
        self.slots: dict[int, list[Worker]] = {}
        """The workers of each slot that are not leaving."""
        for worker in fleet.workers.values():
            if not worker.leaving:
                self.slots.setdefault(worker.slot, []).append(worker)

    def in_slot(self, number: int) -> list[Worker]:
        return self.slots.get(number, [])

    @cached_property
    def slots_with_stable_worker(self) -> set[int]:
        """The slots that have a verified worker that may stay."""
        return {n for n, workers in self.slots.items() if any(self.fleet.fresh(w) and w.verified for w in workers)}

    @cached_property
    def no_room(self) -> bool:
        """Whether only the end of a worker that serves can make room."""
        return not _has_room(self.fleet) and not any(w.leaving or not w.verified for w in self.fleet.workers.values())

    @cached_property
    def busy(self) -> set[int]:
        """The generations whose fork servers have as many orders as they may have at a time."""
        forking = Counter(w.generation for w in self.fleet.workers.values() if w.state is WorkerState.FORKING)
        return {generation for generation, orders in forking.items() if orders >= FORKS_AT_A_TIME}

    @cached_property
    def canary_exists(self) -> bool:
        """Whether a worker tries the new generation out."""
        return not self.fleet.newest_verified and any(
            w.generation == self.source for each in self.slots.values() for w in each
        )


def next_to_leave(fleet: Fleet) -> Worker | None:
    """Return the worker to tell to leave now, if one may."""
    facts = _Facts(fleet)
    staying = [worker for workers in facts.slots.values() for worker in workers]
    for worker in sorted(staying, key=lambda w: _order(facts, w)):
        if _should_retire(facts, worker) and _availability_allows(fleet, worker):
            return worker
    return None


def _order(facts: _Facts, worker: Worker) -> tuple[int, int, bool, int]:
    """Sort key: slots with several workers first, then by slot; within a slot, unwanted generations first, then age."""
    wanted = worker.generation in facts.fleet.current or worker.generation in facts.fleet.fallback
    return -len(facts.in_slot(worker.slot)), worker.slot, wanted, worker.worker_id


def _should_retire(facts: _Facts, worker: Worker) -> bool:
    if worker.slot >= facts.fleet.size:
        return True
    if facts.fleet.fresh(worker):
        return False
    replaced = worker.slot in facts.slots_with_stable_worker
    return _obsolete(facts, worker) or replaced or _may_leave_first(facts, worker)


def _obsolete(facts: _Facts, worker: Worker) -> bool:
    """Return whether an unverified worker runs code that is not wanted, or not wanted any more."""
    fleet = facts.fleet
    if worker.verified or worker.generation in fleet.current:
        return False
    if worker.generation not in fleet.fallback:
        return True
    # A worker of the generation before the reload is treated as any old one once it serves. While it boots it may be
    # needed, if it has its slot to itself and the canary is not verified.
    booting = worker.state is not WorkerState.READY
    return booting and (fleet.newest_verified or len(facts.in_slot(worker.slot)) > 1)


def _may_leave_first(facts: _Facts, worker: Worker) -> bool:
    """Return whether a worker may leave before its slot has another one."""
    if facts.source is None:
        return False
    if facts.fleet.newest_verified and facts.fleet.unavailable and not worker.replacement_requested:
        return True
    return facts.no_room


def _availability_allows(fleet: Fleet, worker: Worker) -> bool:
    """Return whether enough workers serve without this one; one that does not serve may always go.

    Only verified ones are counted on: another one may be gone a moment later.
    """
    if worker.state is not WorkerState.READY:
        return True
    others = sum(w.state is WorkerState.READY and w.verified for w in fleet.workers.values() if w is not worker)
    return others >= fleet.size - fleet.unavailable


def _has_room(fleet: Fleet) -> bool:
    return len(fleet.workers) < fleet.size + fleet.surge


def next_to_fill(fleet: Fleet, now: float) -> tuple[int, int] | None:
    """Return the slot to fill now and the generation to fill it from, if one may be filled."""
    return _next_to_fill(_Facts(fleet), now)


def _next_to_fill(facts: _Facts, now: float) -> tuple[int, int] | None:
    if not _has_room(facts.fleet):
        return None
    for number in _lacking(facts):
        if _retry_at(facts, number) <= now:
            generation = _source_for(facts, number)
            if generation is not None and generation not in facts.busy:
                return number, generation
    return None


def _retry_at(facts: _Facts, number: int) -> float:
    """Return when a slot may be filled; while a rollout backs off, slots that are served have to wait for it, too."""
    return max(facts.fleet.retry_at(number), facts.fleet.roll_at if facts.in_slot(number) else 0.0)


def _lacking(facts: _Facts) -> Iterator[int]:
    """Yield the slots that lack a worker that may stay: the empty ones first."""
    lacking = [n for n in range(facts.fleet.size) if not any(facts.fleet.fresh(w) for w in facts.in_slot(n))]
    yield from (n for n in lacking if not facts.in_slot(n))
    yield from (n for n in lacking if facts.in_slot(n))


def _source_for(facts: _Facts, number: int) -> int | None:
    if not facts.canary_exists:
        return facts.source
    return None if facts.in_slot(number) else facts.fleet.source(facts.fleet.fallback)


def next_retry(fleet: Fleet) -> float | None:
    """Return when the next slot that waits out a backoff may be filled.

    A slot whose time has come waits for room, or for a fork server or its turn there, and these bring an event.
    """
    facts = _Facts(fleet)
    times = sorted({_retry_at(facts, n) for n in _lacking(facts)})
    return next((t for t in times if _next_to_fill(facts, t) is not None), None)


def converged(fleet: Fleet) -> bool:
    """Return whether every slot has a verified worker that may stay, and no older code runs any more."""
    staying = [w for w in fleet.workers.values() if not w.leaving]
    if any(w.leaving and w.generation not in fleet.current for w in fleet.workers.values()):
        return False
    return len(staying) == fleet.size and all(fleet.fresh(w) and w.verified for w in staying)
