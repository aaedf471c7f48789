"""What dies or stops in the middle of a hand-over takes along what it has itself, and nothing else."""

from __future__ import annotations

import itertools
import operator
import os
import signal

from tests.harness.application_site import Site
from tests.harness.clients import Client
from tests.harness.control_client import worker_rows, worker_states
from tests.harness.processes import descriptors, stand_still, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

KEEPALIVE_S = 300
IDLE = 150
"""More than one message holds."""
STOPPED = {"timeout": 300, "graceful_timeout": 60}
"""Settings with which a worker may be stopped while another one boots: no time of its own ends meanwhile."""


def idle_clients(server: Server) -> list[Client]:
    clients = [Client(server.address) for _ in range(IDLE)]
    for client in clients:
        assert not client.ask("POST", "/echo", b"first").last
    return clients


def connections_in_the_queue(start: Start) -> tuple[Server, list[Client], int]:
    """Reload to "two" and stop the new worker before it takes anything. The old one has ended.

    :return: the server, the clients of the connections, and the new worker's pid.
    """
    server = start(workers=1, keepalive=KEEPALIVE_S, preload_app=True, **STOPPED)
    clients = idle_clients(server)
    (old,) = server.workers()
    stand_still(old)  # it leaves when the new one is stopped
    server.site.deploy("two")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: "draining" in worker_states(server), BOOT_TIMEOUT_S, "the master has told the old worker to leave")
    (new,) = set(server.workers()) - {old}
    stand_still(new)
    os.kill(old, signal.SIGCONT)
    wait_for(lambda: old not in server.workers(), BOOT_TIMEOUT_S, "the old worker has given its connections, and ended")
    return server, clients, new


def assert_answered(clients: list[Client], version: str) -> None:
    replies = [client.ask("POST", "/echo", b"last") for client in clients]
    assert {(reply.json()["version"], reply.json()["length"], reply.last) for reply in replies} == {(version, 4, False)}


def test_connections_wait_for_a_successor_that_is_stopped(start: Start) -> None:
    server, clients, new = connections_in_the_queue(start)
    os.kill(new, signal.SIGCONT)
    assert_answered(clients, "two")
    assert server.workers() == [new]


def test_what_a_successor_that_is_killed_had_not_taken_is_the_next_one_s(start: Start) -> None:
    server, clients, new = connections_in_the_queue(start)
    os.kill(new, signal.SIGKILL)
    assert_answered(clients, "two")
    assert new not in server.workers()


def test_what_a_successor_had_not_taken_is_another_slot_s_when_its_own_goes_away(start: Start) -> None:
    """The new worker of the second slot is stopped before it takes anything, and then it is one too many."""
    server = start(workers=2, keepalive=KEEPALIVE_S, preload_app=True, **STOPPED)
    clients = idle_clients(server)
    (old,) = (row["pid"] for row in worker_rows(server) if row["slot"] == 1)
    stand_still(old)  # it leaves when the new one is stopped
    server.site.deploy("two")
    server.signal(signal.SIGUSR2)

    def new_worker() -> int:
        rows = {row["pid"]: row["state"] for row in worker_rows(server) if row["slot"] == 1}
        return 0 if rows.pop(old) != "draining" else next(iter(rows))

    new = wait_for(new_worker, BOOT_TIMEOUT_S, "the master has told the old worker to leave")
    stand_still(new)
    os.kill(old, signal.SIGCONT)
    wait_for(lambda: old not in server.workers(), BOOT_TIMEOUT_S, "the old worker has given its connections, and ended")
    server.signal(signal.SIGTTOU)
    wait_for(lambda: "draining" in worker_states(server), BOOT_TIMEOUT_S, "the new one has the order to leave, too")
    os.kill(new, signal.SIGKILL)
    assert_answered(clients, "two")
    assert len(server.workers()) == 1


def test_a_worker_that_is_killed_while_it_gives_loses_what_it_has_not_given(start: Start) -> None:
    """And another one's connections notice nothing."""
    server = start(workers=2, keepalive=KEEPALIVE_S, preload_app=True, **STOPPED)
    clients: dict[int, list[Client]] = {pid: [] for pid in server.workers()}
    for client in itertools.islice(iter(lambda: Client(server.address), None), 10 * IDLE):
        clients[int(client.ask("GET", "/").json()["pid"])].append(client)
        if sum(map(len, clients.values())) >= IDLE and all(clients.values()):
            break  # the kernel may give many in a row to one worker
    first, second = server.workers()
    stand_still(first)
    server.site.deploy("two")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: len(server.accepting()) == 3, BOOT_TIMEOUT_S, "a new worker accepts beside both")
    os.kill(first, signal.SIGKILL)
    server.wait_only("two")
    assert_answered(clients[second], "two")
    assert all(client.ended() for client in clients[first])


def test_a_master_that_is_killed_leaves_no_process(start: Start) -> None:
    server, clients, new = connections_in_the_queue(start)
    server.signal(signal.SIGKILL)
    os.kill(new, signal.SIGCONT)
    server.wait_nothing_left(30)
    assert all(client.ended() for client in clients)


def test_no_descriptor_is_left_behind(start: Start, site: Site) -> None:
    """Ten reloads with as many connections: master and worker have no more descriptors than after the first."""
    server = start(workers=1, keepalive=KEEPALIVE_S, preload_app=True)
    clients = idle_clients(server)

    def counted() -> list[int]:
        return [len(server.descriptors()), len(descriptors(server.workers()[0]))]

    server.reload("v0")
    assert_answered(clients, "v0")  # the worker has taken all of them
    first = counted()
    for number in range(1, 10):
        server.reload(f"v{number}")
        assert_answered(clients, f"v{number}")
        wait_for(lambda: all(map(operator.le, counted(), first)), 30, f"there are {first} descriptors at most")
    for client in clients:
        client.close()
    wait_for(lambda: len(descriptors(server.workers()[0])) == first[1] - IDLE, 30, "the worker has closed all of them")
