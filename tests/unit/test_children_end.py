"""The end of the master's children, and what they print: with real processes and pipes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from zdworker import texts
from zdworker.ipc.channel import Channel
from zdworker.ipc.messages import SERVER_REPORT_BYTES
from zdworker.master import children
from zdworker.master.children import Children, ForkServer
from zdworker.master.reactor import Reactor


@pytest.fixture
def registry() -> Iterator[Children]:
    reactor = Reactor()
    yield Children(reactor)
    reactor.close_in_child()


@pytest.fixture
def sleeping() -> Iterator[int]:
    """A child that nothing ends before the test does."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process.pid
        process.kill()


def test_what_cannot_be_killed_is_not_waited_for(
    registry: Children, sleeping: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "KILLED_WAIT_S", 0.1)
    record: Any = None  # what it is does not matter to its process
    registry.workers_by_pid[sleeping] = record
    began = time.monotonic()
    assert registry.end_all(lambda _pid, _sig: None) == [sleeping]
    assert time.monotonic() - began < 5


def test_what_ends_is_waited_for(registry: Children, sleeping: int) -> None:
    record: Any = None
    registry.workers_by_pid[sleeping] = record
    os.kill(sleeping, signal.SIGKILL)
    assert registry.end_all(lambda _pid, _sig: None) == []


def test_what_a_fork_server_prints_is_passed_on_piece_by_piece() -> None:
    """A character of several bytes may come in two pieces."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    ours, theirs = Channel.pair(SERVER_REPORT_BYTES)
    shown: list[str] = []
    server = ForkServer(1, os.getpid(), ours, reader, logging.getLogger(), shown.append)
    for piece in ("é\x1b[2J\n".encode()[:1], "é\x1b[2J\n".encode()[1:], b"x" * 50_000):
        os.write(writer, piece)
        assert server.read_stderr()
    os.close(writer)
    assert not server.read_stderr()
    server.channel.close()
    server.close_stderr()
    theirs.close()
    assert "".join(shown) == "é\\x1b[2J\n" + "x" * 50_000
    assert len(server.printed()) == texts.LINES_MAX
