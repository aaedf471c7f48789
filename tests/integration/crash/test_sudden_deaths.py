"""Sudden deaths: of the master, of a fork server, of a booting worker. Nobody stays behind."""

from __future__ import annotations

import functools
import os
import signal
import time

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client, Load, request
from tests.harness.control_client import worker_states
from tests.harness.fleet_watcher import FleetWatcher
from tests.harness.processes import alive, stand_still, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

CLASSES = ["zdworker.UvicornWorker", "zdworker.UvicornH11Worker"]
PRELOAD = pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
SLOW = "\ntime.sleep(1)\n"
GONE = 15.0
"""Seconds after which nothing may be left of a server whose master was killed: two, and the machine may be busy."""


def kill_master(server: Server) -> None:
    server.signal(signal.SIGKILL)
    server.wait_nothing_left(GONE)
    assert server.port_free()


# -- the master ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker_class", CLASSES)
@PRELOAD
def test_master_killed(start: Start, worker_class: str, preload: bool) -> None:
    server = start(workers=2, worker_class=worker_class, preload_app=preload, graceful_timeout=90)
    paths = ["/sleep?seconds=80", "/executor?seconds=80", "/stream?seconds=80"]
    clients = [Client(server.address) for _ in paths]
    for client, path in zip(clients, paths, strict=True):
        client.send(request("GET", path))
    silent = Client(server.address)
    wait_for(lambda: len(server.site.marks("request")) == 3, BOOT_TIMEOUT_S, "the requests are in flight")
    kill_master(server)
    silent.close()


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.3, 0.4, 0.6])
def test_master_killed_in_the_middle_of_a_reload(start: Start, site: Site, delay: float) -> None:
    """Moments from signal to new worker: where each falls depends on the machine, the outcome does not."""
    server = start(workers=2)
    site.deploy("two")
    server.signal(signal.SIGUSR2)
    time.sleep(delay)
    kill_master(server)


@PRELOAD
def test_master_killed_while_a_worker_boots(make_server: Start, site: Site, preload: bool) -> None:
    site.deploy("one", extra=SLOW)
    server = make_server(workers=2, preload_app=preload).launch()
    wait_for(lambda: bool(server.workers() or server.fork_servers()), BOOT_TIMEOUT_S, "something is booting")
    if not preload:
        wait_for(server.workers, BOOT_TIMEOUT_S, "a worker is booting")
    kill_master(server)


def test_master_killed_while_a_worker_drains(start: Start, site: Site) -> None:
    server = start(workers=1, graceful_timeout=150)
    (old,) = server.workers()
    client = Client(server.address)
    client.send(request("GET", "/executor?seconds=140"))
    wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the request is in flight")
    site.deploy("two")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: server.accepting() and old not in server.accepting(), BOOT_TIMEOUT_S, "the old worker drains")
    assert alive(old)
    kill_master(server)
    client.close()


def test_master_stopped_and_continued(start: Start) -> None:
    """A master that is frozen for a while (a debugger, a laptop's lid) goes on as before."""
    server = start(workers=2)
    workers = server.workers()
    stand_still(server.master)
    assert server.get()["version"] == "one"
    server.signal(signal.SIGCONT)
    server.reload("two")
    assert not set(workers) & set(server.workers())


# -- the fork server -----------------------------------------------------------------------------------------


@PRELOAD
def test_fork_server_killed(start: Start, site: Site, preload: bool) -> None:
    server = start(workers=2, preload_app=preload)
    workers = server.workers()
    (old,) = server.fork_servers()
    with Load(server.address, "kept", clients=4, pause=0.01) as load:
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: server.fork_servers() not in ([], [old]), BOOT_TIMEOUT_S, "a fresh fork server is there")
        assert server.accepting() == workers
        killed = time.monotonic()
        os.kill(workers[0], signal.SIGKILL)
        wait_for(lambda: len(site.marks("startup")) == 3, BOOT_TIMEOUT_S, "the replacement comes from the fresh one")
        server.wait_full()
        replaced = time.monotonic()
        server.reload("two")
    results = load.stop()
    assert all(killed < failure.time + failure.latency and failure.time < replaced for failure in results.failures)
    assert len(results.failures) <= 4


def test_fork_server_killed_while_the_files_are_broken(start: Start, site: Site) -> None:
    """The workers keep serving; a good deploy makes everything whole again."""
    server = start(workers=2, preload_app=True)
    workers = server.workers()
    (old,) = server.fork_servers()
    with Load(server.address, "new", clients=4, pause=0.01) as load:
        unique = site.break_("raise")
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: unique in server.log, BOOT_TIMEOUT_S, "the fresh one has failed")
        assert server.accepting() == workers
        server.reload("two")
    assert load.stop().failures == []


def test_fork_server_of_a_reload_killed(start: Start, site: Site) -> None:
    server = start(workers=2, preload_app=True)
    workers = server.workers()
    (old,) = server.fork_servers()
    with FleetWatcher(server) as seen:
        site.deploy("two", extra=SLOW)
        server.signal(signal.SIGUSR2)
        wait_for(lambda: seen.fork_servers - {old}, BOOT_TIMEOUT_S, "the new fork server is there")
        (new,) = seen.fork_servers - {old}
        os.kill(new, signal.SIGKILL)
        wait_for(lambda: server.fork_servers() == [old], BOOT_TIMEOUT_S, "the old one is alone")
    assert server.accepting() == workers
    server.reload("three")


# -- a worker ------------------------------------------------------------------------------------------------


def booting(server: Server, known: list[int]) -> int:
    """Return the pid of a worker that is not one of ``known``, as soon as there is one."""
    return wait_for(
        lambda: [pid for pid in server.workers() if pid not in known], BOOT_TIMEOUT_S, "a worker is booting"
    )[0]


def test_worker_killed_while_booting_in_a_reload(start: Start, site: Site) -> None:
    """A failed boot of the first new worker: the old code keeps serving, and the next reload goes through."""
    server = start(workers=2)
    old = server.workers()
    with Load(server.address, "new", clients=4, pause=0.01) as load:
        site.deploy("two", extra=SLOW)
        server.signal(signal.SIGUSR2)
        os.kill(booting(server, old), signal.SIGKILL)
        wait_for(lambda: len(server.fork_servers()) == 1, BOOT_TIMEOUT_S, "the reload is over")
        assert server.wait_full() == old
        server.reload("three")
    assert load.stop().failures == []


def test_worker_killed_while_booting_as_a_replacement(start: Start, site: Site) -> None:
    site.deploy("one", extra=SLOW)
    server = start(workers=2)
    old = server.workers()
    os.kill(old[0], signal.SIGKILL)
    first = booting(server, old)
    os.kill(first, signal.SIGKILL)
    second = booting(server, [*old, first])
    assert server.wait_full() == [old[1], second]


def dead(pid: int) -> bool:
    return not alive(pid)


@PRELOAD
def test_the_master_is_not_hurt_by_a_storm_of_kills(start: Start, site: Site, preload: bool) -> None:
    """Workers are killed as soon as they can be seen: before, in and after the protocol of their boot."""
    server = start(workers=1, preload_app=preload)
    wait_for(
        lambda: worker_states(server) == ["ready"], BOOT_TIMEOUT_S, "the master knows that the first one has got ready"
    )
    for _ in range(5):
        pid = wait_for(server.workers, BOOT_TIMEOUT_S, "a worker is there")[-1]
        os.kill(pid, signal.SIGKILL)
        wait_for(functools.partial(dead, pid), BOOT_TIMEOUT_S, "it is dead")
    server.reload("two")
    wait_for(lambda: not server.zombies(), BOOT_TIMEOUT_S, "no zombie is left")
    assert server.stop() == 0
