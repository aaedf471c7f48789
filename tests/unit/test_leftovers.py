"""What workers and fork servers leave: whose it was, when it is ended, and what keeps running."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from zdworker import descendants
from zdworker.core import leftovers as core_leftovers
from zdworker.master.leftovers import LeftoverProcesses

pytestmark = pytest.mark.linux

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"

StartProcess = Callable[..., subprocess.Popen[bytes]]


class Timers:
    """Stands for the reactor: runs what was asked for when the test turns it."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.waiting.append(callback)

    def turn(self) -> None:
        due, self.waiting = self.waiting, []
        for callback in due:
            callback()

    def until(self, fact: Callable[[], Any]) -> None:
        end = time.monotonic() + 15
        while not fact():
            assert time.monotonic() < end
            self.turn()
            time.sleep(0.01)


class Registry:
    """Stands for the registry of the master's children."""

    def __init__(self) -> None:
        self.workers: dict[int, Any] = {}
        self.workers_by_pid: dict[int, Any] = {}
        self.servers: dict[int, Any] = {}
        self.killed_servers: dict[int, Any] = {}
        self.nameless: list[Any] = []
        self.closed: list[Any] = []

    def without_pid(self) -> list[Any]:
        return self.nameless

    def close_stderr(self, server: Any) -> None:
        self.closed.append(server)


@pytest.fixture
def begin() -> Iterator[StartProcess]:
    """Start processes that have ended after the test."""
    made: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen(words or ("sleep", "60"), stdout=subprocess.PIPE))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate()


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def left(timers: Timers, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> LeftoverProcesses:
    monkeypatch.setattr(core_leftovers, "LOOK_INTERVAL_S", 0.0)
    made: Any = LeftoverProcesses(logging.getLogger("master"), timers, registry)  # type: ignore[arg-type]  # stand-ins
    made.look()
    return made  # type: ignore[no-any-return]


def worker(**facts: Any) -> Any:
    return SimpleNamespace(**{"worker_id": 1, "pid": 4711, "generation": 1, "descendants": None, **facts})


def server(**facts: Any) -> Any:
    return SimpleNamespace(**{"number": 1, "descendants": None, **facts})


def test_a_fork_server_that_was_started_meanwhile_is_not_ended(
    left: LeftoverProcesses, registry: Registry, timers: Timers, begin: StartProcess
) -> None:
    """A worker has crashed, and before that is known a reload has begun."""
    ours, killed, orphan = begin(), begin(), begin()
    registry.servers[2] = server(number=2, pid=ours.pid)
    registry.killed_servers[killed.pid] = server(number=1, pid=killed.pid)
    left.worker_gone(worker(), -signal.SIGKILL)
    timers.until(lambda: orphan.poll() is not None and not left.pending)
    assert (ours.poll(), killed.poll()) == (None, None)


def test_what_another_thread_of_the_master_has_started_is_not_ended(
    left: LeftoverProcesses, timers: Timers, begin: StartProcess
) -> None:
    """A configuration is evaluated in a thread, and may call git."""
    begun, over = threading.Event(), threading.Event()
    started: list[subprocess.Popen[bytes]] = []

    def evaluate() -> None:
        started.append(begin())
        begun.set()
        over.wait(30)

    thread = threading.Thread(target=evaluate)
    thread.start()
    try:
        assert begun.wait(30)
        orphan = begin()
        left.worker_gone(worker(), -signal.SIGKILL)
        timers.until(lambda: orphan.poll() is not None and not left.pending)
        assert started[0].poll() is None
    finally:
        over.set()
        thread.join()


def test_what_a_crashed_worker_has_left_is_ended(left: LeftoverProcesses, timers: Timers, begin: StartProcess) -> None:
    before = begin()
    left.look()
    new = begin()
    left.worker_gone(worker(), -signal.SIGSEGV)
    assert left.pending
    timers.until(lambda: new.poll() is not None)
    assert new.returncode == -signal.SIGTERM
    timers.until(lambda: not left.pending)
    assert before.poll() is None
    timers.turn()
    assert timers.waiting == []


def test_a_worker_that_left_has_left_nothing(left: LeftoverProcesses, timers: Timers, begin: StartProcess) -> None:
    begin()
    left.worker_gone(worker(), 0)
    assert not left.pending
    assert timers.waiting == []


def test_what_takes_no_term_is_killed(
    left: LeftoverProcesses, timers: Timers, begin: StartProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_leftovers, "TERM_S", 0.05)
    process = begin(sys.executable, "-c", STUBBORN)
    assert process.stdout is not None
    process.stdout.readline()
    left.worker_gone(worker(descendants=descendants.living([process.pid])), -signal.SIGKILL)
    timers.until(lambda: process.poll() is not None)
    assert process.returncode == -signal.SIGKILL


def test_the_list_of_a_killed_worker_counts_alone(left: LeftoverProcesses, timers: Timers, begin: StartProcess) -> None:
    listed, new = begin(), begin()
    left.worker_gone(worker(descendants=descendants.living([listed.pid])), -signal.SIGKILL)
    timers.until(lambda: not left.pending)
    assert listed.wait(5) == -signal.SIGTERM
    assert new.poll() is None


def test_nothing_is_ended_while_a_worker_is_being_forked(
    left: LeftoverProcesses, timers: Timers, registry: Registry, begin: StartProcess
) -> None:
    """It is a child of the master of which nothing is known yet."""
    leftover, booting = begin(), begin()
    registry.nameless = [worker()]
    left.worker_gone(worker(), -signal.SIGKILL)
    timers.turn()
    assert (leftover.poll(), booting.poll()) == (None, None)
    registry.nameless, registry.workers_by_pid[booting.pid] = [], worker()
    timers.until(lambda: leftover.poll() is not None)
    timers.until(lambda: not left.pending)
    assert booting.poll() is None


def test_a_generation_lasts_as_long_as_its_workers(
    left: LeftoverProcesses, timers: Timers, registry: Registry, begin: StartProcess
) -> None:
    process, gone = begin(), server()
    registry.workers = {1: worker(generation=1), 2: worker(generation=2)}
    left.server_gone(gone)
    timers.turn()
    assert process.poll() is None
    assert registry.closed == []
    del registry.workers[1]
    timers.until(lambda: registry.closed)
    assert process.wait(5) == -signal.SIGTERM
    assert registry.closed == [gone]


def test_a_killed_fork_server_is_pending_until_it_is_reaped(
    left: LeftoverProcesses, timers: Timers, registry: Registry, begin: StartProcess
) -> None:
    process = begin()
    killed = server(descendants=descendants.living([process.pid]))
    registry.killed_servers[4711] = killed
    pending = [left.pending]
    del registry.killed_servers[4711]
    left.server_gone(killed)
    timers.until(lambda: registry.closed)
    assert [*pending, left.pending] == [True, False]
    assert process.wait(5) == -signal.SIGTERM


def test_what_the_master_starts_is_let_be(left: LeftoverProcesses, begin: StartProcess) -> None:
    with left.masters_own():
        begin()
    left.worker_gone(worker(), -signal.SIGKILL)
    assert not left.pending


def test_a_look_while_a_dead_child_is_not_reaped_notes_nothing(
    left: LeftoverProcesses, timers: Timers, begin: StartProcess
) -> None:
    """What that child has left is a child of the master already, and would be taken for an old one."""
    dead, leftover = begin("true"), begin()
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
    left.look()
    dead.wait()
    left.worker_gone(worker(), -signal.SIGKILL)
    timers.until(lambda: leftover.poll() is not None)


def test_what_the_kernel_holds_is_not_waited_for(
    left: LeftoverProcesses, timers: Timers, begin: StartProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_leftovers, "TERM_S", 0.0)
    monkeypatch.setattr(core_leftovers, "KILLED_S", 0.0)
    monkeypatch.setattr(descendants.Descendant, "send", lambda process, signum: None)
    process = begin()
    left.worker_gone(worker(), -signal.SIGKILL)
    timers.until(lambda: not left.pending)
    assert process.poll() is None


def test_the_end_of_the_master_kills_what_is_left(
    left: LeftoverProcesses, registry: Registry, begin: StartProcess
) -> None:
    waiting, of_server, of_worker = begin(), begin(), begin()
    left.worker_gone(worker(descendants=descendants.living([waiting.pid])), -signal.SIGKILL)
    registry.killed_servers[1] = server(descendants=descendants.living([of_server.pid]))
    registry.workers[2] = worker(descendants=descendants.living([of_worker.pid]))
    left.kill_all()
    assert {process.wait(5) for process in (waiting, of_server, of_worker)} == {-signal.SIGKILL}
