"""What a statsd is told of the master: reloads, boots, crashes, workers by state and generation.

Rules:

* Nothing here is needed to serve: nothing is raised, nothing waits. A datagram that finds no room is lost, as is one
  that nobody takes; what is a state is said again every :data:`REPEAT_INTERVAL_S` seconds.
* What was counted stands in ``journal.py``, with or without a statsd; from there ``zdworker metrics`` has it.
* The statsd is Gunicorn's to configure (``statsd_host``, ``statsd_prefix``, ``dogstatsd_tags``); its logger tells it.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from gunicorn.instrument.statsd import Statsd

from zdworker.core.events import Outcome
from zdworker.core.fleet import Fleet
from zdworker.master.observers import Observer, Reload
from zdworker.master.status import STATES

REPEAT_INTERVAL_S = 10.0
"""Seconds after which gauges are told again, changed or not: statsd's own interval."""


class Meter(Observer):
    """Sends what happens to a statsd.

    :param log: the master's logger; a :class:`Statsd` where a statsd is configured.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._sent: dict[str, int] = {}
        self._repeat_at = 0.0

    def reload_started(self, reload: Reload) -> None:
        """Count a reload, or a rollback."""
        self._send("increment", "zdworker.reloads", 1)

    def reload_finished(self, reload: Reload, fleet: Fleet) -> None:
        """Send how long one took, and count it if it failed."""
        if reload.result is Outcome.FAILED:
            self._send("increment", "zdworker.failed_reloads", 1)
        self._send("timer", "zdworker.reload_duration", round(reload.duration_s() * 1000))

    def worker_ready(self, boot_s: float) -> None:
        """Count a worker that has become ready, and send how long that took."""
        self._send("increment", "zdworker.boots", 1)
        self._send("timer", "zdworker.boot_duration", round(boot_s * 1000))

    def worker_crashed(self) -> None:
        """Count a worker that died while it was ready."""
        self._send("increment", "zdworker.crashes", 1)

    def observe(self, fleet: Fleet, now: float) -> None:
        """Send the workers by state and generation: what has changed at once, and everything now and then."""
        gauges = gauges_of(fleet)
        repeat = now >= self._repeat_at
        # A gauge keeps its value until another one is sent: a generation that is gone has 0 workers.
        known = {**dict.fromkeys(self._sent, 0), **gauges}
        for name, value in known.items():
            if repeat or self._sent.get(name) != value:
                self._send("gauge", name, value)
        self._sent = gauges if repeat else known
        if repeat:
            self._repeat_at = now + REPEAT_INTERVAL_S

    def _send(self, method: str, name: str, value: float) -> None:
        with contextlib.suppress(Exception):  # a logger class may be anybody's
            log = self._log
            if isinstance(log, Statsd):
                if isinstance(log.sock, socket.socket):
                    log.sock = Lossy(log.sock)
                getattr(log, method)(name, value)


class Lossy:
    """A datagram socket that never waits, and never complains, in the place of Gunicorn's own.

    A Unix socket whose reader has stopped is full soon, and would hold the master (unix(7)); where nobody listens, each
    second datagram is refused, which Gunicorn logs with a traceback. Its errors and warnings are counted there, too.
    """

    def __init__(self, datagrams: socket.socket) -> None:
        self._datagrams = datagrams

    def send(self, data: bytes) -> int:
        """Send ``data`` if that can be done at once."""
        with contextlib.suppress(OSError):
            self._datagrams.send(data, socket.MSG_DONTWAIT)
        return len(data)


def gauges_of(fleet: Fleet) -> dict[str, int]:
    """Return the workers by state, and by generation and state, by the names of their gauges."""
    found = {f"zdworker.workers.{state}": 0 for state in STATES.values()}
    for worker in fleet.workers.values():
        state = STATES[worker.state]
        found[f"zdworker.workers.{state}"] += 1
        name = f"zdworker.generation.{worker.generation}.{state}"
        found[name] = found.get(name, 0) + 1
    found["gunicorn.workers"] = len(fleet.workers)
    return found
