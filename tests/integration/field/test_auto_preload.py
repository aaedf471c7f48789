"""Without a word on preloading the application is imported once per reload, or by each worker where that differs.

Rules: which process has imported is known from the application's own mark; why a generation is not preloaded is asked
from the master.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.control_client import status
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start, run_once
from tests.harness.worker_classes import GEVENT, THREAD, UVICORN, WorkerClass, for_each

NO_HOOKS = "\n\ndel on_reload, pre_fork, post_fork\n"
"""For the end of the harness's configuration, whose hooks tell against preloading."""

OPENS = """

import asyncio
import fcntl
import multiprocessing
import signal
import socket
import subprocess
import tempfile
import threading

over = threading.Event()
threading.Thread(target=over.wait, name="refresher", daemon=True).start()
connection = socket.create_connection(("127.0.0.1", {port}))
loop = asyncio.new_event_loop()
only_one = open("only-one", "w")
try:
    fcntl.flock(only_one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    locked = True
except BlockingIOError:
    locked = False
child = subprocess.Popen(["sleep", "600"])
counter = multiprocessing.get_context("fork").Value("i", 0)
place = tempfile.TemporaryDirectory()
signal.signal(signal.SIGUSR2, lambda *_: None)
mark("opened", locked=locked, child=child.pid, place=place.name, mask=os.umask(0))
"""
"""What an application should not do before its workers are forked, and does without preloading without harm."""

FOUND = (
    "threads at import (refresher)",
    "processes at import (sleep (pid:",
    "connections at import (127.0.0.1:",
    "an event loop",
    "locks on files",
    "memory",
    "signals at import (SIGUSR2)",
    "a temporary directory",
)


def importers(site: Site, version: str) -> list[int]:
    return [mark["pid"] for mark in site.marks("import", version)]


def fork_server(server: Server) -> dict[str, Any]:
    """Return what the status says of the newest fork server."""
    found: dict[str, Any] = status(server)["fork_servers"][-1]
    return found


def order(site: Site, command: str, socket_path: str) -> subprocess.CompletedProcess[str]:
    """Order a reload or a rollback, and wait for its end."""
    return run_once(site, "zdworker", command, "--socket", socket_path, deadline=2 * BOOT_TIMEOUT_S)


@pytest.fixture
def socket_path(site: Site) -> str:
    return str(site.directory / "control.sock")


@for_each((UVICORN, THREAD, GEVENT))
def test_one_import_per_reload_and_the_code_that_runs_after_a_crash(
    start: Start, site: Site, socket_path: str, worker: WorkerClass
) -> None:
    server = start(
        worker_class=worker.path,
        threads=2,
        extra=NO_HOOKS,
        zd_control_socket=socket_path,
        zd_rollback_window=600,
        max_requests=20,
    )
    assert importers(site, "one") == server.fork_servers()
    site.deploy("two")
    assert order(site, "reload", socket_path).returncode == 0
    broken = site.break_("raise")
    failed = order(site, "reload", socket_path)
    assert failed.returncode == 1
    assert f"RuntimeError: broken {broken}" in failed.stdout + failed.stderr, "the traceback of the import"
    before = server.workers()
    os.kill(before[0], signal.SIGKILL)
    back_again = "another one is in its place"
    wait_for(lambda: before[0] not in server.workers() and len(server.accepting()) == 2, BOOT_TIMEOUT_S, back_again)

    def replaced() -> bool:
        assert server.get()["version"] == "two"
        return not set(before) & set(server.workers())

    for _ in range(100):
        replaced()
    # The kernel says which worker gets a request: until the other one of before has had its max_requests, too.
    wait_for(replaced, BOOT_TIMEOUT_S, "the workers were replaced for max_requests")
    server.wait_full()
    assert len(importers(site, "two")) == 1
    assert fork_server(server)["preloaded"]
    assert fork_server(server)["not_preloaded"] is None
    back = order(site, "rollback", socket_path)
    assert back.returncode == 0, back.stderr
    assert server.get()["version"] == "one"
    assert len(importers(site, "one")) == 1


@for_each((UVICORN, GEVENT))
def test_what_the_import_leaves_open_is_found_and_each_worker_imports(
    start: Start, site: Site, socket_path: str, worker: WorkerClass
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as database:
        site.serve(worker.kind)
        site.deploy("one", extra=OPENS.format(port=database.getsockname()[1]))
        os.umask(0o027)
        try:
            server = start(worker_class=worker.path, extra=NO_HOOKS, zd_control_socket=socket_path)
        finally:
            os.umask(0o022)
        found = fork_server(server)
        assert not found["preloaded"]
        expected = [part for part in FOUND if worker is UVICORN or part != "an event loop"]
        assert [part for part in expected if part not in found["not_preloaded"]] == []
        assert server.fork_servers() == [found["pid"]], "the same process, which has started once more"
        assert importers(site, "one")[0] == found["pid"]
        assert sorted(importers(site, "one")[1:]) == server.workers()
        first, *others = site.marks("opened")
        assert not alive(first["child"])
        assert not Path(first["place"]).exists()
        assert all(alive(mark["child"]) and Path(mark["place"]).exists() for mark in others)
        assert sorted(mark["locked"] for mark in others) == [False, True], "one of the workers has the lock"
        assert {mark["mask"] for mark in [first, *others]} == {0o027}
        closed, _ = database.accept()
        closed.settimeout(BOOT_TIMEOUT_S)
        assert closed.recv(1) == b"", "the first import's connection is closed"
        closed.close()


def test_each_worker_draws_its_own_numbers(start: Start, site: Site) -> None:
    site.deploy("one", extra=DRAWS)
    start(workers=4, extra=NO_HOOKS)
    (at_import,) = site.marks("at import")
    drawn = {mark["pid"]: mark["numbers"] for mark in reversed(site.marks("drawn"))}.values()  # the first of each
    assert len({seeded for _, _, seeded in drawn}) == 1, "what has a seed goes on from there"
    for number in (0, 1):
        assert len({at_import["numbers"][number], *(numbers[number] for numbers in drawn)}) == 5


DRAWS = """

import random

dice, sure = random.Random(), random.Random(42)


def draw():
    return [random.random(), dice.random(), sure.random()]


mark("at import", numbers=draw())
_started = endpoints.started


def started():
    mark("drawn", numbers=draw())
    _started()


endpoints.started = started
"""


def test_what_a_hook_sets_at_the_start_is_there_at_the_import(start: Start, site: Site) -> None:
    site.deploy("one", extra='\n\nmark("environment", value=os.environ.get("BY_HOOK"))\n')
    start(extra=f"{NO_HOOKS}\n\ndef on_starting(server):\n    _os.environ['BY_HOOK'] = 'x' * 100_000\n")
    (seen,) = site.marks("environment")
    assert seen["value"] == "x" * 100_000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")
def test_the_application_is_imported_as_the_user_that_serves_it(start: Start, site: Site, socket_path: str) -> None:
    site.directory.chmod(0o777)
    site.deploy("one", extra='\n\nopen(f"by-{os.getpid()}", "w").close()\n')
    server = start(extra=NO_HOOKS, user="nobody", group="nogroup", zd_control_socket=socket_path)
    assert "another user" in fork_server(server)["not_preloaded"]
    assert {file.owner() for file in site.directory.glob("by-*")} == {"nobody"}
    assert sorted(importers(site, "one")) == server.workers()


def test_never_is_never(start: Start, site: Site, socket_path: str) -> None:
    server = start(extra=NO_HOOKS, zd_control_socket=socket_path, environment={"ZD_PRELOAD": "never"})
    assert sorted(importers(site, "one")) == server.workers()
    assert not fork_server(server)["preloaded"]
