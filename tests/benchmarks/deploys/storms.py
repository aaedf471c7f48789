"""A thousand connections that never rest, and a deploy in the middle: ``ab`` and ``wrk``.

Rules:

* The machine has nothing left meanwhile: how long requests wait says more of the machine than of the server. What
  counts is who fails, and how many are answered.
* While the tool runs nothing else is asked; that a deploy is over is seen in ``/proc``.
* ``ab`` makes a connection for each request, ``wrk`` keeps them where the server does.
"""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass

from tests.benchmarks.deploys.contenders import Contender, found
from tests.benchmarks.deploys.figures import Storm
from tests.benchmarks.deploys.servers import Lost, Server, alive, serve

CONNECTIONS = 1000
AHEAD = 2.0
"""Seconds that a tool runs before the signal."""


@dataclass(frozen=True)
class Tool:
    """How a tool is called, and what it says.

    :param rate, answered: with one group each.
    :param failures: patterns with one group, a number, by the kind of failure.
    """

    words: tuple[str, ...]
    rate: str
    answered: str
    failures: dict[str, str]


TOOLS = {
    # -l: the pid in the answer need not have the same length always. -r: what fails is counted, and the rest goes on.
    "ab": Tool(
        ("ab", "-q", "-l", "-r", "-c", str(CONNECTIONS), "-s", "60", "-n"),
        r"Requests per second:\s+([\d.]+)",
        r"Complete requests:\s+(\d+)",
        {
            "connect": r"\(Connect: (\d+)",
            "receive": r"Receive: (\d+)",
            "exception": r"Exceptions: (\d+)",
            "write": r"Write errors:\s+(\d+)",
            "not 2xx": r"Non-2xx responses:\s+(\d+)",
        },
    ),
    "wrk": Tool(
        ("wrk", "-t", "1", "-c", str(CONNECTIONS), "--timeout", "20", "-d"),
        r"Requests/sec:\s+([\d.]+)",
        r"(\d+) requests in",
        {
            "connect": r"Socket errors: connect (\d+)",
            "read": r"Socket errors:.* read (\d+)",
            "write": r"Socket errors:.* write (\d+)",
            "timeout": r"Socket errors:.* timeout (\d+)",
            "not 2xx": r"Non-2xx or 3xx responses: (\d+)",
        },
    ),
}


def storm(contender: Contender, name: str, size: int, workers: int, patience: float) -> Storm:
    """Deploy code whose import is a second of work while the tool runs.

    :param size: requests of ``ab``, seconds of ``wrk``; ``wrk`` also runs half as long without a deploy.
    :raises Lost: the tool is not there, or says nothing that can be read.
    """
    tool = TOOLS[name]
    if not found(name):
        raise Lost(f"{name} is not installed")
    with serve(contender, workers, "import") as server:
        old = server.pids("1")
        steady = read(tool, *_run(tool, server, size // 2)).rate if name == "wrk" else None
        process = _start(tool, server, size)
        try:
            time.sleep(AHEAD)
            seconds, lost = _deploy(server, old, process, patience)
            said, errors = process.communicate(timeout=600)
        finally:
            process.kill()
            process.wait()
        seen = read(tool, said, errors)
        if not lost:
            lost = _arrived(server, old, patience)
    return Storm(seen.answered, seen.rate, steady, seen.failures, seconds, lost)


@dataclass(frozen=True)
class Seen:
    """What a tool says of its run."""

    answered: int
    rate: float
    failures: dict[str, int]


def _start(tool: Tool, server: Server, size: int) -> subprocess.Popen[str]:
    words = [*tool.words, str(size), f"http://127.0.0.1:{server.port}/"]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _run(tool: Tool, server: Server, size: int) -> tuple[str, str]:
    return _start(tool, server, size).communicate(timeout=600)


def _deploy(server: Server, old: set[int], tool: subprocess.Popen[str], patience: float) -> tuple[float | None, str]:
    """Deploy, and return the seconds until the old workers were gone; None: not while the tool ran."""
    server.write("2", "import")
    told = time.monotonic()
    try:
        server.deploy("2")
    except (Lost, OSError) as error:
        return None, str(error)
    while tool.poll() is None and time.monotonic() < told + patience:
        if not any(alive(pid) for pid in old):
            return time.monotonic() - told, ""
        time.sleep(0.05)
    return None, ""


def _arrived(server: Server, old: set[int], patience: float) -> str:
    """Wait, now that all is quiet, until only the new version answers; return what did not come about."""
    try:
        server.settled("2", old, patience)
    except (Lost, OSError) as error:
        return str(error)
    return ""


def read(tool: Tool, said: str, errors: str) -> Seen:
    """Read what a tool has written.

    :raises Lost: it did not come to its end.
    """
    rate, answered = re.search(tool.rate, said), re.search(tool.answered, said)
    if rate is None or answered is None:
        raise Lost(f"{tool.words[0]} gave up: {(errors or said or 'no word').splitlines()[-1]}")
    counts = {kind: int(match[1]) for kind, pattern in tool.failures.items() if (match := re.search(pattern, said))}
    return Seen(int(answered[1]), float(rate[1]), {kind: count for kind, count in counts.items() if count})
