"""The processes below a process, as the kernel lists them, and their end.

Rules:

* A process is known by its pid and by when it started: a pid that another process has got since is another process.
* The kernel is asked in one way, ``/proc/<pid>/task/<tid>/children`` (proc_pid_tid_children(5)). Where it has no such
  file (``CONFIG_PROC_CHILDREN``), no process is found, and none is ended.
* A name is the kernel's short one, and not the command line, which may hold a password and would get into the log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

# As it is before a worker class monkey-patches: a worker may end where gevent could not switch.
_sleep = time.sleep

LOOK_INTERVAL_S = 0.01
"""Seconds between two looks for the processes that have got the signal to end."""


@dataclass(frozen=True)
class Descendant:
    """A process. ``started`` is in the kernel's ticks since the boot of the machine. Its name may change (exec)."""

    pid: int
    started: int
    name: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.name} (pid:{self.pid})"

    @property
    def alive(self) -> bool:
        """Whether it is still there, and no zombie."""
        return _look(self.pid) == self

    def send(self, signum: int) -> None:
        """Send it a signal, if it is still there and may be signalled."""
        if self.alive:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signum)


def children(pid: int) -> list[int]:
    """Return the pids of the children of a process, zombies included; none if it is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += children_of_thread(pid, int(task))
    return found


def children_of_thread(pid: int, thread: int) -> list[int]:
    """Return the pids of the children that one thread of a process has started or adopted, zombies included.

    A process whose parent ends goes to the main thread of the process that adopts it, as long as there is one
    (``find_new_reaper`` in the kernel's kernel/exit.c).
    """
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
        return [int(child) for child in file.read().split()]
    return []


def living(pids: Iterable[int]) -> list[Descendant]:
    """Return those of these processes that are alive."""
    return [process for pid in pids if (process := _look(pid)) is not None]


def descendants(pid: int) -> list[Descendant]:
    """Return the living processes below a process, parents before their children."""
    found: list[Descendant] = []
    left = children(pid)
    while left:
        above = left.pop(0)
        found += living([above])
        left += children(above)
    return found


def before_kill(pid: int) -> list[Descendant] | None:
    """Return the processes below one that is to be killed; None if it has ended already, and has none any more."""
    found = descendants(pid)
    return found if living([pid]) else None  # looked at last: it may have ended meanwhile


def own_descendants() -> list[Descendant]:
    """Return the living processes below this one, without the resource tracker of ``multiprocessing``.

    That one takes no TERM, and ends when the last process is gone that it cleans up behind.
    """
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    pid = getattr(tracker, "_pid", None)
    return [process for process in descendants(os.getpid()) if process.pid != pid]


def end_own_descendants(grace_s: float) -> list[Descendant]:
    """End the processes below this one: TERM, and KILL for what is left after ``grace_s`` seconds.

    :return: what was still there.
    """
    left = own_descendants()
    for process in left:
        process.send(signal.SIGTERM)
    end = time.monotonic() + grace_s
    while any(process.alive for process in left) and time.monotonic() < end:
        _sleep(LOOK_INTERVAL_S)
    for process in {*left, *own_descendants()}:  # with what was started meanwhile
        process.send(signal.SIGKILL)
    return left


def _look(pid: int) -> Descendant | None:
    """Return a process, or None if it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    name = text[text.find(b"(") + 1 : text.rfind(b")")]
    fields = text[text.rfind(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    # A text that goes into the log, and whatever a process has made its name.
    printable = "".join(char if char.isprintable() else "?" for char in name.decode(errors="replace"))
    return Descendant(pid, int(fields[19]), printable)
