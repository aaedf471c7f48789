"""A stopped master of the same user, or a crowd at its own control socket, holds up neither master nor command."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.processes import stand_still
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from zdworker.command.client import ANSWER_TIMEOUT_S
from zdworker.ipc.control_directory import directory_of

TIMED_OUT = 4


class NeverFull(AssertionError):
    """The queue was emptied faster than it was filled."""


@pytest.fixture
def runtime(site: Site, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = site.directory / "run"
    made.mkdir()
    for name in ("XDG_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(made))
    return made


@contextlib.contextmanager
def crowd(path: Path) -> Iterator[None]:
    """Fill the queue of connections that wait for ``path`` to be accepted."""
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.setblocking(False)
            try:
                client.connect(str(path))
            except BlockingIOError:
                yield
                return
    raise NeverFull("the queue of the socket has no end")


@pytest.fixture
def stopped(runtime: Path) -> Iterator[Path]:
    """The control socket of a master that is stopped: it listens and accepts nothing, and its queue is full."""
    path = directory_of(os.geteuid()) / "1.sock"
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(16)
        with crowd(path):
            yield path


def command(*words: str, deadline: float = BOOT_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zdworker", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline,
        stdin=subprocess.DEVNULL,
    )


def own_socket(server: Server) -> Path:
    return directory_of(os.geteuid()) / f"{server.master}.sock"


def test_another_master_is_stopped(start: Start, stopped: Path) -> None:
    server = start()
    server.reload("two")
    assert command("status", "--pid", str(server.master)).returncode == 0
    assert stopped.exists(), "a socket on which a process listens is not removed"


def test_a_crowd_waits_at_the_own_socket_during_a_reload(start: Start, runtime: Path) -> None:
    """The queue is filled again as fast as the master accepts, so that it is full when the configuration is taken."""
    server = start(workers=1)
    ended = threading.Event()

    def keep_full() -> None:
        while not ended.is_set():
            with contextlib.suppress(NeverFull), crowd(own_socket(server)):
                time.sleep(0.001)

    filling = threading.Thread(target=keep_full)
    filling.start()
    try:
        server.reload("two")
    finally:
        ended.set()
        filling.join(BOOT_TIMEOUT_S)


@pytest.mark.parametrize("words", [["status"], ["reload", "--timeout", "1"], ["reload", "--no-wait"], ["metrics"]])
def test_the_command_gives_up_on_a_stopped_master(stopped: Path, words: list[str]) -> None:
    began = time.monotonic()
    gave_up = command(*words)
    assert gave_up.returncode == TIMED_OUT
    assert "accepts no connection" in gave_up.stderr
    assert time.monotonic() - began < 4 * ANSWER_TIMEOUT_S


def test_the_command_s_timeout_counts_from_its_start(start: Start, runtime: Path) -> None:
    server = start(workers=1)
    stand_still(server.master)
    began = time.monotonic()
    gave_up = command("reload", "--timeout", "1")
    assert gave_up.returncode == TIMED_OUT
    assert time.monotonic() - began < ANSWER_TIMEOUT_S, "as long as it waits for any answer"
    os.kill(server.master, signal.SIGCONT)


def test_a_reload_without_a_timeout_ends_when_the_master_is_stopped(start: Start, site: Site, runtime: Path) -> None:
    server = start(workers=1)
    site.deploy("two", extra="\ntime.sleep(60)\n")
    words = [sys.executable, "-m", "zdworker", "reload"]
    with subprocess.Popen(
        words, cwd=site.directory, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as waiting:
        assert waiting.stderr is not None
        assert "rolling" in waiting.stderr.readline()
        stand_still(server.master)
        try:
            _out, error = waiting.communicate(timeout=2 * BOOT_TIMEOUT_S)
        finally:
            waiting.kill()
            os.kill(server.master, signal.SIGCONT)
    assert waiting.returncode == TIMED_OUT
    assert "timed out" in error


def test_a_pid_names_a_stopped_master(start: Start, site: Site, runtime: Path) -> None:
    """With a path of its own the socket is looked for among all on which the process listens."""
    server = start(workers=1, zd_control_socket=str(site.directory / "own.sock"))
    stand_still(server.master)
    with crowd(site.directory / "own.sock"):
        gave_up = command("status", "--pid", str(server.master))
    assert gave_up.returncode == TIMED_OUT, gave_up.stderr
    began = time.monotonic()
    gave_up = command("reload", "--timeout", "1", "--pid", str(server.master))
    assert gave_up.returncode == TIMED_OUT, gave_up.stderr
    assert time.monotonic() - began < ANSWER_TIMEOUT_S, "as long as it waits for any answer"
    for words in ("history", "probe /"):
        gave_up = command(*words.split(), "--pid", str(server.master))
        assert gave_up.returncode == TIMED_OUT
        assert "it is stopped, or has too much to do" in gave_up.stderr
        assert "order" not in gave_up.stderr, "there is none"
    os.kill(server.master, signal.SIGCONT)
