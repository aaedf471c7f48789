"""A reload under a thousand keep-alive connections: seconds above one import, and how long requests wait meanwhile.

Rules: an import in a fresh interpreter is measured right before each reload, and the requests of a reload are compared
with those of as many seconds before it, so that whatever else the machine does hurts both sides.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time

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
