"""What is noticed of what an application has begun at import."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import fcntl
import mmap
import multiprocessing
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zdworker.forkserver import import_checks
from zdworker.forkserver.import_checks import Snapshot

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
def before() -> Snapshot:
    return import_checks.snapshot()


def warnings(before: Snapshot) -> list[str]:
    return import_checks.warnings(import_checks.findings(before))


def found(before: Snapshot) -> list[str]:
    """Return what tells against preloading by default, and may be meant as it is where preloading was asked for."""
    assert warnings(before) == []
    return [finding.what for finding in [*import_checks.findings(before), *import_checks.doubts(before)]]


def test_nothing_is_said_of_nothing(before: Snapshot) -> None:
    assert warnings(before) == []


def test_connections_are_named(before: Snapshot, tmp_path: Path) -> None:
    with (
        connected(socket.AF_INET, ("127.0.0.1", 0)) as tcp,
        connected(socket.AF_UNIX, str(tmp_path / "database")) as unix,
    ):
        (line,) = warnings(before)
    assert line.startswith(f"the application opened connections at import ({unix}, {tcp}): ")
    assert warnings(before) == []


def test_processes_are_named(before: Snapshot) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        (line,) = warnings(before)
        process.kill()
    assert line.startswith(f"the application started processes at import (sleep (pid:{process.pid})): ")
    assert warnings(before) == []


def test_connections_that_were_there_before_are_not() -> None:
    with connected(socket.AF_INET, ("127.0.0.1", 0)):
        assert warnings(import_checks.snapshot()) == []


def test_what_is_no_connection_is_none(before: Snapshot) -> None:
    one, other = socket.socketpair()
    with (
        one,
        other,
        socket.create_server(("127.0.0.1", 0)),
        connected(socket.AF_INET, ("127.0.0.1", 0), socket.SOCK_DGRAM),
        open(os.devnull, "rb"),
    ):
        assert warnings(before) == []


def test_looking_leaves_connections_as_they_are(before: Snapshot) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as connection:
        connection.connect(listener.getsockname())
        peer, _ = listener.accept()
        with peer:
            warnings(before)
            connection.sendall(b"alive")
            assert peer.recv(5) == b"alive"


def test_an_event_loop_is_noticed(before: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gevent", raising=False)
    with contextlib.closing(asyncio.new_event_loop()):
        (line,) = warnings(before)
    assert "an event loop" in line
    assert warnings(before) == []


def test_threads_are_named(before: Snapshot) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="exporter")
    thread.start()
    try:
        (line,) = warnings(before)
    finally:
        over.set()
        thread.join()
    assert line.startswith("the application started threads at import (exporter): ")


def test_a_thread_that_was_there_before_tells_nothing_of_the_import() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="of the script")
    thread.start()
    try:
        (finding,) = import_checks.findings(import_checks.snapshot())
    finally:
        over.set()
        thread.join()
    assert not finding.new
    assert finding.certain


def test_threads_of_agents_are_not_the_application_s() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="exporter")
    thread.start()
    try:
        assert len(import_checks.findings(import_checks.snapshot())) == 1
        assert import_checks.findings(import_checks.snapshot(), import_checks.agents()) == []
    finally:
        over.set()
        thread.join()


def test_where_nothing_can_be_seen_nothing_is_said(monkeypatch: pytest.MonkeyPatch, before: Snapshot) -> None:
    with connected(socket.AF_INET, ("127.0.0.1", 0)):
        monkeypatch.setattr(os, "dup", no_descriptor)
        assert warnings(before) == []
        monkeypatch.setattr(import_checks, "PROCESS", "/nowhere")
        assert warnings(before) == []


# -- what is certain ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("take", [fcntl.flock, fcntl.lockf], ids=["flock", "lockf"])
def test_a_lock_on_a_file_is_noticed(before: Snapshot, tmp_path: Path, take: Callable[..., object]) -> None:
    with open(tmp_path / "only-one", "a") as file:
        assert found(before) == []
        take(file, fcntl.LOCK_EX)
        (line,) = warnings(before)
        assert f"({tmp_path}/only-one): each worker would think that it has them" in line


def test_a_file_that_is_written_from_its_position_is_named(before: Snapshot, tmp_path: Path) -> None:
    with (tmp_path / "data").open("w"), (tmp_path / "log").open("a"):
        (line,) = warnings(before)
    assert f"left files open for writing at import ({tmp_path}/data): " in line


def test_a_database_in_a_file_is_one(before: Snapshot, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "data.sqlite")) as database:
        database.execute("create table one (two)")
        (line,) = warnings(before)
    assert "data.sqlite" in line


# -- what may be meant -------------------------------------------------------------------------------------------------


def test_a_file_that_is_read_from_its_position_is_found(before: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("data")
    with (tmp_path / "data").open():
        assert found(before) == [f"the application left files open at import ({tmp_path}/data)"]


def test_a_file_that_is_read_by_its_addresses_can_be_shared(before: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("data")
    with (
        (tmp_path / "model").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ),
    ):
        assert found(before) == []


def test_pipes_are_found(before: Snapshot) -> None:
    ends = os.pipe()
    (what,) = found(before)
    for end in ends:
        os.close(end)
    assert "descriptors open at import (pipe:[" in what


def test_memory_that_would_be_shared_is_found(before: Snapshot) -> None:
    with mmap.mmap(-1, 4096):
        (what,) = found(before)
    assert what.startswith("the application mapped memory at import that all workers would share (")


def test_a_lock_of_processes_is_such_memory(before: Snapshot) -> None:
    lock = multiprocessing.get_context("fork").Lock()
    assert "mapped memory" in found(before)[0]
    del lock


def test_handlers_of_signals_are_found(before: Snapshot) -> None:
    stock = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        assert found(before) == ["the application set handlers of signals at import (SIGUSR2)"]
    finally:
        signal.signal(signal.SIGUSR2, stock)


def test_what_the_first_worker_to_end_would_remove_is_found(before: Snapshot) -> None:
    with tempfile.TemporaryDirectory():
        assert "a temporary directory" in found(before)[0]


def test_threads_of_a_library_are_found(before: Snapshot) -> None:
    over = threading.Lock()
    over.acquire()
    ended = threading.Event()

    def wait() -> None:
        with over:
            ended.set()

    _thread.start_new_thread(wait, ())
    try:
        assert "a library of the application started threads at import (" in found(before)[0]
    finally:
        over.release()
        ended.wait(5)


def no_descriptor(_number: int) -> int:
    raise OSError(24, "Too many open files")
