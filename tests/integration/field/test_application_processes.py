"""Processes that the application starts: each ends with the worker or the generation that it belongs to.

Rules: what a worker or a generation has started is known by pid from the application itself, and looked for in the
kernel; a site that has ended leaves no process and no listening socket.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client
from tests.harness.control_client import status
from tests.harness.processes import alive, command, stand_still, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ALL, UVICORN, WSGI, WorkerClass, for_each

GONE_S = 30.0
"""Seconds within which what belongs to an ended process is gone, on a machine with other work; an exit itself has a
second, and a TERM two. What is to be gone would last for 600."""
GRACEFUL_TIMEOUT_S = 30
"""What a worker needs to end is far from it, so that none is killed only because the machine is slow."""

POOL = """

import atexit
import concurrent.futures
import multiprocessing
import subprocess
import sys
import threading

_pools = []


def _use_pool(query):
    if not _pools:
        context = multiprocessing.get_context(query.get("method", "fork"))
        _pools.append(concurrent.futures.ProcessPoolExecutor(2, mp_context=context))
        for asked in [_pools[0].submit(os.getpid) for _ in range(4)]:
            asked.result(20)
        for _ in range(4 if "busy" in query else 0):
            _pools[0].submit(time.sleep, 600)
    return {"children": [*_pools[0]._processes]}


def _sidecar(query):
    detached = query.get("session") == "own"
    child = subprocess.Popen([sys.executable, "-c", query["code"]], start_new_session=detached)
    _pools.append(child)
    return {"child": child.pid}


def _daemon(query):
    # The process in between ends at once: what it has started is abandoned.
    quiet = "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True"
    code = f"import subprocess; print(subprocess.Popen(['sleep', '600'], {quiet}).pid)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, stdin=subprocess.DEVNULL)
    return {"child": int(answer.stdout)}


endpoints.at_once["/pool"] = _use_pool
endpoints.at_once["/sidecar"] = _sidecar
endpoints.at_once["/daemon"] = _daemon
if "Shared" in globals():  # Tornado's routes are fixed when the application is made
    app.add_handlers(".*", [(path, Shared) for path in endpoints.at_once])
"""

IGNORES_TERM = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"

PRELOADED = """

import multiprocessing
import subprocess
import sys

SIDECAR = '''
import os, signal, sys, time

def end(*_):
    # A pipe whose reader has gone would end this process here, before it has said so.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.write(2, b"the sidecar ends" + bytes([10]))
    with open("sidecar-ended", "a") as file:
        file.write(str(os.getpid()) + chr(10))
    os._exit(0)

signal.signal(signal.SIGTERM, end)
with open("sidecar-runs", "a") as file:
    file.write(str(os.getpid()) + chr(10))
while True:
    time.sleep(0.05)
'''
_context = multiprocessing.get_context("fork")
_manager = _context.Manager()
_shared = _manager.dict()
_daemon = _context.Process(target=time.sleep, args=(600,), daemon=True)
_daemon.start()
_sidecar = subprocess.Popen([sys.executable, "-c", SIDECAR])


def _count(query):
    _shared["count"] = _shared.get("count", 0) + 1
    return {"count": _shared["count"]}


def _started(query):
    return {"children": [_manager._process.pid, _daemon.pid, _sidecar.pid]}


endpoints.at_once["/count"] = _count
endpoints.at_once["/children"] = _started
"""


def wait_gone(pids: list[int]) -> None:
    wait_for(lambda: not [pid for pid in pids if alive(pid)], GONE_S, f"none of {pids} is left")


def started_processes(server: Server, site: Site) -> list[int]:
    """Return what the preloaded application has started, once the sidecar handles TERM."""
    started: list[int] = server.get("/children")["children"]
    runs = site.directory / "sidecar-runs"
    wait_for(lambda: runs.exists() and str(started[2]) in runs.read_text().split(), BOOT_TIMEOUT_S, "it handles TERM")
    return started


def pools(server: Server, path: str = "/pool") -> dict[int, list[int]]:
    """Have every worker start its pool; return the processes of each."""
    found: dict[int, list[int]] = {}

    def everybody_has() -> bool:
        answer = server.get(path)
        found[answer["pid"]] = answer["children"]
        return set(found) == set(server.accepting())

    wait_for(everybody_has, BOOT_TIMEOUT_S, "each worker has a pool")
    return found


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
@for_each(ALL)
def test_a_pool_ends_with_its_worker(
    start_class: Start, make_server: Start, site: Site, worker: WorkerClass, preload: bool
) -> None:
    site.deploy("one", extra=POOL)
    server = start_class(worker, workers=2, preload_app=preload, keepalive=5, graceful_timeout=GRACEFUL_TIMEOUT_S)
    first = [pid for pids in pools(server).values() for pid in pids]
    assert [pid for pid in first if not alive(pid)] == []
    site.deploy("two", extra=POOL)
    server.signal(signal.SIGUSR2)
    server.wait_only("two")
    wait_gone(first)
    client = Client(server.address)
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.reply().status == 200
    second = [pid for pids in pools(server).values() for pid in pids]
    assert server.stop() == 0
    wait_gone(second)
    server.wait_nothing_left(GONE_S)
    assert client.socket.recv(1) == b""
    assert server.port_free()
    assert "killed" not in server.log


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_pool_started_in_another_way_ends_with_its_worker(start: Start, site: Site, method: str) -> None:
    site.deploy("one", extra=POOL)
    server = start(workers=1)
    children = server.get(f"/pool?method={method}")["children"]
    server.reload("two")
    wait_gone(children)
    assert server.stop() == 0
    server.wait_nothing_left(GONE_S)


@for_each((UVICORN, WSGI))
def test_a_pool_at_work_does_not_outlive_its_worker(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """Python's own exit would wait for it: ten minutes."""
    site.deploy("one", extra=POOL)
    server = start_class(worker, workers=1)
    children = server.get("/pool?busy=1")["children"]
    server.reload("two")
    wait_gone(children)
    site.deploy("three", extra=POOL)
    server.signal(signal.SIGUSR2)
    server.wait_only("three")
    children = server.get("/pool?busy=1")["children"]
    assert server.stop() == 0
    wait_gone(children)
    server.wait_nothing_left(GONE_S)
    assert server.port_free()


@pytest.mark.parametrize("path", ["/pool", "/pool?busy=1"])
def test_the_processes_of_a_worker_that_was_killed_are_ended(start: Start, site: Site, path: str) -> None:
    site.deploy("one", extra=POOL)
    server = start(workers=2)
    by_worker = pools(server, path)
    victim, other = server.accepting()
    os.kill(victim, signal.SIGKILL)
    wait_gone(by_worker[victim])
    assert [pid for pid in by_worker[other] if not alive(pid)] == []
    server.wait_full()
    assert server.stop() == 0
    server.wait_nothing_left(GONE_S)


@for_each((UVICORN, WSGI))
def test_the_processes_of_workers_end_when_the_master_is_killed(
    start_class: Start, site: Site, worker: WorkerClass
) -> None:
    site.deploy("one", extra=POOL)
    server = start_class(worker, workers=2)
    children = [pid for pids in pools(server, "/pool?busy=1").values() for pid in pids]
    server.signal(signal.SIGKILL)
    server.wait_exit(GONE_S)
    wait_gone(children)
    server.wait_nothing_left(GONE_S)
    assert server.port_free()


@pytest.mark.parametrize("session", ["", "own"])
@pytest.mark.parametrize("code", ["import time; time.sleep(600)", IGNORES_TERM], ids=["plain", "ignores TERM"])
def test_a_sidecar_of_a_worker_ends_with_it(start: Start, site: Site, session: str, code: str) -> None:
    site.deploy("one", extra=POOL)
    server = start(workers=1)
    path = f"/sidecar?session={session}&code={code.replace(' ', '%20').replace(';', '%3B')}"
    child = server.get(path)["child"]
    server.reload("two")
    wait_gone([child])


def test_a_daemon_keeps_running(start: Start, site: Site) -> None:
    """A process that is abandoned on purpose was meant to outlive the process that has started it."""
    site.deploy("one", extra=POOL)
    server = start(workers=1)
    old, daemon = server.workers(), server.get("/daemon")["child"]
    try:
        site.deploy("two")
        server.signal(signal.SIGUSR2)
        server.wait_only("two")
        wait_gone(old)
        assert server.get()["version"] == "two"
        assert server.stop() == 0
        assert alive(daemon)
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_what_a_preloaded_application_has_started_ends_with_its_generation(start: Start, site: Site) -> None:
    site.deploy("one", extra=PRELOADED)
    server = start(workers=2, preload_app=True)
    started = started_processes(server, site)
    for version in ("two", "three"):
        server.get("/count")
        site.deploy(version, extra=PRELOADED)
        server.signal(signal.SIGUSR2)
        server.wait_only(version)
        wait_gone(started)
        ended = (site.directory / "sidecar-ended").read_text().split()
        assert str(started[2]) in ended, command(started[2])
        started = started_processes(server, site)
        assert [pid for pid in started if not alive(pid)] == []
    assert server.stop() == 0
    server.wait_nothing_left(GONE_S)
    assert str(started[2]) in (site.directory / "sidecar-ended").read_text().split()


def test_a_worker_that_ends_leaves_its_generation_what_it_needs(start: Start, site: Site) -> None:
    """A forked worker knows the processes of its fork server, and is not their parent."""
    site.deploy("one", extra=PRELOADED)
    server = start(workers=2, preload_app=True)
    before = server.get("/children")["children"]
    for pid in server.workers():
        os.kill(pid, signal.SIGTERM)
        # It goes on until its successor is ready.
        wait_for(lambda pid=pid: not alive(pid), BOOT_TIMEOUT_S, "the worker has ended")  # type: ignore[misc]
        server.wait_full()
    assert [pid for pid in before if not alive(pid)] == []
    assert server.get("/count")["count"] == 1
    assert "AssertionError" not in server.log


def test_the_processes_of_a_fork_server_that_died_last_as_long_as_its_workers(start: Start, site: Site) -> None:
    site.deploy("one", extra=PRELOADED)
    server = start(workers=2, preload_app=True, zd_control_socket=str(site.directory / "control.sock"))
    (fork_server,) = server.fork_servers()
    started = server.get("/children")["children"]
    os.kill(fork_server, signal.SIGKILL)

    def replaced() -> bool:
        # Asked from the master: what the dead one has started are children of the master, too, from now on.
        return [one["pid"] != fork_server and one["preloaded"] for one in status(server)["fork_servers"]] == [True]

    wait_for(replaced, BOOT_TIMEOUT_S, "there is another fork server, which has loaded")
    assert server.get("/count")["count"] == 1
    server.reload("two")
    wait_gone(started)
    assert server.stop() == 0
    server.wait_nothing_left(GONE_S)


@pytest.mark.parametrize("stopped", [False, True], ids=["", "fork server is stopped"])
def test_the_processes_of_a_generation_end_when_the_master_is_killed(start: Start, site: Site, stopped: bool) -> None:
    # It writes nothing to its standard error: the reader of that was the master.
    site.deploy("one", extra=PRELOADED.replace('os.write(2, b"the sidecar ends" + bytes([10]))', "pass"))
    server = start(workers=2, preload_app=True)
    started = started_processes(server, site)
    if stopped:
        stand_still(server.fork_servers()[0])
    server.signal(signal.SIGKILL)
    server.wait_exit(GONE_S)
    wait_gone(started)
    server.wait_nothing_left(GONE_S)
    assert str(started[2]) in (site.directory / "sidecar-ended").read_text().split(), "it has got its TERM"
    assert server.port_free()


EXIT = """

import atexit
import concurrent.futures
import threading

atexit.register(lambda: mark("atexit"))
_stuck = concurrent.futures.ThreadPoolExecutor(1)
_quick = concurrent.futures.ThreadPoolExecutor(1)
_exits = threading.Event()
threading._register_atexit(lambda: (mark("executors"), _exits.set()))


def _be_busy(query):
    _quick.submit(lambda: (_exits.wait(), mark("done")))  # under way when the exit begins
    if query.get("stuck"):
        _stuck.submit(time.sleep, 600)
    return {}


endpoints.at_once["/threads"] = _be_busy
if "Shared" in globals():  # Tornado's routes are fixed when the application is made
    app.add_handlers(".*", [(path, Shared) for path in endpoints.at_once])
"""


@pytest.mark.parametrize("query", ["", "?stuck=1"])
@for_each(ALL)
def test_a_worker_exits_as_python_does(start_class: Start, site: Site, worker: WorkerClass, query: str) -> None:
    """What was given to an executor is done, and a thread that does not end takes no atexit function its turn."""
    site.deploy("one", extra=EXIT)
    server = start_class(worker, workers=1, graceful_timeout=GRACEFUL_TIMEOUT_S)
    server.get("/threads" + query)
    assert server.stop() == 0
    assert [mark["event"] for mark in site.marks() if mark["event"] in ("done", "executors", "atexit")] == [
        "executors",
        "done",
        "atexit",
    ]
    assert "killed" not in server.log
