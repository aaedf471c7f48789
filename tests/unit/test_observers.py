"""Observers learn what they have a use for, and none of them can hurt the others or the master."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from zdworker.core.events import Outcome, Policy
from zdworker.core.fleet import Fleet
from zdworker.ipc.messages import Drained
from zdworker.master.observers import Crash, Observer, Observers, Reload

CRASH = Crash(7, 0, 4711, "was killed by SIGKILL")


class Recorder(Observer):
    """Remembers what it was notified of."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def worker_ready(self, boot_s: float) -> None:
        self.seen.append(boot_s)

    def observe(self, fleet: Fleet, now: float) -> None:
        self.seen.append((fleet.size, now))


class Broken(Observer):
    """Raises, whatever happens."""

    def worker_ready(self, boot_s: float) -> None:
        raise ValueError("no use for that")

    def observe(self, fleet: Fleet, now: float) -> None:
        raise UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed")


def test_what_one_raises_is_logged_and_the_others_are_notified(caplog: pytest.LogCaptureFixture) -> None:
    first, last = Recorder(), Recorder()
    observers = Observers(logging.getLogger("test_observers"), [first, Broken(), last])
    with caplog.at_level(logging.ERROR):
        observers.notify(Observer.worker_ready, 0.25)
        observers.notify(Observer.observe, Fleet(Policy(), size=3), 100.0)
    assert first.seen == last.seen == [0.25, (3, 100.0)]
    assert [record.exc_info is not None for record in caplog.records] == [True, True]
    assert all("Broken." in record.getMessage() for record in caplog.records)


def test_an_observer_is_not_called_for_what_it_does_not_override() -> None:
    recorder = Recorder()
    observers = Observers(logging.getLogger("test_observers"), [recorder])
    observers.notify(Observer.worker_crashed, CRASH)
    observers.notify(Observer.degraded, "reason", "", Fleet(Policy(), size=1))
    assert recorder.seen == []


def test_a_reload_is_shown_in_the_form_that_scripts_rely_on() -> None:
    reload = Reload.begin(7)
    assert reload.to_plain()["result"] is None
    reload.duration, reload.result, reload.error = 1.23456, Outcome.FAILED, "why"
    reload.cost = Drained(handed_over=2, cut_requests=1, cut_paths=["GET /export"]).plus(Drained(handed_over=1))
    shown = reload.to_plain()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", shown.pop("started_at"))
    cost = {
        "handed_over": 3,
        "told_to_close": 0,
        "cut_requests": 1,
        "closed_websockets": 0,
        "cut_paths": ["GET /export"],
    }
    known = {"result": "failed", "generation": 7, "duration_s": 1.235, "error": "why", "traceback": None}
    assert shown == {**known, **cost, "label": None, "rollback": False, "judgement": None}
