"""The processes below a process: found as the kernel lists them, and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zdworker import descendants, syscalls
from zdworker.descendants import Descendant, end_own_descendants, own_descendants
from zdworker.master.arbiter import ZeroDowntimeArbiter

pytestmark = pytest.mark.linux

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"

StartProcess = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def begin() -> Iterator[StartProcess]:
    """Start processes that have ended after the test."""
    made: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen(words, stdout=subprocess.PIPE))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate()


def found(pid: int) -> list[str]:
    return [process.name for process in descendants.descendants(pid)]


def test_parents_come_before_their_children(begin: StartProcess) -> None:
    shell = begin("sh", "-c", "sleep 60 & echo; wait")
    assert shell.stdout is not None
    shell.stdout.readline()
    end = time.monotonic() + 10
    while found(os.getpid())[-2:] != ["sh", "sleep"] and time.monotonic() < end:
        time.sleep(0.01)
    assert found(os.getpid())[-2:] == ["sh", "sleep"]
    end_own_descendants(5.0)
    assert shell.wait(5) == -signal.SIGTERM
    assert found(shell.pid) == []


def test_what_takes_no_term_is_killed(begin: StartProcess) -> None:
    process = begin(sys.executable, "-c", STUBBORN)
    assert process.stdout is not None
    process.stdout.readline()
    assert process.pid in [left.pid for left in end_own_descendants(0.05)]
    assert process.wait(5) == -signal.SIGKILL


def test_a_zombie_and_another_process_of_the_same_pid_are_not_alive(begin: StartProcess) -> None:
    process = begin("sleep", "60")
    (known,) = descendants.living([process.pid])
    other = Descendant(known.pid, known.started + 1, known.name)
    assert not other.alive
    other.send(signal.SIGKILL)
    states = [known.alive]
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert [*states, known.alive] == [True, False]
    assert descendants.living([process.pid]) == []
    known.send(signal.SIGKILL)


def test_a_process_is_named_without_its_arguments(begin: StartProcess) -> None:
    process = begin("sleep", "60")
    (known,) = descendants.living([process.pid])
    assert str(known) == f"sleep (pid:{process.pid})"


def test_a_name_cannot_spoil_the_log() -> None:
    child = syscalls.fork()
    if child == 0:
        with open("/proc/self/comm", "wb") as file:
            file.write(b"a) R 1\x1b[2J\n\xff")
        signal.pause()
    try:
        end = time.monotonic() + 10
        while b"\x1b" not in Path(f"/proc/{child}/comm").read_bytes() and time.monotonic() < end:
            time.sleep(0.01)
        (known,) = descendants.living([child])
        assert known.name.startswith("a) R 1?[2J?")
        assert known.name.isprintable()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_resource_tracker_ends_by_itself() -> None:
    resource_tracker.ensure_running()
    pid = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]  # noqa: SLF001  # what it is known by
    assert pid in [process.pid for process in descendants.descendants(os.getpid())]
    assert pid not in [process.pid for process in own_descendants()]


def test_a_process_that_is_gone_has_none() -> None:
    assert descendants.descendants(2**30) == []


def test_what_has_ended_before_it_was_killed_is_told_from_what_has_no_children(begin: StartProcess) -> None:
    process = begin("sleep", "60")
    assert descendants.before_kill(process.pid) == []
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert descendants.before_kill(process.pid) is None


def test_a_second_kill_forgets_nothing_of_the_first(begin: StartProcess) -> None:
    """Gunicorn's timeout kills again while the worker is not reaped: what is known of it stays known."""
    process = begin("sleep", "60")
    record = SimpleNamespace(descendants=None)
    master: Any = SimpleNamespace(WORKERS={process.pid: record}, _zd_count=lambda _name: None)
    for _ in range(2):
        ZeroDowntimeArbiter.kill_worker(master, process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert record.descendants == []


def test_a_process_with_another_name_is_the_same_one(begin: StartProcess, tmp_path: Path) -> None:
    """It was listed between its fork and its exec, say, or has set its title."""
    file = tmp_path / "now"
    shell = begin("sh", "-c", f'echo; until [ -e "{file}" ]; do sleep 0.05; done; exec sleep 60')
    assert shell.stdout is not None
    shell.stdout.readline()
    (known,) = descendants.living([shell.pid])
    file.touch()
    end = time.monotonic() + 10
    while str(*descendants.living([shell.pid])) != f"sleep (pid:{shell.pid})" and time.monotonic() < end:
        time.sleep(0.01)
    assert str(known) == f"sh (pid:{shell.pid})"
    assert known.alive
    assert known in descendants.living([shell.pid])
    known.send(signal.SIGTERM)
    assert shell.wait(5) == -signal.SIGTERM
