"""The facts: which generations, slots and workers there are, and the state tables that they move by.

Rules:

* Everything here is plain data, so that the master's next program can take the fleet over (``plain.py``). A field that
  is added has a default: the fleet of an earlier version does not have it.
* A state changes only through its table. What a table does not list is illegal: :func:`step` raises
  :class:`~zdworker.errors.IllegalEvent` before anything has changed.
* Whatever is awaited has a deadline: a worker has one in every state but ``ready``, a generation until its
  configuration is in force.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from zdworker.core.events import Policy
from zdworker.errors import IllegalEvent


class Phase(str, Enum):
    """What the fleet as a whole is at."""

    NEW = "new"
    STARTING = "starting"
    STEADY = "steady"
    ROLLING = "rolling"
    STOPPING = "stopping"
    STOPPED = "stopped"


class WorkerState(str, Enum):
    """What a worker is at, as far as the master knows."""

    FORKING = "forking"
    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"
    DYING = "dying"


class GenerationState(str, Enum):
    """What a generation's fork server is at."""

    LOADING = "loading"
    CONFIGURING = "configuring"
    """Its code is loaded, and the master takes its configuration over."""
    LOADED = "loaded"
    LOST = "lost"


class PhaseCause(str, Enum):
    """What changes the fleet's phase."""

    START = "start"
    STOP = "stop"
    ROLL = "roll"
    CONVERGED = "converged"
    EMPTY = "empty"


class WorkerCause(str, Enum):
    """What changes a worker's state."""

    FORKED = "forked"
    DRAIN = "drain"
    EXPIRE = "expire"
    GONE = "gone"
    READY = "ready"
    FAILED = "failed"
    LEAVING = "leaving"
    REPLACEMENT_REQUESTED = "replacement requested"


class GenerationCause(str, Enum):
    """What changes a generation's state."""

    LOADED = "loaded"
    CONFIGURED = "configured"
    RECONFIGURE = "reconfigure"
    FAILED = "failed"
    GONE = "gone"


class Purpose(str, Enum):
    """What a generation is loaded for."""

    START = "start"
    RELOAD = "reload"
    ROLLBACK = "rollback"
    """Its code is still in memory; only its configuration has to be taken back."""
    RESTORE = "restore"
    """It takes the place of a fork server that died."""


_P, _PC = Phase, PhaseCause
PHASES: Mapping[tuple[Phase, PhaseCause], Phase] = {
    (_P.NEW, _PC.START): _P.STARTING,
    (_P.NEW, _PC.STOP): _P.STOPPING,
    (_P.STARTING, _PC.ROLL): _P.ROLLING,  # some workers serve and the others fail to boot: newer code may fix that
    (_P.STARTING, _PC.CONVERGED): _P.STEADY,
    (_P.STARTING, _PC.STOP): _P.STOPPING,
    (_P.STEADY, _PC.ROLL): _P.ROLLING,
    (_P.STEADY, _PC.CONVERGED): _P.STEADY,
    (_P.STEADY, _PC.STOP): _P.STOPPING,
    (_P.ROLLING, _PC.ROLL): _P.ROLLING,
    (_P.ROLLING, _PC.CONVERGED): _P.STEADY,
    (_P.ROLLING, _PC.STOP): _P.STOPPING,
    (_P.STOPPING, _PC.STOP): _P.STOPPING,
    (_P.STOPPING, _PC.EMPTY): _P.STOPPED,
}
"""Phase × cause → phase."""

_W, _WC = WorkerState, WorkerCause
WORKERS: Mapping[tuple[WorkerState, WorkerCause], WorkerState] = {
    (_W.FORKING, _WC.FORKED): _W.BOOTING,
    (_W.FORKING, _WC.DRAIN): _W.DYING,  # no order can reach it yet: it ends before it boots
    (_W.FORKING, _WC.EXPIRE): _W.DYING,
    (_W.FORKING, _WC.GONE): _W.DYING,
    (_W.BOOTING, _WC.READY): _W.READY,
    (_W.BOOTING, _WC.FAILED): _W.DYING,
    (_W.BOOTING, _WC.DRAIN): _W.DRAINING,
    (_W.BOOTING, _WC.LEAVING): _W.DRAINING,
    (_W.BOOTING, _WC.EXPIRE): _W.DYING,
    (_W.BOOTING, _WC.GONE): _W.DYING,
    (_W.READY, _WC.REPLACEMENT_REQUESTED): _W.READY,
    (_W.READY, _WC.DRAIN): _W.DRAINING,
    (_W.READY, _WC.LEAVING): _W.DRAINING,
    (_W.READY, _WC.EXPIRE): _W.READY,  # it has stayed ready for zd_min_ready_seconds
    (_W.READY, _WC.GONE): _W.DYING,
    # A report that was under way when the worker got the order to leave changes nothing.
    (_W.DRAINING, _WC.READY): _W.DRAINING,
    (_W.DRAINING, _WC.FAILED): _W.DRAINING,
    (_W.DRAINING, _WC.REPLACEMENT_REQUESTED): _W.DRAINING,
    (_W.DRAINING, _WC.LEAVING): _W.DRAINING,
    (_W.DRAINING, _WC.DRAIN): _W.DRAINING,
    (_W.DRAINING, _WC.EXPIRE): _W.DYING,
    (_W.DRAINING, _WC.GONE): _W.DYING,
    (_W.DYING, _WC.FORKED): _W.DYING,
    (_W.DYING, _WC.READY): _W.DYING,
    (_W.DYING, _WC.FAILED): _W.DYING,
    (_W.DYING, _WC.REPLACEMENT_REQUESTED): _W.DYING,
    (_W.DYING, _WC.LEAVING): _W.DYING,
    (_W.DYING, _WC.DRAIN): _W.DYING,
    (_W.DYING, _WC.EXPIRE): _W.DYING,
    (_W.DYING, _WC.GONE): _W.DYING,
}
"""Worker's state × cause → worker's state; after ``gone`` the worker is removed."""

_G, _GC = GenerationState, GenerationCause
GENERATIONS: Mapping[tuple[GenerationState, GenerationCause], GenerationState] = {
    (_G.LOADING, _GC.LOADED): _G.CONFIGURING,
    (_G.LOADING, _GC.FAILED): _G.LOST,
    (_G.LOADING, _GC.GONE): _G.LOST,
    (_G.CONFIGURING, _GC.CONFIGURED): _G.LOADED,
    (_G.CONFIGURING, _GC.FAILED): _G.LOST,
    (_G.CONFIGURING, _GC.GONE): _G.LOST,
    (_G.LOADED, _GC.RECONFIGURE): _G.CONFIGURING,
    (_G.LOADED, _GC.FAILED): _G.LOST,
    (_G.LOADED, _GC.GONE): _G.LOST,
    # A report that was under way when the generation was ended changes nothing.
    (_G.LOST, _GC.LOADED): _G.LOST,
    (_G.LOST, _GC.CONFIGURED): _G.LOST,
    (_G.LOST, _GC.FAILED): _G.LOST,
    (_G.LOST, _GC.GONE): _G.LOST,
}
"""Generation's state × cause → generation's state; an ended generation without workers is removed."""

State = TypeVar("State", Phase, WorkerState, GenerationState)
Cause = TypeVar("Cause", PhaseCause, WorkerCause, GenerationCause)


def step(table: Mapping[tuple[State, Cause], State], state: State, cause: Cause) -> State:
    """Return the state that ``cause`` leads to.

    :raises IllegalEvent: the table does not list ``cause`` for ``state``.
    """
    try:
        return table[state, cause]
    except KeyError:
        raise IllegalEvent(f"{cause.value!r} is impossible in {type(state).__name__} {state.value!r}") from None


_FORKING, _DRAINING, _DYING = WorkerState.FORKING, WorkerState.DRAINING, WorkerState.DYING
"""For what is asked of each worker after every event: the enumeration's own names take several times as long."""


@dataclass
class Worker:
    """One worker process. ``worker_id`` counts all workers of the master, as Gunicorn's ``age`` does.

    Times are those of ``now``. ``verified`` means that it has stayed ready for ``Policy.min_ready`` seconds. ``told``
    means that the order to leave was given, ``killed`` that the order to kill it was, ``takes`` that it takes over the
    connections of others in its slot.
    """

    worker_id: int
    slot: int
    generation: int
    state: WorkerState
    deadline: float | None
    ready_at: float | None = None
    verified: bool = False
    replacement_requested: bool = False
    told: bool = False
    killed: bool = False
    takes: bool = False

    @property
    def leaving(self) -> bool:
        """Whether it takes no new work any more."""
        return self.state is _DRAINING or self.state is _DYING


@dataclass
class Generation:
    """One fork server, and through it one state of the code.

    ``overdue`` means that its time to load is over, and that it is being found out where it hangs. ``graceful_timeout``
    is how long its workers may drain, by the configuration that they have; None as long as that is not known.
    """

    number: int
    state: GenerationState
    deadline: float | None
    preloaded: bool = False
    loaded_at: float | None = None
    overdue: bool = False
    graceful_timeout: float | None = None


@dataclass
class Slot:
    """What is remembered of a slot between its workers."""

    failures: int = 0
    retry_at: float = 0.0


@dataclass
class Loading:
    """The generation that is being loaded, and what for; ``hold`` as :class:`~zdworker.core.events.Reload` has it."""

    generation: int
    purpose: Purpose
    hold: float | None = None


@dataclass
class Trouble:
    """Why the state is ``failed`` or ``degraded``."""

    reason: str
    traceback: str = ""


@dataclass
class Previous:
    """The generation before the newest reload, kept ``until`` then, and the policy that goes with it."""

    generation: int
    until: float
    policy: Policy


@dataclass(frozen=True)
class Facts:
    """The facts of one moment, as the plan's questions need them; see :meth:`Fleet.facts`.

    ``slots`` has the workers of each slot that are not leaving, ``fresh`` the ids of those that may stay, ``forking``
    the number of orders that each generation's fork server has yet to carry out. ``serving`` is the number of verified
    workers that go on; ``only_verified`` means that no worker leaves and each is verified. ``source`` and
    ``fallback_source`` are the generations that can be spawned from. ``room`` is how many more processes may exist,
    ``must_serve`` how many verified workers have to stay when one leaves.
    """

    fleet: Fleet
    slots: dict[int, list[Worker]]
    fresh: set[int]
    forking: dict[int, int]
    serving: int
    only_verified: bool
    source: int | None
    fallback_source: int | None
    room: int
    must_serve: int


@dataclass
class Fleet:
    """All facts.

    ``current`` lists the generations whose workers may stay; the last loaded one of them is spawned from. ``fallback``
    is what ``current`` was before the reload under way; ``fallback_policy`` and ``fallback_size`` go with it.
    ``previous`` is what is left of it when that reload is done, for a rollback.

    ``newest_verified`` means that a worker of the newest generation is verified. Until then a single worker, the
    canary, tries that generation out, and ``shrink_to`` is the smaller number of workers that the generation will
    bring. The canary serves for ``canary_s`` seconds before it is verified, or is given up then if it is ``held``;
    ``old_crashed`` means that a worker of the generation before has died meanwhile. ``reloading`` is the generation
    that is being rolled out. ``superseded_loads`` counts the loads in a row that a newer reload has overtaken;
    ``hold_next`` goes with the reload that is asked for. ``failure`` is remembered until the next rollout,
    ``degradation`` until the fleet is whole again. ``stop_at`` is when the master begins to end; it serves until then.
    """

    policy: Policy
    size: int
    phase: Phase = Phase.NEW
    workers: dict[int, Worker] = field(default_factory=dict)
    generations: dict[int, Generation] = field(default_factory=dict)
    slots: dict[int, Slot] = field(default_factory=dict)
    current: list[int] = field(default_factory=list)
    fallback: list[int] = field(default_factory=list)
    fallback_policy: Policy | None = None
    fallback_size: int = 0
    previous: Previous | None = None
    newest_verified: bool = True
    shrink_to: int | None = None
    ever_ready: bool = False
    loading: Loading | None = None
    reload_again: bool = False
    hold_next: float | None = None
    canary_s: float = 0.0
    held: bool = False
    old_crashed: bool = False
    reloading: int | None = None
    roll_failures: int = 0
    roll_at: float = 0.0
    restore_failures: int = 0
    restore_at: float = 0.0
    superseded_loads: int = 0
    failure: Trouble | None = None
    degradation: Trouble | None = None
    last_worker_id: int = 0
    last_generation: int = 0
    quick: bool = False
    stop_at: float | None = None
    exit_status: int = 0
    exit_reason: str = ""

    @property
    def state(self) -> str:
        """The public state: ``starting``, ``steady``, ``rolling``, ``failed``, ``degraded`` or ``stopping``."""
        if self.stopping:
            return "stopping"
        if self.loading is not None and self.loading.purpose in (Purpose.RELOAD, Purpose.ROLLBACK):
            return "rolling"
        if self.degraded:
            return "degraded"
        if self.phase in (Phase.NEW, Phase.STARTING):
            return "starting"
        if self.phase is Phase.ROLLING:
            return "rolling"
        return "failed" if self.failure else "steady"

    @property
    def trouble(self) -> Trouble | None:
        """Why the state is ``degraded`` or ``failed``; the former is the more urgent."""
        return self.degradation or self.failure

    @property
    def stopping(self) -> bool:
        """Whether the master has to end; it may serve for a while before it does (``zd_shutdown_delay``)."""
        return self.stop_at is not None or self.ending

    @property
    def ending(self) -> bool:
        """Whether the workers have the order to leave because the master ends."""
        return self.phase in (Phase.STOPPING, Phase.STOPPED)

    @property
    def degraded(self) -> bool:
        """Whether something is wrong for which no reload is to blame."""
        return self.degradation is not None

    @property
    def running(self) -> bool:
        """Whether there are next steps to be taken."""
        return self.phase in (Phase.STARTING, Phase.STEADY, Phase.ROLLING)

    @property
    def never_served(self) -> bool:
        """Whether this is the first start and no worker was ever ready: a failure ends the master."""
        return self.phase is Phase.STARTING and not self.ever_ready

    @property
    def wanted_size(self) -> int:
        """The number of workers that was asked for last; during a canary there may be more than that."""
        return self.size if self.shrink_to is None else self.shrink_to

    @property
    def surge(self) -> int:
        """How many worker processes may exist above ``size``; a percentage is rounded up."""
        policy = self.policy
        return -(-self.size * policy.surge // 100) if policy.surge_is_percentage else policy.surge

    @property
    def unavailable(self) -> int:
        """How many of ``size`` workers may be missing; a percentage is rounded down.

        Never more than ``size``. Where rounding leaves neither surge nor unavailable a process, one worker may be
        missing, because the reload could not move otherwise (Kubernetes does the same, see ``ResolveFenceposts`` in
        ``pkg/controller/deployment/util/deployment_util.go``).
        """
        policy = self.policy
        share = self.size * policy.unavailable // 100 if policy.unavailable_is_percentage else policy.unavailable
        return min(share or int(self.surge == 0), self.size)

    def source(self, among: list[int]) -> int | None:
        """Return the newest generation ``among`` these that can be spawned from."""
        loaded = [n for n in among if n in self.generations and self.generations[n].state is _G.LOADED]
        return loaded[-1] if loaded else None

    def slot(self, number: int) -> Slot:
        """Return what is remembered of a slot."""
        return self.slots.setdefault(number, Slot())

    def is_canary(self, worker: Worker) -> bool:
        """Return whether ``worker`` tries the newest generation out."""
        return not self.newest_verified and worker.generation in self.current

    @property
    def room(self) -> int:
        """How many more processes may exist."""
        return self.size + self.surge - len(self.workers)

    def facts(self) -> Facts:
        """Return what the plan's questions need, gathered once: they are asked of every worker, after every event.

        With hundreds of workers this is most of what an event costs, so it calls nothing and reads nothing twice.
        """
        slots: dict[int, list[Worker]] = {}
        fresh: set[int] = set()
        forking: dict[int, int] = {}
        serving, only_verified = 0, True
        current, size = self.current, self.size
        for worker in self.workers.values():
            state, slot = worker.state, worker.slot
            if state is _DRAINING or state is _DYING:
                only_verified = False
                continue
            if worker.verified:
                serving += 1
            else:
                only_verified = False
                if state is _FORKING:
                    forking[worker.generation] = forking.get(worker.generation, 0) + 1
            if slot in slots:
                slots[slot].append(worker)
            else:
                slots[slot] = [worker]
            if slot < size and worker.generation in current and not worker.replacement_requested:
                fresh.add(worker.worker_id)
        return Facts(
            fleet=self,
            slots=slots,
            fresh=fresh,
            forking=forking,
            serving=serving,
            only_verified=only_verified,
            source=self.source(self.current),
            fallback_source=self.source(self.fallback),
            room=self.room,
            must_serve=self.size - self.unavailable,
        )

    def configurations(self) -> set[int]:
        """Return the numbers of the configurations in use, or to which the fleet may go back."""
        policies = [self.policy, self.fallback_policy, self.previous.policy if self.previous else None]
        return {policy.configuration for policy in policies if policy is not None}
