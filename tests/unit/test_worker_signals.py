"""The worker's signal handlers beside the application's, and in what the application forks."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from zdworker import syscalls
from zdworker.workers.signals import Handlers, SharedFlag

TERM = signal.SIGTERM


@pytest.fixture
def calls() -> Iterator[list[str]]:
    """What was called; the handler of TERM is put back afterwards."""
    before = signal.getsignal(TERM)
    yield []
    signal.signal(TERM, before)


@pytest.fixture
def handlers(calls: list[str]) -> Handlers:
    made = Handlers(logging.getLogger("worker"))
    made.set(TERM, lambda *_: calls.append("worker"))
    return made


def test_both_are_called_and_the_log_says_so_once(
    handlers: Handlers, calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        signal.signal(TERM, lambda *_: calls.append("application"))
        handlers.take_back()
        handlers.take_back()
    signal.raise_signal(TERM)
    assert calls == ["application", "worker"]
    (record,) = caplog.records
    assert "SIGTERM" in record.getMessage()


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_what_the_applications_raises_ends_nothing(
    handlers: Handlers, calls: list[str], error: type[BaseException]
) -> None:
    def application(*_: object) -> None:
        raise error

    signal.signal(TERM, application)
    handlers.take_back()
    signal.raise_signal(TERM)
    assert calls == ["worker"]


def test_the_applications_may_call_the_one_before_it(handlers: Handlers, calls: list[str]) -> None:
    before = signal.getsignal(TERM)
    assert callable(before)

    def application(signum: int, frame: FrameType | None) -> None:
        calls.append("application")
        before(signum, frame)

    signal.signal(TERM, application)
    handlers.take_back()
    signal.raise_signal(TERM)
    assert calls == ["application", "worker"]


@pytest.mark.parametrize("other", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_signal_that_was_ignored_counts_again(handlers: Handlers, calls: list[str], other: signal.Handlers) -> None:
    signal.signal(TERM, other)
    handlers.take_back()
    signal.raise_signal(TERM)
    assert calls == ["worker"]


def test_another_thread_changes_nothing(handlers: Handlers, calls: list[str]) -> None:
    signal.signal(TERM, lambda *_: calls.append("application"))
    thread = threading.Thread(target=handlers.take_back)
    thread.start()
    thread.join()
    signal.raise_signal(TERM)
    handlers.take_back()
    signal.raise_signal(TERM)
    assert calls == ["application", "application", "worker"]


def forked(run: Callable[[], None]) -> int:
    """Return how a forked process that calls ``run`` has ended: its exit code, or minus its signal."""
    child = syscalls.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.usefixtures("calls")
def test_in_a_forked_process_the_signal_counts_when_the_worker_exits(handlers: Handlers) -> None:
    assert forked(lambda: os.kill(os.getpid(), TERM)) == 7
    handlers.exiting()
    assert forked(lambda: os.kill(os.getpid(), TERM)) == -TERM


def test_in_a_forked_process_the_signal_counts_when_the_worker_is_gone() -> None:
    held, holds = os.pipe()
    ended, writes = os.pipe()

    def worker() -> None:
        Handlers(logging.getLogger("worker")).set(TERM, lambda *_: None)
        if syscalls.fork() == 0:
            os.close(holds)
            os.read(held, 1)  # until the test has closed the other end
            os.kill(os.getpid(), TERM)
            os.write(writes, b"lives on")

    assert forked(worker) == 7
    os.close(holds)
    os.close(writes)
    assert os.read(ended, 20) == b""
    os.close(held)
    os.close(ended)


def test_the_flag_is_shared() -> None:
    flag = SharedFlag()
    assert not flag.is_set()
    assert forked(flag.set) == 7
    assert flag.is_set()


def test_the_applications_may_die_of_its_signal(handlers: Handlers, calls: list[str]) -> None:
    def application(signum: int, frame: FrameType | None) -> None:
        calls.append("application")
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)

    signal.signal(TERM, application)
    handlers.take_back()
    for _ in range(2):
        signal.raise_signal(TERM)
    assert calls == ["application", "worker", "worker"]


@pytest.mark.linux
@pytest.mark.parametrize("chain", [False, True])
def test_a_handler_in_c_is_called_by_the_kernel(
    handlers: Handlers, calls: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, chain: bool
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "traces"
    with path.open("w") as file:
        faulthandler.register(TERM, file=file, chain=chain)
        try:
            handlers.take_back()
            handlers.take_back()
            for _ in range(2):
                signal.raise_signal(TERM)
        finally:
            handlers.set(TERM, lambda *_: None)
            faulthandler.unregister(TERM)
    assert calls == ["worker", "worker"]
    assert path.read_text().count("most recent call first") == 2
    assert [record.getMessage() for record in caplog.records if "a handler in C for SIGTERM" in record.getMessage()]
