"""Many connections, many reloads: what a few of them do not show.

``tox -e load`` has the sizes that are promised, CI a part of them.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.harness.clients import Client
from tests.harness.crowd import Crowd, Seen
from tests.harness.processes import descriptors, wait_for
from tests.harness.server import Server, Start
from tests.harness.tcp_sockets import OPEN, tcp
from tests.harness.worker_classes import HANDING_OVER, WorkerClass, for_each
from zdworker.command import client as master
from zdworker.command import finder

KEEPALIVE_S = 75
WORKERS = 4

pytestmark = pytest.mark.load


def told(seen: Seen) -> tuple[list[object], int, int]:
    return [*seen.failures], len(seen.reconnects), seen.told_to_close


def handed_over(server: Server) -> int:
    """Return how many connections the last reload has handed over, as the master says."""
    return int(master.status(finder.find(pid=server.master).path)["last_reload"]["handed_over"])


@for_each(HANDING_OVER)
def test_a_thousand_connections_notice_nothing(start_class: Start, worker: WorkerClass, full: bool) -> None:
    """Half of them idle, half of them busy; clients that obey ``Connection: close`` and clients that do not."""
    clients = 500 if full else 100
    server = start_class(worker, workers=WORKERS, keepalive=KEEPALIVE_S, preload_app=True)
    plan = {"clients": clients, "idle": clients // 2, "most_s": 10.0 if full else 0.5}
    crowds = [Crowd(server.address, obeys=obeys, **plan) for obeys in (True, False)]
    with crowds[0], crowds[1]:
        moved = 0
        for version in ("two", "three", "four"):
            server.reload(version)
            moved += handed_over(server)
        seen = [crowd.stop() for crowd in crowds]
    assert [told(each) for each in seen] == [([], 0, 0)] * 2
    assert moved == 3 * 2 * clients
    assert {answer.version for each in seen for answer in each.answers} == {"one", "two", "three", "four"}


@for_each(HANDING_OVER)
def test_each_body_is_answered_through_reloads(start_class: Start, worker: WorkerClass, full: bool) -> None:
    server = start_class(worker, workers=2, keepalive=KEEPALIVE_S, preload_app=True)
    requests = 100_000 if full else 4_000
    with Crowd(server.address, clients=50, least_s=0.0, most_s=0.01, bytes=2000, requests=requests) as crowd:
        reloads = 0
        while not crowd.is_over():
            server.reload(f"v{reloads}")
            reloads += 1
        seen = crowd.stop()
    assert told(seen) == ([], 0, 0)
    assert len(seen.answers) >= requests
    assert reloads


def test_hand_over_after_hand_over_leaks_no_descriptor(start_class: Start, full: bool) -> None:
    """Ten thousand of them; master and workers have as many descriptors as after the first reload, and the kernel has
    no socket of the port when the clients have gone: one that was left in a queue would wait there.
    """
    server = start_class(HANDING_OVER[0], workers=2, keepalive=KEEPALIVE_S, preload_app=True)
    clients = [Client(server.address) for _ in range(500 if full else 200)]
    for client in clients:
        assert not client.ask("POST", "/echo", b"first").last

    def counts() -> list[int]:
        return [len(server.descriptors()), *sorted(len(descriptors(pid)) for pid in server.workers())]

    server.reload("two")
    assert not any(client.ask("POST", "/echo", b"second").last for client in clients)  # the workers have taken them
    first = counts()
    for number in range((10_000 if full else 1_000) // len(clients)):
        server.reload(f"v{number}")
    assert handed_over(server) == len(clients)

    def no_more() -> bool:
        return all(now <= before for now, before in zip(counts(), first, strict=True))

    wait_for(no_more, 30, f"each process has as many descriptors as after the first reload: {first}")
    assert not any(client.ask("POST", "/echo", b"last").last for client in clients)
    for client in clients:
        client.close()
    wait_for(lambda: {sock.peer for sock in tcp(OPEN, int(server.address[1]))} == {0}, 30, "only the listener is left")


@for_each(HANDING_OVER)
def test_each_slot_keeps_its_connections(start_class: Start, worker: WorkerClass, full: bool) -> None:
    """So they are spread over the workers as they were."""
    server = start_class(worker, workers=WORKERS, keepalive=KEEPALIVE_S, preload_app=True)
    clients = [Client(server.address) for _ in range(100)]

    def owners() -> list[int]:
        return [int(client.ask("GET", "/").json()["pid"]) for client in clients]

    before = owners()
    for number in range(10 if full else 3):
        server.reload(f"v{number}")
    after = owners()
    assert len(set(after)) == len(set(before)) == len(set(zip(before, after, strict=True)))
    assert sorted(Counter(after).values()) == sorted(Counter(before).values())
