"""What the application's processes leave: looking for it, and ending it, as ``zdworker/core/leftovers.py`` decides.

Rules:

* A worker that leaves ends what it has started by itself (``forkserver/worker_boot.py``). This is for one that could
  not, because it was killed or has crashed, and for fork servers, which are always killed.
* The kernel makes the master, as subreaper, the parent of what such a process leaves, and says nothing of where it
  came from. So the master lists the descendants of a process before it kills it.
* A process that was abandoned while its starter was alive (a daemon) is a child of the master since then. It keeps
  running.
* As long as a fork server's processes may be needed its standard error is read, which they may share: they would die
  of a broken pipe.
* Nothing waits here: a timer looks again, as long as there is something to look for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from zdworker import descendants
from zdworker.core import leftovers
from zdworker.core.leftovers import End, GiveUp, KillLeft, Release, Seen, has_to_be_searched_for
from zdworker.descendants import Descendant
from zdworker.exhaustive import assert_never
from zdworker.master.children import Children, ForkServer, WorkerRecord
from zdworker.master.reactor import Reactor

STEP_INTERVAL_S = 0.1
"""Seconds between two looks while there is something to end."""


class LeftoverProcesses:
    """Ends what workers and fork servers leave.

    :param log: the master's logger.
    """

    def __init__(self, log: Any, reactor: Reactor, children: Children) -> None:
        self._log = log
        self._reactor = reactor
        self._children = children
        self._core = leftovers.Leftovers()
        self._servers: dict[int, ForkServer] = {}
        self._stepping = False

    @property
    def pending(self) -> bool:
        """Whether something is still to be ended."""
        servers = self._children.killed_servers.values()
        return bool(self._core.processes()) or any(server.descendants for server in servers)

    def to_state(self, keep: Callable[[int], int]) -> dict[str, Any]:
        """Return what is to be ended, for :meth:`adopt` in another program of this process (an upgrade).

        :param keep: has a descriptor go along, and returns its number.
        """
        return {**self._core.to_state(), "servers": [server.to_state(keep) for server in self._servers.values()]}

    def adopt(self, state: dict[str, Any], servers: Iterable[ForkServer]) -> None:
        """Go on from what :meth:`to_state` has returned.

        :param servers: the fork servers in it.
        """
        self._core.adopt(state)
        for server in servers:
            self._servers[server.number] = server
            self._children.poll_stderr(server)
        self._begin()

    def look(self) -> None:
        """Note the master's children, unless that was done a moment ago; called in each turn of the loop."""
        now = time.monotonic()
        if self._core.look_is_due(now):
            found = descendants.children(os.getpid())
            self._core.looked(found, now, unreaped=_unreaped())

    @contextlib.contextmanager
    def masters_own(self) -> Iterator[None]:
        """Note what the master itself starts in the ``with`` block (hooks may): no process of the application's."""
        # A process that is started here is a child of this thread; orphans come to the main thread, which this is.
        before = set(_children_of_main_thread())
        try:
            yield
        finally:
            self._core.started_by_master(set(_children_of_main_thread()) - before)

    def worker_gone(self, record: WorkerRecord, code: int) -> None:
        """End what a worker has left; called before any hook, which may start processes in the master."""
        left = self._left_by(record.descendants, cleanly=code == 0)
        self._core.ended(f"worker {record.worker_id} (pid:{record.pid})", left)
        self._begin()

    def server_gone(self, server: ForkServer) -> None:
        """End what a fork server has left, as soon as no worker of its generation is there any more."""
        left = self._left_by(server.descendants, cleanly=False)
        server.descendants = []
        self._servers[server.number] = server
        self._core.ended(f"generation {server.number}", left, server.number)
        self._begin()

    def _left_by(self, listed: list[Descendant] | None, *, cleanly: bool) -> list[Descendant]:
        if not has_to_be_searched_for(listed=listed is not None, cleanly=cleanly):
            return listed or []
        # A reload may have begun since the last look. What is left comes to the main thread; what another one has
        # started belongs to the configuration that is evaluated there.
        servers = {server.pid for server in self._children.servers.values()} | set(self._children.killed_servers)
        new = self._core.newcomers(_children_of_main_thread(), servers)
        return [process for pid in new for process in (*descendants.living([pid]), *descendants.descendants(pid))]

    def _begin(self) -> None:
        if self._core.waiting and not self._stepping:
            self._stepping = True
            self._reactor.call_later(STEP_INTERVAL_S, self._step)

    def _step(self) -> None:
        self._stepping = False
        for action in self._core.advance(self._seen(), time.monotonic()):
            self._execute(action)
        self._begin()

    def _seen(self) -> Seen:
        processes = descendants.living(process.pid for process in self._core.processes())
        return Seen(
            living={process: descendants.descendants(process.pid) for process in processes},
            workers=self._children.workers_by_pid,
            generations={record.generation for record in self._children.workers.values()},
            unknown=bool(self._children.without_pid()),
        )

    def _execute(self, action: leftovers.Action) -> None:
        match action:
            case End(owner, processes):
                self._log.info("Ending what %s has left: %s", owner, _names(processes))
                _send(processes, signal.SIGTERM)
            case KillLeft(owner, processes):
                self._log.warning("Still there of what %s has left, killed: %s", owner, _names(processes))
                _send(processes, signal.SIGKILL)
            case GiveUp(processes):
                self._log.error("Killed, but still there: %s", _names(processes))
            case Release(generation):
                self._children.close_stderr(self._servers.pop(generation))
            case _:
                assert_never(action)

    def kill_all(self) -> None:
        """Kill what is left, at the end of the master."""
        _send(self._core.processes(), signal.SIGKILL)
        for server in self._children.killed_servers.values():
            _send(server.descendants or [], signal.SIGKILL)
        for record in self._children.workers.values():
            _send(record.descendants or [], signal.SIGKILL)


def _children_of_main_thread() -> list[int]:
    return descendants.children_of_thread(os.getpid(), os.getpid())


def _unreaped() -> bool:
    """Return whether a child has ended for which nothing has waited yet."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _send(processes: Iterable[Any], signum: signal.Signals) -> None:
    """Send a signal to descendants, which the core knows as processes alone."""
    for process in processes:
        process.send(signum)


def _names(processes: Iterable[leftovers.Process]) -> str:
    return ", ".join(map(str, processes))
