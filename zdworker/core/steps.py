"""The elementary steps of the fleet: each changes the facts and gives the orders that go with them.

Rules:

* A step does not decide whether its time has come. :mod:`zdworker.core.rollout` does, and calls it when everything that
  can be illegal has been checked.
* Facts and orders change together: no order without its fact, so that the written-out facts tell the whole story.
"""

from __future__ import annotations

from collections.abc import Callable

from zdworker.core.backoff import Backoff
from zdworker.core.events import (
    Action,
    CanaryReady,
    Degraded,
    Drain,
    EndGeneration,
    Halt,
    Kill,
    KillReason,
    LocateHang,
    Outcome,
    Policy,
    ReloadFinished,
    ReloadStarted,
    RestoreConfiguration,
    Spawn,
    StartGeneration,
    Stop,
    TakeConfiguration,
)
from zdworker.core.fleet import (
    GENERATIONS,
    PHASES,
    WORKERS,
    Facts,
    Fleet,
    Generation,
    GenerationCause,
    GenerationState,
    Loading,
    Phase,
    PhaseCause,
    Previous,
    Purpose,
    Slot,
    Trouble,
    Worker,
    WorkerCause,
    WorkerState,
    step,
)

KILL_MARGIN_S = 1.0
"""Seconds that a worker gets beyond its own deadline before it is killed."""

FORK_TIMEOUT_S = 10.0
"""Seconds that a fork server has to fork a worker, which takes it milliseconds, or some tenths of a second with a large
heap. They count from the moment at which it can begin: from the order, or from the end of the fork before."""

EXIT_TIMEOUT_S = 5.0
"""Seconds until a worker is killed (again) that was killed, reported its exit, or never got its start order."""

QUICK_STOP_TIMEOUT_S = 2.0
"""Seconds that a worker has when the master ends at once."""

LOCATE_HANG_S = 1.0
"""Seconds in which it has to be found out where a generation hangs, before it is given up without that."""

STABLE_AFTER_S = 10.0
"""Seconds of service after which a death (of a worker, of a fork server) counts as the first again."""


class Steps:
    """The steps, with the facts they change and the orders given so far.

    :param jitter: gives a random number from 0 to 1 for the backoff.
    """

    def __init__(self, fleet: Fleet, jitter: Callable[[], float], backoff: Backoff) -> None:
        self.fleet = fleet
        self.actions: list[Action] = []
        self._jitter = jitter
        self._backoff = backoff

    # -- generations ---------------------------------------------------------------------------------------------

    def load(self, purpose: Purpose, now: float, hold: float | None = None) -> None:
        """Start the next generation's fork server."""
        fleet = self.fleet
        fleet.last_generation += 1
        number, deadline = fleet.last_generation, now + fleet.policy.boot_timeout
        fleet.generations[number] = Generation(number, GenerationState.LOADING, deadline)
        fleet.loading = Loading(number, purpose, hold)
        self.actions.append(StartGeneration(number))
        if purpose is Purpose.RELOAD:
            self.actions.append(ReloadStarted(number))

    def configured(self, generation: Generation, policy: Policy, now: float) -> None:
        """Note that a generation can be spawned from: its configuration is in force, or is not asked for."""
        generation.state = step(GENERATIONS, generation.state, GenerationCause.CONFIGURED)
        if generation.graceful_timeout is None:
            generation.graceful_timeout = policy.graceful_timeout
        generation.deadline, generation.overdue = None, False
        if generation.loaded_at is None:
            generation.loaded_at = now

    def locate_hang(self, generation: Generation, reason: str, now: float) -> None:
        """Have it found out where a generation hangs."""
        generation.overdue, generation.deadline = True, now + LOCATE_HANG_S
        self.actions.append(LocateHang(generation.number, reason))

    def end(self, number: int) -> None:
        """End a generation's fork server, for good; its workers live on."""
        generation = self.fleet.generations[number]
        if generation.state is not GenerationState.LOST:
            generation.state, generation.deadline = GenerationState.LOST, None
            self.actions.append(EndGeneration(number))

    def abandon(self, number: int, now: float) -> bool:
        """End a loaded generation's fork server because it does not do its work.

        :return: whether it was loaded until now; one that was ended before has been counted.
        """
        generation = self.fleet.generations[number]
        if generation.state is not GenerationState.LOADED:
            return False
        self.count_loss(generation, now)
        self.end(number)
        return True

    def count_loss(self, generation: Generation, now: float) -> None:
        """Remember that a fork server died or did not load: the next one in its place waits the longer for it."""
        fleet = self.fleet
        if _stable(generation.loaded_at, now):
            fleet.restore_failures = 0
        fleet.restore_failures += 1
        fleet.restore_at = now + self._backoff.delay(fleet.restore_failures, self._jitter())

    def end_unused_generations(self) -> None:
        """End the fork servers that nothing will be spawned from; remove what has neither server nor workers."""
        fleet = self.fleet
        wanted = {fleet.source(fleet.current), fleet.source(fleet.fallback)}
        if fleet.previous is not None:
            wanted.add(fleet.previous.generation)
        if fleet.loading is not None:
            wanted.add(fleet.loading.generation)
        kept = {w.generation for w in fleet.workers.values()} | {*fleet.current[-1:], *fleet.fallback[-1:]}
        for number in [n for n in fleet.generations if n not in wanted]:
            self.end(number)
            if number not in kept:
                del fleet.generations[number]
                fleet.current = [n for n in fleet.current if n != number]
                fleet.fallback = [n for n in fleet.fallback if n != number]

    # -- rollouts ------------------------------------------------------------------------------------------------

    def take_configuration(self, number: int) -> None:
        """Have the master go by the configuration that a generation has brought."""
        self.actions.append(TakeConfiguration(number, number))

    def take_back(self, previous: Previous, now: float) -> None:
        """Have the master go by the configuration of a generation that was replaced."""
        generation = self.fleet.generations[previous.generation]
        generation.state = step(GENERATIONS, generation.state, GenerationCause.RECONFIGURE)
        generation.deadline = now + self.fleet.policy.boot_timeout
        self.fleet.loading = Loading(generation.number, Purpose.ROLLBACK)
        self.actions.append(ReloadStarted(generation.number, rollback=True))
        self.actions.append(TakeConfiguration(generation.number, previous.policy.configuration))

    def restore_configuration(self) -> None:
        """Have the master go by the configuration that the policy comes from."""
        self.actions.append(RestoreConfiguration(self.fleet.policy.configuration))

    def roll_to(self, loaded: Loading, policy: Policy) -> None:
        """Make a loaded generation the one that every slot gets."""
        fleet = self.fleet
        self.finish_reload(Outcome.SUPERSEDED)
        self.call_off_restore()
        if fleet.newest_verified:
            fleet.fallback, fleet.fallback_policy, fleet.fallback_size = fleet.current, fleet.policy, fleet.size
        elif fleet.size != fleet.policy.workers and fleet.shrink_to is None:
            fleet.fallback_size = fleet.size  # that was asked for during the canary, as in _restore_policy
        before = fleet.size
        fleet.policy, fleet.size = policy, policy.workers
        # Fewer only when the new code is verified: until then none of the old workers can be spared.
        fleet.shrink_to = fleet.size if fleet.size < before else None
        fleet.size = max(fleet.size, before)
        number = loaded.generation
        fleet.current, fleet.newest_verified, fleet.reloading = [number], fleet.size == 0, number
        # Code that served before is not tried out again: the user who orders a rollback wants it now.
        fleet.canary_s = 0.0 if loaded.purpose is Purpose.ROLLBACK else policy.canary
        fleet.held, fleet.old_crashed = loaded.hold is not None, False
        if loaded.hold is not None:
            fleet.canary_s = loaded.hold
        if fleet.newest_verified:
            self._end_canary()
        fleet.failure = fleet.degradation = None
        fleet.superseded_loads, fleet.restore_failures, fleet.restore_at = 0, 0, 0.0
        self._forgive()
        fleet.phase = step(PHASES, fleet.phase, PhaseCause.ROLL)

    def turn_back(
        self,
        reason: str,
        traceback: str,
        outcome: Outcome = Outcome.FAILED,
        *,
        slot: int | None = None,
        keep: bool = False,
    ) -> None:
        """Give the newest generation up for good and go back to what served before it.

        :param slot: the one whose worker has failed.
        :param keep: the workers that it has by now stay, because the code before is not in memory.
        """
        fleet = self.fleet
        self.call_off_restore()
        for number in fleet.current:
            self.end(number)
        fleet.failure = Trouble(reason, traceback) if outcome is Outcome.FAILED else None
        fleet.degradation = None
        stay = fleet.current if keep else []
        fleet.current, fleet.fallback = [*stay, *fleet.fallback], []
        self._end_canary()
        self._restore_policy()
        self._forgive()
        self.finish_reload(outcome, reason, traceback, slot=slot)

    def spare_where_old(self) -> int:
        """Have the newest generation's workers leave whose slots still have an old one.

        :return: how many others it has.
        """
        fleet, others = self.fleet, 0
        for workers in fleet.facts().slots.values():
            for worker in (w for w in workers if w.generation in fleet.current and w.slot < fleet.size):
                if any(w.generation in fleet.fallback for w in workers):
                    worker.replacement_requested = True
                else:
                    others += 1
        return others

    def call_off_restore(self) -> None:
        """End a fork server that loads in the place of a lost one: its code is not what runs from now on."""
        if self.fleet.loading is not None and self.fleet.loading.purpose is Purpose.RESTORE:
            self._stop_loading()

    def _restore_policy(self) -> None:
        """Go by the old configuration again; only a number of workers that was asked for since then stays."""
        fleet = self.fleet
        if fleet.size == fleet.policy.workers or fleet.shrink_to is not None:
            fleet.size, fleet.shrink_to = fleet.fallback_size, None
        fleet.policy, fleet.fallback_policy = fleet.fallback_policy or fleet.policy, None
        self.restore_configuration()

    def verify_newest(self) -> None:
        """Note that a worker of the newest generation is verified."""
        fleet = self.fleet
        self._end_canary()
        fleet.roll_failures, fleet.roll_at = 0, 0.0
        if fleet.shrink_to is not None:
            fleet.size, fleet.shrink_to = fleet.shrink_to, None

    def settle(self, facts: Facts, now: float) -> None:
        """Note that every slot has the worker that it should have."""
        fleet = self.fleet
        if fleet.phase is not Phase.STEADY:
            fleet.phase = step(PHASES, fleet.phase, PhaseCause.CONVERGED)
        if fleet.reloading is not None:
            self._keep_previous(now)
        fleet.fallback, fleet.fallback_policy = [], None
        self._end_canary()
        self.finish_reload(Outcome.DONE)
        # A failed reload is remembered until the next one; a fleet that is complete is not degraded any more.
        if facts.source is not None:
            fleet.degradation = None

    def _keep_previous(self, now: float) -> None:
        """Keep the generation that was replaced for as long as it may be wanted back, instead of an earlier one."""
        fleet = self.fleet
        back, window = fleet.source(fleet.fallback), fleet.policy.rollback_window
        if back is not None and fleet.generations[back].preloaded and window > 0:
            fleet.previous = Previous(back, now + window, fleet.fallback_policy or fleet.policy)
        else:
            fleet.previous = None

    def call_off(self, reason: str) -> None:
        """End the reload whose generation is loading, because that was asked for."""
        self.actions.append(ReloadFinished(self._stop_loading(), Outcome.ROLLED_BACK, reason))

    def _stop_loading(self) -> int:
        """End the fork server that loads; return its generation."""
        loading, self.fleet.loading = self.fleet.loading, None
        assert loading is not None  # noqa: S101 (for the type checker: the callers have looked)
        self.end(loading.generation)
        return loading.generation

    def finish_reload(
        self, outcome: Outcome, reason: str = "", traceback: str = "", *, slot: int | None = None
    ) -> None:
        """End the rollout that is under way, if one is: each has one outcome."""
        number, self.fleet.reloading = self.fleet.reloading, None
        if number is not None:
            self.actions.append(ReloadFinished(number, outcome, reason, traceback, slot))

    def refuse_reload(self, number: int, reason: str, traceback: str) -> None:
        """End a reload whose generation did not load: no worker was touched."""
        self.fleet.failure = Trouble(reason, traceback)
        self.actions.append(ReloadFinished(number, Outcome.FAILED, reason, traceback))

    def degrade(self, reason: str, traceback: str, *, slot: int | None = None, next_try_s: float) -> None:
        """Note that something is wrong for which no new code is to blame, and which is tried again."""
        self.fleet.degradation = Trouble(reason, traceback)
        self.actions.append(Degraded(reason, traceback, slot, max(0.0, next_try_s)))

    def leave_empty(self, slot: int, now: float) -> None:
        """Note that a slot stays empty for as long as the canary is tried."""
        fleet = self.fleet
        old, new = fleet.fallback[-1], fleet.current[-1]
        reason = (
            f"the fork server of generation {old} is gone: until the canary of {new} is verified, the slot is empty"
        )
        ends = [w.deadline for w in fleet.workers.values() if fleet.is_canary(w) and w.deadline is not None]
        self.degrade(reason, "", slot=slot, next_try_s=min(ends, default=now) - now)

    def _forgive(self) -> None:
        self.fleet.roll_failures, self.fleet.roll_at = 0, 0.0
        self.fleet.slots = {n: Slot() for n in self.fleet.slots}

    # -- workers -------------------------------------------------------------------------------------------------

    def spawn(self, slot: int, generation: int, now: float) -> None:
        """Have a worker forked."""
        fleet = self.fleet
        fleet.last_worker_id += 1
        number, deadline = fleet.last_worker_id, now + FORK_TIMEOUT_S
        fleet.workers[number] = Worker(number, slot, generation, WorkerState.FORKING, deadline)
        self.actions.append(Spawn(number, slot, generation))

    def next_turn(self, done: Worker, now: float) -> None:
        """Let the time of those begin that wait behind a worker for the same fork server, which is done with it."""
        for worker in self.fleet.workers.values():
            waits = worker.state is WorkerState.FORKING and worker.generation == done.generation
            if waits and worker.worker_id > done.worker_id:
                worker.deadline = now + FORK_TIMEOUT_S

    def drain(self, worker: Worker, now: float) -> None:
        """Tell a worker to leave; if it has served for long, the failures of its slot do not count any more."""
        if _stable(worker.ready_at, now):
            self.fleet.slot(worker.slot).failures = 0
        self.tell(worker, now)

    def tell(self, worker: Worker, now: float) -> None:
        """Tell a worker to leave, which may have stopped accepting by itself."""
        worker.state = step(WORKERS, worker.state, WorkerCause.DRAIN)
        worker.told = True
        self.await_exit(worker, now)
        self.actions.append(Drain(worker.worker_id, self.fleet.quick, hand_over=self._has_successor(worker)))

    def _has_successor(self, worker: Worker) -> bool:
        """Return whether another worker of the slot takes connections over, now or when it is ready.

        The plan lets none leave whose successor boots. But one may leave by itself, which gives nothing: then the queue
        is not to be closed under the one that boots.
        """
        others = (other for other in self.fleet.workers.values() if other.slot == worker.slot and not other.leaving)
        return self.fleet.running and any(other.takes or other.state is not WorkerState.READY for other in others)

    def await_exit(self, worker: Worker, now: float) -> None:
        """Give a worker that leaves its deadline."""
        if worker.state is WorkerState.DYING:
            timeout_s = EXIT_TIMEOUT_S
        elif self.fleet.quick:
            timeout_s = QUICK_STOP_TIMEOUT_S
        else:
            generation = self.fleet.generations.get(worker.generation)
            own_s = generation.graceful_timeout if generation is not None else None
            timeout_s = (self.fleet.policy.graceful_timeout if own_s is None else own_s) + KILL_MARGIN_S
            if self.fleet.policy.queue_per_slot and worker.slot >= self.fleet.size and self.fleet.running:
                timeout_s += self.fleet.policy.graceful_timeout
        worker.deadline = now + timeout_s

    def kill(self, worker: Worker, why: KillReason, now: float) -> None:
        """End a worker; the order is repeated as long as it is there, and the fleet runs."""
        worker.deadline, worker.killed = now + EXIT_TIMEOUT_S, True
        self.actions.append(Kill(worker.worker_id, why))

    def count_failure(self, worker: Worker, now: float) -> None:
        """Remember that a slot's worker died or did not boot: the next one waits the longer for it."""
        slot = self.fleet.slot(worker.slot)
        slot.failures = 1 if _stable(worker.ready_at, now) else slot.failures + 1
        slot.retry_at = now + self._backoff.delay(slot.failures, self._jitter())

    def count_roll_failure(self, now: float) -> None:
        """Remember that a rollout's worker failed: no slot is begun for a while, else each would fail at once."""
        fleet = self.fleet
        fleet.roll_failures += 1
        fleet.roll_at = now + self._backoff.delay(fleet.roll_failures, self._jitter())

    def _end_canary(self) -> None:
        fleet = self.fleet
        fleet.newest_verified, fleet.canary_s, fleet.held, fleet.old_crashed = True, 0.0, False, False

    def canary_ready(self, worker: Worker) -> None:
        """Note that the canary serves, for as long as that was asked for."""
        fleet = self.fleet
        fleet.old_crashed = False
        if fleet.reloading is not None and (fleet.canary_s or fleet.held):
            self.actions.append(CanaryReady(fleet.reloading, worker.worker_id, fleet.canary_s, fleet.held))

    # -- the end -------------------------------------------------------------------------------------------------

    def stop(self, event: Stop, now: float) -> None:
        """Tell every worker to leave and end every fork server; a quick stop overtakes a graceful one."""
        fleet = self.fleet
        again = fleet.phase is Phase.STOPPING
        if fleet.phase is Phase.STOPPED or (again and (fleet.quick or not event.quick)):
            return
        fleet.phase = step(PHASES, fleet.phase, PhaseCause.STOP)
        fleet.quick = event.quick
        if not again:
            fleet.exit_status, fleet.exit_reason = event.status, event.reason
        fleet.loading, fleet.reload_again, fleet.hold_next, fleet.previous = None, False, None, None
        for worker in list(fleet.workers.values()):
            if worker.state is not WorkerState.DYING and (not worker.told or event.quick):
                self.drain(worker, now)
        for number in list(fleet.generations):
            self.end(number)

    def halt(self) -> None:
        """End the master: every worker is gone."""
        fleet = self.fleet
        fleet.phase = step(PHASES, fleet.phase, PhaseCause.EMPTY)
        self.actions.append(Halt(fleet.exit_status, fleet.exit_reason))


def _stable(since: float | None, now: float) -> bool:
    return since is not None and now - since >= STABLE_AFTER_S
