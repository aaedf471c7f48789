"""Facts about processes, read from /proc (Linux): what tests ask instead of sleeping or reading logs.

Rules:

* Everything here is a look, never an action; a process that is gone in the middle of a look is simply not
  there.
* The kernel tells a worker from a fork server: a process that was forked and never called ``exec``
  carries the flag ``PF_FORKNOEXEC`` (include/linux/sched.h). A fork server was spawned, a worker was forked.
* A worker *accepts* when one of its epoll descriptors watches a listening socket of the master; that is what
  "ready" means to a client, and the kernel tells it in ``/proc/<pid>/fdinfo`` (proc(5), "epoll"). Of a worker that
  does not use epoll (sync) the kernel tells only that it holds the listening socket.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.harness.tcp_sockets import LISTENING, OPEN, tcp

PF_FORKNOEXEC = 0x40
UNIX_ACCEPTS = 0x10000
"""The flag of a listening socket in /proc/net/unix (``__SO_ACCEPTCON``)."""

Fact = TypeVar("Fact")


def wait_for(predicate: Callable[[], Fact], deadline: float, what: str) -> Fact:
    """Return the first true answer of ``predicate``, asked every 10 ms.

    :param deadline: seconds after which the test fails.
    :param what: the fact, for the message.
    :raises AssertionError: the fact did not come about in time.
    """
    end = time.monotonic() + deadline
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline} s: {what} (last answer: {answer!r})")
        time.sleep(0.01)


@dataclass(frozen=True)
class Process:
    """One line of /proc/<pid>/stat, as far as it matters here."""

    pid: int
    parent: int
    session: int
    state: str
    flags: int
    threads: int
    began: int
    """When it was started, in ticks since the machine's start."""

    @property
    def alive(self) -> bool:
        """Whether it has not ended. A main thread that has is a zombie, and the others still have the descriptors."""
        return self.state not in "ZX" or self.threads > 1

    @property
    def forked(self) -> bool:
        """Whether it was forked and never replaced its program."""
        return bool(self.flags & PF_FORKNOEXEC)


def read_process(pid: int) -> Process | None:
    """Return what ``pid`` is, or None when there is no such process. A zombie is still there."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # a name may be any bytes
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return Process(pid, int(fields[1]), int(fields[3]), fields[0], int(fields[6]), int(fields[17]), int(fields[19]))


def alive(pid: int) -> bool:
    process = read_process(pid)
    return process is not None and process.alive


def stand_still(pid: int) -> None:
    """Stop a process, and wait until all its threads have: behind ``kill`` they may still run for a moment."""
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    wait_for(lambda: all(_state(task) == "T" for task in tasks.iterdir()), 30, f"the threads of {pid} stand still")


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:  # the thread has ended
        return "T"


def children(pid: int) -> list[Process]:
    """Return the children of all threads of ``pid``, oldest first, zombies included."""
    found: list[int] = []
    for task in _entries(f"/proc/{pid}/task"):
        found += [int(child) for child in _text(f"/proc/{pid}/task/{task}/children").split()]
    every = (read_process(child) for child in found)
    # Numbers begin again behind the largest (pid_max, often 32768), so that alone they say nothing of the age.
    return sorted(
        (process for process in every if process is not None and process.parent == pid),
        key=lambda process: (process.began, process.pid),
    )


def command(pid: int) -> str:
    return _text(f"/proc/{pid}/cmdline").replace("\0", " ").strip()


def memory(pid: int) -> int:
    """Return the proportional set size of ``pid`` in bytes."""
    for line in _text(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def threads(pid: int) -> int:
    """Return how many threads ``pid`` has."""
    return len(_entries(f"/proc/{pid}/task"))


def descriptors(pid: int) -> dict[int, str]:
    """Return the open descriptors of ``pid`` and what each leads to."""
    found = {}
    for number in _entries(f"/proc/{pid}/fd"):
        try:
            found[int(number)] = os.readlink(f"/proc/{pid}/fd/{number}")
        except OSError:
            continue
    return found


def lowest_free_descriptor(pid: int) -> int:
    """Return the number that the next descriptor of ``pid`` gets: as its ``RLIMIT_NOFILE`` it allows no further one.

    The number of open descriptors would allow as many as there are gaps between them (getrlimit(2)).
    """
    used = descriptors(pid)
    return next(number for number in range(len(used) + 1) if number not in used)


def listeners(pid: int) -> set[int]:
    """Return the inodes of the listening sockets (TCP and Unix) that ``pid`` holds."""
    held = {int(target[8:-1]) for target in descriptors(pid).values() if target.startswith("socket:[")}
    return held & ({known.inode for known in tcp(LISTENING)} | _listening_unix())


def ports(pid: int) -> list[int]:
    """Return the TCP ports on which ``pid`` listens, in the order of its descriptors."""
    by_inode = {known.inode: known.port for known in tcp(LISTENING)}
    inodes = [int(target[8:-1]) for target in descriptors(pid).values() if target.startswith("socket:[")]
    return [by_inode[inode] for inode in inodes if inode in by_inode]


def watched(pid: int, epoll: int) -> set[int]:
    """Return the inodes that the epoll descriptor ``epoll`` of ``pid`` waits for."""
    found = set()
    for line in _text(f"/proc/{pid}/fdinfo/{epoll}").splitlines():
        if line.startswith("tfd:"):
            inode = line.partition("ino:")[2].split()
            found.update({int(inode[0], 16)} if inode else set())
    return found


def accepts(pid: int, inodes: set[int]) -> int | None:
    """Return the epoll descriptor with which ``pid`` waits for connections on ``inodes``, or None."""
    for number, target in descriptors(pid).items():
        if target == "anon_inode:[eventpoll]" and watched(pid, number) & inodes:
            return number
    return None


def holds(pid: int, inodes: set[int]) -> int | None:
    """Return the descriptor with which ``pid`` holds one of the sockets ``inodes``, or None."""
    targets = {f"socket:[{inode}]" for inode in inodes}
    return next((number for number, target in descriptors(pid).items() if target in targets), None)


def leads_to(pid: int, descriptor: int) -> int | None:
    """Return the inode of the socket that ``descriptor`` of ``pid`` is, or None."""
    try:
        target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
    except OSError:
        return None
    return int(target[8:-1]) if target.startswith("socket:[") else None


def belonging(directory: Path, session: int) -> list[int]:
    """Return the living processes that a server in ``directory`` left: of its session, or at work in there.

    Daemons have a session of their own and are found by where they are.
    """
    found = []
    for name in _entries("/proc"):
        process = read_process(int(name)) if name.isdigit() else None
        if process is None or not process.alive or process.pid == os.getpid():
            continue
        # Session 0 is that of the kernel's and the container's first processes: never a server's.
        if (session > 0 and process.session == session) or _works_in(process.pid, directory):
            found.append(process.pid)
    return found


def tree(pid: int, depth: int = 0) -> Iterator[str]:
    """Yield a line for ``pid`` and each process below it, for the report of a failure."""
    process = read_process(pid)
    if process is not None:
        yield f"{'  ' * depth}{pid} {process.state} {'forked ' if process.forked else ''}{command(pid)[:160]}"
        for child in children(pid):
            yield from tree(child.pid, depth + 1)


def receive_queues(port: int) -> Iterator[tuple[int | None, int]]:
    """Yield the length of the receive queue of each TCP socket on the local ``port``, and the port of its peer.

    Of a connection that is the bytes that nobody has read; of a listener (peer None) the connections that nobody has
    accepted.
    """
    for known in tcp(OPEN, port):
        yield known.peer or None, known.queue


def _works_in(pid: int, directory: Path) -> bool:
    try:
        place = os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return False
    return Path(place).is_relative_to(directory.resolve())


def unix_sockets() -> str:
    """Return the table of Unix sockets, with their paths."""
    return _text("/proc/net/unix")


def _listening_unix() -> set[int]:
    lines = [line.split() for line in unix_sockets().splitlines()[1:]]
    return {int(fields[6]) for fields in lines if int(fields[3], 16) & UNIX_ACCEPTS}


def _entries(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
