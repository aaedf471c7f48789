"""What the core receives (events) and what it wants done (actions).

Rules: both are plain, frozen values. An event is a fact that has happened. An action is an order that the edge carries
out; what comes of it is a later event. No action has a return value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

# -- events ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Policy:
    """The settings that the decisions depend on; a reload may bring new ones.

    Times are in seconds. ``surge`` and ``unavailable`` are numbers of workers or, where ``surge_is_percentage`` and
    ``unavailable_is_percentage`` say so, percentages of the number of workers, which a user may change at any time.
    They are not both 0 (``zdworker.settings`` refuses that before it gets here). ``development``: a worker that leaves
    by itself (Gunicorn's ``--reload``) is replaced without a wait. ``queue_per_slot``: a worker whose slot goes away
    first accepts what waits in that slot's own queue of connections, for as long as it may drain. ``canary`` is for how
    long the first new worker serves beside all old ones before the rollout goes on.

    ``configuration`` names the configuration that these settings come from: it is the number of the generation that
    brought it, 0 for the one that the master started with. The edge keeps configurations under this number.
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
    configuration: int = 0
    surge_is_percentage: bool = False
    unavailable_is_percentage: bool = False
    canary: float = 0.0


@dataclass(frozen=True)
class Start:
    """The master is up."""


@dataclass(frozen=True)
class Reload:
    """A user asks for the newest code.

    With ``hold`` the rollout stops at its canary, until a user resumes it. After so many seconds it is given up.
    """

    hold: float | None = None


@dataclass(frozen=True)
class Rollback:
    """A user asks for the newest reload to be undone."""


@dataclass(frozen=True)
class Resume:
    """A user wants the rollout to go on that stands at its canary."""


@dataclass(frozen=True)
class Scale:
    """A user asks for this number of workers.

    ``absolute`` means that the user has named the number, so that it stays if a reload is given up that brings another
    one. Else it was one more or less than there were (TTIN, TTOU), and that difference stays.
    """

    workers: int
    absolute: bool = False


@dataclass(frozen=True)
class Stop:
    """The master has to end: at once when ``quick``, else when ``shutdown_delay`` has passed."""

    quick: bool = False
    status: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class GenerationLoaded:
    """A fork server has loaded its code, and has sent the configuration that it found."""

    generation: int
    preloaded: bool


@dataclass(frozen=True)
class ConfigurationTaken:
    """The master goes by the configuration of ``generation`` now, as :class:`TakeConfiguration` asked for."""

    generation: int
    policy: Policy


@dataclass(frozen=True)
class ConfigurationRefused:
    """The master cannot go by the configuration of ``generation``; the one before is in force, unchanged."""

    generation: int
    reason: str


@dataclass(frozen=True)
class GenerationFailed:
    """A fork server could not load; ``exit_code`` is what Gunicorn would have exited with.

    One that has loaded and fails later is lost, as if its process had ended.
    """

    generation: int
    reason: str
    traceback: str = field(default="", repr=False)
    exit_code: int = 3


@dataclass(frozen=True)
class GenerationGone:
    """A fork server's process has ended."""

    generation: int


@dataclass(frozen=True)
class GenerationJudged:
    """The new code answers worse than the code before it, and is to be given up.

    ``reason`` says so, for a reader; ``newest`` has the newest failed requests, one a line.
    """

    generation: int
    reason: str
    newest: str = field(default="", repr=False)


@dataclass(frozen=True)
class WorkerForked:
    """The worker's process exists, is the master's child, and boots."""

    worker_id: int


@dataclass(frozen=True)
class WorkerReady:
    """The worker accepts connections; ``takes`` means that it also takes over those of others in its slot."""

    worker_id: int
    takes: bool = False


@dataclass(frozen=True)
class WorkerFailed:
    """The worker reports that it cannot boot."""

    worker_id: int
    reason: str
    traceback: str = field(default="", repr=False)
    exit_code: int = 3


@dataclass(frozen=True)
class WorkerReplacementRequested:
    """The worker asks to be replaced, and serves until it is."""

    worker_id: int


@dataclass(frozen=True)
class WorkerLeaving:
    """The worker has stopped accepting, on the master's order or by itself."""

    worker_id: int


@dataclass(frozen=True)
class WorkerGone:
    """The worker's process has ended, or never came to be; ``how`` says how, for a reader ("exited with code 1").

    ``exit_code`` is negative for a signal, as in :mod:`subprocess`. ``called_off`` means that the worker was never
    forked because its fork server has ended, for which its code is not to blame once more.
    """

    worker_id: int
    how: str
    exit_code: int | None = None
    called_off: bool = False


Event = (
    Start
    | Reload
    | Rollback
    | Resume
    | Scale
    | Stop
    | Tick
    | GenerationLoaded
    | ConfigurationTaken
    | ConfigurationRefused
    | GenerationFailed
    | GenerationGone
    | GenerationJudged
    | WorkerForked
    | WorkerReady
    | WorkerFailed
    | WorkerReplacementRequested
    | WorkerLeaving
    | WorkerGone
)

# -- actions -----------------------------------------------------------------------------------------------------


class Word(str, Enum):
    """An enumeration that is shown by its name, in the log."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


class Outcome(Word):
    """How a reload has ended."""

    DONE = "done"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    """A newer reload has taken its place."""
    ROLLED_BACK = "rolled_back"
    """A rollback has ended it, or turned it back."""


class KillReason(Word):
    """Why a worker is killed."""

    NOT_FORKED = "was not forked in time"
    NOT_READY = "did not get ready in time"
    NOT_DRAINED = "did not end in time"
    STILL_THERE = "is still there"
    FORKED_TOO_LATE = "was forked too late"


@dataclass(frozen=True)
class StartGeneration:
    """Start a fork server."""

    generation: int


@dataclass(frozen=True)
class EndGeneration:
    """End a fork server; its workers live on."""

    generation: int


@dataclass(frozen=True)
class LocateHang:
    """Find out where a generation hangs that does not load in time; ``GenerationFailed`` with that and ``reason``
    follows. Without it the generation is given up a moment later all the same.
    """

    generation: int
    reason: str


@dataclass(frozen=True)
class TakeConfiguration:
    """Go by another configuration; ``ConfigurationTaken`` or ``ConfigurationRefused`` for ``generation`` follows.

    ``configuration`` is ``generation`` when the generation has just brought it, else the number of one that is kept.
    """

    generation: int
    configuration: int


@dataclass(frozen=True)
class RestoreConfiguration:
    """Go back to a configuration whose listening sockets are still open. It cannot be refused."""

    configuration: int


@dataclass(frozen=True)
class Spawn:
    """Have ``generation`` fork a worker for ``slot``."""

    worker_id: int
    slot: int
    generation: int


@dataclass(frozen=True)
class Drain:
    """Tell a worker to leave: to finish what it has, or at once when ``quick``.

    ``hand_over`` means that another worker of its slot takes connections over. Without one, nothing may be given to the
    slot's queue any more. A worker that waits for its start order never gets one; ``WorkerGone``
    follows for it, too.
    """

    worker_id: int
    quick: bool = False
    hand_over: bool = False


@dataclass(frozen=True)
class Kill:
    """End a worker that did not leave in time; for one without a process, ``WorkerGone`` follows at once."""

    worker_id: int
    why: KillReason


@dataclass(frozen=True)
class ReloadStarted:
    """A reload to ``generation`` is under way; ``rollback`` means that it goes back to an older one."""

    generation: int
    rollback: bool = False


@dataclass(frozen=True)
class CanaryReady:
    """The first worker of the new code serves beside all old ones, for ``seconds``; ``held`` until a user resumes."""

    generation: int
    worker_id: int
    seconds: float
    held: bool = False


@dataclass(frozen=True)
class ReloadFinished:
    """A reload has ended.

    After ``FAILED`` and ``ROLLED_BACK`` the old code serves, under the old policy; in slots that were new already it
    comes back. Each ``ReloadStarted`` is followed by one of these, unless the master stops. Where there is no way back
    this can take long, with a ``Degraded`` for each worker that fails in between. ``slot`` is the one whose worker has
    failed, None if it was not a worker.
    """

    generation: int
    outcome: Outcome
    reason: str = ""
    traceback: str = field(default="", repr=False)
    slot: int | None = None


@dataclass(frozen=True)
class Degraded:
    """The fleet is not what it should be, and no reload is to blame.

    ``slot`` is the one whose worker has failed, None for a fork server; the next try is in ``next_try_s`` seconds.
    """

    reason: str
    traceback: str = field(default="", repr=False)
    slot: int | None = None
    next_try_s: float = 0.0


@dataclass(frozen=True)
class Halt:
    """Every worker is gone: end the master."""

    status: int
    reason: str = ""


Action = (
    StartGeneration
    | EndGeneration
    | LocateHang
    | TakeConfiguration
    | RestoreConfiguration
    | Spawn
    | Drain
    | Kill
    | ReloadStarted
    | CanaryReady
    | ReloadFinished
    | Degraded
    | Halt
)
