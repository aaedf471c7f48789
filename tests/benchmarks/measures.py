"""How long a reload takes, how long a replacement, and how much memory the tree needs.

Rules:

* Only ratios and differences within one run are judged: both sides are measured in turns, so that whatever else the
  machine does hurts both.
* A figure is a median with its spread (least and most) and the number of runs.
* No measurement is left out because it is inconvenient.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

from tests.benchmarks.figures import Figure, Sample
from tests.benchmarks.kept import reload_kept, reload_wrk
from tests.benchmarks.servers import HEAVY, LARGE, OURS, STOCK, Server, serve, until
from tests.benchmarks.trees import cpu, pss

MANY = 200
"""Workers, as on a large machine."""


def reload(quick: bool) -> Figure:
    """From USR2 until the last of 8 old workers is gone, ``--preload``, no connection held."""
    reloads: list[float] = []
    imports: list[float] = []
    with serve(OURS, 8, HEAVY, "--preload") as server:
        for number in range(2 if quick else 7):
            imports.append(_import_time(server))
            version = f"r{number}"
            old = server.workers(8)
            server.deploy(version, HEAVY)
            began = time.monotonic()
            server.process.send_signal(signal.SIGUSR2)
            _gone(old)
            reloads.append(time.monotonic() - began)
            if {server.get()[0] for _ in range(30)} != {version}:
                raise RuntimeError("old code answers after the reload")
    excess = Sample([took - Sample(imports).median for took in reloads])
    parts = {"reload, s": Sample(reloads).text(), "import in a fresh interpreter, s": Sample(imports).text()}
    name = "reload of 8 workers with --preload, seconds above one import"
    return Figure(name, "at most 1.5", excess.text(), excess.median <= 1.5, parts)


def reload_many(quick: bool) -> Figure:
    """The master's own processor time for each of 200 workers that a reload replaces, ``--preload``."""
    workers = 20 if quick else MANY
    with serve(OURS, workers, "", "--preload") as server:
        master, spent, took = server.process.pid, [], []
        for number in range(1 if quick else 3):
            until(lambda: len(server.tree()) == workers + 2, 60, "all workers are there, beside master and fork server")
            old = set(server.tree()) - {master}
            server.deploy(f"r{number}")
            before, began = cpu([master], children=False), time.monotonic()
            server.process.send_signal(signal.SIGUSR2)
            _gone(old)
            took.append(time.monotonic() - began)
            spent.append((cpu([master], children=False) - before) / workers * 1000)
    each = Sample(spent)
    parts = {"reload, s": Sample(took).text(1)}
    name = f"reload of {workers} workers with --preload, the master's processor time for each of them, ms"
    return Figure(name, "at most 5", each.text(), each.median <= 5, parts)


def start(quick: bool) -> Figure:
    """From the command to the first answer, against stock's, 4 workers, as they are without any setting."""
    ways = {"stock": (STOCK, ""), "zdworker": (OURS, "auto"), 'zdworker with `zd_preload = "never"`': (OURS, "never")}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(2 if quick else 10):
        for way, (worker_class, preload) in ways.items():
            began = time.monotonic()
            with serve(worker_class, 4, environment={"ZD_PRELOAD": preload} if preload else {}):
                times[way].append(time.monotonic() - began)
    excess = Sample([our - stock for our, stock in zip(times["zdworker"], times["stock"], strict=True)])
    parts = {f"{way}, s": Sample(taken).text() for way, taken in times.items()}
    name = "start of 4 workers, from the command to the first answer, seconds more than stock"
    return Figure(name, "at most 0.15", excess.text(), excess.median <= 0.15, parts)


def respawn(quick: bool) -> Figure:
    """From kill -9 of the only worker to the answer of its replacement, ``--preload``."""
    times: list[float] = []
    for _ in range(3 if quick else 15):  # a fresh server each time: repeated deaths are meant to back off
        with serve(OURS, 1, LARGE, "--preload") as server:
            _, old = server.get()
            time.sleep(0.5)
            began = time.monotonic()
            os.kill(old, signal.SIGKILL)
            new = _first_answer(server, old)
            times.append(time.monotonic() - began)
            if new == old:
                raise RuntimeError("the killed worker answered")
    sample = Sample(times)
    name = "kill -9 of a worker to its replacement's answer with --preload, seconds"
    return Figure(name, "at most 0.1", sample.text(3), sample.median <= 0.1, {})


def memory(quick: bool, options: tuple[str, ...] = ("--preload",)) -> Figure:
    """PSS of master and all below it, 4 workers, against stock's tree with a bare interpreter beside it."""
    stocks: list[float] = []
    ours: list[float] = []
    masters: list[float] = []
    for _ in range(1 if quick else 5):
        stocks.append(_tree_memory(STOCK, options, bare=True)[0])
        tree, master = _tree_memory(OURS, options, bare=False)
        ours.append(tree)
        masters.append(master)
    ratio = Sample([our / stock for our, stock in zip(ours, stocks, strict=True)])
    parts = {
        "stock and one bare interpreter, MiB": Sample([value / 2**20 for value in stocks]).text(1),
        "zdworker, MiB": Sample([value / 2**20 for value in ours]).text(1),
        "of which its master, MiB": Sample([value / 2**20 for value in masters]).text(1),
    }
    kind = "with" if options else "without"
    name = f"memory of the tree, 4 workers {kind} --preload, over stock's and a bare interpreter"
    return Figure(name, "at most 1", ratio.text(3), ratio.median <= 1, parts)


MEASURES: dict[str, Callable[[bool], Figure]] = {
    "reload": reload,
    "reload-kept": reload_kept,
    "reload-wrk": reload_wrk,
    "reload-many": reload_many,
    "start": start,
    "respawn": respawn,
    "memory": memory,
    "memory-no-preload": functools.partial(memory, options=()),
}


def _import_time(server: Server) -> float:
    """Seconds that a fresh interpreter takes to start, import the application and end."""
    began = time.monotonic()
    command = [sys.executable, "-c", "import application"]
    subprocess.run(command, cwd=server.directory, check=True, timeout=60)
    return time.monotonic() - began


def _gone(pids: set[int]) -> None:
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 60, "the old workers end", 0.002)


def _first_answer(server: Server, killed: int) -> int:
    """The pid that answers first; a try that the killed process takes down with it is repeated at once."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            _, pid = server.get()
            if pid != killed:
                return pid
    raise TimeoutError("no replacement within 30 s")


def _tree_memory(worker_class: str, options: tuple[str, ...], *, bare: bool) -> tuple[float, float]:
    """Bytes of the whole tree and of its master, once every worker has answered requests and all is quiet."""
    with serve(worker_class, 4, LARGE, *options) as server, contextlib.ExitStack() as stack:
        server.workers(4)
        beside = []
        if bare:
            command = [sys.executable, "-c", "print(flush=True); input()"]
            interpreter = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            stack.callback(interpreter.kill)
            assert interpreter.stdout is not None
            interpreter.stdout.readline()
            beside = [interpreter.pid]
        time.sleep(1)
        return float(pss(server.tree() + beside)), float(pss([server.process.pid]))
