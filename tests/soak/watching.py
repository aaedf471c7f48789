"""The clients of a soak, and what may have become of them.

Rules: a failure counts unless a process was killed while that request was on its way; a WebSocket may end with 1012, or
with a kill. Nothing else is forgiven.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect

from tests.harness.clients import Address, Failure, Load

KILL_TAIL = 0.5
"""Seconds after a kill within which a client notices it."""

SERVICE_RESTART = 1012


@dataclass
class Sockets:
    """WebSockets that talk all the time and come back when they are closed."""

    address: Address
    clients: int
    restarts: int = 0
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._live, daemon=True) for _ in range(self.clients)]

    def __enter__(self) -> Sockets:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def _live(self) -> None:
        while not self._over.is_set():
            begun = time.monotonic()
            try:
                self._talk()
            except ConnectionClosed as error:
                code = error.rcvd.code if error.rcvd is not None else None
                if code == SERVICE_RESTART:
                    self.restarts += 1
                else:
                    self._note(begun, f"closed with {code}")
            except (OSError, WebSocketException, TimeoutError) as error:
                self._note(begun, repr(error))

    def _talk(self) -> None:
        url = "ws://%s:%s/websocket" % (self.address[0], self.address[1])
        with connect(url, open_timeout=30, close_timeout=10) as socket:
            number = 0
            while not self._over.wait(0.2):
                number += 1
                socket.send(str(number))
                answer = socket.recv(timeout=30)
                if answer != str(number):
                    self._note(time.monotonic(), f"{answer!r} for {number}")

    def _note(self, begun: float, how: str) -> None:
        now = time.monotonic()
        self.failures.append(Failure(now, now - begun, f"WebSocket: {how}", fresh=False))


class Watch:
    """All clients of a soak. ``kills`` are the moments at which a process was killed that may have had requests."""

    def __init__(self, address: Address, websockets: int) -> None:
        self.kills: list[float] = []
        self._loads = [
            Load(address, "new", clients=3, pause=0.03),
            Load(address, "kept", clients=3, think=0.2),
            Load(address, "slow", clients=1),
        ]
        self._sockets = Sockets(address, websockets)
        self.answers = 0

    def __enter__(self) -> Watch:
        for load in self._loads:
            load.__enter__()
        self._sockets.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sockets.__exit__(kind, error, trace)
        for load in self._loads:
            load.stop()

    def unexplained(self) -> list[Failure]:
        """End the load and return the failures that no kill explains."""
        self.__exit__(None, None, None)
        failures = list(self._sockets.failures)
        for load in self._loads:
            results = load.stop()
            self.answers += len(results.answers)
            failures += results.failures
        return [failure for failure in failures if not self._explained(failure)]

    def explained(self) -> int:
        """Return how many failures a kill explains."""
        failures = [*self._sockets.failures, *(f for load in self._loads for f in load.stop().failures)]
        return sum(self._explained(failure) for failure in failures)

    def restarts(self) -> int:
        """Return how many WebSockets were closed with 1012."""
        return self._sockets.restarts

    def _explained(self, failure: Failure) -> bool:
        if failure.how.startswith("WebSocket"):
            return any(0 <= failure.time - kill <= KILL_TAIL for kill in self.kills)
        return any(failure.time - KILL_TAIL <= kill <= failure.time + failure.latency for kill in self.kills)
