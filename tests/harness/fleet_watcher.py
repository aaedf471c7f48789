"""Watches a fleet while a test does other things: how few workers accepted, how many existed.

Rules:

* A sample reads the workers from the oldest to the newest. A worker that has stopped accepting when it is read
  was replaced before that by a younger one, and that one is read later: so a sample never shows fewer than
  there were.
* A sample during which the set of workers changed is thrown away; the next one comes a few milliseconds later.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

from tests.harness.server import Server

SAMPLE_INTERVAL_S = 0.004
"""Seconds between two samples."""


@dataclass
class Sample:
    """What one sample saw."""

    time: float
    accepting: int
    living: int
    fork_servers: int


@dataclass
class Seen:
    """All samples of a watcher, and the pids that it has met."""

    samples: list[Sample] = field(default_factory=list)
    workers: set[int] = field(default_factory=set)
    fork_servers: set[int] = field(default_factory=set)

    @property
    def fewest_accepting(self) -> int:
        return min(sample.accepting for sample in self.samples)

    @property
    def most_living(self) -> int:
        return max(sample.living for sample in self.samples)

    @property
    def most_fork_servers(self) -> int:
        return max(sample.fork_servers for sample in self.samples)


class FleetWatcher:
    """Samples the fleet of ``server`` all the time from entering to leaving the ``with`` block."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.seen = Seen()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._inodes: set[int] = set()
        self._descriptors: dict[int, int] = {}

    def __enter__(self) -> Seen:
        self._inodes = self.server.listeners()
        assert self._sample(), "no worker accepts when the watch begins"
        self._thread.start()
        return self.seen

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_INTERVAL_S):
            self._sample()

    def _sample(self) -> bool:
        moment = time.monotonic()
        workers, fork_servers = self.server.workers(), self.server.fork_servers()
        accepting = sum(self._accepts(pid) for pid in workers)
        if workers != self.server.workers():
            return False
        self.seen.workers.update(workers)
        self.seen.fork_servers.update(fork_servers)
        self.seen.samples.append(Sample(moment, accepting, len(workers), len(fork_servers)))
        return accepting > 0

    def _accepts(self, pid: int) -> bool:
        known = self._descriptors.get(pid)
        if known is not None:
            return self.server.still_accepts(pid, known, self._inodes)
        found = self.server.accepts(pid, self._inodes)
        if found is not None:
            self._descriptors[pid] = found
        return found is not None
