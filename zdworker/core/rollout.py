"""The decisions: :meth:`Rollout.handle` takes an event and ``now``, changes the facts and returns the actions.

Rules:

* An event first passes its state table (``zdworker.core.fleet``); an illegal one raises and has changed nothing.
* Then the facts are brought up to date, and :meth:`Rollout._advance` asks the plan (``zdworker.core.plan``) for steps
  until it has none left. So every event, in whatever order it comes, leads to the same next steps.
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
    Degraded,
    Drain,
    EndGeneration,
    Event,
    GenerationFailed,
    GenerationGone,
    GenerationLoaded,
    Halt,
    Kill,
    Policy,
    Reload,
    ReloadFinished,
    ReloadStarted,
    Scale,
    Spawn,
    Start,
    StartGeneration,
    Stop,
    Tick,
    WorkerBorn,
    WorkerFailed,
    WorkerGone,
    WorkerLeaving,
    WorkerReady,
    WorkerTired,
)
from zdworker.core.fleet import (
    GENERATIONS,
    PHASES,
    WORKERS,
    Fleet,
    Generation,
    GenerationState,
    Loading,
    Phase,
    Slot,
    Trouble,
    Worker,
    WorkerState,
    step,
)
from zdworker.errors import IllegalEvent

KILL_MARGIN = 1.0
"""Seconds that a worker gets beyond its own deadline before it is killed."""

FORK_TIME = 10.0
"""Seconds that a fork server gets to fork a worker, which takes it milliseconds."""

EXIT_TIME = 5.0
"""Seconds after which a worker that was killed, or said that it would exit, is killed (again)."""

QUICK_TIME = 2.0
"""Seconds that a worker gets when the master was told to end at once."""

STABLE_TIME = 10.0
"""Seconds of service after which a worker's death counts as its slot's first."""

ROLL_ATTEMPTS = 5
"""Failed boots in a row, after the first worker has proved the generation, that end a rollout."""

START_ATTEMPTS = 3
"""Boots in a row that a signal may end at the first start, before the master gives up."""


class Rollout:
    """The core. One loop owns it; nothing in it waits.

    :param fleet: the facts to go on from.
    :param jitter: gives a random number from 0 to 1 for the backoff.
    """

    def __init__(self, fleet: Fleet, jitter: Callable[[], float], backoff: Backoff | None = None) -> None:
        self.fleet = fleet
        self._jitter = jitter
        self._backoff = backoff or Backoff()
        self._actions: list[Action] = []

    def handle(self, event: Event, now: float) -> list[Action]:
        """Return what follows from ``event``.

        :raises IllegalEvent: the event cannot happen in this state; nothing has changed.
        """
        handler = getattr(self, f"_on_{type(event).__name__.lower()}")
        handler(event, now)
        self._advance(now)
        actions, self._actions = self._actions, []
        return actions

    def next_deadline(self) -> float | None:
        """Return when ``Tick`` is due, or None when nothing is waited for."""
        fleet = self.fleet
        times = [w.deadline for w in fleet.workers.values()]
        times += [g.deadline for g in fleet.generations.values()]
        if fleet.phase in (Phase.STARTING, Phase.STEADY, Phase.ROLLING):
            retry = plan.next_retry(fleet)
            # A retry that is due already waits for room or for a fork server, and these bring an event.
            times.append(retry if retry and plan.next_to_fill(fleet, retry) else None)
            times.append(fleet.restore_at if self._lacks_source() else None)
        return min((t for t in times if t is not None), default=None)

    # -- what the user asks for ----------------------------------------------------------------------------------

    def _on_start(self, event: Start, now: float) -> None:
        self.fleet.phase = step(PHASES, self.fleet.phase, "start")
        self._load("start", now)

    def _on_reload(self, event: Reload, now: float) -> None:
        # A flag, not a queue: however often it is asked for, one load that begins after the last request has it all.
        if self.fleet.phase not in (Phase.STOPPING, Phase.STOPPED):
            self.fleet.reload_again = True

    def _on_scale(self, event: Scale, now: float) -> None:
        if event.workers < 0:
            raise IllegalEvent(f"a fleet of {event.workers} workers")
        self.fleet.size = event.workers

    def _on_stop(self, event: Stop, now: float) -> None:
        self._stop(event, now)

    def _on_tick(self, event: Tick, now: float) -> None:
        for worker in list(self.fleet.workers.values()):
            if worker.deadline is not None and worker.deadline <= now:
                self._expire(worker, now)
        for generation in list(self.fleet.generations.values()):
            if generation.deadline is not None and generation.deadline <= now:
                self._end(generation.number)
                reason = f"not loaded within {self.fleet.policy.boot_timeout:g} s (zd_boot_timeout)"
                self._generation_failed(GenerationFailed(generation.number, reason), now)

    # -- generations ---------------------------------------------------------------------------------------------

    def _on_generationloaded(self, event: GenerationLoaded, now: float) -> None:
        generation = self._generation(event.generation)
        generation.state = step(GENERATIONS, generation.state, "loaded")
        generation.deadline = None
        generation.preloaded = event.preloaded
        fleet = self.fleet
        loading, fleet.loading = fleet.loading, None
        assert loading is not None and loading.generation == event.generation
        if loading.purpose == "restore":
            fleet.current.append(event.generation)
            fleet.restore_failures = 0
            return
        if event.policy is not None:
            fleet.policy, fleet.size = event.policy, event.policy.workers
        if loading.purpose == "start":
            fleet.current = [event.generation]
        elif fleet.reload_again:
            self._actions.append(ReloadFinished(event.generation, "superseded"))
        else:
            self._roll_to(event.generation)

    def _on_generationfailed(self, event: GenerationFailed, now: float) -> None:
        generation = self._generation(event.generation)
        step(GENERATIONS, generation.state, "failed")
        self._end(event.generation)
        self._generation_failed(event, now)

    def _on_generationgone(self, event: GenerationGone, now: float) -> None:
        generation = self._generation(event.generation)
        was_loading = generation.state is GenerationState.LOADING
        generation.state = step(GENERATIONS, generation.state, "gone")
        generation.deadline = None
        if was_loading:
            self._generation_failed(GenerationFailed(event.generation, "the fork server died while loading"), now)
        elif not self.fleet.proven and self.fleet.source(self.fleet.current) is None:
            self._turn_back("its fork server died before the first new worker was ready", "")

    def _load(self, purpose: str, now: float) -> None:
        fleet = self.fleet
        fleet.numbers += 1
        deadline = now + fleet.policy.boot_timeout
        fleet.generations[fleet.numbers] = Generation(fleet.numbers, GenerationState.LOADING, deadline)
        fleet.loading = Loading(fleet.numbers, purpose)
        self._actions.append(StartGeneration(fleet.numbers, adopt=purpose != "restore"))
        if purpose == "reload":
            self._actions.append(ReloadStarted(fleet.numbers))

    def _generation_failed(self, event: GenerationFailed, now: float) -> None:
        """A generation did not load: nothing was touched yet."""
        fleet = self.fleet
        loading, fleet.loading = fleet.loading, None
        generation = fleet.generations[event.generation]
        generation.state, generation.deadline = GenerationState.LOST, None
        purpose = loading.purpose if loading else ""
        if purpose == "start":
            self._stop(Stop(quick=True, status=event.exit_code, reason=event.reason), now)
        elif purpose == "reload":
            fleet.trouble = Trouble("failed", event.reason, event.traceback)
            self._actions.append(ReloadFinished(event.generation, "failed", event.reason, event.traceback))
        elif purpose == "restore":
            fleet.restore_failures += 1
            fleet.restore_at = now + self._backoff.delay(fleet.restore_failures + 1, self._jitter())
            self._degrade(f"the fork server cannot be replaced: {event.reason}", event.traceback)

    def _roll_to(self, number: int) -> None:
        fleet = self.fleet
        if fleet.reloading is not None:
            self._actions.append(ReloadFinished(fleet.reloading, "superseded"))
        if fleet.proven:
            fleet.fallback = fleet.current
        fleet.current, fleet.proven, fleet.reloading = [number], fleet.size == 0, number
        fleet.roll_failures, fleet.trouble = 0, None
        fleet.slots = {n: Slot() for n in fleet.slots}
        fleet.phase = step(PHASES, fleet.phase, "roll")

    def _turn_back(self, reason: str, traceback: str) -> None:
        """Give the newest generation up for good and go back to what served before it."""
        fleet = self.fleet
        given_up = fleet.current[-1]
        fleet.trouble = Trouble("failed", reason, traceback)
        fleet.current, fleet.fallback, fleet.proven, fleet.reloading = fleet.fallback, [], True, None
        fleet.roll_failures = 0
        fleet.slots = {n: Slot() for n in fleet.slots}
        self._end(given_up)
        self._actions.append(ReloadFinished(given_up, "failed", reason, traceback))

    def _end(self, number: int) -> None:
        generation = self.fleet.generations[number]
        if generation.state is not GenerationState.LOST:
            generation.state, generation.deadline = GenerationState.LOST, None
            self._actions.append(EndGeneration(number))

    def _generation(self, number: int) -> Generation:
        if number not in self.fleet.generations:
            raise IllegalEvent(f"no generation {number}")
        return self.fleet.generations[number]

    # -- workers -------------------------------------------------------------------------------------------------

    def _on_workerborn(self, event: WorkerBorn, now: float) -> None:
        worker = self._step(event.age, "born")
        worker.pid = event.pid
        if worker.state is WorkerState.BOOTING:
            worker.deadline = now + self.fleet.policy.boot_timeout

    def _on_workerready(self, event: WorkerReady, now: float) -> None:
        worker = self._step(event.age, "ready")
        if worker.state is WorkerState.READY:
            worker.ready_at, worker.deadline = now, now + self.fleet.policy.min_ready
            self.fleet.ever_ready = True
            if self.fleet.policy.min_ready == 0:
                self._expire(worker, now)

    def _on_workertired(self, event: WorkerTired, now: float) -> None:
        self._step(event.age, "tired").tired = True

    def _on_workerleaving(self, event: WorkerLeaving, now: float) -> None:
        """It stopped accepting, maybe because somebody else told it to: its slot is to be filled."""
        booting = self._worker(event.age).state is WorkerState.BOOTING
        before = self._worker(event.age).leaving
        worker = self._step(event.age, "leaving")
        if not before:
            worker.deadline = now + self.fleet.policy.graceful_timeout + KILL_MARGIN
        if booting:
            self._boot_failed(worker, WorkerFailed(worker.age, "it was told to leave before it was ready"), now)

    def _on_workerfailed(self, event: WorkerFailed, now: float) -> None:
        before = self._worker(event.age).state
        worker = self._step(event.age, "failed")
        if before is WorkerState.BOOTING:
            worker.deadline = now + EXIT_TIME
            self._boot_failed(worker, event, now)

    def _on_workergone(self, event: WorkerGone, now: float) -> None:
        before = self._worker(event.age).state
        worker = self._step(event.age, "gone")
        del self.fleet.workers[event.age]
        if before is WorkerState.READY and worker.proved:
            self._crashed(worker, event, now)
        elif before in (WorkerState.FORKING, WorkerState.BOOTING, WorkerState.READY):
            reason = f"{event.how} {'too soon' if before is WorkerState.READY else 'before it was ready'}"
            code = event.exit_code or 0
            self._boot_failed(worker, WorkerFailed(event.age, reason, exit_code=code), now)

    def _expire(self, worker: Worker, now: float) -> None:
        before = worker.state
        worker.state = step(WORKERS, worker.state, "expire")
        if before is WorkerState.READY:
            worker.deadline, worker.proved = None, True
            self._proved(worker)
            return
        worker.deadline = now + EXIT_TIME
        self._actions.append(Kill(worker.age, before.value))
        if before is WorkerState.FORKING:
            # The fork server is stuck, and no use to anyone.
            self._end(worker.generation)
            self._boot_failed(worker, WorkerFailed(worker.age, f"not forked within {FORK_TIME:g} s"), now)
        elif before is WorkerState.BOOTING:
            reason = f"not ready within {self.fleet.policy.boot_timeout:g} s (zd_boot_timeout)"
            self._boot_failed(worker, WorkerFailed(worker.age, reason), now)

    def _proved(self, worker: Worker) -> None:
        fleet = self.fleet
        if worker.generation == fleet.source(fleet.current):
            fleet.proven, fleet.roll_failures = True, 0

    def _crashed(self, worker: Worker, event: WorkerGone, now: float) -> None:
        if self.fleet.phase is Phase.STOPPING:
            return
        if self.fleet.policy.exit_on_crash:
            reason = f"a worker {event.how}, and zd_on_crash is 'exit'"
            self._stop(Stop(status=1, reason=reason), now)
            return
        assert worker.ready_at is not None
        if now - worker.ready_at >= STABLE_TIME:
            self.fleet.slot(worker.slot).failures = 0
        self._count_failure(worker.slot, now)

    def _boot_failed(self, worker: Worker, event: WorkerFailed, now: float) -> None:
        fleet = self.fleet
        if fleet.phase is Phase.STOPPING:
            return
        self._count_failure(worker.slot, now)
        if not fleet.ever_ready:
            by_signal = event.exit_code < 0 and fleet.slot(worker.slot).failures < START_ATTEMPTS
            if not by_signal:
                status = event.exit_code if event.exit_code in (3, 4) else 3
                self._stop(Stop(quick=True, status=status, reason=f"a worker failed to boot: {event.reason}"), now)
        elif fleet.phase is not Phase.ROLLING or worker.generation != fleet.source(fleet.current):
            self._degrade(f"a worker failed to boot: {event.reason}", event.traceback)
        elif not fleet.proven:
            self._turn_back(f"the first new worker failed: {event.reason}", event.traceback)
        else:
            self._roll_failed(event)

    def _roll_failed(self, event: WorkerFailed) -> None:
        """A later worker of a generation that has worked before failed: it is retried, then turned back if possible."""
        fleet = self.fleet
        fleet.roll_failures += 1
        if fleet.roll_failures < ROLL_ATTEMPTS:
            return
        reason = f"{fleet.roll_failures} new workers in a row failed, the last one: {event.reason}"
        back = fleet.source(fleet.fallback)
        if back is not None and fleet.generations[back].preloaded:
            self._turn_back(reason, event.traceback)
        else:
            self._degrade(f"{reason}; the generation before is not preloaded, so there is no way back", event.traceback)

    def _count_failure(self, number: int, now: float) -> None:
        slot = self.fleet.slot(number)
        slot.failures += 1
        slot.retry_at = now + self._backoff.delay(slot.failures, self._jitter())

    def _degrade(self, reason: str, traceback: str) -> None:
        if self.fleet.trouble is None or self.fleet.trouble.kind == "degraded":
            self.fleet.trouble = Trouble("degraded", reason, traceback)
        self._actions.append(Degraded(reason, traceback))

    def _worker(self, age: int) -> Worker:
        if age not in self.fleet.workers:
            raise IllegalEvent(f"no worker {age}")
        return self.fleet.workers[age]

    def _step(self, age: int, cause: str) -> Worker:
        worker = self._worker(age)
        worker.state = step(WORKERS, worker.state, cause)
        return worker

    # -- what follows --------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        fleet = self.fleet
        if fleet.phase is Phase.STOPPING:
            if not fleet.workers:
                fleet.phase = step(PHASES, fleet.phase, "empty")
                self._actions.append(Halt(fleet.exit_status, fleet.exit_reason))
            return
        if fleet.phase in (Phase.NEW, Phase.STOPPED):
            return
        self._replace_lost_source(now)
        while (leaving := plan.next_to_leave(fleet)) is not None:
            self._drain(leaving, now)
        while (filling := plan.next_to_fill(fleet, now)) is not None:
            self._spawn(*filling, now)
        if fleet.loading is None or fleet.loading.purpose != "start":
            self._settle()
        if fleet.reload_again and fleet.loading is None and fleet.phase is not Phase.STARTING:
            fleet.reload_again = False
            self._load("reload", now)
        self._forget()

    def _settle(self) -> None:
        fleet = self.fleet
        if not plan.converged(fleet):
            return
        rolled, fleet.reloading = fleet.reloading, None
        fleet.phase = step(PHASES, fleet.phase, "converged")
        fleet.fallback = []
        if rolled is not None:
            self._actions.append(ReloadFinished(rolled, "done"))
        # A failed reload is remembered until the next one, a mended fleet is not degraded any more.
        if fleet.trouble is not None and fleet.trouble.kind == "degraded" and not self._lacks_source():
            fleet.trouble = None

    def _lacks_source(self) -> bool:
        fleet = self.fleet
        return fleet.loading is None and bool(fleet.current) and fleet.source(fleet.current) is None

    def _replace_lost_source(self, now: float) -> None:
        """The fork server died: a fresh one is started, the workers serve on."""
        if self._lacks_source() and self.fleet.restore_at <= now and not self.fleet.reload_again:
            self._load("restore", now)

    def _forget(self) -> None:
        """End the fork servers that nothing will be spawned from, strike off what has neither server nor workers."""
        fleet = self.fleet
        wanted = {fleet.source(fleet.current), fleet.source(fleet.fallback)}
        if fleet.loading is not None:
            wanted.add(fleet.loading.generation)
        used = {w.generation for w in fleet.workers.values()}
        for number in list(fleet.generations):
            if number not in wanted:
                self._end(number)
                if number not in used and (number not in fleet.current or len(fleet.current) > 1):
                    del fleet.generations[number]
                    fleet.current = [n for n in fleet.current if n != number]
                    fleet.fallback = [n for n in fleet.fallback if n != number]

    def _spawn(self, slot: int, generation: int, now: float) -> None:
        fleet = self.fleet
        fleet.ages += 1
        deadline = now + FORK_TIME
        fleet.workers[fleet.ages] = Worker(fleet.ages, slot, generation, WorkerState.FORKING, deadline)
        self._actions.append(Spawn(fleet.ages, slot, generation))

    def _drain(self, worker: Worker, now: float) -> None:
        worker.state = step(WORKERS, worker.state, "drain")
        patience = QUICK_TIME if self.fleet.quick else self.fleet.policy.graceful_timeout + KILL_MARGIN
        worker.deadline = now + patience
        self._actions.append(Drain(worker.age, self.fleet.quick))

    def _stop(self, event: Stop, now: float) -> None:
        fleet = self.fleet
        again = fleet.phase is Phase.STOPPING
        if fleet.phase is Phase.STOPPED or (again and (fleet.quick or not event.quick)):
            return
        fleet.phase = step(PHASES, fleet.phase, "stop")
        fleet.quick = event.quick
        if not again:
            fleet.exit_status, fleet.exit_reason = event.status, event.reason
        fleet.loading, fleet.reload_again = None, False
        for worker in list(fleet.workers.values()):
            if worker.state is not WorkerState.DYING and (not worker.leaving or event.quick):
                self._drain(worker, now)
        for number in list(fleet.generations):
            self._end(number)


def rollout(policy: Policy, jitter: Callable[[], float]) -> Rollout:
    """Return the core of a fleet that does not exist yet."""
    return Rollout(Fleet(policy=policy, size=policy.workers), jitter)
