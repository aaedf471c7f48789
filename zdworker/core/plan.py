"""From the facts to the next steps: which worker leaves now, which slot is filled now.

Rules, all of them the invariant's:

* Not more than ``size + surge`` worker processes exist, those that boot or drain included.
* A worker that serves is told to leave only if ``size - unavailable`` others are ready and have proved themselves.
* Slots go in order. A worker leaves when its slot has a fresh one that has proved itself; before that only where
  ``unavailable`` allows it and the new generation is proven, or where nothing else would make room.
* Until the new generation is proven, one single worker tries it out, and a slot that a crash has emptied meanwhile is
  filled from the generation before.

These are questions to the facts, asked again after every event, rather than steps of a script: whatever happens in
between (a crash, a second reload, a change of number) needs no case of its own.

Why it never stands still: as long as a worker boots, soaks or drains, its deadline brings an event. When none does and
a slot lacks a fresh worker, either there is room, or more than ``size - unavailable`` are ready (surge and unavailable
are not both 0), so that one which is not fresh may leave.
"""

from __future__ import annotations

from collections.abc import Iterator

from zdworker.core.fleet import Fleet, Worker, WorkerState


def next_to_leave(fleet: Fleet) -> Worker | None:
    """Return the worker that shall leave now, if one may."""
    staying = [w for w in fleet.workers.values() if not w.leaving]
    for worker in sorted(staying, key=lambda w: _order(fleet, w)):
        if _superfluous(fleet, worker) and _dispensable(fleet, worker):
            return worker
    return None


def _order(fleet: Fleet, worker: Worker) -> tuple[int, int, bool, int]:
    """From crowded slots first, so that none is emptied without need; then in order, the useless before the old."""
    wanted = worker.generation in fleet.current or worker.generation in fleet.fallback
    return -len(fleet.in_slot(worker.slot)), worker.slot, wanted, worker.age


def _superfluous(fleet: Fleet, worker: Worker) -> bool:
    if worker.slot >= fleet.size:
        return True
    if fleet.fresh(worker):
        return False
    if _useless(fleet, worker):
        return True
    return any(fleet.fresh(w) and w.proved for w in fleet.in_slot(worker.slot)) or _may_leave_first(fleet, worker)


def _useless(fleet: Fleet, worker: Worker) -> bool:
    """Return whether a worker that has not lasted yet is of code that nobody wants (any more)."""
    if worker.proved or worker.generation in fleet.current:
        return False
    if worker.generation not in fleet.fallback:
        return True
    # What served before the reload goes on as any old worker; what still boots may be needed while the new code is on
    # trial, if it has its slot to itself.
    booting = worker.state is not WorkerState.READY
    return booting and (fleet.proven or len(fleet.in_slot(worker.slot)) > 1)


def _may_leave_first(fleet: Fleet, worker: Worker) -> bool:
    """Return whether a worker may leave before its slot has another one."""
    if fleet.source(fleet.current) is None:
        return False
    if fleet.proven and fleet.policy.unavailable and not worker.tired:
        return True
    return not _has_room(fleet) and not any(w.leaving or not w.proved for w in fleet.workers.values())


def _dispensable(fleet: Fleet, worker: Worker) -> bool:
    """Return whether enough serve without it; nobody misses one that serves nobody.

    Only those that have proved themselves are counted on: one that soaks may be gone a moment later.
    """
    if worker.state is not WorkerState.READY:
        return True
    others = sum(w.state is WorkerState.READY and w.proved for w in fleet.workers.values() if w is not worker)
    return others >= fleet.size - fleet.policy.unavailable


def _has_room(fleet: Fleet) -> bool:
    return len(fleet.workers) < fleet.size + fleet.policy.surge


def next_to_fill(fleet: Fleet, now: float) -> tuple[int, int] | None:
    """Return the slot to fill now and the generation to fill it from, if one may be filled."""
    if not _has_room(fleet):
        return None
    for number in _wanting(fleet):
        if _due(fleet, number) <= now:
            generation = _source_for(fleet, number)
            if generation is not None:
                return number, generation
    return None


def _due(fleet: Fleet, number: int) -> float:
    """Return when a slot's time has come; while a rollout backs off, slots that are served have to wait for it, too."""
    return max(fleet.retry_at(number), fleet.roll_at if fleet.in_slot(number) else 0.0)


def _wanting(fleet: Fleet) -> Iterator[int]:
    """Yield the slots that lack a fresh worker: the empty ones first."""
    lacking = [n for n in range(fleet.size) if not any(fleet.fresh(w) for w in fleet.in_slot(n))]
    yield from (n for n in lacking if not fleet.in_slot(n))
    yield from (n for n in lacking if fleet.in_slot(n))


def _source_for(fleet: Fleet, number: int) -> int | None:
    source = fleet.source(fleet.current)
    on_trial = not fleet.proven and any(w.generation == source for w in fleet.workers.values() if not w.leaving)
    if not on_trial:
        return source
    return None if fleet.in_slot(number) else fleet.source(fleet.fallback)


def next_retry(fleet: Fleet) -> float | None:
    """Return when the next slot that waits out a backoff may be filled.

    A slot that is due already waits for room or for a fork server, and these bring an event.
    """
    times = sorted(_due(fleet, n) for n in _wanting(fleet))
    return next((t for t in times if next_to_fill(fleet, t) is not None), None)


def converged(fleet: Fleet) -> bool:
    """Return whether every slot has a worker that shall stay and has proved itself, and no older code runs any more."""
    staying = [w for w in fleet.workers.values() if not w.leaving]
    if any(w.leaving and w.generation not in fleet.current for w in fleet.workers.values()):
        return False
    return len(staying) == fleet.size and all(fleet.fresh(w) and w.proved for w in staying)
