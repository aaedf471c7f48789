"""What has happened so far, and how things are: what ``status`` shows.

Rules: nothing is decided here, and nothing here is needed to serve. The keys are fixed, because users' scripts rely on
them. What cannot be known (the memory of a process that has just ended) is None.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from zdworker import syscalls, texts
from zdworker.core.events import Outcome
from zdworker.core.fleet import Fleet, WorkerState
from zdworker.ipc.messages import Drained, Place, Upgraded
from zdworker.master.answers import AnswerBook
from zdworker.master.children import ForkServer, WorkerRecord
from zdworker.master.observers import Crash, Observer, Reload, utc
from zdworker.master.reconfiguration import Site
from zdworker.plain import attributes, set_attributes
from zdworker.settings import Settings
from zdworker.versions import versions

STATES = {
    WorkerState.FORKING: "booting",
    WorkerState.BOOTING: "booting",
    WorkerState.READY: "ready",
    WorkerState.DRAINING: "draining",
    WorkerState.DYING: "draining",
}
"""The worker's states as users know them."""


class Journal(Observer):
    """The master's memory of its reloads, boots and crashes, from its start on. Its counts only grow.

    :param book: what each generation has answered.
    """

    def __init__(self, book: AnswerBook) -> None:
        self._book = book
        self.started_at = time.time()
        self.began = time.monotonic()
        self.reloads = 0
        self.crashes = 0
        self.boots = 0
        self.boot_seconds = 0.0
        self.ended = dict.fromkeys(Outcome, 0)
        self.reload_seconds = 0.0
        self.drained = Drained()
        self.last: Reload | None = None
        self._places: dict[int, dict[str, dict[str, str]]] = {}
        self._labels: dict[int, str] = {}
        self._versions: dict[int, dict[str, str]] = {}
        self.upgrades = 0

    def to_state(self) -> dict[str, Any]:
        """Return all that is remembered, for :meth:`adopt` in another program of this process (an upgrade)."""
        return attributes(self, but=("_book",))

    def adopt(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`to_state` has returned."""
        set_attributes(self, state)

    def generation_loaded(
        self, generation: int, places: dict[str, dict[str, str]], label: str, versions: dict[str, str] | None = None
    ) -> None:
        """Remember the places that a generation comes from, its version, and those of what it runs."""
        self._places[generation] = places
        self._labels[generation] = label
        self._versions[generation] = versions or {}

    def label_of(self, generation: int) -> str | None:
        """Return the version of a generation's application, None if nothing tells."""
        return self._labels.get(generation) or None

    def observe(self, fleet: Fleet, now: float) -> None:
        """Drop what belongs to generations that are gone."""
        for number in self._places.keys() - fleet.generations.keys():
            del self._places[number], self._labels[number]
            self._versions.pop(number, None)

    def reload_started(self, reload: Reload) -> None:
        """Count a reload; it is the last one from now on."""
        self.reloads += 1
        self.last = reload

    def reload_finished(self, reload: Reload, fleet: Fleet) -> None:
        """Count how a reload has ended, and how long it took."""
        if reload.result is not None:
            self.ended[reload.result] += 1
        self.reload_seconds += reload.duration or 0.0

    def worker_ready(self, boot_s: float) -> None:
        """Count a worker that became ready."""
        self.boots += 1
        self.boot_seconds += boot_s

    def upgrade_ended(self, upgrade: Upgraded) -> None:
        """Count an upgrade that was done."""
        self.upgrades += upgrade.result == "done"

    def worker_crashed(self, crash: Crash) -> None:
        """Count a worker that died while it was ready."""
        self.crashes += 1

    def worker_drained(self, drained: Drained) -> None:
        """Count what a drain has cost, also for the reload under way."""
        self.drained = self.drained.plus(drained)
        if self.last is not None and self.last.result is None:
            self.last.cost = self.last.cost.plus(drained)

    def totals(self) -> dict[str, int | float]:
        """Return what metrics need beside ``reloads`` and ``crashes``; seconds are those of all together."""
        return {
            "boots": self.boots,
            "boot_duration_s": round(self.boot_seconds, 3),
            **{f"reloads_{result.value}": number for result, number in self.ended.items()},
            "reload_duration_s": round(self.reload_seconds, 3),
            **self.drained.counts(),
        }

    def status(
        self,
        fleet: Fleet,
        workers: Mapping[int, WorkerRecord],
        servers: Mapping[int, ForkServer],
        settings: Settings,
        site: Site,
    ) -> dict[str, Any]:
        """Return how things are.

        :param workers: the workers' records, by worker id.
        :param servers: the fork servers, by generation.
        :param site: which site this is.
        """
        loading = fleet.loading.generation if fleet.loading is not None else None
        return {
            "pid": os.getpid(),
            "directory": site.directory,
            "application": site.application,
            "bind": site.bind,
            "started_at": utc(self.started_at),
            "age_s": round(time.monotonic() - self.began, 3),
            "state": fleet.state,
            "reason": fleet.trouble.reason if fleet.trouble is not None else None,
            "generation": serving_generation(fleet),
            "label": self.label_of(serving_generation(fleet) or 0),
            "target_generation": loading or fleet.reloading,
            "workers_wanted": fleet.wanted_size,
            "canary": _canary(fleet, workers, time.monotonic()),
            "retries": _retries(fleet, time.monotonic()),
            "workers": [
                _worker(record, fleet)
                for record in sorted(workers.values(), key=lambda r: (r.slot, r.worker_id))
                if record.worker_id in fleet.workers
            ],
            "fork_servers": [_fork_server(number, server, fleet) for number, server in sorted(servers.items())],
            "generations": [self._generation(number) for number in sorted(fleet.generations)],
            "last_reload": self.last.to_plain() if self.last is not None else None,
            "reloads": self.reloads,
            "crashes": self.crashes,
            "upgrades": self.upgrades,
            "versions": versions(),
            "totals": self.totals(),
            "settings": _settings(settings),
        }

    def _generation(self, number: int) -> dict[str, Any]:
        answers = self._book.of_generation.get(number)
        return {
            **_origin(number, self._places.get(number, {}), self._labels.get(number, "")),
            "answers": answers.to_plain() if answers is not None else None,
            "versions": self._versions.get(number) or None,
        }


def serving_generation(fleet: Fleet) -> int | None:
    """Return the newest verified generation, or the first one while there is no other."""
    known = fleet.current if fleet.newest_verified or not fleet.fallback else fleet.fallback
    return known[-1] if known else None


def rolled_out(fleet: Fleet) -> tuple[int, int]:
    """Return the generation that is to serve, or does, and how many of its workers are ready."""
    loading = fleet.loading.generation if fleet.loading is not None else None
    generation = loading or fleet.reloading or (fleet.current[-1] if fleet.current else 0)
    ready = sum(w.generation == generation and w.state is WorkerState.READY for w in fleet.workers.values())
    return generation, ready


def waiting(fleet: Fleet, workers: Mapping[int, WorkerRecord], now: float) -> tuple[str, int] | None:
    """Return for which worker a reload waits, and what that still has to do, as a line for users; with the seconds that
    it has left for that. That is the canary while there is one. None if the reload waits for none.
    """
    draining = [w for w in fleet.workers.values() if w.state is WorkerState.DRAINING and w.worker_id in workers]
    busy = [w for w in draining if workers[w.worker_id].in_flight or workers[w.worker_id].websockets]
    if fleet.ending:
        return None
    canary = _canary(fleet, workers, now)
    if canary is not None:
        held = ", until it is resumed" if canary["held"] else ""
        return f"the canary (worker {canary['pid']}) serves beside all old workers{held}", canary["left_s"]
    if not busy:
        return None
    first = min(busy, key=lambda worker: worker.slot)
    record = workers[first.worker_id]
    work = ((record.in_flight, "request"), (record.websockets, "WebSocket"))
    what = ", ".join(texts.counted(number, noun) for number, noun in work if number)
    more = f" (and for {texts.counted(len(busy) - 1, 'more worker')})" if len(busy) > 1 else ""
    left_s = max(0, round((first.deadline or now) - now))
    return f"waiting for worker {record.pid} (slot {first.slot}): {what}{more}", left_s


def _canary(fleet: Fleet, workers: Mapping[int, WorkerRecord], now: float) -> dict[str, Any] | None:
    """Return the canary that serves beside all old workers, and for how long it will; None if there is none."""
    for worker in fleet.workers.values():
        if fleet.is_canary(worker) and worker.state is WorkerState.READY and worker.worker_id in workers:
            return {
                "generation": worker.generation,
                "pid": workers[worker.worker_id].pid,
                "slot": worker.slot,
                "held": fleet.held,
                "left_s": max(0, round((worker.deadline or now) - now)),
            }
    return None


def _worker(record: WorkerRecord, fleet: Fleet) -> dict[str, Any]:
    return {
        "pid": record.pid if record.has_pid else None,
        "slot": record.slot,
        "generation": record.generation,
        "state": STATES[fleet.workers[record.worker_id].state],
        "age_s": round(time.monotonic() - record.ordered_at, 3),
        "rss_bytes": syscalls.resident_memory(record.pid) if record.has_pid else None,
        "connections": record.connections,
        "requests": record.requests,
    }


def _retries(fleet: Fleet, now: float) -> list[dict[str, Any]]:
    """Return the slots that lack a worker because one has failed, and how long each waits before the next attempt."""
    served = {worker.slot for worker in fleet.workers.values() if not worker.leaving}
    lacking = ((number, slot) for number, slot in sorted(fleet.slots.items()) if number < fleet.size)
    return [
        {"slot": number, "failures": slot.failures, "next_try_in_s": round(max(0.0, slot.retry_at - now), 3)}
        for number, slot in lacking
        if number not in served and slot.failures
    ]


def _origin(number: int, places: dict[str, dict[str, str]], label: str) -> dict[str, Any]:
    def only(kind: str) -> str | None:
        return next(iter(places.get(kind, {}).values()), None)

    return {
        "generation": number,
        "label": label or None,
        "directory": only(Place.DIRECTORY),
        "interpreter": only(Place.INTERPRETER),
        "path": list(places[Place.PATH].values()) if Place.PATH in places else None,
        "application": only(Place.APPLICATION),
    }


def _fork_server(number: int, server: ForkServer, fleet: Fleet) -> dict[str, Any]:
    return {
        "pid": server.pid,
        "generation": number,
        "preloaded": _is_preloaded(fleet, number),
        "not_preloaded": server.not_preloaded or None,
    }


def _settings(settings: Settings) -> dict[str, Any]:
    # One form for all that are not set, whatever their kind.
    return {f"zd_{name}": None if value in ("", ()) else value for name, value in settings.to_plain().items()}


def _is_preloaded(fleet: Fleet, number: int) -> bool:
    return number in fleet.generations and fleet.generations[number].preloaded
