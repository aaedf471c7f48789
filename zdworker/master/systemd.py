"""What systemd is told of the master's life (sd_notify(3)).

Rules:

* Ready means ready: ``READY=1`` comes when the first generation's workers accept, not when the master is up. After a
  reload it comes whether that succeeded or not: the service runs, and ``STATUS=`` says on what.
* The facts decide (:func:`stage_of`), not the path by which they came about; what has not changed is not said again.
* Whoever does not listen, or not any more, changes nothing here: nothing is raised, nothing is waited for for long.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Mapping
from enum import Enum

from zdworker import texts
from zdworker.core.fleet import Fleet, Phase, Purpose, WorkerState
from zdworker.master.observers import Observer

PATIENCE = 0.1
"""Seconds that a message may wait for room."""

EXTENSION = 15.0
"""Seconds by which a timeout of systemd is put off at a time, while something goes on that has its own deadlines."""

EXTEND_EVERY = 5.0
"""Seconds between two such requests."""


class Stage(str, Enum):
    """What systemd knows of."""

    STARTING = "starting"
    READY = "ready"
    RELOADING = "reloading"
    STOPPING = "stopping"


def stage_of(fleet: Fleet) -> Stage:
    """Return what the facts mean to systemd."""
    if fleet.stopping:
        return Stage.STOPPING
    if fleet.phase is Phase.NEW or (fleet.phase is Phase.STARTING and not fleet.degraded):
        return Stage.STARTING
    loading = fleet.loading is not None and fleet.loading.purpose in (Purpose.RELOAD, Purpose.ROLLBACK)
    if loading or fleet.reloading is not None or fleet.reload_again:
        return Stage.RELOADING
    return Stage.READY


def status_of(fleet: Fleet) -> str:
    """Return one line about the fleet, for a reader of ``systemctl status``."""
    ready = sum(worker.state is WorkerState.READY for worker in fleet.workers.values())
    code = f", generation {fleet.current[-1]}" if fleet.current else ""
    line = f"{fleet.state}: {ready} of {fleet.size} workers ready{code}"
    return f"{line}; {fleet.trouble.reason}" if fleet.trouble else line


class Notifier(Observer):
    """The master's side; silent where ``NOTIFY_SOCKET`` is not set.

    :param environ: the environment that the master was started with.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._stage: Stage | None = None
        self._status = ""
        self._next_extension = 0.0
        self._next_beat = 0.0
        self._beat_every = _watchdog_interval(environ)
        self._socket = _connected(environ.get("NOTIFY_SOCKET", ""))

    def observe(self, fleet: Fleet, now: float) -> None:
        """Send what has changed and the watchdog's heartbeat, and ask for time where it is needed."""
        if self._socket is None:
            return
        self._send_changes(stage_of(fleet), status_of(fleet), now)
        if self._stage is not Stage.READY and now >= self._next_extension:
            self._next_extension = now + EXTEND_EVERY
            self._send(f"EXTEND_TIMEOUT_USEC={EXTENSION * 1e6:.0f}")
        if self._beat_every and now >= self._next_beat:
            self._next_beat = now + self._beat_every
            self._send("WATCHDOG=1")

    def due_in(self) -> float:
        """Return the seconds until the watchdog wants to hear something."""
        return self._next_beat - time.monotonic() if self._socket is not None and self._beat_every else math.inf

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def reload_requested(self) -> None:
        """Have ``RELOADING=1`` sent, even while another reload is under way: systemd waits for an answer to each."""
        if self._stage in (Stage.READY, Stage.RELOADING):
            self._stage = None

    def _send_changes(self, stage: Stage, status: str, now: float) -> None:
        if (stage, status) == (self._stage, self._status):
            return
        lines = [f"STATUS={texts.line(status)}"]
        if stage is not self._stage:
            self._next_extension = now + EXTEND_EVERY
            lines = [*_announcement(stage), *lines]
        self._stage, self._status = stage, status
        self._send("\n".join(lines))

    def _send(self, text: str) -> None:
        # It was opened at start: a master that is out of descriptors can still say so.
        with contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.send(text.encode())


def _announcement(stage: Stage) -> list[str]:
    if stage is Stage.RELOADING:
        # In the same message, as systemd compares it with the moment of its own request (Type=notify-reload).
        return ["RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"]
    return {Stage.READY: ["READY=1"], Stage.STOPPING: ["STOPPING=1"]}.get(stage, [])


def _connected(address: str) -> socket.socket | None:
    if not address.startswith(("/", "@")):
        return None  # none, or a kind that is not for processes such as this one (vsock:)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    connection.settimeout(PATIENCE)
    try:
        connection.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        connection.close()
        return None
    return connection


def _watchdog_interval(environ: Mapping[str, str]) -> float:
    """Return the seconds between two beats, half of what systemd asks for (sd_watchdog_enabled(3)); 0 for none."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    with contextlib.suppress(ValueError):
        return int(environ.get("WATCHDOG_USEC", "0")) / 1e6 / 2
    return 0.0
