"""What has happened so far, and how things are: what ``status`` shows.

Rules: nothing is decided here, and nothing here is needed to serve. The keys are fixed, users' scripts rely on them;
what one cannot know (the memory of a process that has just ended) is None.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from zdworker import syscalls
from zdworker.core.fleet import Fleet, WorkerState

if TYPE_CHECKING:
    from zdworker.master.children import WorkerRecord
    from zdworker.settings import Settings

STATES = {
    WorkerState.FORKING: "booting",
    WorkerState.BOOTING: "booting",
    WorkerState.READY: "ready",
    WorkerState.DRAINING: "draining",
    WorkerState.DYING: "draining",
}
"""The worker's states as users know them."""


@dataclass
class Reload:
    """One reload, or rollback; ``result`` is None while it goes on."""

    generation: int
    started_at: float
    began: float
    duration: float | None = None
    result: str | None = None
    error: str | None = None
    traceback: str | None = None

    def lasted(self) -> float:
        """Return the seconds that it took, or takes so far."""
        return round(time.monotonic() - self.began if self.duration is None else self.duration, 3)

    def to_plain(self) -> dict[str, Any]:
        """Return it as ``status`` shows it."""
        return {
            "result": self.result,
            "generation": self.generation,
            "started_at": datetime.fromtimestamp(self.started_at, timezone.utc).isoformat(timespec="milliseconds"),
            "duration_s": self.lasted(),
            "error": self.error,
            "traceback": self.traceback,
        }


class Journal:
    """The master's memory of its reloads, and of its workers' births and deaths. What it counts only grows."""

    def __init__(self) -> None:
        self.reloads = 0
        self.crashes = 0
        self.boots = 0
        self.boot_seconds = 0.0
        self.ended = {"done": 0, "failed": 0, "superseded": 0}
        self.reload_seconds = 0.0
        self.last: Reload | None = None
        self._going: dict[int, Reload] = {}

    def reload_started(self, generation: int) -> None:
        """Note that a reload has begun."""
        self.reloads += 1
        self.last = self._going[generation] = Reload(generation, time.time(), time.monotonic())

    def reload_finished(self, generation: int, result: str, error: str, traceback: str) -> Reload:
        """Note how a reload has ended, and return it; one that a newer one has overtaken is not the last any more."""
        ended = self._going.pop(generation, None) or Reload(generation, time.time(), time.monotonic())
        ended.duration = time.monotonic() - ended.began
        ended.result, ended.error, ended.traceback = result, error or None, traceback or None
        self.ended[result] += 1
        self.reload_seconds += ended.duration
        return ended

    def booted(self, seconds: float) -> None:
        """Note that a worker has become ready, so many seconds after it was asked for."""
        self.boots += 1
        self.boot_seconds += seconds

    def totals(self) -> dict[str, int | float]:
        """Return what metrics need beside ``reloads`` and ``crashes``; seconds are those of all together."""
        return {
            "boots": self.boots,
            "boot_duration_s": round(self.boot_seconds, 3),
            **{f"reloads_{result}": number for result, number in self.ended.items()},
            "reload_duration_s": round(self.reload_seconds, 3),
        }

    def status(
        self,
        fleet: Fleet,
        records: dict[int, WorkerRecord],
        servers: dict[int, int],
        settings: Settings,
    ) -> dict[str, Any]:
        """Return how things are.

        :param records: the workers' records, by age.
        :param servers: the fork servers' pids, by generation.
        """
        loading = fleet.loading.generation if fleet.loading is not None else None
        return {
            "pid": os.getpid(),
            "state": fleet.state,
            "generation": serving(fleet),
            "target_generation": loading or fleet.reloading,
            "workers": [
                _worker(record, fleet)
                for record in sorted(records.values(), key=lambda r: (r.slot, r.worker_id))
                if record.worker_id in fleet.workers
            ],
            "fork_servers": [
                {"pid": pid, "generation": number, "preloaded": _is_preloaded(fleet, number)}
                for number, pid in sorted(servers.items())
            ],
            "last_reload": self.last.to_plain() if self.last is not None else None,
            "reloads": self.reloads,
            "crashes": self.crashes,
            "totals": self.totals(),
            "settings": {f"zd_{name}": value for name, value in settings.to_plain().items()},
        }


def serving(fleet: Fleet) -> int | None:
    """Return the newest generation that has proved itself, or the first one while there is no other."""
    known = fleet.current if fleet.newest_verified or not fleet.fallback else fleet.fallback
    return known[-1] if known else None


def _worker(record: WorkerRecord, fleet: Fleet) -> dict[str, Any]:
    return {
        "pid": record.pid if record.born else None,
        "slot": record.slot,
        "generation": record.generation,
        "state": STATES[fleet.workers[record.worker_id].state],
        "age_s": round(time.monotonic() - record.since, 3),
        "rss_bytes": syscalls.resident_memory(record.pid) if record.born else None,
        "connections": record.connections,
        "requests": record.requests,
    }


def _is_preloaded(fleet: Fleet, number: int) -> bool:
    return number in fleet.generations and fleet.generations[number].preloaded
