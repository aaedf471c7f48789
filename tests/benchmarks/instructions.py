"""Instructions that a worker executes for a request, over those of the stock class whose place it takes.

Rules:

* valgrind's callgrind counts them, and the system calls. Unlike seconds, they do not depend on what else the machine
  does; what the kernel does for a system call is not among them.
* Both sides get the same requests, the same parser and the same seed of Python's hashes. They are counted on
  connections that are open and have been used; for a class that keeps none, each request makes its own.
* An idle worker holds connections between two requests, and should do nothing for them.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.figures import Figure, Sample
from tests.benchmarks.rates import CONTESTS, Contest
from tests.benchmarks.servers import serve

GOAL = 1.02
"""The largest ratio of instructions for each request, ours over stock's."""

IDLE_GOAL = 500
"""The most instructions that a second costs for each idle connection: one look at it takes more."""

CONNECTIONS = 10
"""Connections that send their requests together."""

IDLE_CONNECTIONS = 300
IDLE_S = 8.0
SETTLE_S = 2.0
"""Seconds after the last request in which a server may still have something to do for it."""

# Neither knows the instructions of gunicorn_h1c (SSE 4.2): valgrind ends a process that executes them.
OPTIONS = ("--timeout", "120", "--keep-alive", "300", "--http-parser", "python")

VALGRIND = (
    *("valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", "--collect-systime=yes"),
    *("--trace-children=yes", "--callgrind-out-file=callgrind.%p"),
)

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: benchmark\r\nAccept: */*\r\n\r\n"


class Counter:
    """Counts what one process executes.

    :param directory: where callgrind writes.
    """

    def __init__(self, directory: Path, pid: int) -> None:
        self._directory, self._pid, self._parts = directory, pid, 0
        self._control("-i", "on")

    def take(self) -> tuple[int, int]:
        """Return the instructions and the system calls since the last call."""
        self._control("-d")
        self._parts += 1
        lines = (self._directory / f"callgrind.{self._pid}.{self._parts}").read_text(encoding="utf-8")
        totals = re.search(r"^totals: (\d+)(?: (\d+))?", lines, re.MULTILINE)
        if totals is None:
            raise RuntimeError(f"callgrind has written no totals for process {self._pid}")
        return int(totals[1]), int(totals[2] or 0)

    def _control(self, *words: str) -> None:
        subprocess.run(["callgrind_control", *words, str(self._pid)], check=True, capture_output=True, timeout=60)


class Clients:
    """Connections that send one request each, all of them at the same time, and read the answers.

    :param kept: whether the connections stay open.
    """

    def __init__(self, port: int, number: int, *, kept: bool) -> None:
        self._address, self._number, self._kept = ("127.0.0.1", port), number, kept
        self._open: list[socket.socket] = []

    def ask(self, times: int) -> int:
        """Send ``times`` requests on each connection, one after the other, and return how many were answered."""
        for _ in range(times):
            while len(self._open) < self._number:
                self._open.append(socket.create_connection(self._address, timeout=60))
            for client in self._open:
                client.sendall(HEAD)
            for client in self._open:
                _read_answer(client)
                if not self._kept:
                    client.close()  # at once: the stock class waits for that
            if not self._kept:
                self._open.clear()
        return times * self._number

    def close(self) -> None:
        """Close all connections."""
        while self._open:
            self._open.pop().close()


def _read_answer(client: socket.socket) -> None:
    data = b""
    while b"}" not in data:
        piece = client.recv(65536)
        if not piece:
            raise RuntimeError(f"the server has closed behind {data!r}")
        data += piece
    if not data.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the answer is {data!r}")


@dataclass(frozen=True)
class Cost:
    """What one server has cost."""

    instructions: float
    """For each request, without what the worker executes anyway in that time: valgrind makes time long."""
    calls: float
    """System calls for each request, counted in the same way."""
    second: float
    """Instructions for each second of a worker without connections."""
    idle: float
    """Instructions that such a second has more for each idle connection."""


def costs(path: str, contest: Contest, requests: int) -> Cost:
    """Count for one server."""
    with (
        serve(path, 1, "", *contest.options, *OPTIONS, kind=contest.kind, under=VALGRIND) as server,
        contextlib.ExitStack() as stack,
    ):
        kept = contest.stock != "sync"
        counter = Counter(server.directory, server.get()[1])
        without = _idle(counter)
        clients = Clients(server.port, CONNECTIONS, kept=kept)
        stack.callback(clients.close)
        clients.ask(20)
        counter.take()
        began = time.monotonic()
        number = clients.ask(requests // CONNECTIONS)
        busy_s = time.monotonic() - began
        instructions, calls = counter.take()
        many = Clients(server.port, IDLE_CONNECTIONS if kept else 0, kept=True)
        stack.callback(many.close)
        many.ask(1)
        idle = _idle(counter)
    return Cost(
        instructions=(instructions - without[0] * busy_s) / number,
        calls=(calls - without[1] * busy_s) / number,
        second=without[0],
        idle=(idle[0] - without[0]) / IDLE_CONNECTIONS,
    )


def _idle(counter: Counter) -> tuple[float, float]:
    """Return the instructions and system calls of a second without requests."""
    time.sleep(SETTLE_S)
    counter.take()
    time.sleep(IDLE_S)
    instructions, calls = counter.take()
    return instructions / IDLE_S, calls / IDLE_S


def compare(contest: Contest, quick: bool) -> Figure:
    """Count for both sides of a contest, in turns."""
    sides: dict[str, list[Cost]] = {contest.stock: [], f"zdworker.{contest.name}": []}
    for _ in range(1 if quick else 3):
        for path, found in sides.items():
            found.append(costs(path, contest, 500 if quick else 2000))
    stock, ours = sides.values()
    ratio = Sample([our.instructions / its.instructions for our, its in zip(ours, stock, strict=True)])

    def row(what: str, digits: int) -> str:
        medians = [Sample([getattr(one, what) for one in side]).median for side in (stock, ours)]
        return " → ".join(f"{median:,.{digits}f}" for median in medians)

    kind = "request on a keep-alive connection" if contest.stock != "sync" else "request and connection"
    parts = {
        f"instructions, `{contest.stock}` → `{contest.name}`": row("instructions", 0),
        "system calls": row("calls", 2),
        "instructions per second without connections": row("second", 0),
        "instructions per second for each idle connection": row("idle", 0),
    }
    good = ratio.median <= GOAL and Sample([our.idle for our in ours]).median <= IDLE_GOAL
    name = f"`{contest.name}`: instructions per {kind}, over stock's"
    return Figure(name, f"at most {GOAL}", ratio.text(3), good, parts)


def _comparison(contest: Contest) -> Callable[[bool], Figure]:
    return lambda quick: compare(contest, quick)


INSTRUCTIONS = {f"{contest.name}-instructions": _comparison(contest) for contest in CONTESTS}
