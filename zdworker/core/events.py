"""What the core is told (events) and what it wants done (actions).

Rules: both are plain, frozen values. An event is a fact that has happened; an action is an order that the edge carries
out, and whose outcome comes back as an event. No action has a return value.
"""

from __future__ import annotations

from dataclasses import dataclass

# -- events ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Policy:
    """The settings that the decisions depend on; a reload may bring new ones.

    Times are in seconds. ``surge`` and ``unavailable`` are numbers of workers, not both 0 (``zdworker.settings``
    refuses that before it gets here). ``development``: a worker that leaves by itself (Gunicorn's ``--reload``) is
    replaced without a wait. ``queue_per_slot``: a worker whose slot goes away empties that slot's queue of connections
    first, for as long as it may drain.
    """

    workers: int = 1
    surge: int = 1
    unavailable: int = 0
    boot_timeout: float = 60.0
    min_ready: float = 0.0
    graceful_timeout: float = 30.0
    exit_on_crash: bool = False
    development: bool = False
    rollback_window: float = 0.0
    shutdown_delay: float = 0.0
    queue_per_slot: bool = False


@dataclass(frozen=True)
class Start:
    """The master is up."""


@dataclass(frozen=True)
class Reload:
    """Someone asks for the newest code."""


@dataclass(frozen=True)
class Rollback:
    """Someone asks for the newest reload to be undone.

    ``policy`` is that of the previous generation's configuration, if that has been taken back for it.
    """

    policy: Policy | None = None


@dataclass(frozen=True)
class Scale:
    """There shall be ``workers`` workers."""

    workers: int


@dataclass(frozen=True)
class Stop:
    """The master shall end: at once when ``quick``, else when ``shutdown_delay`` has passed."""

    quick: bool = False
    status: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class GenerationLoaded:
    """A fork server stands; its configuration has been taken over, unless ``policy`` is None (it was not asked for)."""

    generation: int
    preloaded: bool
    policy: Policy | None = None


@dataclass(frozen=True)
class GenerationFailed:
    """A fork server could not load; ``exit_code`` is what Gunicorn would have exited with."""

    generation: int
    reason: str
    traceback: str = ""
    exit_code: int = 3


@dataclass(frozen=True)
class GenerationGone:
    """A fork server's process has ended."""

    generation: int


@dataclass(frozen=True)
class WorkerForked:
    """The worker exists, is the master's child, and boots."""

    worker_id: int
    pid: int


@dataclass(frozen=True)
class WorkerReady:
    """The worker accepts connections."""

    worker_id: int


@dataclass(frozen=True)
class WorkerFailed:
    """The worker says that it cannot boot."""

    worker_id: int
    reason: str
    traceback: str = ""
    exit_code: int = 3


@dataclass(frozen=True)
class WorkerReplacementRequested:
    """The worker asks to be replaced."""

    worker_id: int


@dataclass(frozen=True)
class WorkerLeaving:
    """The worker has stopped accepting, asked to or not."""

    worker_id: int


@dataclass(frozen=True)
class WorkerGone:
    """The worker's process has ended, or was never born; ``how`` says how, for a reader ("exited with code 1").

    ``exit_code`` is negative for a signal, as in :mod:`subprocess`.
    """

    worker_id: int
    how: str
    exit_code: int | None = None


Event = (
    Start
    | Reload
    | Rollback
    | Scale
    | Stop
    | Tick
    | GenerationLoaded
    | GenerationFailed
    | GenerationGone
    | WorkerForked
    | WorkerReady
    | WorkerFailed
    | WorkerReplacementRequested
    | WorkerLeaving
    | WorkerGone
)

# -- actions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartGeneration:
    """Start a fork server."""

    generation: int


@dataclass(frozen=True)
class EndGeneration:
    """End a fork server; its workers live on."""

    generation: int


@dataclass(frozen=True)
class Spawn:
    """Have ``generation`` fork the worker ``age`` for ``slot``."""

    worker_id: int
    slot: int
    generation: int


@dataclass(frozen=True)
class Drain:
    """Tell a worker to leave: to finish what it has, or at once when ``quick``.

    One that was not born yet is kept from it (its channel is closed); ``WorkerGone`` follows for it, too.
    """

    worker_id: int
    quick: bool = False


@dataclass(frozen=True)
class Kill:
    """End a worker that did not leave in time; for one that has no pid, ``WorkerGone`` follows at once."""

    worker_id: int
    why: str


@dataclass(frozen=True)
class ReloadStarted:
    """A reload to ``generation`` is under way."""

    generation: int


@dataclass(frozen=True)
class ReloadFinished:
    """A reload has ended: ``outcome`` is ``done``, ``failed`` or ``superseded`` (by a newer one).

    After ``failed`` the old code serves, under the old policy; in slots that were new already it comes back. Each
    ``ReloadStarted`` is followed by one of these, unless the master stops; where there is no way back it may be long,
    with a ``Degraded`` for each worker that fails meanwhile.
    """

    generation: int
    outcome: str
    reason: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Degraded:
    """The fleet is not what it should be, and no reload is to blame."""

    reason: str
    traceback: str = ""


@dataclass(frozen=True)
class Halt:
    """Every worker is gone: end the master."""

    status: int
    reason: str = ""


Action = StartGeneration | EndGeneration | Spawn | Drain | Kill | ReloadStarted | ReloadFinished | Degraded | Halt
