"""What the application's processes leave: the processes that they started, and that are still there when they are gone.

Rules:

* A worker that leaves ends what it has started by itself (``forkserver/worker_boot.py``). This is for one that could
  not, because it was killed or has crashed, and for fork servers, which are always killed.
* The kernel makes the master, as subreaper, the parent of what such a process leaves, and says nothing of where it
  came from. So the master lists the descendants of a process before it kills it. After a crash, there is no list: then
  the children count that the master did not have at its last look, a moment before.
* A process that was abandoned while its starter was alive (a daemon) is a child of the master since then. It keeps
  running.
* What a fork server leaves is ended when the last worker of its generation is gone, which may need it. Until then its
  standard error is read, which the processes that it has started may share: they would die of a broken pipe.
* TERM, then KILL. Nothing waits here: a timer looks again, as long as there is something to look for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zdworker import descendants
from zdworker.descendants import Descendant
from zdworker.master.children import Children, ForkServer, WorkerRecord
from zdworker.master.reactor import Reactor

TERM_S = 2.0
"""Seconds between TERM and KILL."""

KILLED_S = 1.0
"""Seconds after which the master waits no longer for a process that it has killed: the kernel holds it."""

STEP_INTERVAL_S = 0.1
"""Seconds between two looks while there is something to end."""

LOOK_INTERVAL_S = 0.2
"""Seconds between two looks at the master's children."""


@dataclass
class _Leftovers:
    """The processes that one process has left. ``server`` is set if that was a fork server."""

    owner: str
    processes: list[Descendant]
    server: ForkServer | None = None
    kill_at: float | None = None
    killed: bool = False


class LeftoverProcesses:
    """Ends what workers and fork servers leave.

    :param log: the master's logger.
    """

    def __init__(self, log: Any, reactor: Reactor, children: Children) -> None:
        self._log = log
        self._reactor = reactor
        self._children = children
        self._known: set[int] = set()
        self._next_look = 0.0
        self._left: list[_Leftovers] = []
        self._stepping = False

    @property
    def pending(self) -> bool:
        """Whether something is still to be ended."""
        servers = self._children.killed_servers.values()
        return any(left.processes for left in self._left) or any(server.descendants for server in servers)

    def look(self) -> None:
        """Note the master's children, unless that was done a moment ago; called in each turn of the loop.

        What is among them now was not left by a process that ends later. As long as one has ended that is not reaped
        yet, nothing is noted: what it has left is among them already.
        """
        now = time.monotonic()
        if now >= self._next_look:
            found = descendants.children(os.getpid())
            if not _unreaped():
                self._known, self._next_look = set(found), now + LOOK_INTERVAL_S

    @contextlib.contextmanager
    def masters_own(self) -> Iterator[None]:
        """Note what the master itself starts in the ``with`` block (hooks may): no process of the application's."""
        before = set(descendants.children(os.getpid()))
        try:
            yield
        finally:
            self._known |= set(descendants.children(os.getpid())) - before

    def worker_gone(self, record: WorkerRecord, code: int) -> None:
        """End what a worker has left; called before any hook, which may start processes in the master."""
        if record.descendants is not None:
            self._add(_Leftovers(f"worker {record.worker_id} (pid:{record.pid})", record.descendants))
        elif code != 0:
            self._add(_Leftovers(f"worker {record.worker_id} (pid:{record.pid})", self._newcomers()))

    def server_gone(self, server: ForkServer) -> None:
        """End what a fork server has left, as soon as no worker of its generation is there any more."""
        left = self._newcomers() if server.descendants is None else server.descendants
        server.descendants = []
        self._add(_Leftovers(f"generation {server.number}", left, server))

    def _newcomers(self) -> list[Descendant]:
        """Return the children of the master that it did not have at its last look, and what is below them."""
        # A reload may have begun since the last look. What is left comes to the main thread; what another one has
        # started belongs to the configuration that is evaluated there.
        servers = {server.pid for server in self._children.servers.values()} | set(self._children.killed_servers)
        found = descendants.children_of_thread(os.getpid(), os.getpid())
        new = [pid for pid in found if pid not in self._known | servers]
        self._known.update(new)
        return [process for pid in new for process in (*descendants.living([pid]), *descendants.descendants(pid))]

    def _add(self, left: _Leftovers) -> None:
        if left.processes or left.server is not None:
            self._left.append(left)
            if not self._stepping:
                self._stepping = True
                self._reactor.call_later(STEP_INTERVAL_S, self._step)

    def _step(self) -> None:
        now = time.monotonic()
        for left in list(self._left):
            self._advance(left, now)
            if left.kill_at is not None and not left.processes:
                self._left.remove(left)
                if left.server is not None:
                    self._children.close_stderr(left.server)
        self._stepping = bool(self._left)
        if self._stepping:
            self._reactor.call_later(STEP_INTERVAL_S, self._step)

    def _advance(self, left: _Leftovers, now: float) -> None:
        registered = self._children.workers_by_pid
        left.processes = [process for process in left.processes if process.pid not in registered and process.alive]
        if left.kill_at is None:
            # A process of which the master does not know yet that it is a worker might be taken for a leftover.
            if not self._children.without_pid() and not self._still_needed(left.server):
                left.kill_at = now + TERM_S
                self._end(left)
        elif now >= left.kill_at and not left.killed:
            left.killed, left.kill_at = True, now + KILLED_S
            self._kill(left)
        elif now >= left.kill_at:
            self._log.error("Killed, but still there: %s", _names(left.processes))
            left.processes = []

    def _still_needed(self, server: ForkServer | None) -> bool:
        return server is not None and any(
            record.generation == server.number for record in self._children.workers.values()
        )

    def _end(self, left: _Leftovers) -> None:
        below = [process for above in left.processes for process in descendants.descendants(above.pid)]
        left.processes = list(dict.fromkeys((*left.processes, *below)))
        if left.processes:
            self._log.info("Ending what %s has left: %s", left.owner, _names(left.processes))
        for process in left.processes:
            process.send(signal.SIGTERM)

    def _kill(self, left: _Leftovers) -> None:
        self._log.warning("Still there of what %s has left, killed: %s", left.owner, _names(left.processes))
        for process in left.processes:
            process.send(signal.SIGKILL)

    def kill_all(self) -> None:
        """Kill what is left, at the end of the master."""
        found = [left.processes for left in self._left]
        found += [server.descendants or [] for server in self._children.killed_servers.values()]
        found += [record.descendants or [] for record in self._children.workers.values()]
        for processes in found:
            for process in processes:
                process.send(signal.SIGKILL)


def _unreaped() -> bool:
    """Return whether a child has ended for which nothing has waited yet."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _names(processes: list[Descendant]) -> str:
    return ", ".join(map(str, processes))
