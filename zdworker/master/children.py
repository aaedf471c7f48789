"""The master's view of its children: fork servers and workers, each with its channel, and the registry of all of them.

Rules: nothing is decided here, and no constructor starts a process. A record holds what belongs to one process;
removing it from the registry gives that back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from gunicorn.workers.base import Worker

from zdworker.descendants import Descendant, before_kill
from zdworker.ipc.channel import Channel
from zdworker.ipc.messages import Leave, Message, Stopping, brief
from zdworker.master.reactor import Reactor

STDERR_READS = 16
"""Reads at a time from a fork server's standard error: one that prints without end must not hold up the master."""

STDERR_TAIL_BYTES = 16 * 1024
"""Bytes of a generation's standard error that are kept for the report of its failure."""


class ForkServer:
    """A generation's fork server, as ``launch.py`` has started it.

    :param stderr: the reading end of the pipe that is its standard error until it has loaded.
    :param log: the master's logger.
    """

    def __init__(self, number: int, pid: int, channel: Channel, stderr: int, log: Any) -> None:
        self.number = number
        self.pid = pid
        self.channel = channel
        self.stderr = stderr
        self.descendants: list[Descendant] | None = None
        """The processes below it when it was killed; None as long as it was not."""
        self._log = log
        self._tail = b""

    def send(self, message: Message, descriptors: list[int]) -> None:
        """Send a message, with descriptors.

        :raises OSError: the fork server is gone, or does not read.
        """
        self._log.debug("master -> fork server of generation %s: %s", self.number, brief(message))
        self.channel.send(message, descriptors)

    def read_stderr(self) -> bool:
        """Pass on what the fork server has written to its standard error; return False when that has ended."""
        for _ in range(STDERR_READS):
            try:
                data = os.read(self.stderr, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._tail = (self._tail + data)[-STDERR_TAIL_BYTES:]
            with contextlib.suppress(OSError):
                os.write(2, data)
        return True

    def printed(self) -> str:
        """Return the last that it wrote to its standard error."""
        return self._tail.decode(errors="replace").strip()

    def last_line(self) -> str:
        """Return the last line of that, which tells the cause more often than not."""
        return self.printed().rpartition("\n")[2]

    def kill(self) -> None:
        """Kill it: it keeps nothing that could be lost, and its workers are not its children."""
        self.descendants = before_kill(self.pid)
        self.signal(signal.SIGKILL)

    def signal(self, signum: int) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def close_stderr(self) -> None:
        """Close the pipe that was its standard error."""
        if self.stderr >= 0:
            os.close(self.stderr)
            self.stderr = -1


class WorkerRecord(Worker):  # type: ignore[misc]  # Gunicorn has no types
    """A worker as the master and its hooks see it.

    Its base is Gunicorn's base class and not the worker's own class, which would bring uvicorn and the like into the
    master. ``ordered_at`` is when it was ordered, by ``time.monotonic()``; ``forked`` means that its fork server has
    reported it as a child of the master, ``greeted`` that the worker itself has sent ``Hello``, ``called_off``
    that it will get no start order. ``descendants`` are the processes below it when it was killed, None before.
    """

    def __init__(self, *args: Any, slot: int, generation: int) -> None:
        super().__init__(*args)
        self.slot = slot
        self.generation = generation
        self.channel: Channel | None = None
        self.forked = False
        self.greeted = False
        self.called_off = False
        self.descendants: list[Descendant] | None = None
        self.ordered_at = time.monotonic()
        self.connections = 0
        self.requests = 0
        self._announced: set[type[Stopping | Leave]] = set()
        self._own_names = {*vars(self), "_own_names"}

    @property
    def worker_id(self) -> int:
        """The worker's number, which Gunicorn calls its age."""
        return int(self.age)

    @property
    def has_pid(self) -> bool:
        """Whether its process is known."""
        return isinstance(self.pid, int)

    def send(self, message: Message) -> None:
        """Send a message; a worker that is gone gets none, and its end is seen elsewhere."""
        if self.channel is not None:
            self.log.debug("master -> worker %s (pid:%s): %s", self.worker_id, self.pid, brief(message))
            with contextlib.suppress(OSError):
                self.channel.send(message)

    def announce(self, kind: type[Stopping | Leave]) -> None:
        """Send, once, a message that the worker does not read but only looks for."""
        if kind not in self._announced and self.channel is not None:
            self._announced.add(kind)
            self.send(kind())

    def hook_attributes(self) -> dict[str, Any]:
        """Return what hooks have set on this record."""
        return {name: value for name, value in vars(self).items() if name not in self._own_names}

    def close(self) -> None:
        """Close its descriptors."""
        if self.channel is not None:
            self.channel.close()
        with contextlib.suppress(OSError):
            self.tmp.close()


class Children:
    """The registry: fork servers by generation, workers by worker id and by pid.

    What is registered is polled; what is removed is not polled any more, and its descriptors are closed.
    """

    def __init__(self, reactor: Reactor) -> None:
        self.servers: dict[int, ForkServer] = {}
        self.workers: dict[int, WorkerRecord] = {}
        self.workers_by_pid: dict[int, WorkerRecord] = {}
        """Gunicorn's ``WORKERS``: a worker stays in there until it is reaped."""
        self._reactor = reactor
        self.killed_servers: dict[int, ForkServer] = {}
        """Fork servers that were killed and are not reaped yet, by pid."""

    # -- fork servers --------------------------------------------------------------------------------------------

    def add_server(self, server: ForkServer, on_message: Callable[[ForkServer], None]) -> None:
        """Register a fork server; ``on_message`` is called when its channel is readable or closed."""
        self.servers[server.number] = server
        self._reactor.add(server.channel.fileno(), lambda: on_message(server))
        self._reactor.add(server.stderr, lambda: self._read_stderr(server))

    def _read_stderr(self, server: ForkServer) -> None:
        if not server.read_stderr():
            self._reactor.remove(server.stderr)

    def close_stderr(self, server: ForkServer) -> None:
        """Read no more of what a fork server, or a process that it has started, writes to its standard error."""
        if server.stderr >= 0:
            self._reactor.remove(server.stderr)
            server.close_stderr()

    def stop_polling(self, server: ForkServer) -> None:
        """Stop to poll a fork server's channel, which is closed on its side."""
        self._reactor.remove(server.channel.fileno())

    def remove_server(self, server: ForkServer) -> None:
        """Remove a fork server. Its standard error is read to its end: processes that it has started may share it."""
        self.servers.pop(server.number, None)
        self._reactor.remove(server.channel.fileno())
        server.channel.close()

    def end_server(self, server: ForkServer) -> None:
        """Remove a fork server and kill it; its end is expected from now on."""
        self.killed_servers[server.pid] = server
        server.kill()  # before its channel is closed, with which it would end by itself
        self.remove_server(server)

    def server_of(self, pid: int) -> ForkServer | None:
        """Return the registered fork server with this pid."""
        return next((server for server in self.servers.values() if server.pid == pid), None)

    def killed_server(self, pid: int) -> ForkServer | None:
        """Return the fork server that was killed here and has ended now, if that is what a process was."""
        return self.killed_servers.pop(pid, None)

    def signal_servers(self, signum: int) -> None:
        """Send a signal to every fork server."""
        for server in self.servers.values():
            server.signal(signum)

    # -- workers -------------------------------------------------------------------------------------------------

    def add_worker(self, record: WorkerRecord, channel: Channel, on_message: Callable[[WorkerRecord], None]) -> None:
        """Register a worker that is about to be ordered; ``on_message`` as for a fork server."""
        record.channel = channel
        self.workers[record.worker_id] = record
        self._reactor.add(channel.fileno(), lambda: on_message(record))

    def set_pid(self, record: WorkerRecord, pid: int) -> None:
        """Register a worker's process."""
        record.pid = pid
        self.workers_by_pid[pid] = record

    def without_pid(self) -> list[WorkerRecord]:
        """Return the workers whose process is not known yet."""
        return [record for record in self.workers.values() if not record.has_pid]

    def awaiting_fork(self, generation: int) -> list[WorkerRecord]:
        """Return the workers of a generation whose fork is not reported yet."""
        return [record for record in self.workers.values() if record.generation == generation and not record.forked]

    def close_channel(self, record: WorkerRecord) -> None:
        """Close a worker's channel: one that waits for its start order ends."""
        if record.channel is not None:
            self._reactor.remove(record.channel.fileno())
            record.channel.close()
            record.channel = None

    def remove_worker(self, record: WorkerRecord) -> None:
        """Remove a worker, whose process has ended or never came to be."""
        self.workers.pop(record.worker_id, None)
        self.close_channel(record)
        record.close()

    def announce_stop(self) -> None:
        """Let the booted workers know that the master has to end.

        One that still boots would read it together with ``Start``; it learns of the end by its ``TERM``.
        """
        for record in self.workers.values():
            if record.booted:
                record.announce(Stopping)

    # -- the end -------------------------------------------------------------------------------------------------

    def end_all(self, kill: Callable[[int, int], None]) -> None:
        """Kill what is left and wait for it: a killed process ends soon.

        :param kill: sends a signal to a worker's pid.
        """
        for record in self.workers.values():
            if record.has_pid:
                kill(record.pid, signal.SIGKILL)
        for server in list(self.servers.values()):
            self.end_server(server)
        for pid in [*self.killed_servers, *self.workers_by_pid]:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
