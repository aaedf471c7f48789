"""The master's notifications to systemd (sd_notify(3)).

Rules:

* ``READY=1`` is sent when the first generation's workers accept, not when the master has started. After a reload it is
  sent whether the reload has succeeded or not, because the service runs; ``STATUS=`` says which code it runs.
* The state is derived from the facts alone (:func:`stage_of`). A state that has not changed is not sent again.
* A systemd that is missing or does not read has no effect on the master: nothing is raised, and nothing waits for it. A
  message that finds no room in the socket is sent later, in its order; of more than :data:`UNSENT_MAX` the oldest are
  dropped.
"""

from __future__ import annotations

import collections
import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from zdworker import texts
from zdworker.core.fleet import Fleet, Phase, Purpose, WorkerState
from zdworker.core.history import Kind, Requester
from zdworker.master.observers import Observer
from zdworker.master.status import rolled_out
from zdworker.plain import attributes, set_attributes

UNSENT_MAX = 100
"""Messages that may wait for room in the socket."""

EXTENSION = "EXTEND_TIMEOUT_USEC=15000000"
"""Extends systemd's timeout to 15 s from now. All that the master waits for has a deadline of its own."""

EXTENSION_INTERVAL_S = 5.0
"""Seconds between two such requests."""


class Stage(str, Enum):
    """The states of a service that systemd knows."""

    STARTING = "starting"
    READY = "ready"
    RELOADING = "reloading"
    STOPPING = "stopping"


def stage_of(fleet: Fleet) -> Stage:
    """Return the state that the facts mean to systemd."""
    if fleet.stopping:
        return Stage.STOPPING
    if fleet.phase is Phase.NEW or (fleet.phase is Phase.STARTING and not fleet.degraded):
        return Stage.STARTING
    loading = fleet.loading is not None and fleet.loading.purpose in (Purpose.RELOAD, Purpose.ROLLBACK)
    if loading or fleet.reloading is not None or fleet.reload_again:
        return Stage.RELOADING
    return Stage.READY


def status_of(fleet: Fleet, waiting: tuple[str, int] | None = None) -> str:
    """Return one line about the fleet, for a reader of ``systemctl status``.

    :param waiting: for what a reload waits, and the seconds left for that (see ``status.py``).
    """
    ready = sum(worker.state is WorkerState.READY for worker in fleet.workers.values())
    facts = [f"{ready} of {texts.counted(fleet.size, 'worker')} ready"]
    if fleet.state == "rolling":
        target, replaced = rolled_out(fleet)
        facts = [f"generation {target}", f"{replaced} of {fleet.size} replaced", *facts]
    elif fleet.current:
        facts.append(f"generation {fleet.current[-1]}")
    line = f"{fleet.state}: {', '.join(facts)}"
    if waiting is not None and fleet.state == "rolling":
        line += f"; {waiting[0]}, at most {waiting[1]} s more"
    return f"{line}; {fleet.trouble.reason}" if fleet.trouble else line


class Notifier(Observer):
    """Sends the notifications, if ``NOTIFY_SOCKET`` is set.

    :param environ: the environment that the master was started with.
    :param waiting: returns for what a reload waits (see :func:`status_of`).
    """

    def __init__(
        self, environ: Mapping[str, str], waiting: Callable[[], tuple[str, int] | None] = lambda: None
    ) -> None:
        self._waiting = waiting
        self._stage: Stage | None = None
        self._status = ""
        self._next_extension = 0.0
        self._next_heartbeat = 0.0
        self._heartbeat_interval_s = _watchdog_interval(environ)
        self._unsent: collections.deque[bytes] = collections.deque(maxlen=UNSENT_MAX)
        self._socket = _connected(environ.get("NOTIFY_SOCKET", ""))

    def observe(self, fleet: Fleet, now: float) -> None:
        """Send what has changed and the watchdog's heartbeat, and extend systemd's timeout where that is needed."""
        if self._socket is None:
            return
        self._send_changes(stage_of(fleet), status_of(fleet, self._waiting()), now)
        if self._stage is not Stage.READY and now >= self._next_extension:
            self._next_extension = now + EXTENSION_INTERVAL_S
            self._send(EXTENSION)
        if self._heartbeat_interval_s and now >= self._next_heartbeat:
            self._next_heartbeat = now + self._heartbeat_interval_s
            self._send("WATCHDOG=1")
        self._flush()

    def to_state(self, keep: Callable[[int], int]) -> dict[str, Any]:
        """Return what was sent last, for :meth:`adopt` in another program of this process (an upgrade).

        :param keep: has a descriptor go along, and returns its number.
        """
        return {
            "socket": keep(self._socket.fileno()) if self._socket is not None else None,
            "facts": attributes(self, but=("_socket", "_heartbeat_interval_s", "_waiting")),
        }

    def adopt(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`to_state` has returned. Nothing is sent before :meth:`resume`."""
        self.close()
        if state["socket"] is not None:
            self._socket = socket.socket(fileno=state["socket"])
        set_attributes(self, state["facts"])

    def suspend(self, seconds: float) -> None:
        """Have systemd's watchdog wait so long: the program is replaced (WATCHDOG_USEC in sd_notify(3))."""
        if self._heartbeat_interval_s:
            self._send(f"WATCHDOG_USEC={seconds * 1e6:.0f}\nWATCHDOG=1")

    def resume(self) -> None:
        """Have the watchdog wait as long as before; the next heartbeat is due at once."""
        if self._heartbeat_interval_s:
            self._send(f"WATCHDOG_USEC={self._heartbeat_interval_s * 2e6:.0f}")
            self._next_heartbeat = 0.0

    def due_in(self) -> float:
        """Return the seconds until the watchdog's next heartbeat is due, infinity without a watchdog."""
        return (
            self._next_heartbeat - time.monotonic()
            if self._socket is not None and self._heartbeat_interval_s
            else math.inf
        )

    def close(self) -> None:
        """Close the socket; nothing is sent after that."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def reload_requested(self, kind: Kind, who: Requester) -> None:
        """Have ``RELOADING=1`` sent, even while another reload is under way: systemd waits for an answer to each."""
        if self._stage in (Stage.READY, Stage.RELOADING):
            self._stage = None

    def _send_changes(self, stage: Stage, status: str, now: float) -> None:
        if (stage, status) == (self._stage, self._status):
            return
        lines = [f"STATUS={texts.line(status)}"]
        if stage is not self._stage:
            self._next_extension = now + EXTENSION_INTERVAL_S
            lines = [*_announcement(stage), *lines]
            if stage is not Stage.READY:  # it has to come before the unit's own time is over
                lines.append(EXTENSION)
        self._stage, self._status = stage, status
        self._send("\n".join(lines))

    def _send(self, text: str) -> None:
        self._unsent.append(text.encode())
        self._flush()

    def _flush(self) -> None:
        # The socket is open since the start, so a master that has no descriptors left can still send its status.
        while self._unsent and self._socket is not None:
            try:
                self._socket.send(self._unsent[0])
            except BlockingIOError:
                return
            except OSError:  # nothing reads it any more
                self._unsent.clear()
                return
            self._unsent.popleft()


def _announcement(stage: Stage) -> list[str]:
    if stage is Stage.RELOADING:
        # In the same message, because systemd compares it with the time of its own request (Type=notify-reload).
        return ["RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"]
    return {Stage.READY: ["READY=1"], Stage.STOPPING: ["STOPPING=1"]}.get(stage, [])


def _connected(address: str) -> socket.socket | None:
    if not address.startswith(("/", "@")):
        return None  # none, or a kind of address for virtual machines (vsock:)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    connection.setblocking(False)
    try:
        connection.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        connection.close()
        return None
    return connection


def _watchdog_interval(environ: Mapping[str, str]) -> float:
    """Return the seconds between two heartbeats, half of WATCHDOG_USEC (sd_watchdog_enabled(3)); 0 for none."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    with contextlib.suppress(ValueError):
        return int(environ.get("WATCHDOG_USEC", "0")) / 1e6 / 2
    return 0.0
