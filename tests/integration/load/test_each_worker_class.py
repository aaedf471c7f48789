"""Three reloads of each worker class under each kind of load: the promise of the whole project.

The load is what a class can take: WSGIWorker answers one connection at a time and closes it, so it has more workers,
and fewer clients than those, so that the queue is not all they measure.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client, Load, request
from tests.harness.fleet_watcher import FleetWatcher
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ALL, WorkerClass, for_each

SILENT = 20


def loads(stack: ExitStack, server: Server, worker: WorkerClass) -> dict[str, Load]:
    """Start all kinds of load."""
    crowd = {"new": 8, "kept": 12, "slow": 6, "upload": 4} if worker.concurrent else {}
    crowd = crowd or {"new": 2, "kept": 2, "slow": 2, "upload": 2}
    return {
        style: stack.enter_context(Load(server.address, style, clients=clients, think=0.2))
        for style, clients in crowd.items()
    }


@pytest.mark.load
@for_each(ALL)
def test_three_reloads_of_each_class_under_load(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """New connections, kept ones with POSTs and think times, requests of a second, megabytes that come slowly."""
    server = start_class(worker, zd_max_surge="50%", graceful_timeout=15)
    workers, surge = server.expected, -(-server.expected // 2)
    with FleetWatcher(server) as seen, ExitStack() as stack:
        running = loads(stack, server, worker)
        for version in ("two", "three", "four"):
            server.reload(version, 60)
        results = {style: load.stop() for style, load in running.items()}
    assert {style: result.failures for style, result in results.items()} == {style: [] for style in results}
    assert results["new"].versions() == ["one", "two", "three", "four"]
    assert all(len(result.answers) >= 4 for result in results.values())
    assert seen.fewest_accepting >= workers
    assert seen.most_living <= workers + surge
    assert site.events("worker_abort") == []


@for_each(ALL)
def test_silent_sockets_are_answered(start_class: Start, worker: WorkerClass) -> None:
    """Twenty connections that say nothing until all the workers that have accepted them have the order to leave."""
    kept = {"keepalive": int(2 * BOOT_TIMEOUT_S)}  # longer than the new code takes to load
    server = start_class(worker, zd_max_surge="100%", graceful_timeout=30, zd_hand_over=False, **kept)
    silent = [Client(server.address) for _ in range(SILENT)]
    server.wait_taken()
    server.begin_reload("two")
    for client in silent:
        client.send(request("POST", "/echo", b"at last", headers="Connection: close\r\n"))
    answers = [client.reply().json() for client in silent]
    assert [answer["length"] for answer in answers] == [7] * SILENT
    assert {answer["version"] for answer in answers} == {"one"}
    server.wait_only("two")
