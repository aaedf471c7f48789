"""Memory and processor time of a tree of processes, by ``/proc`` (Linux).

Rules:

* A look, never an action; a process that is gone in the middle of a look counts nothing.
* Memory is the proportional set size: what processes share is counted once.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import psutil

TICKS = os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """The pids of all that descend from ``pid``."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def pss(pids: list[int]) -> int:
    """Their proportional set size in bytes (proc(5), ``smaps_rollup``)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024


def cpu(pids: list[int], *, children: bool = True) -> float:
    """Their processor seconds, with those of all children that were reaped (proc(5), ``stat``, fields 14 to 17)."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11 : 15 if children else 13])
    return ticks / TICKS


class Watch:
    """Samples the memory below a process ten times a second, in a thread, from entering to leaving."""

    def __init__(self, keeper: int) -> None:
        self.keeper = keeper
        self.samples: list[tuple[float, int]] = []
        """Time (``time.monotonic()``) and bytes."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def peak(self) -> int:
        """The most bytes seen."""
        return max((size for _, size in self.samples), default=0)

    def _run(self) -> None:
        while not self._over.wait(0.1):
            self.samples.append((time.monotonic(), pss(descendants(self.keeper))))
