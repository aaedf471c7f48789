"""From the facts to the next steps: which worker leaves now, which slot is filled now.

Rules, all of them parts of the invariant:

* Not more than ``size + surge`` worker processes exist, those that boot or drain included.
* A worker that serves gets the order to leave only if ``size - unavailable`` others are ready and verified.
* Slots go in order. A worker leaves when its slot has a verified one that may stay. Before that it leaves only to make
  room, where ``unavailable`` allows it and the new generation is verified, or where nothing else would make any.
* One that serves waits for a successor that boots, to hand its connections over.
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

from collections.abc import Iterator

from zdworker.core.fleet import Facts, Fleet, Worker, WorkerState

FORKS_AT_A_TIME = 8
"""Workers that a fork server is asked for at a time. It forks one after the other, so more of them would not be there
sooner; but each order holds descriptors, and an order that was given cannot be taken back."""


def next_to_leave(facts: Facts) -> Worker | None:
    """Return the worker to tell to leave now, if one may."""
    # With hundreds of workers it matters that most are not asked: those that serve alone in their slots stay, as long
    # as none may leave first.
    leave_first, size = _some_may_leave_first(facts), facts.fleet.size
    asked = (
        worker
        for workers in facts.slots.values()
        for worker in workers
        if worker.worker_id not in facts.fresh
        and (leave_first or len(workers) > 1 or not worker.verified or worker.slot >= size)
    )
    may = [w for w in asked if _should_retire(facts, w) and _availability_allows(facts, w)]
    return min(may, key=lambda w: _order(facts, w), default=None)


def _order(facts: Facts, worker: Worker) -> tuple[int, int, bool, int]:
    """Sort key: slots with several workers first, then by slot; within a slot, unwanted generations first, then age."""
    wanted = worker.generation in facts.fleet.current or worker.generation in facts.fleet.fallback
    return -len(facts.slots[worker.slot]), worker.slot, wanted, worker.worker_id


def _should_retire(facts: Facts, worker: Worker) -> bool:
    """Return whether a worker that may not stay should leave now."""
    if worker.slot >= facts.fleet.size:
        return True
    successors = [w for w in facts.slots[worker.slot] if w.worker_id in facts.fresh]
    if successors:
        if worker.state is WorkerState.READY and any(w.state is not WorkerState.READY for w in successors):
            return False  # it can hand its connections over soon
        if any(w.verified for w in successors):
            return True
    return _obsolete(facts, worker) or _may_leave_first(facts, worker)


def _obsolete(facts: Facts, worker: Worker) -> bool:
    """Return whether an unverified worker runs code that is not wanted, or not wanted any more."""
    fleet = facts.fleet
    if worker.verified or worker.generation in fleet.current:
        return False
    if worker.generation not in fleet.fallback:
        return True
    # A worker of the generation before the reload is treated as any old one once it serves. While it boots it may be
    # needed, if it has its slot to itself and the canary is not verified.
    booting = worker.state is not WorkerState.READY
    return booting and (fleet.newest_verified or len(facts.slots[worker.slot]) > 1)


def _some_may_leave_first(facts: Facts) -> bool:
    """Return whether there are workers that may leave before their slot has another one, to make room for that."""
    fleet = facts.fleet
    if facts.source is None or facts.room > 0:
        return False
    # Either some may be missing, or nothing but the end of a worker that serves can make room.
    return facts.only_verified or (fleet.newest_verified and facts.must_serve < fleet.size)


def _may_leave_first(facts: Facts, worker: Worker) -> bool:
    """Return whether this worker is one of them."""
    return _some_may_leave_first(facts) and (facts.only_verified or not worker.replacement_requested)


def _availability_allows(facts: Facts, worker: Worker) -> bool:
    """Return whether enough workers serve without this one; one that does not serve may always go.

    Only verified ones are counted on: another one may be gone a moment later.
    """
    if worker.state is not WorkerState.READY:
        return True
    return facts.serving - worker.verified >= facts.must_serve


def next_to_fill(facts: Facts, now: float) -> tuple[int, int] | None:
    """Return the slot to fill now and the generation to fill it from, if one may be filled."""
    if facts.room <= 0:
        return None
    for number in _lacking(facts):
        if _retry_at(facts, number) <= now:
            generation = _source_for(facts, number)
            if generation is not None and facts.forking.get(generation, 0) < FORKS_AT_A_TIME:
                return number, generation
    return None


def _retry_at(facts: Facts, number: int) -> float:
    """Return when a slot may be filled; while a rollout backs off, slots that are served have to wait for it, too."""
    slot = facts.fleet.slots.get(number)
    own = slot.retry_at if slot is not None else 0.0
    return max(own, facts.fleet.roll_at) if number in facts.slots else own


def _lacking(facts: Facts) -> Iterator[int]:
    """Yield the slots that lack a worker that may stay: the empty ones first."""
    size, slots = facts.fleet.size, facts.slots
    yield from (n for n in range(size) if n not in slots)
    yield from (n for n in range(size) if n in slots and not any(w.worker_id in facts.fresh for w in slots[n]))


def _source_for(facts: Facts, number: int) -> int | None:
    """Return the generation to fill a slot from; a canary leaves only empty slots, for the generation before."""
    workers = (w for each in facts.slots.values() for w in each)
    if facts.fleet.newest_verified or not any(w.generation == facts.source for w in workers):
        return facts.source
    return None if number in facts.slots else facts.fallback_source


def left_empty(facts: Facts) -> int | None:
    """Return a slot that nothing may fill while the canary is tried: the fork server of the code before is gone."""
    fleet = facts.fleet
    if fleet.newest_verified or facts.fallback_source is not None:
        return None
    empty = next((n for n in range(fleet.size) if n not in facts.slots), None)
    return empty if empty is not None and _source_for(facts, empty) is None else None


def next_retry(fleet: Fleet) -> float | None:
    """Return when the next slot that waits out a backoff may be filled.

    A slot whose time has come waits for room, or for a fork server or its turn there, and these bring an event.
    """
    if fleet.room <= 0:
        return None
    facts = fleet.facts()
    times = sorted({_retry_at(facts, n) for n in _lacking(facts)})
    return next((t for t in times if next_to_fill(facts, t) is not None), None)


def converged(facts: Facts) -> bool:
    """Return whether every slot has a verified worker that may stay, and no older code runs any more."""
    fleet = facts.fleet
    if len(facts.fresh) != fleet.size:
        return False
    staying = [worker for workers in facts.slots.values() for worker in workers]
    if len(staying) != fleet.size or not all(w.verified for w in staying):
        return False
    return all(w.generation in fleet.current for w in fleet.workers.values())
