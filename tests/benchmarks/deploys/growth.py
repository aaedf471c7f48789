"""How a reload of zdworker grows with the number of workers, beside what it cannot be faster than.

Rules:

* Without load; the application's import is a fifth of a second of work.
* The limit is measured in the same run, between two reloads: one import in a fresh interpreter, then a fork of it for
  each worker, one after the other.
* That a reload is over is seen in ``/proc``: nothing is asked of the workers meanwhile.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field, replace

from tests.benchmarks.deploys.contenders import CONTENDERS
from tests.benchmarks.deploys.servers import Server, alive, serve, until
from tests.benchmarks.trees import Watch, cpu, pss

WORKERS = (1, 2, 4, 8, 16, 32, 64)
PATIENCE = 180.0
LIMIT = """\
import application, os
for _ in range(%d):
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
"""


@dataclass(frozen=True)
class Grown:
    """Reloads with one number of workers; times in seconds, sizes in bytes.

    :param master: processor time of the master in each.
    :param spent: processor time of all processes in each.
    """

    workers: int
    preload: bool
    seconds: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    master: list[float] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)
    before: int = 0
    peak: list[int] = field(default_factory=list)


def growth(workers: int, reloads: int, *, preload: bool) -> Grown:
    """Measure ``reloads`` reloads of a server with so many workers."""
    contender = CONTENDERS[f"zdworker-UvicornWorker{'-preload' if preload else ''}"]
    with serve(contender, workers, "light") as server:
        old = server.pids("1")
        time.sleep(1)
        grown = replace(Grown(workers, preload), before=pss(server.tree()))
        for number in range(reloads):
            grown.limit.append(_limit(server, workers))
            version = f"{number + 2}"
            server.write(version, "light")
            master, spent = cpu([server.main], children=False), cpu([server.keeper, *server.tree()])
            with Watch(server.keeper) as watch:
                told = time.monotonic()
                server.deploy(version)
                _wait_gone(old)
                grown.seconds.append(time.monotonic() - told)
                time.sleep(1)
            grown.master.append(cpu([server.main], children=False) - master)
            grown.spent.append(cpu([server.keeper, *server.tree()]) - spent)
            grown.peak.append(watch.peak())
            old = server.pids(version)
    return grown


def _wait_gone(pids: set[int]) -> None:
    until(lambda: not any(map(alive, pids)), PATIENCE, "the old workers end", 0.02)


def _limit(server: Server, workers: int) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", LIMIT % workers], cwd=server.directory, check=True, timeout=PATIENCE)
    return time.monotonic() - began
