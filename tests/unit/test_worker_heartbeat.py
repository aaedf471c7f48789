"""What hangs on a worker's heartbeat and on its order to leave, for every worker class alike."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import time
from types import FrameType, SimpleNamespace
from typing import ClassVar

import pytest

from zdworker.ipc.messages import CountAnswers, Counts, Leave, Message, Ready, ReplacementRequested, Stopping
from zdworker.ipc.report import Reporter
from zdworker.settings import Settings
from zdworker.syscalls import resident_memory
from zdworker.workers import base
from zdworker.workers.base import ZeroDowntime


class Log(Reporter):
    """Keeps what is reported."""

    def __init__(self) -> None:
        super().__init__(None)
        self.sent: list[Message] = []
        self.words: set[type[Stopping | Leave | CountAnswers]] = set()

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def was_announced(self, word: type[Stopping | Leave | CountAnswers]) -> bool:
        return word in self.words


class Base:
    """Stands for Gunicorn's worker."""

    cfg = SimpleNamespace(graceful_timeout=30)
    log = logging.getLogger("test")

    def __init__(self) -> None:
        self.booted, self.alive, self.beats, self.nr, self.max_requests = False, True, 0, 0, 10

    def init_process(self) -> None:
        self.booted = True

    def notify(self) -> None:
        self.beats += 1

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.alive = False


class Worker(ZeroDowntime, Base):
    """A worker class of which nothing is known."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__()
        self.reports = Log()
        self.zd_reporter = self.reports
        self.zd_master_pid = os.getppid()
        self.zd_settings = settings or Settings()

    def beat(self) -> list[Message]:
        """Send one heartbeat, a check interval later, and return what was reported by it."""
        self.reports.sent.clear()
        self._zd_next_check = 0.0
        self.notify()
        return list(self.reports.sent)


def booted(settings: Settings | None = None) -> Worker:
    worker = Worker(settings)
    worker.init_process()
    worker.beat()
    return worker


def test_it_is_ready_when_its_heart_first_beats_after_boot() -> None:
    worker = Worker()
    assert worker.beat() == []
    worker.init_process()
    assert worker.beat() == [Ready(), Counts(0, 0)]
    assert worker.beat() == []
    assert worker.beats == 3


def test_a_class_can_say_by_itself_when_it_is_ready() -> None:
    class Slow(Worker):
        zd_ready_at_first_beat: ClassVar[bool] = False

    worker = Slow()
    worker.init_process()
    assert worker.beat() == [Counts(0, 0)]


def test_heartbeats_may_be_frequent_but_checks_come_once_a_second() -> None:
    worker = booted()
    worker.nr = 3
    worker.reports.sent.clear()
    for _ in range(5):
        worker.notify()
    assert worker.reports.sent == []
    assert worker.beat() == [Counts(0, 3)]


def test_max_requests_is_asked_for_and_never_taken() -> None:
    worker = booted()
    assert worker.max_requests == sys.maxsize
    worker.nr = 10
    assert worker.beat() == [Counts(0, 10), ReplacementRequested("max_requests")]
    assert worker.alive
    assert not worker.zd_leaving


def test_without_our_arbiter_max_requests_stays_the_base_class_own() -> None:
    worker = Worker()
    worker.zd_master_pid = 0
    worker.init_process()
    assert worker.max_requests == 10
    worker.nr = 10
    assert ReplacementRequested("max_requests") not in worker.beat()


def test_a_worker_that_has_grown_asks_to_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "resident_memory", lambda: 50)
    worker = booted(Settings(max_rss=100))
    assert worker.beat() == []
    monkeypatch.setattr(base, "resident_memory", lambda: 101)
    assert worker.beat() == [ReplacementRequested("zd_max_rss: it takes 101 bytes")]
    assert worker.beat() == []


def test_a_limit_that_no_worker_could_keep_replaces_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(base, "resident_memory", lambda: 101)
    worker = booted(Settings(max_rss=100))
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    monkeypatch.setattr(base, "resident_memory", lambda: 1000)
    assert worker.beat() == []


def test_to_leave_has_a_deadline_that_can_only_come_nearer() -> None:
    worker = booted()
    assert (worker.zd_deadline, worker.zd_leaving) == (math.inf, False)
    worker.handle_exit(signal.SIGTERM, None)
    assert worker.zd_leaving
    assert not worker.alive
    assert 29 < worker.zd_deadline - time.monotonic() <= 30
    worker.zd_leave(1.0)
    assert worker.zd_deadline - time.monotonic() <= 1
    worker.zd_leave(20.0)
    assert worker.zd_deadline - time.monotonic() <= 1


def test_a_class_is_asked_to_leave_once() -> None:
    class Draining(Worker):
        told = 0

        def zd_on_leave(self) -> None:
            self.told += 1

    worker = Draining()
    worker.init_process()
    worker.handle_exit(signal.SIGTERM, None)
    worker.handle_exit(signal.SIGTERM, None)
    assert worker.told == 1
    assert worker.alive


def test_with_a_shutdown_delay_the_master_s_term_is_followed_at_once() -> None:
    worker = booted(Settings(shutdown_delay=10))
    worker.reports.words = {Stopping, Leave}
    worker.handle_exit(signal.SIGTERM, None)
    assert not worker.alive


def test_with_a_shutdown_delay_a_term_to_the_whole_group_is_the_master_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "STOPPING_MESSAGE_S", 0.0)
    worker = booted(Settings(shutdown_delay=10))
    worker.handle_exit(signal.SIGTERM, None)
    assert worker.alive
    worker.reports.words = {Stopping}
    worker.beat()
    worker.handle_exit(signal.SIGTERM, None)
    worker.beat()
    assert worker.alive
    worker.reports.words = {Stopping, Leave}
    worker.handle_exit(signal.SIGTERM, None)
    assert not worker.alive


def test_with_a_shutdown_delay_a_term_of_somebody_else_is_followed_a_little_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = booted(Settings(shutdown_delay=10))
    worker.handle_exit(signal.SIGTERM, None)
    worker.beat()
    assert worker.alive
    monkeypatch.setattr(base, "STOPPING_MESSAGE_S", 0.0)
    worker.beat()
    assert not worker.alive


def test_the_heart_notices_that_the_master_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[float] = []
    worker = booted()
    monkeypatch.setattr(worker, "zd_end_orphaned", lambda: ends.append(base.ORPHAN_LIMIT_S))
    worker.zd_master_pid += 1
    worker.beat()
    worker.beat()
    assert ends == [base.ORPHAN_LIMIT_S]
    assert not worker.alive
    assert worker.zd_deadline - time.monotonic() <= base.ORPHAN_DRAIN_S


def test_a_class_that_knows_no_warm_up_says_so_and_does_not_boot() -> None:
    worker = Worker(Settings(warmup=("/",)))
    with pytest.raises(SystemExit) as ended:
        worker.zd_warmed_up()
    assert ended.value.code == base.BOOT_FAILURE
    assert worker.zd_failure is not None
    assert "Worker cannot answer zd_warmup" in worker.zd_failure.reason
    assert worker.zd_failure.traceback == "", "there is nothing of the application in it"


def test_without_paths_there_is_no_warm_up() -> None:
    Worker().zd_warmed_up()


def test_the_memory_of_this_process_is_known() -> None:
    assert 1 << 20 < (resident_memory() or 0) < 1 << 40
    assert 1 << 20 < (resident_memory(os.getpid()) or 0) < 1 << 40
    assert resident_memory(1 << 30) is None
