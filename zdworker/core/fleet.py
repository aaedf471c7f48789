"""The facts: which generations, slots and workers there are, and the state tables that they move by.

Rules:

* Everything here is plain data; :meth:`Fleet.to_plain` writes it out and :meth:`Fleet.from_plain` reads it back, so
  that a later master can take the fleet over.
* A state changes only through its table. What a table does not list is illegal: :func:`step` raises
  :class:`~zdworker.errors.IllegalEvent` before anything has changed.
* Whatever is waited for has a deadline: a worker has one in every state but ``ready``, a loading generation always.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

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
    """What a worker is at, as the master knows it."""

    FORKING = "forking"
    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"
    DYING = "dying"


class GenerationState(str, Enum):
    """What a generation's fork server is at."""

    LOADING = "loading"
    LOADED = "loaded"
    LOST = "lost"


PHASES: Mapping[tuple[Phase, str], Phase] = {
    (Phase.NEW, "start"): Phase.STARTING,
    (Phase.NEW, "stop"): Phase.STOPPING,
    (Phase.STARTING, "roll"): Phase.ROLLING,  # some serve, the others would not boot: newer code may mend it
    (Phase.STARTING, "converged"): Phase.STEADY,
    (Phase.STARTING, "stop"): Phase.STOPPING,
    (Phase.STEADY, "roll"): Phase.ROLLING,
    (Phase.STEADY, "converged"): Phase.STEADY,
    (Phase.STEADY, "stop"): Phase.STOPPING,
    (Phase.ROLLING, "roll"): Phase.ROLLING,
    (Phase.ROLLING, "converged"): Phase.STEADY,
    (Phase.ROLLING, "stop"): Phase.STOPPING,
    (Phase.STOPPING, "stop"): Phase.STOPPING,
    (Phase.STOPPING, "empty"): Phase.STOPPED,
}
"""Phase × cause → phase."""

_W = WorkerState
WORKERS: Mapping[tuple[WorkerState, str], WorkerState] = {
    (_W.FORKING, "forked"): _W.BOOTING,
    (_W.FORKING, "drain"): _W.DYING,  # it has no pid to be told anything: it ends before it boots
    (_W.FORKING, "expire"): _W.DYING,
    (_W.FORKING, "gone"): _W.DYING,
    (_W.BOOTING, "ready"): _W.READY,
    (_W.BOOTING, "failed"): _W.DYING,
    (_W.BOOTING, "drain"): _W.DRAINING,
    (_W.BOOTING, "leaving"): _W.DRAINING,
    (_W.BOOTING, "expire"): _W.DYING,
    (_W.BOOTING, "gone"): _W.DYING,
    (_W.READY, "replacement requested"): _W.READY,
    (_W.READY, "drain"): _W.DRAINING,
    (_W.READY, "leaving"): _W.DRAINING,
    (_W.READY, "expire"): _W.READY,  # its soak time is over
    (_W.READY, "gone"): _W.DYING,
    # What was on its way when the order to leave was given changes nothing any more.
    (_W.DRAINING, "ready"): _W.DRAINING,
    (_W.DRAINING, "failed"): _W.DRAINING,
    (_W.DRAINING, "replacement requested"): _W.DRAINING,
    (_W.DRAINING, "leaving"): _W.DRAINING,
    (_W.DRAINING, "drain"): _W.DRAINING,
    (_W.DRAINING, "expire"): _W.DYING,
    (_W.DRAINING, "gone"): _W.DYING,
    (_W.DYING, "forked"): _W.DYING,
    (_W.DYING, "ready"): _W.DYING,
    (_W.DYING, "failed"): _W.DYING,
    (_W.DYING, "replacement requested"): _W.DYING,
    (_W.DYING, "leaving"): _W.DYING,
    (_W.DYING, "drain"): _W.DYING,
    (_W.DYING, "expire"): _W.DYING,
    (_W.DYING, "gone"): _W.DYING,
}
"""Worker's state × cause → worker's state; after ``gone`` the worker is struck off."""

_G = GenerationState
GENERATIONS: Mapping[tuple[GenerationState, str], GenerationState] = {
    (_G.LOADING, "loaded"): _G.LOADED,
    (_G.LOADING, "failed"): _G.LOST,
    (_G.LOADING, "gone"): _G.LOST,
    (_G.LOADED, "gone"): _G.LOST,
    # What was on its way when the generation was ended changes nothing any more.
    (_G.LOST, "loaded"): _G.LOST,
    (_G.LOST, "failed"): _G.LOST,
    (_G.LOST, "gone"): _G.LOST,
}
"""Generation's state × cause → generation's state; an ended generation without workers is struck off."""

State = TypeVar("State", Phase, WorkerState, GenerationState)


def step(table: Mapping[tuple[State, str], State], state: State, cause: str) -> State:
    """Return the state that ``cause`` leads to.

    :raises IllegalEvent: the table does not list ``cause`` for ``state``.
    """
    try:
        return table[state, cause]
    except KeyError:
        raise IllegalEvent(f"{cause!r} is impossible in {type(state).__name__} {state.value!r}") from None


@dataclass
class Worker:
    """One worker process. ``age`` is its number, as Gunicorn counts them; times are those of ``now``."""

    worker_id: int
    slot: int
    generation: int
    state: WorkerState
    deadline: float | None
    pid: int | None = None
    ready_at: float | None = None
    verified: bool = False
    replacement_requested: bool = False

    @property
    def leaving(self) -> bool:
        """Whether it takes no new work any more."""
        return self.state in (WorkerState.DRAINING, WorkerState.DYING)


@dataclass
class Generation:
    """One fork server, and through it one state of the code."""

    number: int
    state: GenerationState
    deadline: float | None
    preloaded: bool = False
    loaded_at: float | None = None


@dataclass
class Slot:
    """What is remembered of a slot between its workers."""

    failures: int = 0
    retry_at: float = 0.0


@dataclass
class Loading:
    """The generation that is being loaded. ``purpose`` is ``start``, ``reload`` or ``restore`` (a lost fork server)."""

    generation: int
    purpose: str


@dataclass
class Trouble:
    """Why the state is ``failed`` or ``degraded``."""

    kind: str
    reason: str
    traceback: str = ""


@dataclass
class Previous:
    """The generation before the newest reload, kept ``until`` then, and the policy that goes with it."""

    generation: int
    until: float
    policy: Policy


@dataclass
class Fleet:
    """All facts.

    ``current`` lists the generations whose workers may stay; the last loaded one of them is spawned from. ``fallback``
    is what ``current`` was before the reload under way, ``fallback_policy`` and ``fallback_size`` go with it.
    ``previous`` is what is left of it when that reload is done, for a rollback.
    ``proven`` says that a worker of the newest has lasted: until then one single worker tries it out, and ``shrink_to``
    is the smaller number of workers that it will bring. ``reloading`` is the generation that is being rolled out.
    ``stop_at`` is when the master, told to end, begins to: until then it serves on.
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
    reloading: int | None = None
    roll_failures: int = 0
    roll_at: float = 0.0
    restore_failures: int = 0
    restore_at: float = 0.0
    trouble: Trouble | None = None
    last_worker_id: int = 0
    last_generation: int = 0
    quick: bool = False
    stop_at: float | None = None
    exit_status: int = 0
    exit_reason: str = ""

    @property
    def state(self) -> str:
        """The public state: ``steady``, ``rolling``, ``failed``, ``degraded`` or ``stopping``."""
        if self.stopping:
            return "stopping"
        if self.loading is not None and self.loading.purpose != "restore":
            return "rolling"
        if self.degraded:
            return "degraded"
        if self.phase is not Phase.STEADY:
            return "rolling"
        return self.trouble.kind if self.trouble else "steady"

    @property
    def stopping(self) -> bool:
        """Whether the master was told to end; it may serve on for a while (``zd_shutdown_delay``)."""
        return self.stop_at is not None or self.ending

    @property
    def ending(self) -> bool:
        """Whether the workers have been told to leave because the master ends."""
        return self.phase in (Phase.STOPPING, Phase.STOPPED)

    @property
    def degraded(self) -> bool:
        """Whether something is amiss which no reload is to blame for."""
        return self.trouble is not None and self.trouble.kind == "degraded"

    @property
    def running(self) -> bool:
        """Whether there are next steps to be taken."""
        return self.phase in (Phase.STARTING, Phase.STEADY, Phase.ROLLING)

    @property
    def never_served(self) -> bool:
        """Whether this is the first start and nothing has ever served: a failure ends the master."""
        return self.phase is Phase.STARTING and not self.ever_ready

    def source(self, among: list[int]) -> int | None:
        """Return the newest generation ``among`` these that can be spawned from."""
        loaded = [n for n in among if n in self.generations and self.generations[n].state is _G.LOADED]
        return loaded[-1] if loaded else None

    def slot(self, number: int) -> Slot:
        """Return what is remembered of a slot."""
        return self.slots.setdefault(number, Slot())

    def retry_at(self, number: int) -> float:
        """Return when a slot may be filled again."""
        return self.slots[number].retry_at if number in self.slots else 0.0

    def fresh(self, worker: Worker) -> bool:
        """Return whether ``worker`` is one that shall stay."""
        return worker.generation in self.current and not worker.replacement_requested and worker.slot < self.size

    def to_plain(self) -> dict[str, Any]:
        """Return the facts as what JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Fleet:
        """Return the fleet that :meth:`to_plain` (and JSON after it) wrote out."""
        known = dict(plain)
        known["policy"] = Policy(**known["policy"])
        known["fallback_policy"] = Policy(**known["fallback_policy"]) if known["fallback_policy"] else None
        known["phase"] = Phase(known["phase"])
        known["workers"] = {
            int(worker_id): Worker(**{**w, "state": WorkerState(w["state"])})
            for worker_id, w in known["workers"].items()
        }
        known["generations"] = {
            int(n): Generation(**{**g, "state": GenerationState(g["state"])}) for n, g in known["generations"].items()
        }
        known["slots"] = {int(n): Slot(**s) for n, s in known["slots"].items()}
        known["loading"] = Loading(**known["loading"]) if known["loading"] else None
        previous = known["previous"]
        known["previous"] = Previous(**{**previous, "policy": Policy(**previous["policy"])}) if previous else None
        known["trouble"] = Trouble(**known["trouble"]) if known["trouble"] else None
        return cls(**known)
