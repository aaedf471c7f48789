"""The decisions: :meth:`Rollout.handle` takes an event and ``now``, changes the facts and returns the actions.

Rules:

* An event first passes its state table (``zdworker.core.fleet``); an illegal one raises and has changed nothing.
* Then the facts are brought up to date (``zdworker.core.steps``), and :meth:`Rollout._advance` asks the plan
  (``zdworker.core.plan``) for steps until it has none left. So every event, in whatever order it comes, leads to the
  same next steps.
* An event about a worker or generation that has been removed was under way for too long, and changes nothing. Only one
  about something that never existed is illegal.
* Before the first worker was ever ready, a failed boot ends the master, as in Gunicorn. After that no failed boot ever
  does: a generation whose first worker fails is given up for good, and what served before goes on.
* Whether a loaded generation's configuration is taken over is decided here alone: a reload's is, once its code is
  loaded and no newer reload is asked for. A generation that replaces a dead fork server keeps the one in force.
* ``now`` is monotonic seconds; :meth:`Rollout.next_deadline` says when to come back with a ``Tick`` at the latest.
"""

from __future__ import annotations

from collections.abc import Callable

from zdworker.core import plan
from zdworker.core.backoff import Backoff
from zdworker.core.events import (
    Action,
    ConfigurationRefused,
    ConfigurationTaken,
    Event,
    GenerationFailed,
    GenerationGone,
    GenerationJudged,
    GenerationLoaded,
    KillReason,
    Outcome,
    Policy,
    Reload,
    ReloadFinished,
    Resume,
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
    GenerationCause,
    GenerationState,
    Loading,
    Phase,
    PhaseCause,
    Purpose,
    Worker,
    WorkerCause,
    WorkerState,
    step,
)
from zdworker.core.steps import EXIT_TIMEOUT_S, FORK_TIMEOUT_S, Steps
from zdworker.errors import IllegalEvent
from zdworker.exhaustive import assert_never

ROLL_ATTEMPTS = 5
"""Failed boots in a row, after the generation is verified, that end a rollout."""

START_ATTEMPTS = 3
"""Boots of a slot that may end by a signal or cleanly at the first start, before the master gives up."""

MAX_SUPERSEDED_LOADS = 2
"""Loads in a row that newer reloads may overtake. The next one rolls, else reloads that are asked for faster than one
loads would never lead to new code."""

CALLED_OFF = "called off: a rollback was asked for"

NO_WAY_BACK = "since the generation before is not preloaded, or its fork server is gone"

_KILL_REASONS = {
    WorkerState.FORKING: KillReason.NOT_FORKED,
    WorkerState.BOOTING: KillReason.NOT_READY,
    WorkerState.DRAINING: KillReason.NOT_DRAINED,
    WorkerState.DYING: KillReason.STILL_THERE,
}


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
        self._handle(event, now)
        self._advance(now)
        actions, self._steps.actions = self._steps.actions, []
        return actions

    def _handle(self, event: Event, now: float) -> None:  # noqa: C901, PLR0912  # one line for each event
        match event:
            case Start():
                self._start(now)
            case Reload():
                self._reload(event)
            case Rollback():
                self._roll_back(now)
            case Resume():
                self._resume(now)
            case Scale():
                self._scale(event)
            case Stop():
                self._stop(event, now)
            case Tick():
                self._tick(now)
            case GenerationLoaded():
                self._generation_loaded(event, now)
            case ConfigurationTaken():
                self._configuration_taken(event, now)
            case ConfigurationRefused():
                self._configuration_refused(event, now)
            case GenerationFailed():
                self._generation_failed(event, now)
            case GenerationGone():
                self._generation_gone(event, now)
            case GenerationJudged():
                self._generation_judged(event)
            case WorkerForked():
                self._worker_forked(event, now)
            case WorkerReady():
                self._worker_ready(event, now)
            case WorkerFailed():
                self._worker_failed(event, now)
            case WorkerReplacementRequested():
                self._worker_replacement_requested(event)
            case WorkerLeaving():
                self._worker_leaving(event, now)
            case WorkerGone():
                self._worker_gone(event, now)
            case _:
                assert_never(event)

    def next_deadline(self) -> float | None:
        """Return when ``Tick`` is due, or None when nothing is awaited."""
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

    def _start(self, now: float) -> None:
        self.fleet.phase = step(PHASES, self.fleet.phase, PhaseCause.START)
        self.fleet.reload_again, self.fleet.hold_next = False, None  # what loads now is the newest
        self._steps.load(Purpose.START, now)

    def _reload(self, event: Reload) -> None:
        # A flag, not a queue: however often it is asked for, one load that begins after the last request has it all.
        if not self.fleet.stopping:
            self.fleet.reload_again, self.fleet.hold_next = True, event.hold

    def _roll_back(self, now: float) -> None:
        reason, fleet = self.rollback_refusal(), self.fleet
        if reason:
            raise IllegalEvent(reason)
        fleet.reload_again, fleet.hold_next = False, None
        if fleet.loading is not None and fleet.loading.purpose is Purpose.RELOAD:
            self._steps.call_off(CALLED_OFF)
        elif fleet.reloading is not None:
            self._steps.turn_back(CALLED_OFF, "", Outcome.ROLLED_BACK)
        else:
            assert fleet.previous is not None  # noqa: S101 (for the type checker: else it is refused)
            # A load that replaces the undone code's fork server would occupy the one place for loading.
            self._steps.call_off_restore()
            self._steps.take_back(fleet.previous, now)

    def rollback_refusal(self) -> str:
        """Return why there can be no ``Rollback`` now, as text for the user; "" if there can be.

        It undoes the newest reload: calls off one whose generation loads, turns back one that is rolling, and rolls
        back one that is done. Code that is to run again has to be in memory: what is on disk may have changed since.
        """
        fleet = self.fleet
        if fleet.stopping or fleet.phase in (Phase.NEW, Phase.STARTING):
            return f"the master is {'stopping' if fleet.stopping else fleet.phase.value}"
        purpose = fleet.loading.purpose if fleet.loading is not None else None
        if purpose is Purpose.ROLLBACK:
            return "a rollback is under way"
        if purpose is Purpose.RELOAD or (fleet.reloading is None and fleet.previous is not None):
            return ""
        if fleet.reloading is not None:
            # Until it is verified only the canary has to leave, as when it fails: that needs no code from memory.
            kept = not fleet.newest_verified or self._has_way_back()
            return "" if kept else "the generation before is not preloaded (--preload), or its fork server is gone"
        if fleet.policy.rollback_window == 0:
            return "no generation is kept: zd_rollback_window is 0"
        return "no generation is kept: none was replaced within zd_rollback_window, or it was not preloaded (--preload)"

    def _resume(self, now: float) -> None:
        reason, fleet = self.resume_refusal(), self.fleet
        if reason:
            raise IllegalEvent(reason)
        fleet.held, fleet.canary_s = False, 0.0
        for worker in list(fleet.workers.values()):
            if fleet.is_canary(worker) and worker.state is WorkerState.READY and worker.ready_at is not None:
                worker.deadline = worker.ready_at + fleet.policy.min_ready
                if worker.deadline <= now:
                    self._expire(worker, now)

    def resume_refusal(self) -> str:
        """Return why there can be no ``Resume`` now, as text for the user; "" if there can be.

        It lets a rollout go on that stands at its canary, or will. One that is not held waits for its time only, and
        goes on at once, too.
        """
        fleet = self.fleet
        if fleet.stopping:
            return "the master is stopping"
        if fleet.reloading is not None and not fleet.newest_verified:
            return ""
        if fleet.loading is not None and fleet.loading.purpose is Purpose.RELOAD:
            return "the new code is still loading, and has no canary yet"
        return "no canary is held: there is no reload under way, or it has gone on already"

    def _scale(self, event: Scale) -> None:
        if event.workers < 0:
            raise IllegalEvent(f"a fleet of {event.workers} workers")
        fleet = self.fleet
        if event.absolute:
            fleet.fallback_size = event.workers
        if fleet.shrink_to is not None and event.workers < fleet.size:
            # The canary will bring fewer workers, and until it is verified none of the old ones can be spared. If it
            # fails, one more (or less) that is asked for now is one more than there was before.
            if not event.absolute:
                fleet.fallback_size = max(0, fleet.fallback_size + event.workers - fleet.shrink_to)
            fleet.shrink_to = event.workers
        else:
            fleet.size, fleet.shrink_to = event.workers, None

    def _stop(self, event: Stop, now: float) -> None:
        fleet = self.fleet
        # Where nothing has ever served, no balancer sends anything. Asked again, the delay does not begin once more.
        if event.quick or fleet.policy.shutdown_delay == 0 or fleet.never_served or not fleet.running:
            self._steps.stop(event, now)
        elif fleet.stop_at is None:
            fleet.stop_at = now + fleet.policy.shutdown_delay
            fleet.reload_again, fleet.hold_next = False, None

    def _tick(self, now: float) -> None:
        if self.fleet.stop_at is not None and self.fleet.stop_at <= now:
            self._steps.stop(Stop(), now)
        for worker in list(self.fleet.workers.values()):
            if worker.deadline is not None and worker.deadline <= now:
                self._expire(worker, now)
        if self.fleet.previous is not None and self.fleet.previous.until <= now:
            self.fleet.previous = None
        for generation in list(self.fleet.generations.values()):
            if generation.deadline is not None and generation.deadline <= now:
                self._overdue(generation, now)

    # -- generations ---------------------------------------------------------------------------------------------

    def _generation_loaded(self, event: GenerationLoaded, now: float) -> None:
        generation = self._generation(event.generation)
        if generation is None:
            return
        generation.state = step(GENERATIONS, generation.state, GenerationCause.LOADED)
        if generation.state is GenerationState.LOST:
            return
        generation.preloaded = event.preloaded
        fleet = self.fleet
        match self._loading().purpose:
            case Purpose.START:
                # Its configuration is the one that the master itself has started with.
                fleet.loading = None
                self._steps.configured(generation, fleet.policy, now)
                fleet.current = [event.generation]
            case Purpose.RESTORE:
                fleet.loading = None
                self._steps.configured(generation, fleet.policy, now)
                fleet.current.append(event.generation)
            case _ if fleet.reload_again and fleet.superseded_loads < MAX_SUPERSEDED_LOADS:
                fleet.loading = None  # and so the generation is ended as an unused one
                fleet.superseded_loads += 1
                self._steps.actions.append(ReloadFinished(event.generation, Outcome.SUPERSEDED))
            case _:
                self._steps.take_configuration(event.generation)

    def _configuration_taken(self, event: ConfigurationTaken, now: float) -> None:
        generation = self._generation(event.generation)
        if generation is not None and generation.state is not GenerationState.LOST:
            self._steps.configured(generation, event.policy, now)
            loaded, self.fleet.loading = self._loading(), None
            if loaded.purpose is Purpose.ROLLBACK:
                self.fleet.previous = None
            self._steps.roll_to(loaded, event.policy)
        elif self.fleet.running and event.policy.configuration != self.fleet.policy.configuration:
            self._steps.restore_configuration()  # the reload was called off in the meantime

    def _configuration_refused(self, event: ConfigurationRefused, now: float) -> None:
        generation = self._generation(event.generation)
        if generation is None or generation.state is GenerationState.LOST:
            return
        step(GENERATIONS, generation.state, GenerationCause.CONFIGURED)  # illegal, unless the master was asked to
        if self._loading().purpose is Purpose.ROLLBACK:
            # Nothing has changed, and the generation may still be wanted back.
            self._steps.configured(generation, self.fleet.policy, now)
            self.fleet.loading = None
            self._steps.refuse_reload(event.generation, event.reason, "")
        else:
            self._generation_failed(GenerationFailed(event.generation, event.reason), now)

    def _generation_failed(self, event: GenerationFailed, now: float) -> None:
        generation = self._generation(event.generation)
        if generation is None:
            return
        before = generation.state
        step(GENERATIONS, before, GenerationCause.FAILED)
        if before is GenerationState.LOST:
            return
        self._steps.end(event.generation)
        if before is GenerationState.LOADED:
            self._lost(generation, now)
        else:
            self._load_failed(event, now)

    def _overdue(self, generation: Generation, now: float) -> None:
        """Give a generation up that has not loaded in time, when it had a moment to say where it hangs."""
        reason = f"not loaded within {self.fleet.policy.boot_timeout:g} s (zd_boot_timeout)"
        if generation.overdue:
            self._generation_failed(GenerationFailed(generation.number, reason), now)
        else:
            self._steps.locate_hang(generation, reason, now)

    def _generation_gone(self, event: GenerationGone, now: float) -> None:
        generation = self._generation(event.generation)
        if generation is None:
            return
        before = generation.state
        generation.state, generation.deadline = step(GENERATIONS, before, GenerationCause.GONE), None
        if before in (GenerationState.LOADING, GenerationState.CONFIGURING):
            self._load_failed(GenerationFailed(event.generation, "the fork server died while loading"), now)
        elif before is GenerationState.LOADED:
            self._lost(generation, now)

    def _generation_judged(self, event: GenerationJudged) -> None:
        """Give up the generation that is rolled out; a verdict on another one was under way for too long."""
        fleet = self.fleet
        self._generation(event.generation)
        if not fleet.running or fleet.reloading != event.generation:
            return
        if not fleet.newest_verified or self._has_way_back():
            self._steps.turn_back(event.reason, event.newest)
            return
        # A slot that only the old configuration has would be filled with what is on disk now, the bad code.
        if fleet.size == fleet.policy.workers:
            fleet.size = fleet.fallback_size = min(fleet.size, fleet.fallback_size)
        new = self._steps.spare_where_old()
        reason = f"{event.reason}; {new} of {fleet.size} workers are of it and stay, {NO_WAY_BACK}"
        self._steps.turn_back(reason, event.newest, keep=True)

    def _has_way_back(self) -> bool:
        """Return whether the code before is in memory, so that slots that are new already can go back to it."""
        back = self.fleet.source(self.fleet.fallback)
        return back is not None and self.fleet.generations[back].preloaded

    def _lost(self, generation: Generation, now: float) -> None:
        """Note that a fork server is gone whose code was loaded."""
        if self.fleet.previous is not None and generation.number == self.fleet.previous.generation:
            self.fleet.previous = None  # nothing is spawned from it, so it is not replaced
            return
        self._steps.count_loss(generation, now)
        # Whatever newer code loads meanwhile: the reload has no canary any more, or none that could be tried again.
        if not self.fleet.newest_verified and self.fleet.source(self.fleet.current) is None:
            self._steps.turn_back("its fork server died before the first new worker was ready", "")

    def _load_failed(self, event: GenerationFailed, now: float) -> None:
        """Give up a generation that did not load: no worker was touched yet."""
        fleet = self.fleet
        purpose, fleet.loading = self._loading().purpose, None
        self._steps.count_loss(fleet.generations[event.generation], now)
        if fleet.never_served:
            self._steps.stop(Stop(quick=True, status=event.exit_code, reason=event.reason), now)
        elif purpose is Purpose.RELOAD:
            self._steps.refuse_reload(event.generation, event.reason, event.traceback)
        elif purpose is Purpose.ROLLBACK:
            fleet.previous = None
            self._steps.refuse_reload(event.generation, event.reason, event.traceback)
        else:
            reason = f"the fork server cannot be replaced: {event.reason}"
            self._steps.degrade(reason, event.traceback, next_try_s=fleet.restore_at - now)

    def _loading(self) -> Loading:
        loading = self.fleet.loading
        assert loading is not None  # noqa: S101 (for the type checker: a generation loads, so the fleet is loading one)
        return loading

    def _generation(self, number: int) -> Generation | None:
        if not 0 < number <= self.fleet.last_generation:
            raise IllegalEvent(f"no generation {number}")
        return self.fleet.generations.get(number)

    def _lacks_source(self) -> bool:
        return self.fleet.loading is None and self.fleet.source(self.fleet.current) is None

    # -- workers -------------------------------------------------------------------------------------------------

    def _worker_forked(self, event: WorkerForked, now: float) -> None:
        worker = self._worker(event.worker_id)
        if worker is None:
            return
        worker.state = step(WORKERS, worker.state, WorkerCause.FORKED)
        self._steps.next_turn(worker, now)
        if worker.state is WorkerState.BOOTING:
            worker.deadline = now + self.fleet.policy.boot_timeout
        else:
            self._steps.kill(worker, KillReason.FORKED_TOO_LATE, now)

    def _worker_ready(self, event: WorkerReady, now: float) -> None:
        worker = self._worker(event.worker_id)
        if worker is None:
            return
        worker.state = step(WORKERS, worker.state, WorkerCause.READY)
        if worker.state is WorkerState.READY:
            trial_s = self.fleet.policy.min_ready
            if self.fleet.is_canary(worker):
                trial_s = self.fleet.canary_s if self.fleet.held else max(trial_s, self.fleet.canary_s)
                self._steps.canary_ready(worker)
            worker.ready_at, worker.deadline = now, now + trial_s
            worker.takes = event.takes
            self.fleet.ever_ready = True
            if trial_s == 0:
                self._expire(worker, now)

    def _worker_replacement_requested(self, event: WorkerReplacementRequested) -> None:
        worker = self._worker(event.worker_id)
        if worker is not None:
            worker.state = step(WORKERS, worker.state, WorkerCause.REPLACEMENT_REQUESTED)
            worker.replacement_requested = True

    def _worker_leaving(self, event: WorkerLeaving, now: float) -> None:
        """Note that a worker stopped accepting. Without an order of the master's that is as good as its death."""
        worker = self._worker(event.worker_id)
        if worker is None:
            return
        ordered = worker.leaving
        worker.state = step(WORKERS, worker.state, WorkerCause.LEAVING)
        if ordered:
            return
        self._steps.await_exit(worker, now)
        if worker.verified:
            if not self.fleet.policy.development:
                self._steps.count_failure(worker, now)
        else:
            reason = "it got the order to leave before it was verified"
            self._boot_failed(worker, WorkerFailed(worker.worker_id, reason, exit_code=0), now)

    def _worker_failed(self, event: WorkerFailed, now: float) -> None:
        worker = self._worker(event.worker_id)
        if worker is None:
            return
        before = worker.state
        worker.state = step(WORKERS, before, WorkerCause.FAILED)
        if before is WorkerState.BOOTING:
            worker.deadline = now + EXIT_TIMEOUT_S
            self._boot_failed(worker, event, now)

    def _worker_gone(self, event: WorkerGone, now: float) -> None:
        worker = self._worker(event.worker_id)
        if worker is None:
            return
        before = worker.state
        worker.state = step(WORKERS, before, WorkerCause.GONE)
        del self.fleet.workers[event.worker_id]
        if before is WorkerState.FORKING and not event.called_off:
            self._steps.next_turn(worker, now)
        if before is WorkerState.READY and not self.fleet.newest_verified and worker.generation in self.fleet.fallback:
            self.fleet.old_crashed = True
        if before is WorkerState.READY and worker.verified:
            self._crashed(worker, event, now)
        elif event.called_off and not self.fleet.never_served:
            pass  # its fork server's end is counted, once
        elif before is WorkerState.READY and self._serves_as_canary(worker, now) and self.fleet.old_crashed:
            self._canary_crashed_too(worker, event, now)
        elif before in (WorkerState.FORKING, WorkerState.BOOTING, WorkerState.READY):
            reason = f"{event.how} before it was ready"
            if before is WorkerState.READY:
                reason = f"{event.how} {'as the canary' if self._serves_as_canary(worker, now) else 'too soon'}"
            self._boot_failed(worker, WorkerFailed(event.worker_id, reason, exit_code=event.exit_code or 0), now)

    def _expire(self, worker: Worker, now: float) -> None:
        before = worker.state
        if before is WorkerState.DRAINING and not worker.told:
            # It says that it has stopped accepting, and goes on. It may have requests, and was never told to leave.
            self._steps.tell(worker, now)
            return
        worker.state = step(WORKERS, before, WorkerCause.EXPIRE)
        if before is WorkerState.READY:
            worker.deadline, worker.verified = None, True
            if self.fleet.is_canary(worker) and self.fleet.held:
                reason = f"given up: it was not resumed within {self.fleet.canary_s:g} s (zdworker resume)"
                self._steps.turn_back(reason, "")
            elif worker.generation in self.fleet.current:
                self._steps.verify_newest()
            return
        if worker.killed and not self.fleet.running:
            # Nothing ends a process that waits in the kernel (state D). The master ends without it.
            del self.fleet.workers[worker.worker_id]
            return
        self._steps.kill(worker, _KILL_REASONS[before], now)
        if before is WorkerState.FORKING:
            # The fork server is stuck, and of no use. That is one failure, however many workers wait for it.
            if not self._steps.abandon(worker.generation, now):
                return
            reason = f"not forked within {FORK_TIMEOUT_S:g} s"
            self._boot_failed(worker, WorkerFailed(worker.worker_id, reason), now)
        elif before is WorkerState.BOOTING:
            reason = f"not ready within {self.fleet.policy.boot_timeout:g} s (zd_boot_timeout)"
            self._boot_failed(worker, WorkerFailed(worker.worker_id, reason), now)

    def _serves_as_canary(self, worker: Worker, now: float) -> bool:
        """Return whether a worker is the canary, and has stayed ready for as long as any worker has to."""
        stable_at = (worker.ready_at or now) + self.fleet.policy.min_ready
        return self.fleet.is_canary(worker) and bool(self.fleet.canary_s) and stable_at <= now

    def _canary_crashed_too(self, worker: Worker, event: WorkerGone, now: float) -> None:
        """Try another canary, because workers of the code before have died meanwhile as well; not forever."""
        self._steps.count_failure(worker, now)
        self._steps.count_roll_failure(now)
        if self.fleet.roll_failures >= ROLL_ATTEMPTS:
            self._steps.turn_back(f"{self.fleet.roll_failures} canaries have died, the last one {event.how}", "")

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
            retry_at = fleet.slot(worker.slot).retry_at
            reason = f"a worker failed to boot: {event.reason}"
            self._steps.degrade(reason, event.traceback, slot=worker.slot, next_try_s=retry_at - now)
        elif not fleet.newest_verified:
            reason = f"the first new worker failed: {event.reason}"
            self._steps.turn_back(reason, event.traceback, slot=worker.slot)
        else:
            self._roll_failed(worker, event, now)

    def _start_failed(self, worker: Worker, event: WorkerFailed, now: float) -> None:
        """End the master, since nothing ever served: the code is to blame, unless a signal ended the worker."""
        from_outside = event.exit_code <= 0
        if from_outside and self.fleet.slot(worker.slot).failures < START_ATTEMPTS:
            return
        status = event.exit_code if event.exit_code in (3, 4) else 3
        reason = f"a worker failed to boot: {event.reason}"
        self._steps.stop(Stop(quick=True, status=status, reason=reason), now)

    def _roll_failed(self, worker: Worker, event: WorkerFailed, now: float) -> None:
        """Count a failed worker of a verified generation: it is retried, and then turned back if that is possible."""
        fleet = self.fleet
        self._steps.count_roll_failure(now)
        if fleet.roll_failures < ROLL_ATTEMPTS:
            return
        reason = f"{fleet.roll_failures} new workers in a row failed, the last one: {event.reason}"
        if self._has_way_back():
            self._steps.turn_back(reason, event.traceback, slot=worker.slot)
            return
        reason += f"; there is no way back, {NO_WAY_BACK}"
        retry_at = max(fleet.slot(worker.slot).retry_at, fleet.roll_at)
        self._steps.degrade(reason, event.traceback, slot=worker.slot, next_try_s=retry_at - now)

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
        facts = fleet.facts()
        while True:
            if (leaving := plan.next_to_leave(facts)) is not None:
                self._steps.drain(leaving, now)
            elif (filling := plan.next_to_fill(facts, now)) is not None:
                self._steps.spawn(*filling, now)  # which may make another worker of the slot superfluous
            else:
                break
            facts = fleet.facts()
        if plan.converged(facts) and (fleet.loading is None or fleet.loading.purpose is not Purpose.START):
            self._steps.settle(facts, now)
        unfilled = plan.left_empty(facts)
        if unfilled is not None and not fleet.degraded:
            self._steps.leave_empty(unfilled, now)
        self._load_next(now)
        if len(fleet.generations) > 1:
            self._steps.end_unused_generations()

    def _load_next(self, now: float) -> None:
        fleet = self.fleet
        if fleet.reload_again and fleet.loading is None and not fleet.never_served:
            hold, fleet.hold_next, fleet.reload_again = fleet.hold_next, None, False
            self._steps.load(Purpose.RELOAD, now, hold)
        elif self._lacks_source() and fleet.restore_at <= now:
            # The fork server died: another one is started, and the workers go on.
            self._steps.load(Purpose.RESTORE, now)


def rollout(policy: Policy, jitter: Callable[[], float]) -> Rollout:
    """Return the core of a fleet that does not exist yet."""
    return Rollout(Fleet(policy=policy, size=policy.workers), jitter)
