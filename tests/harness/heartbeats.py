"""A healthy observer of a master: it asks for the status again and again, and notes how long the answers take.

Rules: an answer needs turns of the master's loop, so the longest wait for one bounds the longest turn. The time in
which the kernel has kept the master, or the observer, waiting for a processor is not the master's. It is known
(``/proc/<pid>/task/<tid>/schedstat``, run_delay) and subtracted. That of all their threads is, because one that waits
may hold the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

LOOP_TURN_S = 0.1
"""Seconds that a turn of the master's loop may take."""

ANSWER_S = 3 * LOOP_TURN_S
"""Seconds that an answer may take: the connection is accepted in one turn, the order read in the next, and answered in
the one after that."""

STATUS = b'{"type": "order", "command": "status"}\n'


def ask(path: Path, data: bytes = STATUS, timeout: float = 10) -> dict[str, Any]:
    """Send an order and return its first answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.connect(str(path))  # before the timeout, with which a full queue would be an error at once
        control.settimeout(timeout)
        control.sendall(data)
        answer = json.loads(control.makefile().readline())
    assert isinstance(answer, dict)
    return answer


def status(path: Path, timeout: float = 10) -> dict[str, Any]:
    found = ask(path, timeout=timeout)["status"]
    assert isinstance(found, dict)
    return found


def processor_waits_s(*pids: int) -> dict[Path, float]:
    """Return the seconds that each thread of some processes was ready to run, but had no processor."""
    found: dict[Path, float] = {}
    for task in (task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()):
        with contextlib.suppress(OSError):  # it has ended
            found[task] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return found


def processor_time_s(pid: int) -> float:
    """Return the seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Heartbeats:
    """Asks a master for its status in a thread of its own, until the end of the ``with`` block.

    :param path: the control socket.
    """

    def __init__(self, master: int, path: Path) -> None:
        self.longest_s = 0.0
        self.answers = 0
        self.errors: list[str] = []
        self._master = master
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Heartbeats:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._ended.wait(0.01):
            try:
                self._beat()
            except (OSError, ValueError, KeyError) as error:
                self.errors.append(repr(error))

    def _beat(self) -> None:
        before, began = processor_waits_s(self._master, os.getpid()), time.monotonic()
        status(self._path, timeout=60)
        took = time.monotonic() - began
        after = processor_waits_s(self._master, os.getpid())
        took -= sum(waited - before.get(task, 0.0) for task, waited in after.items())
        self.answers += 1
        self.longest_s = max(self.longest_s, took)
