"""The master's view of its children: fork servers and workers, each with its channel.

Rules: nothing is decided here. A record holds what belongs to one process, and gives it back when that has ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

from gunicorn.workers.base import Worker

from zdworker.ipc.channel import Channel
from zdworker.ipc.messages import Init, Leave, Stopping
from zdworker.master import launch

READS = 16
"""Reads at a time from a fork server's standard error: one that prints without end must not hold the master."""

TAIL = 16 * 1024
"""Bytes of a generation's standard error that are kept for the report of its failure."""


class ForkServer:
    """A generation's fork server, started by the constructor.

    :param configuration: the file that the master's configuration was read from.
    :raises OSError: no process, pipe or socket can be had.
    :raises GenerationError: the command cannot be run again.
    """

    def __init__(self, number: int, command: launch.Command, configuration: str) -> None:
        self.number = number
        self.channel, theirs = Channel.pair()
        self.stderr, writer = -1, -1
        self._tail = b""
        try:
            self.stderr, writer = os.pipe()
            os.set_blocking(self.stderr, False)
            begin = Init(
                generation=number,
                master=os.getpid(),
                directory=command.directory,
                safe_path=command.safe_path,
                descriptors=["stderr"],
                configuration=configuration,
                started=command.started,
            )
            # Into the channel before there is anyone to read it: a start must not wait for the other side.
            self.channel.send(begin, [2])
            self.pid = launch.start(command, theirs, writer)
        except BaseException:
            self.close()
            raise
        finally:
            theirs.close()
            if writer >= 0:
                os.close(writer)

    def hear_stderr(self) -> bool:
        """Pass on what the fork server has written to its standard error; False when that is at its end."""
        for _ in range(READS):
            try:
                data = os.read(self.stderr, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._tail = (self._tail + data)[-TAIL:]
            with contextlib.suppress(OSError):
                os.write(2, data)
        return True

    def said(self) -> str:
        """Return the last that it wrote to its standard error."""
        return self._tail.decode(errors="replace").strip()

    def last_line(self) -> str:
        """Return the last line of that, which tells the cause more often than not."""
        return self.said().rpartition("\n")[2]

    def end(self) -> None:
        """Kill it: it keeps nothing that could be lost. Its workers are not its children."""
        self.signal(signal.SIGKILL)

    def signal(self, signum: int) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def close(self) -> None:
        """Give back its descriptors."""
        self.channel.close()
        if self.stderr >= 0:
            os.close(self.stderr)
            self.stderr = -1


class WorkerRecord(Worker):  # type: ignore[misc]  # Gunicorn has no types
    """A worker as the master and its hooks see it.

    Gunicorn's base class, not the worker's own: that would bring uvicorn and the like into the master.
    """

    def __init__(self, *args: Any, slot: int, generation: int) -> None:
        super().__init__(*args)
        self.slot = slot
        self.generation = generation
        self.channel: Channel | None = None
        self.forked = False
        self.greeted = False
        self.since = time.monotonic()
        self.connections = 0
        self.requests = 0
        self.said: set[type[Stopping | Leave]] = set()
        self.own_names = {*vars(self), "own_names"}

    @property
    def worker_id(self) -> int:
        """The worker's number, which Gunicorn calls its age."""
        return int(self.age)

    @property
    def born(self) -> bool:
        """Whether it has said who it is."""
        return isinstance(self.pid, int)

    def say(self, word: type[Stopping | Leave]) -> None:
        """Say something, once, that the worker only looks for."""
        if word not in self.said and self.channel is not None:
            self.said.add(word)
            with contextlib.suppress(OSError):
                self.channel.send(word())

    def hook_attributes(self) -> dict[str, Any]:
        """Return what hooks have set on this record."""
        return {name: value for name, value in vars(self).items() if name not in self.own_names}

    def close(self) -> None:
        """Give back its descriptors."""
        if self.channel is not None:
            self.channel.close()
        with contextlib.suppress(OSError):
            self.tmp.close()
