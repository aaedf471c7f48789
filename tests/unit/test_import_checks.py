"""What is noticed of what an application has begun at import."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from zdworker.forkserver import import_checks

pytestmark = pytest.mark.linux


@contextlib.contextmanager
def connected(family: socket.AddressFamily, address: object, kind: int = socket.SOCK_STREAM) -> Iterator[str]:
    """Connect to a listener; yield its address, as a warning names it."""
    with socket.socket(family, kind) as listener, socket.socket(family, kind) as connection:
        listener.bind(address)  # type: ignore[arg-type]  # it goes with the family
        if kind == socket.SOCK_STREAM:
            listener.listen()
        name = listener.getsockname()
        connection.connect(name)
        yield name if isinstance(name, str) else f"{name[0]}:{name[1]}"


@pytest.fixture
def before() -> dict[int, str]:
    return import_checks.descriptors()


def test_nothing_is_said_of_nothing(before: dict[int, str]) -> None:
    assert import_checks.warnings(before) == []


def test_connections_are_named(before: dict[int, str], tmp_path: Path) -> None:
    with (
        connected(socket.AF_INET, ("127.0.0.1", 0)) as tcp,
        connected(socket.AF_UNIX, str(tmp_path / "database")) as unix,
    ):
        (line,) = import_checks.warnings(before)
    assert line.startswith(f"the application opened connections at import ({unix}, {tcp}): ")
    assert import_checks.warnings(before) == []


def test_processes_are_named(before: dict[int, str]) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        (line,) = import_checks.warnings(before)
        process.kill()
    assert line.startswith(f"the application started processes at import (sleep (pid:{process.pid})): ")
    assert import_checks.warnings(before) == []


def test_connections_that_were_there_before_are_not() -> None:
    with connected(socket.AF_INET, ("127.0.0.1", 0)):
        assert import_checks.warnings(import_checks.descriptors()) == []


def test_what_is_no_connection_is_none(before: dict[int, str]) -> None:
    one, other = socket.socketpair()
    with (
        one,
        other,
        socket.create_server(("127.0.0.1", 0)),
        connected(socket.AF_INET, ("127.0.0.1", 0), socket.SOCK_DGRAM),
        open(os.devnull, "rb"),
    ):
        assert import_checks.warnings(before) == []


def test_looking_leaves_connections_as_they_are(before: dict[int, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as connection:
        connection.connect(listener.getsockname())
        peer, _ = listener.accept()
        with peer:
            import_checks.warnings(before)
            connection.sendall(b"alive")
            assert peer.recv(5) == b"alive"


def test_an_event_loop_is_noticed(before: dict[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gevent", raising=False)
    with contextlib.closing(asyncio.new_event_loop()):
        (line,) = import_checks.warnings(before)
    assert "an event loop" in line
    assert import_checks.warnings(before) == []


def test_threads_are_named(before: dict[int, str]) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="exporter")
    thread.start()
    try:
        (line,) = import_checks.warnings(before)
    finally:
        over.set()
        thread.join()
    assert line.startswith("the application started threads at import (exporter): ")


def test_where_nothing_can_be_seen_nothing_is_said(monkeypatch: pytest.MonkeyPatch, before: dict[int, str]) -> None:
    with connected(socket.AF_INET, ("127.0.0.1", 0)):
        monkeypatch.setattr(os, "dup", no_descriptor)
        assert import_checks.warnings(before) == []
        monkeypatch.setattr(import_checks, "DESCRIPTORS", "/nowhere")
        assert import_checks.warnings(before) == []


def no_descriptor(_number: int) -> int:
    raise OSError(24, "Too many open files")
