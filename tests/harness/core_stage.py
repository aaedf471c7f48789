"""A stage for the core: an edge that carries out its orders, keeps its own books, and holds it to the invariant.

Rules: what is checked is checked from the edge's books (which processes there are, which of them said ``ready``), not
from the core's; time stands still unless a test lets it pass.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

from zdworker.core import plan
from zdworker.core.events import (
    Action,
    CanaryReady,
    ConfigurationRefused,
    ConfigurationTaken,
    Degraded,
    Drain,
    EndGeneration,
    Event,
    GenerationFailed,
    GenerationGone,
    GenerationJudged,
    GenerationLoaded,
    Halt,
    Kill,
    LocateHang,
    Outcome,
    Policy,
    Reload,
    ReloadFinished,
    ReloadStarted,
    RestoreConfiguration,
    Resume,
    Scale,
    Spawn,
    Start,
    StartGeneration,
    Stop,
    TakeConfiguration,
    Tick,
    WorkerFailed,
    WorkerForked,
    WorkerGone,
    WorkerLeaving,
    WorkerReady,
    WorkerReplacementRequested,
)
from zdworker.core.fleet import Fleet, GenerationState, Phase, Worker, WorkerState
from zdworker.core.rollout import Rollout, rollout
from zdworker.core.steps import EXIT_TIMEOUT_S

UNBORN, BOOTING, READY = "unborn", "booting", "ready"
LEAVING = (WorkerState.DRAINING, WorkerState.DYING)


def in_slot(fleet: Fleet, number: int) -> list[Worker]:
    """The workers of a slot that are not leaving."""
    return [w for w in fleet.workers.values() if w.slot == number and not w.leaving]


class Stage:
    """The edge's books: fork servers, worker processes, configurations, outcomes; and short words for what happens.

    :param core: the core to begin with; a new one otherwise.
    """

    takes_at_once = True
    """Whether a configuration is taken over as soon as that is asked for; else by :meth:`take`."""

    locates_at_once = True
    """Whether it is found out at once where a generation hangs; else that is never told."""

    place = ""
    """Where a generation hangs, for the reason."""

    drops_late_answers = False
    """Whether the configuration of a generation that has ended is not taken over any more, as the edge does it."""

    def __init__(self, policy: Policy | None = None, core: Rollout | None = None) -> None:
        self.core = core or rollout(policy or Policy(), lambda: 0.0)
        self.now = 1000.0
        self.log: list[Action] = []
        self.servers: dict[int, bool] = {}  # standing fork servers, and whether each is loaded
        self.failed: set[int] = set()  # generations that must never be spawned from again
        self.processes: dict[int, str] = {}
        self.reloads: dict[int, str] = {}  # each reload's outcome, "" while there is none
        self.halted: Halt | None = None
        self.leaving_only: set[int] = set()
        self.killed: dict[int, float] = {}  # when each was killed for the first time
        self.brought: Policy | None = None  # what the next configuration says; None: the same as before
        self.taking: list[TakeConfiguration] = []  # what the core waits for
        self.hangs: list[LocateHang] = []
        self.configurations: dict[int, Policy] = {0: self.fleet.policy}
        self.in_force = 0

    @property
    def fleet(self) -> Fleet:
        return self.core.fleet

    # -- telling -------------------------------------------------------------------------------------------------

    def tell(self, event: Event) -> list[Action]:  # noqa: C901  # one line for each event
        """Tell the core an event that has happened, and carry out what it orders."""
        if isinstance(event, WorkerGone):
            self.processes.pop(event.worker_id, None)
        elif isinstance(event, GenerationGone | GenerationFailed):
            self.servers.pop(event.generation, None)
            self._drop_late_answer(event.generation)
        elif isinstance(event, GenerationLoaded) and event.generation in self.servers:
            self.servers[event.generation] = True
        elif isinstance(event, WorkerForked) and event.worker_id in self.processes:
            self.processes[event.worker_id] = BOOTING
        elif isinstance(event, WorkerReady) and self.processes.get(event.worker_id) == BOOTING:
            self.processes[event.worker_id] = READY
        elif isinstance(event, WorkerLeaving):
            self.leaving_only.add(event.worker_id)
        actions = self.core.handle(event, self.now)
        for action in actions:
            self._carry_out(action)
        self.log += actions
        self.check()
        if self.taking and self.takes_at_once:
            actions += self.take()
        if self.hangs and self.locates_at_once:
            hang = self.hangs.pop(0)
            actions += self.tell(GenerationFailed(hang.generation, f"{hang.reason}{self.place}"))
        return actions

    def take(self) -> list[Action]:
        """Go by the configuration that the core wants, and tell it so."""
        order = self.taking.pop(0)
        if order.configuration == order.generation and order.generation not in self.configurations:
            policy = self.brought or self.fleet.policy
            self.configurations[order.generation] = dataclasses.replace(policy, configuration=order.generation)
        self.brought, self.in_force = None, order.configuration
        return self.tell(ConfigurationTaken(order.generation, self.configurations[order.configuration]))

    def refuse(self, reason: str = "the address is in use") -> list[Action]:
        """Refuse the configuration that the core wants."""
        order = self.taking.pop(0)
        return self.tell(ConfigurationRefused(order.generation, reason))

    def _carry_out(self, action: Action) -> None:
        match action:
            case StartGeneration(generation=number):
                assert number not in self.servers
                self.servers[number] = False
            case EndGeneration(generation=number):
                self.servers.pop(number, None)
                self._drop_late_answer(number)
            case TakeConfiguration():
                self.taking.append(action)
            case RestoreConfiguration(configuration=number):
                assert number in self.configurations, "nothing is restored that was not in force once"
                self.in_force = number
            case ReloadStarted(generation=number):
                self.reloads[number] = ""
            case CanaryReady():
                self._check_canary(action)
            case ReloadFinished(generation=number, outcome=outcome):
                assert self.reloads[number] == "", "a reload has one outcome"
                self.reloads[number] = outcome.value
                if outcome is Outcome.FAILED and number not in self.kept():
                    self.failed.add(number)
            case _:
                self._carry_out_on_workers(action)

    def _carry_out_on_workers(self, action: Action) -> None:
        match action:
            case Spawn():
                self._spawn(action)
            case Drain(worker_id=worker_id):
                self._check_drain(worker_id)
                self.leaving_only.add(worker_id)
            case Kill(worker_id=worker_id):
                assert worker_id in self.processes
                self.leaving_only.add(worker_id)
                self.killed.setdefault(worker_id, self.now)
            case Halt():
                assert set(self.processes) <= self.unkillable()
                assert not self.servers
                self.halted = action
            case LocateHang(generation=number):
                assert number in self.servers
                self.hangs.append(action)
            case _:
                assert isinstance(action, Degraded)
                assert action.reason

    def _check_canary(self, action: CanaryReady) -> None:
        assert self.reloads[action.generation] == "", "a canary without a reload"
        assert self.processes[action.worker_id] == READY
        assert action.held or action.seconds > 0, "a canary that is none"

    def _drop_late_answer(self, number: int) -> None:
        if self.drops_late_answers:
            self.taking = [order for order in self.taking if order.generation != number]

    def unkillable(self) -> set[int]:
        """The processes that were killed long ago and are still there, once the fleet has to end."""
        if self.fleet.running:
            return set()
        # Rounded, because the difference of two such times may be smaller than what was added to the first.
        return {i for i in self.processes if round(self.now - self.killed.get(i, self.now), 6) >= EXIT_TIMEOUT_S}

    def _spawn(self, action: Spawn) -> None:
        assert self.servers.get(action.generation), f"{action}: no such generation to be spawned from"
        assert action.generation not in self.failed, f"{action}: the generation had failed"
        assert action.slot < self.fleet.size
        self.processes[action.worker_id] = UNBORN
        assert len(self.processes) <= self.fleet.size + self.fleet.surge

    def _check_drain(self, worker_id: int) -> None:
        assert worker_id in self.processes
        if self.fleet.phase is Phase.STOPPING or worker_id not in self.serving():
            return
        left = sum(self.fleet.workers[other].verified for other in self.serving() if other != worker_id)
        assert left >= self.fleet.size - self.fleet.unavailable, f"only {left} would be ready and proved"
        slot = self.fleet.workers[worker_id].slot
        coming = {w.worker_id for w in in_slot(self.fleet, slot)} & self.fleet.facts().fresh & set(self.processes)
        booting = {other for other in coming if self.processes[other] != READY}
        assert slot >= self.fleet.size or not booting, f"its successor {booting} boots"

    def serving(self) -> list[int]:
        """The ages of the workers that take requests, as far as one can know."""
        return [a for a, state in self.processes.items() if state == READY and a not in self.leaving_only]

    # -- checking ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Hold the core to what must be so after every event."""
        fleet = self.fleet
        gone = set(self.processes) - set(fleet.workers)
        assert set(fleet.workers) <= set(self.processes)
        assert gone <= self.unkillable(), "only what cannot be killed is left behind, and only at the end"
        for worker in fleet.workers.values():
            settled = worker.state is WorkerState.READY and worker.verified
            assert (worker.deadline is None) == settled, worker
        for generation in fleet.generations.values():
            waits = generation.state in (GenerationState.LOADING, GenerationState.CONFIGURING)
            assert (generation.deadline is not None) == waits, generation
        if not self.taking and not fleet.ending:
            assert self.in_force == fleet.policy.configuration, "the master goes by another configuration"
        assert {*fleet.current, *fleet.fallback} <= set(fleet.generations)
        forking = Counter(w.generation for w in fleet.workers.values() if w.state is WorkerState.FORKING)
        assert all(orders <= plan.FORKS_AT_A_TIME for orders in forking.values()), "more forks than at a time"
        if fleet.previous is not None:
            assert self.servers.get(fleet.previous.generation), "what is kept for a rollback cannot be spawned from"
        fresh = fleet.facts().fresh
        for slot in range(fleet.size):
            assert len({w.worker_id for w in in_slot(fleet, slot)} & fresh) <= 1, "two for one slot"
        if self.core.next_deadline() is None:
            awaited = fleet.running and (fleet.loading or not plan.converged(fleet.facts()))
            assert fleet.phase is not Phase.STOPPING, "the end is awaited without a deadline"
            assert not awaited, "something is awaited without a deadline"
        for number in self.failed:
            assert number not in self.servers

    # -- words for stories ---------------------------------------------------------------------------------------

    def start(self) -> Stage:
        """Start and let every worker get ready."""
        self.tell(Start())
        self.load()
        return self.boot()

    def load(self, preloaded: bool = False, policy: Policy | None = None) -> Stage:
        """Let the generation that loads stand, with a configuration that says ``policy``."""
        assert self.fleet.loading is not None
        self.brought = policy
        self.tell(GenerationLoaded(self.fleet.loading.generation, preloaded))
        return self

    def kept(self) -> set[int]:
        """The generation that is kept for a rollback, if one is."""
        return {self.fleet.previous.generation} if self.fleet.previous is not None else set()

    def loading_code(self) -> bool:
        """Whether a fork server is loading its code."""
        loading = self.fleet.loading
        state = self.fleet.generations[loading.generation].state if loading is not None else None
        return state is GenerationState.LOADING

    def fail_load(self, reason: str = "ImportError", exit_code: int = 3) -> Stage:
        """Let the generation that loads fail."""
        assert self.fleet.loading is not None
        self.tell(GenerationFailed(self.fleet.loading.generation, reason, "Traceback ...", exit_code))
        return self

    def reload(self, preloaded: bool = False, policy: Policy | None = None, hold: float | None = None) -> Stage:
        """Ask for a reload and let its generation load."""
        self.tell(Reload(hold))
        return self.load(preloaded, policy)

    def born(self) -> Stage:
        """Let the fork of every ordered worker be reported."""
        for worker_id in [a for a, state in self.processes.items() if state == UNBORN]:
            self.tell(WorkerForked(worker_id))
        return self

    def boot(self) -> Stage:
        """Let every ordered worker be forked and get ready (not those that this makes the core order)."""
        coming = [a for a, state in self.processes.items() if state in (UNBORN, BOOTING) and not self.leaves(a)]
        for worker_id in coming:
            if self.processes.get(worker_id) == UNBORN:
                self.tell(WorkerForked(worker_id))
            if not self.leaves(worker_id):
                self.tell(WorkerReady(worker_id))
        return self

    def leaves(self, worker_id: int) -> bool:
        """Whether a worker has the order to leave, or is gone."""
        return worker_id not in self.fleet.workers or self.fleet.workers[worker_id].leaving

    def gone(self) -> Stage:
        """Let every worker that leaves be gone."""
        for worker_id in [w.worker_id for w in self.fleet.workers.values() if w.leaving]:
            self.tell(WorkerGone(worker_id, "exited with code 0", 0))
        return self

    def fail(self, worker_id: int = 0, exit_code: int = 3) -> Stage:
        """Let a worker, else the newest one, say that it cannot boot, and exit."""
        worker_id = worker_id or max(self.fleet.workers)
        self.born()
        self.tell(WorkerFailed(worker_id, "lifespan failed", "Traceback ...", exit_code))
        self.tell(WorkerGone(worker_id, f"exited with code {exit_code}", exit_code))
        return self

    def crash(self, slot: int, exit_code: int = -9) -> Stage:
        """Let the worker that serves in a slot die."""
        worker = next(w for w in in_slot(self.fleet, slot) if w.state is WorkerState.READY)
        self.tell(WorkerGone(worker.worker_id, "was killed by signal 9", exit_code))
        return self

    def tire(self, slot: int) -> Stage:
        """Let the worker that serves in a slot ask to be replaced."""
        self.tell(
            WorkerReplacementRequested(
                next(w.worker_id for w in in_slot(self.fleet, slot) if not w.replacement_requested)
            )
        )
        return self

    def leave(self, slot: int) -> Stage:
        """Let the worker of a slot leave without an order of the core."""
        self.tell(WorkerLeaving(in_slot(self.fleet, slot)[0].worker_id))
        return self

    def scale(self, workers: int) -> Stage:
        """TTIN or TTOU."""
        self.tell(Scale(workers))
        return self

    def stop(self, quick: bool = False) -> Stage:
        """TERM, or INT."""
        self.tell(Stop(quick))
        return self

    def resume(self) -> Stage:
        """Let the rollout go on that stands at its canary."""
        self.tell(Resume())
        return self

    def judge(self, reason: str = "41 of 120 answers failed") -> Stage:
        """Find the code bad that is rolled out."""
        assert self.fleet.reloading is not None
        self.tell(GenerationJudged(self.fleet.reloading, reason))
        return self

    def lose_server(self, number: int) -> Stage:
        """Let a fork server die."""
        self.tell(GenerationGone(number))
        return self

    def passes(self, seconds: float) -> Stage:
        """Let time pass, with a tick at each deadline on the way."""
        end = self.now + seconds
        while (due := self.core.next_deadline()) is not None and due <= end:
            assert due >= self.now, "a deadline has passed without anything coming of it"
            self.now = due
            self.tell(Tick())
            assert self.core.next_deadline() != due, "a tick at a deadline changed nothing"
        self.now = end
        self.tell(Tick())
        return self

    def until_due(self) -> Stage:
        """Let time pass up to what is due next."""
        due = self.core.next_deadline()
        assert due is not None
        return self.passes(due - self.now)

    def all_goes_well(self) -> Stage:
        """From now on whatever is tried works, until nothing is left to do.

        :raises AssertionError: it does not come to an end.
        """
        for _ in range(400):
            while self.taking:
                self.take()
            if self.loading_code():
                self.load(preloaded=True)
            self.boot().gone()
            if self.fleet.loading is None and not self.coming() and not self.going():
                due = self.core.next_deadline()
                if due is None:
                    return self
                self.now = max(self.now, due)
                self.tell(Tick())
        raise AssertionError(f"it does not converge: {self.fleet}")

    # -- what one sees -------------------------------------------------------------------------------------------

    def slots(self) -> list[int]:
        """The generations that serve, slot by slot, each slot's oldest worker first."""
        staying = [w for w in self.fleet.workers.values() if w.state is WorkerState.READY]
        return [w.generation for w in sorted(staying, key=lambda w: (w.slot, w.worker_id))]

    def coming(self) -> list[tuple[int, int]]:
        """Slot and generation of each worker that is being forked or boots."""
        states = (WorkerState.FORKING, WorkerState.BOOTING)
        return sorted((w.slot, w.generation) for w in self.fleet.workers.values() if w.state in states)

    def going(self) -> list[tuple[int, int]]:
        """Slot and generation of each worker that leaves."""
        return sorted((w.slot, w.generation) for w in self.fleet.workers.values() if w.state in LEAVING)

    def loads(self) -> bool:
        """Whether a generation is being loaded."""
        return self.fleet.loading is not None

    def took(self, *kinds: type[Action]) -> list[Action]:
        """The orders of these kinds since the last look (all kinds are forgotten)."""
        taken, self.log = [a for a in self.log if isinstance(a, kinds)], []
        return taken


def steady(workers: int = 4, preloaded: bool = False, **settings: float) -> Stage:
    """A fleet that serves, as generation 1."""
    stage = Stage(Policy(workers=workers, **settings))  # type: ignore[arg-type]
    stage.tell(Start())
    stage.load(preloaded)
    while stage.coming():
        stage.boot()
    stage.passes(60.0)
    assert stage.fleet.state == "steady"
    assert stage.slots() == [1] * workers
    stage.took()
    return stage


def started(**settings: float) -> Stage:
    """A fleet whose first generation has just loaded."""
    stage = Stage(Policy(**settings))  # type: ignore[arg-type]
    stage.tell(Start())
    return stage.load()


def give_time(stage: Stage) -> Stage:
    """Wait until the next worker is ordered, if none is."""
    return stage if stage.coming() else stage.until_due()


def roll_on(stage: Stage) -> Stage:
    """Let every worker boot and every leaver go, until nothing moves; no time passes."""
    for _ in range(50):
        stage.boot().gone()
    return stage
