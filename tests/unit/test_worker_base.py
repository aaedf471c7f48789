"""The worker's side: reports that never raise or wait for long, and signals that mean what the contract says."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from types import FrameType, SimpleNamespace
from typing import ClassVar

import pytest

from zdworker import texts
from zdworker.forkserver.worker_boot import exit_code
from zdworker.ipc import report
from zdworker.ipc.messages import Counts, Decoder, Draining, Failed, Message, Ready, ReplacementRequested
from zdworker.ipc.report import Reporter
from zdworker.settings import Settings
from zdworker.workers import base
from zdworker.workers.base import ZeroDowntime

TOUCHED = [
    signal.SIGHUP,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGALRM,
]


class Base:
    """Stands for Gunicorn's worker."""

    cfg = SimpleNamespace(graceful_timeout=30)
    log = logging.getLogger("worker")
    booted = False
    nr = 0
    max_requests = 10

    def __init__(self) -> None:
        self.calls: list[str] = []

    def init_process(self) -> None:
        self.calls.append("init_process")

    def notify(self) -> None:
        self.calls.append("notify")

    def init_signals(self) -> None:
        self.calls.append("init_signals")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.calls.append("exit")

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        self.calls.append("quit")


class Worker(ZeroDowntime, Base):
    """A worker class as users make theirs."""


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def dispositions() -> Iterator[None]:
    before = {sig: signal.getsignal(sig) for sig in TOUCHED}
    yield
    for sig, handler in before.items():
        signal.signal(sig, handler)


def received(theirs: socket.socket) -> list[Message]:
    theirs.setblocking(False)
    decoder = Decoder()
    messages: list[Message] = []
    while True:
        try:
            data = theirs.recv(1 << 20)
        except BlockingIOError:
            return messages
        if not data:
            return messages
        messages += decoder.feed(data)


def fill(ours: socket.socket) -> int:
    """Fill the channel with counts' worth of newline-free bytes; return how many."""
    filled = 0
    try:
        while True:
            filled += ours.send(b" " * 4096, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return filled


def test_without_a_channel_reports_go_nowhere() -> None:
    Reporter(None).send(Ready())


def test_messages_arrive_in_order(channel: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = channel
    reporter = Reporter(ours)
    sent: list[Message] = [Ready(), Counts(1, 2), ReplacementRequested("max_requests"), Draining()]
    for message in sent:
        reporter.send(message)
    assert received(theirs) == sent


def test_a_dead_master_is_no_error(channel: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = channel
    theirs.close()
    reporter = Reporter(ours)
    reporter.send(Ready())
    reporter.send(Draining())


def test_counts_are_dropped_when_the_channel_is_full(channel: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = channel
    reporter = Reporter(ours)
    filled = fill(ours)
    begun = time.monotonic()
    for number in range(100):
        reporter.send(Counts(number, number))
    assert time.monotonic() - begun < 0.2
    assert theirs.recv(filled, socket.MSG_WAITALL) == b" " * filled
    reporter.send(Draining())
    # The first had begun to wait when nothing was known of the jam; the others are gone.
    assert received(theirs) == [Counts(0, 0), Draining()]


def test_a_state_waits_for_room_but_not_for_long(
    channel: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "REPORT_TIMEOUT_S", 0.05)
    ours, theirs = channel
    reporter = Reporter(ours)
    filled = fill(ours)
    begun = time.monotonic()
    reporter.send(Ready())
    assert 0.04 < time.monotonic() - begun < 1.0
    assert theirs.recv(filled, socket.MSG_WAITALL) == b" " * filled
    reporter.send(Draining())
    assert received(theirs) == [Ready(), Draining()]


def test_a_long_traceback_arrives_whole_while_the_master_reads(
    channel: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = channel
    failed = Failed("reason", "x" * 60_000, 3)
    Reporter(ours).send(failed)
    assert received(theirs) == [failed]


def test_states_are_reported_once_and_counts_when_they_change(
    channel: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = channel
    worker = Worker()
    worker.zd_reporter = Reporter(ours)
    for _ in range(2):
        worker.zd_ready()
        worker.zd_counts(1, 5)
        worker.zd_request_replacement("max_requests")
        worker.zd_draining()
        worker.zd_failed("who has been ready is not one that cannot boot")
    assert received(theirs) == [Ready(), Counts(1, 5), ReplacementRequested("max_requests"), Draining()]


def test_a_boot_that_fails_is_reported_once(channel: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = channel
    worker = Worker()
    worker.zd_reporter = Reporter(ours)
    for _ in range(2):
        worker.zd_failed("reason", "text", 4)
    assert received(theirs) == [Failed("reason", "text", 4)]
    assert worker.zd_failure == Failed("reason", "text", 4)


def test_workers_do_not_share_what_they_have_said(channel: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = channel
    for worker in (Worker(), Worker()):
        worker.zd_reporter = Reporter(ours)
        worker.zd_ready()
    assert received(theirs) == [Ready(), Ready()]


def test_an_endless_traceback_keeps_its_end() -> None:
    worker = Worker()
    worker.zd_failed("reason", "x" * 1_000_000 + "ValueError: the reason")
    assert worker.zd_failure is not None
    assert len(worker.zd_failure.traceback) == texts.LINES_MAX
    assert worker.zd_failure.traceback.endswith("ValueError: the reason")


def test_the_parent_is_lost_only_under_our_master(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert not worker.zd_parent_lost()
    worker.zd_master_pid = 4711
    assert worker.zd_parent_lost()
    monkeypatch.setattr(os, "getppid", lambda: 4711)
    assert not worker.zd_parent_lost()


@pytest.mark.usefixtures("dispositions")
@pytest.mark.parametrize("sig", [signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU])
def test_signals_for_the_master_change_nothing(sig: signal.Signals) -> None:
    worker = Worker()
    worker.init_signals()
    assert worker.calls == ["init_signals"]
    os.kill(os.getpid(), sig)
    time.sleep(0)
    assert worker.calls == ["init_signals"]
    assert signal.getsignal(sig) not in (signal.SIG_IGN, signal.SIG_DFL)


@pytest.mark.usefixtures("dispositions")
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_worker_that_boots_ends_at_once(sig: signal.Signals) -> None:
    worker = Worker()
    worker.init_signals()
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(sig)
    assert ended.value.code == 0


@pytest.mark.usefixtures("dispositions")
def test_a_booted_worker_hands_signals_on_to_its_base() -> None:
    worker = Worker()
    worker.init_signals()
    worker.booted = True
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGQUIT)
    assert worker.calls == ["init_signals", "exit", "quit"]


@pytest.mark.usefixtures("dispositions")
def test_an_orphan_is_ended_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    armed: list[tuple[int, float]] = []
    monkeypatch.setattr(signal, "setitimer", lambda which, seconds: armed.append((which, seconds)))
    worker = Worker()
    worker.booted = True
    worker.zd_master_pid = os.getppid() + 1
    worker.handle_exit(signal.SIGTERM, None)
    assert armed == [(signal.ITIMER_REAL, base.ORPHAN_LIMIT_S)]
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert worker.calls == ["exit"]


def test_a_worker_whose_master_died_before_the_death_signal_was_set_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[int] = []
    monkeypatch.setattr(base, "set_death_signal", wanted.append)
    worker = Worker()
    worker.zd_on_privileges()
    assert wanted == []
    worker.zd_master_pid = os.getppid()
    worker.zd_on_privileges()
    assert wanted == [signal.SIGTERM]
    worker.zd_master_pid += 1
    with pytest.raises(SystemExit) as ended:
        worker.zd_on_privileges()
    assert ended.value.code == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(count_answers=True), ["Worker does not count its answers: zd_count_answers has no effect"]),
        (
            Settings(max_error_rate=5.0, count_answers=True),
            ["Worker does not count its answers: zd_max_error_rate judges nothing"],
        ),
        (Settings(), []),
    ],
)
def test_a_class_that_does_not_count_says_what_is_in_vain(
    settings: Settings, expected: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Worker, "zd_settings", settings)
    Worker().init_process()
    assert [record.getMessage() for record in caplog.records] == expected


def test_what_a_subclass_defines_in_vain_is_named() -> None:
    class Ours(ZeroDowntime):
        zd_without_effect: ClassVar[dict[str, str]] = {"patch": "override zd_prepare()", "setup": "another"}

    class Theirs(Ours):
        def patch(self) -> None:
            """Nothing calls this."""

    Ours.__module__ = "zdworker.workers.example"
    assert Ours.zd_warnings(None) == []
    (line,) = Theirs.zd_warnings(None)
    assert line.endswith("Theirs.patch has no effect: override zd_prepare()")


@pytest.mark.parametrize(
    ("value", "code"), [(None, 0), (0, 0), (False, 0), (True, 1), (3, 3), (256, 1), (-1, 255), ("text", 1), (1.5, 1)]
)
def test_exit_codes_are_those_of_the_kernel(value: object, code: int) -> None:
    assert exit_code(value) == code
    assert not isinstance(exit_code(value), bool)
