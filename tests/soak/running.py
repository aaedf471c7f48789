"""One soak: operations drawn from a seed, checks after each, figures at the end.

Rules: a check is a fact that must hold whenever nothing goes on. What only shows after hours (descriptors, threads,
memory of the master) is compared with what it was once everything had happened a few times.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

from tests.harness import processes
from tests.harness.application_site import Site
from tests.harness.server import Server
from tests.harness.worker_classes import ALL
from tests.soak.operations import OPERATIONS, Fleet
from tests.soak.watching import Watch

DESCRIPTORS_PER_WORKER = 4
"""Of the master: heartbeat and report channel, and the two ends of its slot's queue."""

WEBSOCKETS = 4
"""Of the clients, where the class knows WebSockets."""

WARM = 40
"""Operations after which the master's memory is what it is."""

GROWTH = 8 << 20
"""Bytes by which the master may be larger at the end than it was then: its log of versions, malloc's fragments."""


@dataclass
class Figures:
    """What a soak has shown."""

    seed: int
    worker: str
    preload: bool
    operations: int = 0
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    answers: int = 0
    explained: int = 0
    restarts: int = 0
    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    """Of the master at the first two checks; in one of them a thread that writes the history may be counted."""


class Soak:
    """A soak.

    :param seed: decides everything that happens.
    :param limit: operations to do at most; ``seconds``: and how long at most.
    """

    def __init__(self, seed: int, limit: int, seconds: float) -> None:
        self.chance = random.Random(seed)
        self.limit = limit
        self.seconds = seconds
        self.preload = self.chance.random() < 0.7
        self.worker = self.chance.choice(ALL)
        self.figures = Figures(seed, self.worker.name, self.preload)

    def run(self) -> Figures:
        """Do it.

        :raises AssertionError: something was not as it has to be; what was done is printed.
        """
        site = Site()
        site.deploy("v0")
        options: dict[str, Any] = {
            **self.worker.settings,
            "worker_class": self.worker.path,
            "workers": 3,
            "preload_app": self.preload,
            "graceful_timeout": 10,
            "errorlog": str(site.directory / "error.log"),
            "zd_control_socket": str(site.directory / "control.sock"),
            "zd_websocket_drain": 0.5,
            "zd_boot_timeout": 5,
        }
        kind = "preloaded" if self.preload else "not preloaded"
        print(f"seed {self.figures.seed}: {self.worker}, {kind}", flush=True)
        try:
            with Server(site, **options) as server:
                self._run_on(server.start())
        finally:
            site.remove()
        return self.figures

    def _run_on(self, server: Server) -> None:
        fleet = Fleet(server, self.chance, self.preload)
        fleet.settle()
        begun = time.monotonic()
        try:
            with Watch(server.address, WEBSOCKETS if self.worker.websockets else 0) as watch:
                watch.kills = fleet.kills
                while self.figures.operations < self.limit and time.monotonic() - begun < self.seconds:
                    self._step(fleet)
                self._finish(watch, time.monotonic() - begun)
            assert server.stop() == 0
        except BaseException:
            print(server.report())
            print((server.site.directory / "error.log").read_text()[-20000:])
            raise

    def _step(self, fleet: Fleet) -> None:
        (operation,) = self.chance.choices(list(OPERATIONS), list(OPERATIONS.values()))
        self.figures.operations += 1
        begun = time.monotonic()
        print(f"{self.figures.operations:4} {begun:.2f} {operation.__name__}", end=" ", flush=True)
        print(operation(fleet), f"({time.monotonic() - begun:.1f} s)", flush=True)
        self.figures.counts[operation.__name__] = self.figures.counts.get(operation.__name__, 0) + 1
        self._check(fleet)

    def _check(self, fleet: Fleet) -> None:
        server = fleet.server
        status = fleet.status()
        pids = {worker["pid"] for worker in status["workers"]} | {s["pid"] for s in status["fork_servers"]}
        processes.wait_for(lambda: not server.zombies(), 5, "no zombie is left")
        processes.wait_for(
            lambda: set(server.left()) == {server.master, *pids}, 5, f"no orphan is left: {server.left()}, {pids}"
        )
        assert {server.get()["version"] for _ in range(3)} == {fleet.serving}
        assert set(server.versions().values()) == {fleet.serving}
        self.figures.memory.append(processes.memory(server.master))
        self._check_descriptors(fleet)
        self._check_threads(fleet)

    def _check_descriptors(self, fleet: Fleet) -> None:
        def held() -> int:
            return len(processes.descriptors(fleet.server.master)) - DESCRIPTORS_PER_WORKER * fleet.size

        # The connection of who asked for the status may still be open, or the pipe of a generation that has just ended.
        least = min([held(), *self.figures.descriptors])
        processes.wait_for(
            lambda: held() <= least, 5, f"the master has {least} descriptors beside those of its workers"
        )
        self.figures.descriptors.append(held())

    def _check_threads(self, fleet: Fleet) -> None:
        def threads() -> int:
            return processes.threads(fleet.server.master)

        # One that writes the history comes and goes. The others neither come nor go.
        counted = self.figures.threads
        if len(counted) < 2:
            counted.append(threads())
        else:
            processes.wait_for(lambda: threads() == min(counted), 5, f"the master has {min(counted)} threads")

    def _finish(self, watch: Watch, seconds: float) -> None:
        figures = self.figures
        unexplained = watch.unexplained()
        figures.seconds, figures.answers, figures.restarts = seconds, watch.answers, watch.restarts()
        figures.explained = watch.explained()
        assert unexplained == [], unexplained
        late = figures.memory[WARM:]
        assert not late or late[-1] - late[0] <= GROWTH, f"memory of the master: {late}"
