"""Workers that are replaced one by one for another reason than a deploy, each class under load: no request is lost."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack

import pytest

from tests.harness import processes
from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.fleet_watcher import FleetWatcher
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ALL, WorkerClass, for_each

WORKERS = 4
LIMIT = "150M"
"""More than a worker takes that has just booted, less than one takes that has allocated as ordered."""


def assert_nothing_lost(*loads: Load) -> None:
    results = [load.stop() for load in loads]
    assert [result.failures for result in results] == [[] for _ in results]
    assert all(result.answers for result in results)


def loads(stack: ExitStack, server: Server, worker: WorkerClass, **plan: float) -> list[Load]:
    """Start clients with new and with keep-alive connections, fewer than workers that answer one at a time."""
    clients = 6 if worker.concurrent else 2
    styles = ("new", "kept")
    return [stack.enter_context(Load(server.address, style, clients=clients, **plan)) for style in styles]


@pytest.mark.load
@for_each(ALL)
def test_max_requests_loses_no_request(start_class: Start, site: Site, worker: WorkerClass, full: bool) -> None:
    """Two hundred requests each, for 10 s (in CI 4): the replacement is ready first, and one is replaced at a time."""
    server = start_class(worker, workers=WORKERS, max_requests=200, max_requests_jitter=50)
    with FleetWatcher(server) as seen, ExitStack() as stack:
        running = loads(stack, server, worker)
        time.sleep(10 if full else 4)  # the load
        wait_for(lambda: len(seen.workers) >= WORKERS + 2, BOOT_TIMEOUT_S, "workers were replaced")
        assert_nothing_lost(*running)
    assert seen.fewest_accepting >= WORKERS
    assert seen.most_living <= WORKERS + 1
    assert site.events("worker_abort") == []


@for_each(ALL)
def test_fewer_workers_lose_no_request(start_class: Start, worker: WorkerClass) -> None:
    """``TTOU`` until two of four are left."""
    server = start_class(worker, workers=WORKERS)
    with ExitStack() as stack:
        running = loads(stack, server, worker, think=0.05)
        for workers in (3, 2):
            server.settings["workers"] = workers
            server.signal(signal.SIGTTOU)
            server.wait_full()
        assert_nothing_lost(*running)


@for_each(ALL)
def test_a_worker_that_takes_too_much_memory(start_class: Start, worker: WorkerClass) -> None:
    """Above ``zd_max_rss`` it is replaced: the new one is ready first, and only then the large one drains."""
    server = start_class(worker, workers=WORKERS, zd_max_rss=LIMIT)
    with FleetWatcher(server) as seen, ExitStack() as stack:
        running = loads(stack, server, worker, think=0.05)
        victim = int(server.get("/allocate?megabytes=200")["pid"])
        wait_for(lambda: not processes.alive(victim), BOOT_TIMEOUT_S, "it has gone")
        server.wait_full()
        assert_nothing_lost(*running)
    assert len(seen.workers) == WORKERS + 1, "no other was replaced"
    assert seen.fewest_accepting >= WORKERS
