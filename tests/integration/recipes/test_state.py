"""The recipes of docs/state.md, as they stand there: each through a reload."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.harness import documents
from tests.harness.application_site import Site
from tests.harness.clients import Client
from tests.harness.processes import alive, read_process, stand_still, wait_for
from tests.harness.recipes import changed
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

JOBS = """
import os
import time


def run_due():
    for what in ("begins", "ends"):
        with open("jobs.txt", "a") as file:
            print(os.getpid(), what, file=file)
        if what == "begins":
            time.sleep(0.7)
"""

DEVICE = """

import fcntl

number = os.environ["CUDA_VISIBLE_DEVICES"]
mark("device", number=number)
device = open(f"device-{number}", "w")
fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it has room for one process
mark("taken", number=number)
"""

Recipe = Callable[..., Server]


def recipes() -> Iterator[dict[str, str]]:
    """Yield the files of each recipe of the page; the configuration is the first one of each."""
    files: dict[str, str] = {}
    for block in documents.blocks("docs/state.md"):
        if block.title == "gunicorn.conf.py" and files:
            yield files
            files = {}
        files[block.title] = block.text
    yield files


SCHEDULER, VALUES, DEVICES, METRICS = recipes()


@pytest.fixture
def follow(make_server: Start, site: Site) -> Recipe:
    """Start a server with the files of a recipe."""

    def start(files: dict[str, str], workers: int = 2) -> Server:
        server = make_server(workers=workers)
        own = f"\ncontrol_socket = {str(site.directory / 'gunicorn.ctl')!r}\nkeepalive = 1\n"
        address = "%s:%s" % server.address
        for name, text in files.items():
            site.write(name, text)
        adapted = changed(files["gunicorn.conf.py"], {"127.0.0.1:8000": address, "workers = 2": f"workers = {workers}"})
        site.write("gunicorn.conf.py", adapted + own)
        server.launch_as_is()
        server.wait_full()
        return server

    return start


def reload(server: Server) -> None:
    old = server.workers()
    server.signal(signal.SIGUSR2)
    wait_for(lambda: not any(map(alive, old)), BOOT_TIMEOUT_S, "the old workers have ended")
    server.wait_full()


def is_stopped(pid: int) -> bool:
    process = read_process(pid)
    return process is not None and process.state == "T"


def ask(server: Server, path: str = "/") -> str:
    with Client(server.address) as client:
        return client.ask("GET", path).body.decode()


def test_one_scheduler(follow: Recipe, site: Site) -> None:
    site.write("jobs.py", JOBS)
    server = follow(SCHEDULER)

    def jobs() -> list[str]:
        file = site.directory / "jobs.txt"
        return file.read_text().splitlines() if file.exists() else []

    def schedulers() -> list[int]:
        return list(dict.fromkeys(int(job.split()[0]) for job in jobs()))

    wait_for(schedulers, BOOT_TIMEOUT_S, "jobs are run")
    reload(server)
    wait_for(lambda: len(schedulers()) == 2, BOOT_TIMEOUT_S, "the new worker runs jobs")
    os.kill(schedulers()[-1], signal.SIGKILL)
    wait_for(
        lambda: len(schedulers()) == 3, BOOT_TIMEOUT_S, "the worker in the place of the one that was killed runs jobs"
    )
    assert server.stop() == 0
    first, second, third = schedulers()
    turns = {pid: [job for job in jobs() if job.startswith(f"{pid} ")] for pid in (first, second, third)}
    assert jobs() == [*turns[first], *turns[second], *turns[third]]
    for pid, its in turns.items():
        ended = its.count(f"{pid} ends")
        assert its[: 2 * ended] == [f"{pid} begins", f"{pid} ends"] * ended
        assert len(its) == 2 * ended or pid == second  # which was killed


def test_values_that_workers_share(follow: Recipe) -> None:
    server = follow(VALUES)
    answers = []
    for stopped in server.workers():
        stand_still(stopped)
        wait_for(lambda pid=stopped: is_stopped(pid), 30, "it is stopped")  # type: ignore[misc]
        answers += [ask(server).split() for _ in range(3)]
        os.kill(stopped, signal.SIGCONT)
    assert answers == [[str(number), str(number)] for number in range(1, 7)]
    reload(server)
    assert ask(server).split() == ["1", "7"]
    assert server.stop() == 0


def test_a_device_for_each_worker(follow: Recipe, site: Site) -> None:
    site.deploy("one", extra=DEVICE)
    server = follow(DEVICES)
    site.deploy("two", extra=DEVICE)
    reload(server)
    for version in ("one", "two"):
        assert sorted(mark["number"] for mark in site.marks("device", version)) == ["0", "1"]
        assert sorted(mark["number"] for mark in site.marks("taken", version)) == ["0", "1"]
    assert server.stop() == 0


def test_metrics_by_slot(follow: Recipe, site: Site) -> None:
    server = follow(METRICS, workers=1)
    assert ask(server) == "hello\n"
    (old,) = server.workers()
    with socket.create_connection(("127.0.0.1", int(server.address[1]))) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n")
        server.wait_taken()
        server.signal(signal.SIGUSR2)
        wait_for(lambda: server.accepting() and old not in server.accepting(), BOOT_TIMEOUT_S, "the old worker drains")
        assert [ask(server) for _ in range(5)] == ["hello\n"] * 5
        assert alive(old)
        slow.sendall(b"\r\n")
        assert b"hello" in b"".join(iter(lambda: slow.recv(4096), b""))
    wait_for(lambda: not alive(old), 30, "the old worker has ended")
    reload(server)
    assert ask(server) == "hello\n"
    metrics = ask(server, "/metrics/")
    assert "\nrequests_total 8.0\n" in metrics
    assert "\nserving 1.0\n" in metrics
    files = sorted(path.name for path in (site.directory / "metrics").glob("counter_*"))
    assert set(files) == {"counter_0.0.db", "counter_0.1.db"}
    assert server.stop() == 0
