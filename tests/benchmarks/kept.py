"""A reload under a thousand keep-alive connections: seconds above one import, and how long requests wait meanwhile.

Two loads: clients that rest between their requests, and ``wrk``, which does not, so that the machine is busy before the
reload already.

Rules: an import in a fresh interpreter is measured right before each reload, and the requests of a reload are compared
with those of as many seconds before it, so that whatever else the machine does hurts both sides.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from dataclasses import dataclass

from tests.benchmarks.deploys.contenders import CONTENDERS
from tests.benchmarks.deploys.loads import CROWD
from tests.benchmarks.deploys.servers import Server, alive, serve, until
from tests.benchmarks.figures import Figure, Sample
from tests.harness.clients import Answer
from tests.harness.crowd import Crowd

WORKERS = 4
GOAL_S = 0.5
PATIENCE_S = 120.0
MOST_S = 1.0
"""Seconds that a client rests, at most: some two thousand requests a second tell a p99."""
RUN_S, RELOADS = 30, 10
"""Seconds of a run of ``wrk``, and reloads in those of every second run."""


def reload_kept(quick: bool) -> Figure:
    """From USR2 until the last of 4 old workers is gone, ``--preload``, a thousand keep-alive connections."""
    clients = 200 if quick else CROWD["clients"]
    spans: list[tuple[float, float]] = []
    imports: list[float] = []
    with serve(CONTENDERS["zdworker-UvicornWorker-preload"].keeping(), WORKERS, "import", keeping=True) as server:
        old = server.pids("1")
        with Crowd(("127.0.0.1", server.port), **(CROWD | {"clients": clients, "most_s": MOST_S})) as crowd:
            for number in range(2 if quick else 7):
                version = f"{number + 2}"
                imports.append(_import_s(server))
                server.write(version, "import")
                spans.append(_reload(server, version, old))
                old = server.pids(version)
            seen = crowd.stop()
    took = [end - begin for begin, end in spans]
    excess = Sample([each - its for each, its in zip(took, imports, strict=True)])
    waits = [_p99(seen.answers, *span) / _p99(seen.answers, 2 * span[0] - span[1], span[0]) for span in spans]
    parts = {
        "reload, s": Sample(took).text(),
        "import in a fresh interpreter, s": Sample(imports).text(),
        "reload over import": Sample([each / its for each, its in zip(took, imports, strict=True)]).text(),
        "p99 of the requests, during a reload over before": Sample(waits).text(),
        "requests that failed, connections that were made again": f"{len(seen.failures)}, {len(seen.reconnects)}",
    }
    kind = f"--preload and {clients:,.0f} keep-alive connections"
    name = f"reload of {WORKERS} workers with {kind}, seconds above one import"
    return Figure(name, f"at most {GOAL_S}", excess.text(), excess.median <= GOAL_S, parts)


def reload_wrk(quick: bool) -> Figure:
    """Ten reloads in half a minute of ``wrk`` with a thousand connections: its p99 over that without a reload."""
    seconds, number = (RUN_S // 5, RELOADS // 5) if quick else (RUN_S, RELOADS)
    without: list[_Run] = []
    through: list[_Run] = []
    version = 1
    with serve(CONTENDERS["zdworker-UvicornWorker-preload"].keeping(), WORKERS, "trivial", keeping=True) as server:
        for _ in range(1 if quick else 4):
            without.append(_wrk(server, seconds, []))
            versions = [f"{version + each}" for each in range(1, number + 1)]
            through.append(_wrk(server, seconds, versions))
            version += number
            server.pids(f"{version}")
    ratios = Sample([one.p99_ms / other.p99_ms for one, other in zip(through, without, strict=True)])
    parts = {
        "p99 without a reload, ms": Sample([run.p99_ms for run in without]).text(1),
        "p99 through ten reloads, ms": Sample([run.p99_ms for run in through]).text(1),
        "requests per second, through ten reloads over without": Sample(
            [one.rate / other.rate for one, other in zip(through, without, strict=True)]
        ).text(),
        "errors and timeouts": f"{sum(run.errors for run in [*without, *through])}",
    }
    failed = any(run.errors for run in through)
    load = f"`wrk -c 1000` for {seconds} s through {number} reloads"
    name = f"{load} of {WORKERS} workers with --preload, p99 over that without a reload"
    return Figure(name, "at most 2", ratios.text(), ratios.median <= 2 and not failed, parts)


@dataclass(frozen=True)
class _Run:
    p99_ms: float
    rate: float
    errors: int


def _wrk(server: Server, seconds: int, versions: list[str]) -> _Run:
    """Run ``wrk`` for so long, and deploy these versions one after the other, evenly, meanwhile."""
    url = f"http://127.0.0.1:{server.port}/"
    words = ["wrk", "-t", "1", "-c", "1000", "-d", f"{seconds}", "--latency", "--timeout", "20", url]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as tool:
        began = time.monotonic()
        for number, version in enumerate(versions):
            time.sleep(max(0.0, began + (number + 0.5) * seconds / len(versions) - time.monotonic()))
            server.write(version, "trivial")
            server.deploy(version)
        said, _ = tool.communicate(timeout=seconds + PATIENCE_S)
    p99, rate = re.search(r"99%\s+([\d.]+)(us|ms|s)\b", said), re.search(r"Requests/sec:\s+([\d.]+)", said)
    if tool.returncode or p99 is None or rate is None:
        raise RuntimeError(f"wrk: {said}")
    failures = " ".join(re.findall(r"(?:Socket errors|Non-2xx or 3xx)(.*)", said))
    errors = sum(map(int, re.findall(r"\d+", failures)))
    return _Run(float(p99[1]) * {"us": 0.001, "ms": 1, "s": 1000}[p99[2]], float(rate[1]), errors)


def _reload(server: Server, version: str, old: set[int]) -> tuple[float, float]:
    """Reload, and return when it began and ended."""
    time.sleep(3)  # the seconds that it is compared with
    begin = time.monotonic()
    server.deploy(version)
    until(lambda: not any(map(alive, old)), PATIENCE_S, "the old workers end", 0.01)
    return begin, time.monotonic()


def _import_s(server: Server) -> float:
    """Return how long a fresh interpreter takes to start, import the application and end."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import application"], cwd=server.directory, check=True, timeout=PATIENCE_S)
    return time.monotonic() - began


def _p99(answers: list[Answer], begin: float, end: float) -> float:
    waits = sorted(answer.latency for answer in answers if begin <= answer.time < end)
    return waits[math.ceil(0.99 * len(waits)) - 1]
