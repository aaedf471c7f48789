"""The elementary steps of the fleet: each changes the facts and gives the orders that go with them.

Rules:

* A step does not decide whether it is due; :mod:`zdworker.core.rollout` does, and calls it when everything that can be
  illegal has been checked.
* Facts and orders change together: no order without its fact, so that the written-out facts tell the whole story.
"""

from __future__ import annotations

from collections.abc import Callable

from zdworker.core.backoff import Backoff
from zdworker.core.events import (
    Action,
    Degraded,
    Drain,
    EndGeneration,
    Halt,
    Kill,
    Policy,
    ReloadFinished,
    ReloadStarted,
    Spawn,
    StartGeneration,
    Stop,
)
from zdworker.core.fleet import (
    PHASES,
    WORKERS,
    Fleet,
    Generation,
    GenerationState,
    Loading,
    Phase,
    Previous,
    Slot,
    Trouble,
    Worker,
    WorkerState,
    step,
)

KILL_MARGIN = 1.0
"""Seconds that a worker gets beyond its own deadline before it is killed."""

FORK_TIME = 10.0
"""Seconds that a fork server gets to fork a worker, which takes it milliseconds."""

EXIT_TIME = 5.0
"""Seconds after which a worker that was killed, said that it would exit or was not born yet is killed (again)."""

QUICK_TIME = 2.0
"""Seconds that a worker gets when the master was told to end at once."""

STABLE_TIME = 10.0
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

    def load(self, purpose: str, now: float) -> None:
        """Start the next generation's fork server."""
        fleet = self.fleet
        fleet.last_generation += 1
        deadline = now + fleet.policy.boot_timeout
        fleet.generations[fleet.last_generation] = Generation(fleet.last_generation, GenerationState.LOADING, deadline)
        fleet.loading = Loading(fleet.last_generation, purpose)
        self.actions.append(StartGeneration(fleet.last_generation))
        if purpose == "reload":
            self.actions.append(ReloadStarted(fleet.last_generation))

    def end(self, number: int) -> None:
        """End a fork server that stands, for good; its workers live on."""
        generation = self.fleet.generations[number]
        if generation.state is not GenerationState.LOST:
            generation.state, generation.deadline = GenerationState.LOST, None
            self.actions.append(EndGeneration(number))

    def abandon(self, number: int, now: float) -> None:
        """End a fork server that stands but does not do its work."""
        generation = self.fleet.generations[number]
        if generation.state is GenerationState.LOADED:
            self.count_loss(generation, now)
            self.end(number)

    def count_loss(self, generation: Generation, now: float) -> None:
        """Remember that a fork server died or did not load: the next one in its place waits the longer for it."""
        fleet = self.fleet
        if _stable(generation.loaded_at, now):
            fleet.restore_failures = 0
        fleet.restore_failures += 1
        fleet.restore_at = now + self._backoff.delay(fleet.restore_failures, self._jitter())

    def forget(self) -> None:
        """End the fork servers that nothing will be spawned from, strike off what has neither server nor workers."""
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

    def adopt(self, policy: Policy | None) -> None:
        """Go by what a generation's configuration says, if it was asked for."""
        if policy is not None:
            self.fleet.policy, self.fleet.size = policy, policy.workers

    def roll_to(self, number: int, policy: Policy | None) -> None:
        """Make a loaded generation the one that all slots shall have."""
        fleet = self.fleet
        self.finish_reload("superseded")
        self._call_off_restore()
        if fleet.newest_verified:
            fleet.fallback, fleet.fallback_policy, fleet.fallback_size = fleet.current, fleet.policy, fleet.size
        before = fleet.size
        self.adopt(policy)
        # Fewer only when the new code has proved itself: until then none of the old workers can be spared.
        fleet.shrink_to = fleet.size if fleet.size < before else None
        fleet.size = max(fleet.size, before)
        fleet.current, fleet.newest_verified, fleet.reloading = [number], fleet.size == 0, number
        fleet.trouble, fleet.restore_failures, fleet.restore_at = None, 0, 0.0
        self._forgive()
        fleet.phase = step(PHASES, fleet.phase, "roll")

    def turn_back(self, reason: str, traceback: str) -> None:
        """Give the newest generation up for good and go back to what served before it."""
        fleet = self.fleet
        self._call_off_restore()
        for number in fleet.current:
            self.end(number)
        fleet.trouble = Trouble("failed", reason, traceback)
        fleet.current, fleet.fallback, fleet.newest_verified = fleet.fallback, [], True
        fleet.shrink_to = None
        self._restore_policy()
        self._forgive()
        self.finish_reload("failed", reason, traceback)

    def _call_off_restore(self) -> None:
        """End a fork server that is to make up for a lost one: what it loads is not what shall run from now on."""
        if self.fleet.loading is not None and self.fleet.loading.purpose == "restore":
            self._stop_loading()

    def _restore_policy(self) -> None:
        """Go by the old configuration again; only a number of workers that was asked for since then stays."""
        fleet = self.fleet
        if fleet.size == fleet.policy.workers:
            fleet.size = fleet.fallback_size
        fleet.policy, fleet.fallback_policy = fleet.fallback_policy or fleet.policy, None

    def verify_newest(self) -> None:
        """Note that a worker of the newest generation has lasted."""
        fleet = self.fleet
        fleet.newest_verified, fleet.roll_failures, fleet.roll_at = True, 0, 0.0
        if fleet.shrink_to is not None:
            fleet.size, fleet.shrink_to = fleet.shrink_to, None

    def settle(self, now: float) -> None:
        """Note that every slot has what it shall have."""
        fleet = self.fleet
        fleet.phase = step(PHASES, fleet.phase, "converged")
        if fleet.reloading is not None:
            self._keep_previous(now)
        fleet.fallback, fleet.fallback_policy, fleet.newest_verified = [], None, True
        self.finish_reload("done")
        # A failed reload is remembered until the next one, a mended fleet is not degraded any more.
        if fleet.degraded and fleet.source(fleet.current) is not None:
            fleet.trouble = None

    def _keep_previous(self, now: float) -> None:
        """Keep the generation that was replaced for as long as it may be wanted back; in place of an earlier one."""
        fleet = self.fleet
        back, window = fleet.source(fleet.fallback), fleet.policy.rollback_window
        if back is not None and fleet.generations[back].preloaded and window > 0:
            fleet.previous = Previous(back, now + window, fleet.fallback_policy or fleet.policy)
        else:
            fleet.previous = None

    def roll_back(self, policy: Policy | None) -> None:
        """Roll out the generation that was kept."""
        previous, self.fleet.previous = self.fleet.previous, None
        assert previous is not None  # noqa: S101 (for the type checker: the caller has seen it)
        self.actions.append(ReloadStarted(previous.generation))
        self.roll_to(previous.generation, policy or previous.policy)

    def call_off(self, reason: str) -> None:
        """End the reload whose generation is loading."""
        self.refuse_reload(self._stop_loading(), reason, "")

    def _stop_loading(self) -> int:
        """End the fork server that loads; return its generation."""
        loading, self.fleet.loading = self.fleet.loading, None
        assert loading is not None  # noqa: S101 (for the type checker: the callers have seen it)
        self.end(loading.generation)
        return loading.generation

    def finish_reload(self, outcome: str, reason: str = "", traceback: str = "") -> None:
        """End the rollout that is under way, if one is: each has one outcome."""
        number, self.fleet.reloading = self.fleet.reloading, None
        if number is not None:
            self.actions.append(ReloadFinished(number, outcome, reason, traceback))

    def refuse_reload(self, number: int, reason: str, traceback: str) -> None:
        """End a reload whose generation did not load: nothing was touched."""
        self.fleet.trouble = Trouble("failed", reason, traceback)
        self.actions.append(ReloadFinished(number, "failed", reason, traceback))

    def degrade(self, reason: str, traceback: str) -> None:
        """Note that something is amiss which no new code is to blame for."""
        if self.fleet.trouble is None or self.fleet.degraded:
            self.fleet.trouble = Trouble("degraded", reason, traceback)
        self.actions.append(Degraded(reason, traceback))

    def _forgive(self) -> None:
        self.fleet.roll_failures, self.fleet.roll_at = 0, 0.0
        self.fleet.slots = {n: Slot() for n in self.fleet.slots}

    # -- workers -------------------------------------------------------------------------------------------------

    def spawn(self, slot: int, generation: int, now: float) -> None:
        """Have a worker forked."""
        fleet = self.fleet
        fleet.last_worker_id += 1
        deadline = now + FORK_TIME
        fleet.workers[fleet.last_worker_id] = Worker(
            fleet.last_worker_id, slot, generation, WorkerState.FORKING, deadline
        )
        self.actions.append(Spawn(fleet.last_worker_id, slot, generation))

    def drain(self, worker: Worker, now: float) -> None:
        """Tell a worker to leave; one that has served for long has mended its slot."""
        if _stable(worker.ready_at, now):
            self.fleet.slot(worker.slot).failures = 0
        worker.state = step(WORKERS, worker.state, "drain")
        self.await_exit(worker, now)
        self.actions.append(Drain(worker.worker_id, self.fleet.quick))

    def await_exit(self, worker: Worker, now: float) -> None:
        """Give a worker that leaves its deadline."""
        if worker.state is WorkerState.DYING:
            patience = EXIT_TIME
        elif self.fleet.quick:
            patience = QUICK_TIME
        else:
            patience = self.fleet.policy.graceful_timeout + KILL_MARGIN
            if self.fleet.policy.queue_per_slot and worker.slot >= self.fleet.size and self.fleet.running:
                patience += self.fleet.policy.graceful_timeout
        worker.deadline = now + patience

    def kill(self, worker: Worker, why: str, now: float) -> None:
        """End a worker; it is asked again as long as it is there."""
        worker.deadline = now + EXIT_TIME
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

    # -- the end -------------------------------------------------------------------------------------------------

    def stop(self, event: Stop, now: float) -> None:
        """Send every worker away and end every fork server; a quick stop overtakes a graceful one."""
        fleet = self.fleet
        again = fleet.phase is Phase.STOPPING
        if fleet.phase is Phase.STOPPED or (again and (fleet.quick or not event.quick)):
            return
        fleet.phase = step(PHASES, fleet.phase, "stop")
        fleet.quick = event.quick
        if not again:
            fleet.exit_status, fleet.exit_reason = event.status, event.reason
        fleet.loading, fleet.reload_again, fleet.previous = None, False, None
        for worker in list(fleet.workers.values()):
            if worker.state is not WorkerState.DYING and (not worker.leaving or event.quick):
                self.drain(worker, now)
        for number in list(fleet.generations):
            self.end(number)

    def halt(self) -> None:
        """End the master: every worker is gone."""
        fleet = self.fleet
        fleet.phase = step(PHASES, fleet.phase, "empty")
        self.actions.append(Halt(fleet.exit_status, fleet.exit_reason))


def _stable(since: float | None, now: float) -> bool:
    return since is not None and now - since >= STABLE_TIME
