"""The metrics that the master sends to statsd: reloads, boots, crashes, workers by state and generation.

Rules:

* Serving does not depend on this: nothing is raised and nothing waits. A datagram that finds no room or no receiver is
  lost. Gauges are sent again every :data:`REPEAT_INTERVAL_S` seconds.
* ``status.py`` keeps the same counts with or without a statsd; ``zdworker metrics`` gets them from there.
* The user configures statsd with Gunicorn's settings (``statsd_host``, ``statsd_prefix``, ``dogstatsd_tags``), and
  Gunicorn's logger sends the datagrams.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from gunicorn.instrument.statsd import Statsd

from zdworker.core.events import Outcome
from zdworker.core.fleet import Fleet
from zdworker.master.answers import AnswerBook
from zdworker.master.observers import Crash, Observer, Reload
from zdworker.master.status import STATES

REPEAT_INTERVAL_S = 10.0
"""Seconds after which all gauges are sent again, changed or not: statsd's default flush interval."""


class Meter(Observer):
    """Counts and measures for statsd what happens to the fleet.

    :param log: the master's logger; a :class:`Statsd` where a statsd is configured.
    :param book: what each generation has answered.
    """

    def __init__(self, log: Any, book: AnswerBook) -> None:
        self._log = log
        self._book = book
        self._counted: dict[str, int] = {}
        self._sent: dict[str, int] = {}
        self._repeat_at = 0.0

    def to_state(self) -> dict[str, Any]:
        """Return what was sent last, for :meth:`adopt` in another program of this process (an upgrade)."""
        return {"sent": self._sent, "counted": self._counted}

    def adopt(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`to_state` has returned; all gauges are sent again, and no answer is counted twice."""
        self._sent, self._counted = state["sent"], state["counted"]

    def reload_started(self, reload: Reload) -> None:
        """Count a reload, or a rollback."""
        self._send("increment", "zdworker.reloads", 1)

    def reload_finished(self, reload: Reload, fleet: Fleet) -> None:
        """Send how long a reload took, and count it if it failed."""
        if reload.result is Outcome.FAILED:
            self._send("increment", "zdworker.failed_reloads", 1)
        self._send("timer", "zdworker.reload_duration", round(reload.duration_s() * 1000))

    def worker_ready(self, boot_s: float) -> None:
        """Count a worker that has become ready, and send how long its boot took."""
        self._send("increment", "zdworker.boots", 1)
        self._send("timer", "zdworker.boot_duration", round(boot_s * 1000))

    def worker_crashed(self, crash: Crash) -> None:
        """Count a worker that died while it was ready."""
        self._send("increment", "zdworker.crashes", 1)

    def observe(self, fleet: Fleet, now: float) -> None:
        """Send the gauges of workers that have changed, and all of them every :data:`REPEAT_INTERVAL_S` seconds."""
        if not isinstance(self._log, Statsd):
            return
        gauges = gauges_of(fleet)
        repeat = now >= self._repeat_at
        # statsd keeps the value of a gauge until another one is sent, so a generation that is gone is sent with 0.
        known = {**dict.fromkeys(self._sent, 0), **gauges}
        for name, value in known.items():
            if repeat or self._sent.get(name) != value:
                self._send("gauge", name, value)
        self._sent = gauges if repeat else known
        if repeat or not fleet.workers or self._book.of_generation.keys() - fleet.generations.keys():
            self._send_answers()  # also the last ones of a generation that is gone, and of all at the end
        if repeat:
            self._repeat_at = now + REPEAT_INTERVAL_S

    def _send_answers(self) -> None:
        """Count what each generation has answered since this was sent last."""
        counted = {
            f"zdworker.generation.{number}.{name}": value
            for number, figures in self._book.of_generation.items()
            for name, value in (("answers", figures.answers), ("failed_answers", figures.tally.failed))
        }
        for name, value in counted.items():
            if value > self._counted.get(name, 0):
                self._send("increment", name, value - self._counted.get(name, 0))
        self._counted = counted

    def _send(self, method: str, name: str, value: float) -> None:
        with contextlib.suppress(Exception):  # the logger may be of a user's class
            log = self._log
            if isinstance(log, Statsd):
                if isinstance(log.sock, socket.socket):
                    log.sock = Lossy(log.sock)
                getattr(log, method)(name, value)


class Lossy:
    """A datagram socket that never waits and never raises, in the place of Gunicorn's own.

    A Unix socket whose reader has stopped is full soon and would block the master (unix(7)). Where no process listens,
    every second UDP datagram is refused, and Gunicorn would log each refusal with a traceback. Gunicorn counts errors
    and warnings of its log through the same socket.
    """

    def __init__(self, datagrams: socket.socket) -> None:
        self._datagrams = datagrams

    def send(self, data: bytes) -> int:
        """Send ``data`` if that is possible at once, and return its length in any case."""
        with contextlib.suppress(OSError):
            self._datagrams.send(data, socket.MSG_DONTWAIT)
        return len(data)


def gauges_of(fleet: Fleet) -> dict[str, int]:
    """Return the numbers of workers by state, and by generation and state, under the names of their gauges."""
    found = {f"zdworker.workers.{state}": 0 for state in STATES.values()}
    for worker in fleet.workers.values():
        state = STATES[worker.state]
        found[f"zdworker.workers.{state}"] += 1
        name = f"zdworker.generation.{worker.generation}.{state}"
        found[name] = found.get(name, 0) + 1
    found["gunicorn.workers"] = len(fleet.workers)
    return found
