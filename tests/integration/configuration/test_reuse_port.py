"""``reuse_port``: a listening socket for each slot, the master's, so that nothing in an accept queue is lost.

What waits for a worker that leaves or dies is answered by the next one of its slot; where no worker is ready, no new
connection goes.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import pytest

from tests.harness import processes
from tests.harness.application_site import Site
from tests.harness.clients import CLIENT_TIMEOUT_S, Client, Load, request
from tests.harness.load_tools import ENDLESS, PART, PROMISED, number, run_through_reloads
from tests.harness.processes import stand_still, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start, reserve_port
from tests.harness.tcp_sockets import LISTENING, tcp
from tests.harness.worker_classes import ALL, WSGI, WorkerClass, for_each

SLOW_IMPORT = "\ntime.sleep(4.0)\n"
"""Makes a boot take long enough to see what happens to connections meanwhile."""


def sockets(pid: int) -> set[int]:
    """Return the inodes of the listening sockets that ``pid`` holds."""
    return processes.listeners(pid)


def ask(server: Server, path: str = "/", timeout: float = CLIENT_TIMEOUT_S) -> int:
    """Return the pid that answers on a new connection."""
    return int(server.get(path, timeout=timeout)["pid"])


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    """Processes that a test has stopped: none stays so."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if processes.alive(pid):
            os.kill(pid, signal.SIGCONT)


# -- load ------------------------------------------------------------------------------------------------------------


@pytest.mark.load
@pytest.mark.skipif(shutil.which("ab") is None, reason="ab is not installed")
def test_ab_sees_no_failed_request_with_reuse_port(start: Start, full: bool) -> None:
    server = start(workers=4, reuse_port=True)
    words = ["ab", "-q", "-n", str(ENDLESS), "-c", "1000", "-s", "60", "http://%s:%s/fixed" % server.address]
    output = run_through_reloads(server, words, *(PROMISED if full else PART))
    assert number(r"Complete requests:\s+(\d+)", output) > 1000, output
    assert number(r"Failed requests:\s+(\d+)", output) == 0, output


@pytest.mark.load
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_with_new_connections_sees_no_socket_error(start: Start, full: bool) -> None:
    server = start(workers=4, reuse_port=True)
    words = ["wrk", "-c", "1000", "-t", "2", "-d", str(ENDLESS), "--timeout", "20"]
    words += ["-H", "Connection: close", "http://%s:%s/fixed" % server.address]
    output = run_through_reloads(server, words, *(PROMISED if full else PART))
    assert "Socket errors" not in output, output
    assert number(r"(\d+) requests in", output) > 1000, output


@for_each(ALL)
def test_a_reload_of_each_class_loses_nothing(start_class: Start, worker: WorkerClass) -> None:
    server: Server = start_class(worker, workers=3, reuse_port=True)
    with Load(server.address, "new", clients=8) as new, Load(server.address, "kept", clients=2, pause=0.01) as kept:
        server.reload("two", 60)
        server.reload("three", 60)
    assert new.stop().failures == []
    assert kept.stop().failures == []


def test_fewer_and_more_workers_lose_nothing(start: Start) -> None:
    server = start(workers=4, reuse_port=True)
    with Load(server.address, "new", clients=8) as new:
        for signum, workers in [(signal.SIGTTOU, 3), (signal.SIGTTOU, 2), (signal.SIGTTIN, 3), (signal.SIGTTOU, 2)]:
            server.settings["workers"] = workers
            server.signal(signum)
            server.wait_full()
        server.configure(workers=4)
        server.reload("two")
        server.configure(workers=1)
        server.reload("three")
    assert new.stop().failures == []


def test_a_long_queue_of_a_slot_that_goes_away(start_class: Start) -> None:
    """Each worker has one request at a time and a queue of many: each connection in it is answered."""
    server: Server = start_class(WSGI, reuse_port=True, graceful_timeout=20)
    server.configure(workers=2)
    server.reload("two")
    with ThreadPoolExecutor(40) as pool:
        answers = [pool.submit(ask, server, "/sleep?seconds=0.25") for _ in range(40)]
        wait_for(lambda: len(server.site.marks("request", "two")) >= 2, BOOT_TIMEOUT_S, "both workers are busy")
        server.settings["workers"] = 1
        server.signal(signal.SIGTTOU)
        assert all(answer.result() for answer in answers)
    server.wait_full()


# -- queues ----------------------------------------------------------------------------------------------------------


def test_the_queue_of_a_killed_worker_is_answered_by_its_replacement(start: Start, stopped: list[int]) -> None:
    server = start(workers=2, reuse_port=True, timeout=300)
    victim, other = server.workers()
    stopped.append(victim)
    stand_still(victim)
    clients = [Client(server.address, timeout=BOOT_TIMEOUT_S) for _ in range(60)]
    for client in clients:
        client.send(request("GET", "/", headers="Connection: close\r\n"))
    slot = sockets(victim)

    def others_answered() -> bool:
        return sum(map(answered, clients)) + waiting(server, slot) == len(clients)

    wait_for(others_answered, BOOT_TIMEOUT_S, "the other slot's are answered")
    held = [client for client in clients if not answered(client)]
    assert held, "none of 60 connections went to the stopped worker's slot"
    os.kill(victim, signal.SIGKILL)
    seen = Counter(client.reply().json()["pid"] for client in held)
    [replacement] = set(server.wait_full()) - {other}
    assert seen == {replacement: len(held)}


def answered(client: Client) -> bool:
    """Whether the answer has begun to come."""
    return bool(select.select([client.socket], [], [], 0)[0])


def waiting(server: Server, inodes: set[int]) -> int:
    """Return how many connections nobody has accepted yet: the receive queues of these listening sockets."""
    return sum(known.queue for known in tcp(LISTENING, int(server.address[1])) if known.inode in inodes)


def test_the_only_worker_with_reuse_port_is_killed(start: Start) -> None:
    """Nobody is there: connections wait, and none is refused."""
    server = start(workers=1, reuse_port=True)
    for _ in range(3):
        [only] = server.workers()
        os.kill(only, signal.SIGKILL)
        assert ask(server, timeout=BOOT_TIMEOUT_S) != only
        server.wait_full()


def test_no_connection_goes_where_no_worker_is_ready(start: Start, site: Site) -> None:
    """Stop-first, and a boot of seconds: with the slot's socket in use meanwhile some requests would take as long."""
    server = start(workers=3, reuse_port=True, zd_max_surge=0, zd_max_unavailable=1)
    with Load(server.address, "new", clients=4) as new:
        site.deploy("two", extra=SLOW_IMPORT)
        server.signal(signal.SIGUSR2)
        server.wait_only("two")
    results = new.stop()
    assert results.failures == []
    slow = [answer for answer in results.answers if answer.latency > 3.5]
    assert len(slow) <= 3, slow  # those that were in the queue of a slot as its worker left


# -- who owns what ---------------------------------------------------------------------------------------------------


def test_connections_are_spread_evenly(start: Start) -> None:
    """At random: of 4,000 each of four slots gets 1,000, and six standard deviations are 164."""
    server = start(workers=4, reuse_port=True)
    with ThreadPoolExecutor(8) as pool:
        seen = Counter(pool.map(lambda _: ask(server), range(4000)))
    assert set(seen) == set(server.workers())
    assert max(abs(count - 1000) for count in seen.values()) <= 164, seen


def test_a_socket_for_each_slot_and_address(make_server: Start) -> None:
    with reserve_port() as second:
        server = make_server(workers=3, reuse_port=True)
        server.settings["bind"] = [server.settings["bind"], "%s:%s" % second.getsockname()]
        server.start()
        assert_one_for_each_slot(server, addresses=2)
        before = sockets(server.master)
        server.reload("two")
        assert sockets(server.master) == before
        for signum, workers in [(signal.SIGTTIN, 4), (signal.SIGTTOU, 3), (signal.SIGTTOU, 2)]:
            server.settings["workers"] = workers
            server.signal(signum)
            server.wait_full()
            assert_one_for_each_slot(server, addresses=2)
        assert sockets(server.master) <= before


def assert_one_for_each_slot(server: Server, addresses: int) -> None:
    held = [sockets(pid) for pid in server.workers()]
    assert [len(own) for own in held] == [addresses] * server.expected
    assert all(not one & other for one, other in combinations(held, 2))
    assert set().union(*held) <= sockets(server.master)
    every = addresses * server.expected
    wait_for(
        lambda: len(processes.ports(server.master)) == every,
        BOOT_TIMEOUT_S,
        "the master has these sockets and no other",
    )


def test_a_child_of_the_application_keeps_no_slot_open(start: Start) -> None:
    """It has inherited the listening socket of a slot that went away: no connection may end up there."""
    server = start(workers=2, reuse_port=True)
    old = set(server.workers())
    forked: set[int] = set()
    while forked != old:
        forked.add(ask(server, "/fork?seconds=120"))
    server.signal(signal.SIGTTOU)
    wait_for(lambda: len([pid for pid in old if processes.alive(pid)]) == 1, BOOT_TIMEOUT_S, "one worker has left")
    server.signal(signal.SIGTTIN)
    server.wait_started("one", 3)
    new = {mark["pid"] for mark in server.site.marks("startup")} - old
    wait_for(lambda: new <= set(server.accepting()), BOOT_TIMEOUT_S, "the new worker accepts")
    seen: set[int] = set()
    for _ in range(200):
        seen.add(ask(server))
    assert new < seen


def test_the_tests_see_where_connections_wait(start: Start, stopped: list[int]) -> None:
    """Without a socket for each slot the other worker would take what the stopped one does not."""
    server = start(workers=2)
    victim, other = server.workers()
    stopped.append(victim)
    stand_still(victim)
    assert {ask(server) for _ in range(20)} == {other}
