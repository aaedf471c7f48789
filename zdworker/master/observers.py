"""What learns of the fleet without deciding anything: systemd, the control socket, statsd, status, the listeners.

Rules: :class:`Observers` is the one guarded place. What an observer raises is logged, and neither ends the master nor
keeps the others from being notified. An observer never waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, Concatenate, ParamSpec

from zdworker.core.events import Outcome
from zdworker.core.fleet import Fleet
from zdworker.core.history import Kind, Requester
from zdworker.ipc.messages import Answers, Drained, Upgraded
from zdworker.settings import Settings


@dataclass
class Reload:
    """One reload, or rollback; ``result`` is None while it is under way.

    ``started_at`` is in seconds since the epoch, ``began`` by ``time.monotonic()``, ``duration`` in seconds.
    ``cost`` is that of the drains in its time, ``label`` the version of its application, "" if nothing tells. ``kind``
    says whether it goes back to an older generation, ``judgement`` what was found of the new code's answers, ``note``
    what is left to do, both "" if there is nothing.
    """

    generation: int
    started_at: float
    began: float
    duration: float | None = None
    result: Outcome | None = None
    error: str | None = None
    traceback: str | None = None
    cost: Drained = field(default_factory=Drained)
    label: str = ""
    kind: Kind = Kind.RELOAD
    judgement: str = ""
    note: str = ""

    @classmethod
    def begin(cls, generation: int, kind: Kind = Kind.RELOAD) -> Reload:
        """Return a reload to ``generation`` that begins now."""
        return cls(generation, time.time(), time.monotonic(), kind=kind)

    @property
    def rollback(self) -> bool:
        """Whether it goes back to an older generation."""
        return self.kind is Kind.ROLLBACK

    def duration_s(self) -> float:
        """Return the seconds that it took, or takes so far, rounded to milliseconds."""
        return round(time.monotonic() - self.began if self.duration is None else self.duration, 3)

    def to_plain(self) -> dict[str, Any]:
        """Return it as ``status`` shows it."""
        return {
            "result": self.result.value if self.result is not None else None,
            "generation": self.generation,
            "started_at": utc(self.started_at),
            "duration_s": self.duration_s(),
            "error": self.error,
            "traceback": self.traceback,
            **asdict(self.cost),
            "label": self.label or None,
            "rollback": self.rollback,
            "judgement": self.judgement or None,
        }


@dataclass(frozen=True)
class Crash:
    """The death of a worker that was ready; ``how`` says how it died, for a reader."""

    generation: int
    slot: int
    pid: int
    how: str


def utc(seconds: float) -> str:
    """Return a moment in seconds since the epoch as ``status`` shows it (UTC, ISO 8601)."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


Arguments = ParamSpec("Arguments")


class Observer:
    """The notifications; an observer overrides those that it has a use for."""

    def reload_requested(self, kind: Kind, who: Requester) -> None:
        """Handle that a user asks for a reload or a rollback, possibly while another one is under way."""

    def reload_started(self, reload: Reload) -> None:
        """Handle the start of a reload or rollback."""

    def canary_ready(self, generation: int, held: bool, fleet: Fleet) -> None:
        """Handle that the first worker of a generation serves beside all old ones; ``held``: until a user resumes."""

    def reload_finished(self, reload: Reload, fleet: Fleet) -> None:
        """Handle the end of a reload or rollback."""

    def degraded(self, reason: str, traceback: str, fleet: Fleet) -> None:
        """Handle that something is wrong for which no new code is to blame."""

    def upgrade_started(self, who: Requester, fleet: Fleet) -> None:
        """Handle that the master's program is about to be replaced; ``who`` has asked for it."""

    def upgrade_ended(self, upgrade: Upgraded) -> None:
        """Handle that it was replaced, in the new program, or that the one before goes on."""

    def configuration_changed(self, settings: Settings) -> None:
        """Handle that another configuration is in force, a new one or one that was restored."""

    def configuration_taken(self) -> None:
        """Handle that a reload or a rollback has taken its configuration over."""

    def generation_loaded(
        self, generation: int, places: dict[str, dict[str, str]], label: str, versions: dict[str, str] | None = None
    ) -> None:
        """Handle that a generation is loaded, from these places (``messages.Place``), with this version of its
        application; ``versions`` are those of what it runs.
        """

    def worker_forked(self) -> None:
        """Handle that a worker boots."""

    def worker_ready(self, boot_s: float) -> None:
        """Handle that a worker accepts connections, ``boot_s`` seconds after its order."""

    def worker_drained(self, drained: Drained) -> None:
        """Handle that a worker's drain is over, and what it has cost."""

    def worker_answered(self, worker_id: int, generation: int, answers: Answers) -> None:
        """Handle what a worker has answered since it began to count."""

    def worker_crashed(self, crash: Crash) -> None:
        """Handle that a worker died while it was ready."""

    def observe(self, fleet: Fleet, now: float) -> None:
        """Look at the facts, after every event; ``now`` is monotonic seconds."""


class Observers:
    """All observers, notified in their order; of each notification only those learn that override its method.

    :param log: the master's logger.
    """

    def __init__(self, log: Any, members: Sequence[Observer]) -> None:
        self._log = log
        self._handlers: dict[str, list[Callable[..., None]]] = {
            name: [getattr(member, name) for member in members if getattr(type(member), name) is not stock]
            for name, stock in vars(Observer).items()
            if callable(stock)
        }

    def notify(
        self,
        notification: Callable[Concatenate[Any, Arguments], None],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> None:
        """Call a method of :class:`Observer` on each observer that overrides it; what one raises is logged."""
        for handler in self._handlers[notification.__name__]:
            try:
                handler(*args, **kwargs)
            except BaseException:  # noqa: BLE001  # an exit, too: no observer is worth the site
                self._log.exception("zdworker: %s failed; everything else goes on", handler.__qualname__)
