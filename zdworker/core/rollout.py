"""The decisions: :meth:`Rollout.handle` takes an event and ``now``, changes the facts and returns the actions.

Rules:

* An event first passes its state table (``zdworker.core.fleet``); an illegal one raises and has changed nothing.
* Then the facts are brought up to date (``zdworker.core.steps``), and :meth:`Rollout._advance` asks the plan
  (``zdworker.core.plan``) for steps until it has none left. So every event, in whatever order it comes, leads to the
  same next steps.
* What was on its way when its worker or generation was struck off comes too late and is nothing; only what was never
  there is illegal.
* Before the first worker was ever ready, a failed boot ends the master, as Gunicorn does it. After that no failed boot
  ever does: a generation whose first worker fails is given up for good, and what served before serves on.
* ``now`` is monotonic seconds; :meth:`Rollout.next_deadline` says when to come back with a ``Tick`` at the latest.
"""

from __future__ import annotations

from collections.abc import Callable

from zdworker.core import plan
from zdworker.core.backoff import Backoff
from zdworker.core.events import (
    Action,
    Event,
    GenerationFailed,
    GenerationGone,
    GenerationLoaded,
    Policy,
    Reload,
    ReloadFinished,
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
from zdworker.core.fleet import (
    GENERATIONS,
    PHASES,
    WORKERS,
    Fleet,
    Generation,
    GenerationState,
    Phase,
    Worker,
    WorkerState,
    step,
)
from zdworker.core.steps import EXIT_TIME, FORK_TIME, Steps
from zdworker.errors import IllegalEvent

ROLL_ATTEMPTS = 5
"""Failed boots in a row, after the first worker has proved the generation, that end a rollout."""

CALLED_OFF = "called off: a rollback was asked for"

START_ATTEMPTS = 3
"""Boots of a slot that may end by a signal or cleanly at the first start, before the master gives up."""


class Rollout:
    """The core. One loop owns it; nothing in it waits.

    :param fleet: the facts to go on from.
    :param jitter: gives a random number from 0 to 1 for the backoff.
    """

    def __init__(self, fleet: Fleet, jitter: Callable[[], float], backoff: Backoff | None = None) -> None:
        self.fleet = fleet
        self._steps = Steps(fleet, jitter, backoff or Backoff())

    def handle(self, event: Event, now: float) -> list[Action]:
        """Return what follows from ``event``.

        :raises IllegalEvent: the event cannot happen in this state; nothing has changed.
        """
        self._steps.actions = []  # of an event that raised
        handler = getattr(self, f"_on_{type(event).__name__.lower()}")
        handler(event, now)
        self._advance(now)
        actions, self._steps.actions = self._steps.actions, []
        return actions

    def next_deadline(self) -> float | None:
        """Return when ``Tick`` is due, or None when nothing is waited for."""
        fleet = self.fleet
        times = [w.deadline for w in fleet.workers.values()]
        times += [g.deadline for g in fleet.generations.values()]
        if fleet.running:
            times.append(fleet.stop_at)
            times.append(plan.next_retry(fleet))
            times.append(fleet.restore_at if self._lacks_source() else None)
            times.append(fleet.previous.until if fleet.previous else None)
        return min((t for t in times if t is not None), default=None)

    # -- what the user asks for ----------------------------------------------------------------------------------

    def _on_start(self, event: Start, now: float) -> None:
        self.fleet.phase = step(PHASES, self.fleet.phase, "start")
        self.fleet.reload_again = False  # what loads now is the newest
        self._steps.load("start", now)

    def _on_reload(self, event: Reload, now: float) -> None:
        # A flag, not a queue: however often it is asked for, one load that begins after the last request has it all.
        if not self.fleet.stopping:
            self.fleet.reload_again = True

    def _on_rollback(self, event: Rollback, now: float) -> None:
        reason, fleet = self.rollback_refusal(), self.fleet
        if reason:
            raise IllegalEvent(reason)
        fleet.reload_again = False
        if self._reload_is_loading():
            self._steps.call_off(CALLED_OFF)
        elif fleet.reloading is not None:
            self._steps.turn_back(CALLED_OFF, "")
        else:
            self._steps.roll_back(event.policy)

    def rollback_refusal(self) -> str:
        """Return why there can be no ``Rollback`` now, for who asks for it; "" if there can be.

        It undoes the newest reload: calls off one whose generation loads, turns back one that is rolling, and rolls
        back one that is done. Code that is to be run again has to be in memory: that on disk may be another by now.
        """
        fleet = self.fleet
        if fleet.stopping or fleet.phase in (Phase.NEW, Phase.STARTING):
            return f"the master is {'stopping' if fleet.stopping else fleet.phase.value}"
        if self._reload_is_loading():
            return ""
        if fleet.reloading is not None:
            back = fleet.source(fleet.fallback)
            kept = back is not None and (fleet.generations[back].preloaded or not fleet.newest_verified)
            return "" if kept else "the generation before is not preloaded (--preload), or its fork server is gone"
        if fleet.previous is not None:
            return ""
        if fleet.policy.rollback_window == 0:
            return "no generation is kept: zd_rollback_window is 0"
        return "no generation is kept: none was replaced within zd_rollback_window, or it was not preloaded (--preload)"

    def reload_under_way(self) -> bool:
        """Return whether a reload has begun and not ended."""
        return self._reload_is_loading() or self.fleet.reloading is not None

    def _reload_is_loading(self) -> bool:
        return self.fleet.loading is not None and self.fleet.loading.purpose == "reload"

    def _on_scale(self, event: Scale, now: float) -> None:
        if event.workers < 0:
            raise IllegalEvent(f"a fleet of {event.workers} workers")
        self.fleet.size, self.fleet.shrink_to = event.workers, None

    def _on_stop(self, event: Stop, now: float) -> None:
        fleet = self.fleet
        # Where nothing has ever served, no balancer sends anything. Asked again, it does not begin anew.
        if event.quick or fleet.policy.shutdown_delay == 0 or fleet.never_served or not fleet.running:
            self._steps.stop(event, now)
        elif fleet.stop_at is None:
            fleet.stop_at, fleet.reload_again = now + fleet.policy.shutdown_delay, False

    def _on_tick(self, event: Tick, now: float) -> None:
        if self.fleet.stop_at is not None and self.fleet.stop_at <= now:
            self._steps.stop(Stop(), now)
        for worker in list(self.fleet.workers.values()):
            if worker.deadline is not None and worker.deadline <= now:
                self._expire(worker, now)
        if self.fleet.previous is not None and self.fleet.previous.until <= now:
            self.fleet.previous = None
        for generation in list(self.fleet.generations.values()):
            if generation.deadline is not None and generation.deadline <= now:
                reason = f"not loaded within {self.fleet.policy.boot_timeout:g} s (zd_boot_timeout)"
                self._on_generationfailed(GenerationFailed(generation.number, reason), now)

    # -- generations ---------------------------------------------------------------------------------------------

    def _on_generationloaded(self, event: GenerationLoaded, now: float) -> None:
        generation = self._generation(event.generation)
        if generation is None:
            return
        generation.state = step(GENERATIONS, generation.state, "loaded")
        if generation.state is GenerationState.LOST:
            return
        generation.deadline, generation.loaded_at, generation.preloaded = None, now, event.preloaded
        fleet = self.fleet
        purpose = self._loaded_for()
        if purpose == "restore":
            fleet.current.append(event.generation)
            return
        if purpose == "start":
            fleet.current = [event.generation]
            self._steps.adopt(event.policy)
        elif fleet.reload_again:
            self._steps.actions.append(ReloadFinished(event.generation, "superseded"))
        else:
            self._steps.roll_to(event.generation, event.policy)

    def _on_generationfailed(self, event: GenerationFailed, now: float) -> None:
        generation = self._generation(event.generation)
        if generation is None:
            return
        before = generation.state
        step(GENERATIONS, before, "failed")
        if before is GenerationState.LOADING:
            self._steps.end(event.generation)
            self._load_failed(event, now)

    def _on_generationgone(self, event: GenerationGone, now: float) -> None:
        generation = self._generation(event.generation)
        if generation is None:
            return
        before = generation.state
        generation.state, generation.deadline = step(GENERATIONS, before, "gone"), None
        if before is GenerationState.LOADING:
            self._load_failed(GenerationFailed(event.generation, "the fork server died while loading"), now)
        elif self.fleet.previous is not None and event.generation == self.fleet.previous.generation:
            self.fleet.previous = None  # nobody is spawned from it, nothing has to be made good
        elif before is GenerationState.LOADED:
            self._steps.count_loss(generation, now)
            if not self.fleet.newest_verified and self._lacks_source():
                self._steps.turn_back("its fork server died before the first new worker was ready", "")

    def _load_failed(self, event: GenerationFailed, now: float) -> None:
        """A generation did not load: nothing was touched yet."""
        fleet = self.fleet
        purpose = self._loaded_for()
        self._steps.count_loss(fleet.generations[event.generation], now)
        if fleet.never_served:
            self._steps.stop(Stop(quick=True, status=event.exit_code, reason=event.reason), now)
        elif purpose == "reload":
            self._steps.refuse_reload(event.generation, event.reason, event.traceback)
        else:
            self._steps.degrade(f"the fork server cannot be replaced: {event.reason}", event.traceback)

    def _loaded_for(self) -> str:
        loading, self.fleet.loading = self.fleet.loading, None
        assert loading is not None  # noqa: S101 (for the type checker: a generation loads, so the fleet is loading one)
        return loading.purpose

    def _generation(self, number: int) -> Generation | None:
        if not 0 < number <= self.fleet.last_generation:
            raise IllegalEvent(f"no generation {number}")
        return self.fleet.generations.get(number)

    def _lacks_source(self) -> bool:
        return self.fleet.loading is None and self.fleet.source(self.fleet.current) is None

    # -- workers -------------------------------------------------------------------------------------------------

    def _on_workerforked(self, event: WorkerForked, now: float) -> None:
        worker = self._worker(event.worker_id)
        if worker is None:
            return
        worker.state = step(WORKERS, worker.state, "forked")
        worker.pid = event.pid
        if worker.state is WorkerState.BOOTING:
            worker.deadline = now + self.fleet.policy.boot_timeout
        else:
            self._steps.kill(worker, "born too late", now)

    def _on_workerready(self, event: WorkerReady, now: float) -> None:
        worker = self._worker(event.worker_id)
        if worker is None:
            return
        worker.state = step(WORKERS, worker.state, "ready")
        if worker.state is WorkerState.READY:
            worker.ready_at, worker.deadline = now, now + self.fleet.policy.min_ready
            self.fleet.ever_ready = True
            if self.fleet.policy.min_ready == 0:
                self._expire(worker, now)

    def _on_workerreplacementrequested(self, event: WorkerReplacementRequested, now: float) -> None:
        worker = self._worker(event.worker_id)
        if worker is not None:
            worker.state = step(WORKERS, worker.state, "replacement requested")
            worker.replacement_requested = True

    def _on_workerleaving(self, event: WorkerLeaving, now: float) -> None:
        """It stopped accepting. If nobody here told it to, that is a death to come: its slot is to be filled."""
        worker = self._worker(event.worker_id)
        if worker is None:
            return
        told = worker.leaving
        worker.state = step(WORKERS, worker.state, "leaving")
        if told:
            return
        self._steps.await_exit(worker, now)
        if worker.verified:
            if not self.fleet.policy.development:
                self._steps.count_failure(worker, now)
        else:
            reason = "it was told to leave before it had proved itself"
            self._boot_failed(worker, WorkerFailed(worker.worker_id, reason, exit_code=0), now)

    def _on_workerfailed(self, event: WorkerFailed, now: float) -> None:
        worker = self._worker(event.worker_id)
        if worker is None:
            return
        before = worker.state
        worker.state = step(WORKERS, before, "failed")
        if before is WorkerState.BOOTING:
            worker.deadline = now + EXIT_TIME
            self._boot_failed(worker, event, now)

    def _on_workergone(self, event: WorkerGone, now: float) -> None:
        worker = self._worker(event.worker_id)
        if worker is None:
            return
        before = worker.state
        worker.state = step(WORKERS, before, "gone")
        del self.fleet.workers[event.worker_id]
        if before is WorkerState.READY and worker.verified:
            self._crashed(worker, event, now)
        elif before in (WorkerState.FORKING, WorkerState.BOOTING, WorkerState.READY):
            reason = f"{event.how} {'too soon' if before is WorkerState.READY else 'before it was ready'}"
            self._boot_failed(worker, WorkerFailed(event.worker_id, reason, exit_code=event.exit_code or 0), now)

    def _expire(self, worker: Worker, now: float) -> None:
        before = worker.state
        worker.state = step(WORKERS, before, "expire")
        if before is WorkerState.READY:
            worker.deadline, worker.verified = None, True
            if worker.generation in self.fleet.current:
                self._steps.verify_newest()
            return
        self._steps.kill(worker, before.value, now)
        if before is WorkerState.FORKING:
            # The fork server is stuck, and no use to anyone.
            self._steps.abandon(worker.generation, now)
            self._boot_failed(worker, WorkerFailed(worker.worker_id, f"not forked within {FORK_TIME:g} s"), now)
        elif before is WorkerState.BOOTING:
            reason = f"not ready within {self.fleet.policy.boot_timeout:g} s (zd_boot_timeout)"
            self._boot_failed(worker, WorkerFailed(worker.worker_id, reason), now)

    def _crashed(self, worker: Worker, event: WorkerGone, now: float) -> None:
        if self.fleet.policy.exit_on_crash:
            self._steps.stop(Stop(status=1, reason=f"a worker {event.how}, and zd_on_crash is 'exit'"), now)
            return
        self._steps.count_failure(worker, now)

    def _boot_failed(self, worker: Worker, event: WorkerFailed, now: float) -> None:
        fleet = self.fleet
        self._steps.count_failure(worker, now)
        if fleet.never_served:
            self._start_failed(worker, event, now)
        elif fleet.reloading is None or worker.generation not in fleet.current:
            self._steps.degrade(f"a worker failed to boot: {event.reason}", event.traceback)
        elif not fleet.newest_verified:
            self._steps.turn_back(f"the first new worker failed: {event.reason}", event.traceback)
        else:
            self._roll_failed(event, now)

    def _start_failed(self, worker: Worker, event: WorkerFailed, now: float) -> None:
        """Nothing ever served: the code is to blame, unless something from outside ended the worker."""
        from_outside = event.exit_code <= 0
        if from_outside and self.fleet.slot(worker.slot).failures < START_ATTEMPTS:
            return
        status = event.exit_code if event.exit_code in (3, 4) else 3
        reason = f"a worker failed to boot: {event.reason}"
        self._steps.stop(Stop(quick=True, status=status, reason=reason), now)

    def _roll_failed(self, event: WorkerFailed, now: float) -> None:
        """A later worker of a generation that has worked before failed: it is retried, then turned back if possible."""
        fleet = self.fleet
        self._steps.count_roll_failure(now)
        if fleet.roll_failures < ROLL_ATTEMPTS:
            return
        reason = f"{fleet.roll_failures} new workers in a row failed, the last one: {event.reason}"
        back = fleet.source(fleet.fallback)
        if back is not None and fleet.generations[back].preloaded:
            self._steps.turn_back(reason, event.traceback)
            return
        reason += "; there is no way back, since the generation before is not preloaded, or its fork server is gone"
        self._steps.degrade(reason, event.traceback)

    def _worker(self, worker_id: int) -> Worker | None:
        if not 0 < worker_id <= self.fleet.last_worker_id:
            raise IllegalEvent(f"no worker {worker_id}")
        return self.fleet.workers.get(worker_id)

    # -- what follows --------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        fleet = self.fleet
        if fleet.phase is Phase.STOPPING and not fleet.workers:
            self._steps.halt()
        if not fleet.running:
            return
        while (leaving := plan.next_to_leave(fleet)) is not None:
            self._steps.drain(leaving, now)
        while (filling := plan.next_to_fill(fleet, now)) is not None:
            self._steps.spawn(*filling, now)
        if plan.converged(fleet) and (fleet.loading is None or fleet.loading.purpose != "start"):
            self._steps.settle(now)
        self._load_next(now)
        self._steps.forget()

    def _load_next(self, now: float) -> None:
        fleet = self.fleet
        if fleet.reload_again and fleet.loading is None and not fleet.never_served:
            fleet.reload_again = False
            self._steps.load("reload", now)
        elif self._lacks_source() and fleet.restore_at <= now:
            # The fork server died: a fresh one is started, the workers serve on.
            self._steps.load("restore", now)


def rollout(policy: Policy, jitter: Callable[[], float]) -> Rollout:
    """Return the core of a fleet that does not exist yet."""
    return Rollout(Fleet(policy=policy, size=policy.workers), jitter)
