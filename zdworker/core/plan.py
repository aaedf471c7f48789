"""From the facts to the next steps: which worker leaves now, which slot is filled now.

Rules, all of them the invariant's:

* Not more than ``size + surge`` worker processes exist, those that boot or drain included.
* A worker is told to leave only if ``size - unavailable`` others are ready without it.
* Slots go in order. A worker leaves when its slot has a fresh one that has proved itself; only where nothing may be
  started above the number of workers (surge 0) or the new generation is proven does ``unavailable`` let it leave before.
* Until the new generation is proven, one single worker tries it out, and a slot that a crash has emptied meanwhile is
  filled from the generation before.

These are questions to the facts, asked again after every event, rather than steps of a script: whatever happens in
between (a crash, a second reload, a change of number) needs no case of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from zdworker.core.fleet import Fleet, Worker, WorkerState


def next_to_leave(fleet: Fleet) -> Worker | None:
    """Return the worker that shall leave now, if one may."""
    for worker in sorted(fleet.workers.values(), key=lambda w: (w.slot, w.age)):
        if worker.leaving or not _superfluous(fleet, worker):
            continue
        if worker.state is not WorkerState.READY:
            return worker  # nobody misses one that serves nobody
        if fleet.ready() - 1 >= fleet.size - fleet.policy.unavailable and not _keeps_trial_waiting(fleet, worker):
            return worker
    return None


def _superfluous(fleet: Fleet, worker: Worker) -> bool:
    if worker.slot >= fleet.size:
        return True
    if fleet.fresh(worker):
        return _has_elder(fleet, worker)
    if worker.state is not WorkerState.READY:
        # It boots from code that nobody wants any more, unless it stands in for the generation on trial.
        return worker.generation not in fleet.current and worker.generation not in fleet.fallback
    if any(fleet.fresh(w) and w.proved for w in fleet.in_slot(worker.slot)):
        return True
    return _may_leave_first(fleet, worker)


def _has_elder(fleet: Fleet, worker: Worker) -> bool:
    """Return whether an older fresh and proved worker holds the slot (after a rollout was turned back)."""
    return any(fleet.fresh(w) and w.proved and w.age < worker.age for w in fleet.in_slot(worker.slot))


def _may_leave_first(fleet: Fleet, worker: Worker) -> bool:
    if fleet.policy.unavailable == 0 or fleet.source(fleet.current) is None:
        return False
    if fleet.policy.surge == 0:
        return True
    return fleet.proven and not worker.tired


def _keeps_trial_waiting(fleet: Fleet, worker: Worker) -> bool:
    """Return whether ``worker`` has to stay because a generation on trial has its one slot already."""
    if fleet.proven or fleet.fresh(worker) or worker.slot >= fleet.size:
        return False
    return any(not fleet.in_slot(n) for n in range(fleet.size)) or any(w.leaving for w in fleet.workers.values())


def next_to_fill(fleet: Fleet, now: float) -> tuple[int, int] | None:
    """Return the slot to fill now and the generation to fill it from, if one may be filled."""
    if len(fleet.workers) >= fleet.size + fleet.policy.surge:
        return None
    for number in _wanting(fleet):
        if fleet.slot(number).retry_at > now:
            continue
        generation = _source_for(fleet, number)
        if generation is not None:
            return number, generation
    return None


def _wanting(fleet: Fleet) -> Iterator[int]:
    """Yield the slots that lack a fresh worker: the empty ones first."""
    lacking = [n for n in range(fleet.size) if not any(fleet.fresh(w) for w in fleet.in_slot(n))]
    yield from (n for n in lacking if not fleet.in_slot(n))
    yield from (n for n in lacking if fleet.in_slot(n))


def _source_for(fleet: Fleet, number: int) -> int | None:
    source = fleet.source(fleet.current)
    if fleet.proven:
        return source
    tried = any(w.generation == source for w in fleet.workers.values() if not w.leaving)
    if not tried:
        return source
    return None if fleet.in_slot(number) else fleet.source(fleet.fallback)


def next_retry(fleet: Fleet) -> float | None:
    """Return when the next slot that waits out a backoff may be filled."""
    return min((fleet.slot(n).retry_at for n in _wanting(fleet)), default=None)


def converged(fleet: Fleet) -> bool:
    """Return whether every slot has a worker that shall stay and has proved itself, and no other takes requests."""
    staying = [w for w in fleet.workers.values() if not w.leaving]
    return len(staying) == fleet.size and all(fleet.fresh(w) and w.proved for w in staying)
