"""Many kinds of connection before one drain: each a test of its own, all of them with one server.

Rules:

* A kind is a generator over a server: up to its ``yield`` it brings its connections into the state that its name says;
  then the drain begins; what follows says what the client sees.
* What comes before is done for one kind after the other, what comes after for all at the same time, each in a thread of
  its own: nobody waits for a neighbour.
* A kind's test tells what became of that kind alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from tests.harness.clients import Client
from tests.harness.processes import alive, wait_for
from tests.harness.server import Server
from tests.harness.worker_classes import WorkerClass

Steps = Generator[None, None, None]
END = "the end"
"""What the outcome of the drain itself is called."""


@dataclass
class Stage:
    """What a kind needs to know.

    :param count: connections of each kind.
    :param hands_over: the old workers give their connections to the new ones.
    :ivar begun: when the drain had begun.
    """

    server: Server
    worker: WorkerClass
    count: int
    hands_over: bool = False
    begun: float = 0.0

    @property
    def keeps(self) -> bool:
        """Whether a connection is kept after its answer in the drain."""
        return self.hands_over and self.worker.hands_over

    def opened(self, *, tls: bool = False) -> list[Client]:
        """Return connections that a worker has accepted: the kernel's queue is empty."""
        made = [Client(self.server.address, tls=tls) for _ in range(self.count)]
        self.server.wait_taken()
        return made

    def half_sent(self, sent: bytes, *, tls: bool = False) -> list[Client]:
        """Return connections on which a worker has read ``sent``."""
        clients = self.opened(tls=tls)
        for client in clients:
            client.send(sent)
        self.server.wait_read(*clients)
        return clients

    def in_flight(self, path: str, sent: bytes) -> list[Client]:
        """Return connections whose request for ``path``, which begins with ``sent``, the application has."""

        def begun() -> int:
            return sum(mark["path"] == path for mark in self.server.site.marks("request"))

        before = begun()
        clients = self.opened()
        for client in clients:
            client.send(sent)
        wait_for(lambda: begun() == before + len(clients), 15, "the application has the requests")
        return clients


Kind = Callable[[Stage], Steps]


@dataclass
class Outcomes:
    """What became of each kind; None: all was well. ``seconds``: what the drain took, at
    most (it was asked for that long ago) and at least (it had begun for certain).
    """

    worker: WorkerClass
    errors: dict[str, BaseException | None] = field(default_factory=dict)
    report: str = ""
    seconds: tuple[float, float] = (0.0, 0.0)

    def record(self, name: str, check: Callable[[], object]) -> None:
        """Note what ``check`` raises as what became of ``name``."""
        try:
            check()
            self.errors[name] = None
        except Exception as error:  # noqa: BLE001  # it is the outcome
            self.errors[name] = error

    def check(self, name: str) -> None:
        """Raise what ``name`` raised."""
        if name not in self.errors:
            pytest.skip(f"{self.worker} cannot")
        error = self.errors[name]
        if error is not None:
            print(self.report)
            raise error


class Scenario:
    """The kinds of one module."""

    def __init__(self) -> None:
        self.kinds: dict[str, tuple[Kind, Callable[[WorkerClass], bool]]] = {}

    def kind(self, only: Callable[[WorkerClass], bool] = lambda worker: True) -> Callable[[Kind], Callable[..., None]]:
        """Register a kind, for the classes that ``only`` allows; what gets its name is its test."""

        def register(kind: Kind) -> Callable[..., None]:
            name = str(getattr(kind, "__name__", ""))
            self.kinds[name] = kind, only

            def test(drained: Outcomes) -> None:
                drained.check(name)

            test.__name__, test.__doc__, test.__module__ = name, kind.__doc__, kind.__module__
            return test

        return register

    def of(self, worker: WorkerClass) -> dict[str, Kind]:
        """Return the kinds that ``worker`` knows."""
        return {name: kind for name, (kind, only) in self.kinds.items() if only(worker)}

    def play(self, stage: Stage, drain: float) -> Outcomes:
        """Play all kinds, with a reload to "two" between their two parts; no old worker is left after ``drain`` s."""
        outcomes = Outcomes(stage.worker)
        under_way: dict[str, Steps] = {}
        with stage.server.reload_at_the_end("two") as old:
            for name, kind in self.of(stage.worker).items():
                steps = kind(stage)
                try:
                    next(steps)
                    under_way[name] = steps
                except Exception as error:  # noqa: BLE001  # it is the outcome of that kind
                    outcomes.errors[name] = error
            told = time.monotonic()
        stage.begun = time.monotonic()

        def over() -> None:
            wait_for(lambda: not any(alive(pid) for pid in old), drain, "nothing holds the old workers any more")
            ended = time.monotonic()
            outcomes.seconds = ended - told, ended - stage.begun

        with ThreadPoolExecutor(len(under_way) + 1) as pool:
            ends = {name: pool.submit(list, steps) for name, steps in under_way.items()}
            ended = pool.submit(over)
        outcomes.errors.update({name: end.exception() for name, end in ends.items()})
        outcomes.record(END, ended.result)
        if outcomes.errors[END] is None:
            outcomes.record(END, lambda: stage.server.wait_only("two"))
        outcomes.report = stage.server.report() if any(outcomes.errors.values()) else ""
        return outcomes
