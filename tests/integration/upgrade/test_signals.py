"""Signals in each step of an upgrade are obeyed, by the program that is there then or by the next one."""

from __future__ import annotations

import os
import signal

import pytest

from tests.harness import control_client, processes
from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from zdworker.command.client import Connection
from zdworker.errors import OrderRefused
from zdworker.ipc.messages import Order

GATE = """
import os, sys, time
rehearses = os.getpid() != int(open("master").read() or 0) if os.path.exists("master") else None
if "zdworker.upgraded" in sys.orig_argv and rehearses is {rehearses}:
    open("waits", "w").close()
    while not os.path.exists("go on"):
        time.sleep(0.01)
"""


@pytest.fixture(params=[True, False], ids=["in the rehearsal", "behind execve"])
def rehearses(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def server(start: Start, site: Site, rehearses: bool) -> Server:
    """A server whose next program, or the rehearsal of it, waits in its configuration."""
    gate = GATE.format(rehearses=rehearses)
    server = start(extra=gate, daemon=False)
    (site.directory / "master").write_text(str(server.master))
    return server


def waits(server: Server) -> None:
    wait_for((server.site.directory / "waits").exists, BOOT_TIMEOUT_S, "the next program has begun")


def go_on(server: Server) -> None:
    (server.site.directory / "go on").touch()


def test_term(server: Server, rehearses: bool) -> None:
    connection = control_client.begin_upgrade(server)
    waits(server)
    server.signal(signal.SIGTERM)
    if rehearses:
        outcome = control_client.upgrade_ended(connection)
        assert (outcome.result, outcome.error) == ("failed", "the master is stopping")
    else:
        assert processes.alive(server.master)
        go_on(server)
        assert control_client.upgrade_ended(connection).result == "done"
    assert server.wait_exit(BOOT_TIMEOUT_S) == 0
    server.wait_nothing_left(30)


@pytest.mark.parametrize("signum", [signal.SIGUSR2, signal.SIGHUP])
def test_a_reload(server: Server, site: Site, rehearses: bool, signum: signal.Signals) -> None:
    connection = control_client.begin_upgrade(server)
    waits(server)
    site.deploy("two")
    server.signal(signum)
    if rehearses:
        outcome = control_client.upgrade_ended(connection)
        assert outcome.result == "failed"
        assert outcome.error.startswith("a reload is under way")
    else:
        go_on(server)
        assert control_client.upgrade_ended(connection).result == "done"
    server.wait_only("two")


def test_a_worker_that_dies(server: Server) -> None:
    connection = control_client.begin_upgrade(server)
    waits(server)
    died, stays = server.workers()
    os.kill(died, signal.SIGKILL)
    wait_for(lambda: not processes.alive(died), 30, "it is dead")
    go_on(server)
    assert control_client.upgrade_ended(connection).result == "done"
    wait_for(lambda: len(server.workers()) == 2, BOOT_TIMEOUT_S, "there is another worker")
    assert stays in server.wait_full()
    assert control_client.status(server)["crashes"] == 1
    wait_for(lambda: server.zombies() == [], 30, "all are reaped")


def test_the_fork_server_that_dies(server: Server) -> None:
    connection = control_client.begin_upgrade(server)
    waits(server)
    workers, (forks,) = server.workers(), server.fork_servers()[:1]
    os.kill(forks, signal.SIGKILL)
    wait_for(lambda: not processes.alive(forks), 30, "it is dead")
    go_on(server)
    control_client.upgrade_ended(connection)  # while another one is loaded there may be no upgrade
    wait_for(lambda: len(server.fork_servers()) == 1, BOOT_TIMEOUT_S, "there is another one")
    assert server.fork_servers() != [forks]
    assert server.workers() == workers


def test_more_workers(server: Server, rehearses: bool) -> None:
    connection = control_client.begin_upgrade(server)
    waits(server)
    server.signal(signal.SIGTTIN)
    server.settings["workers"] = 3
    go_on(server)
    assert control_client.upgrade_ended(connection).result == "done"
    server.wait_full()


@pytest.mark.parametrize("rehearses", [True], indirect=True)
def test_a_rehearsal_that_is_killed(server: Server) -> None:
    workers = server.workers()  # before: what is being started looks like one for a moment
    connection = control_client.begin_upgrade(server)
    waits(server)
    own = {*workers, *server.fork_servers()}
    (rehearsal,) = [child.pid for child in server.children() if "zdworker.upgraded" in processes.command(child.pid)]
    assert rehearsal not in set(workers)
    assert own
    os.kill(rehearsal, signal.SIGKILL)
    outcome = control_client.upgrade_ended(connection)
    assert outcome.result == "failed"
    assert "was killed by signal 9" in outcome.error
    assert server.workers() == workers


@pytest.mark.parametrize("rehearses", [True], indirect=True)
def test_a_second_order_is_refused(server: Server) -> None:
    connection = control_client.begin_upgrade(server)
    waits(server)
    with Connection(control_client.control_socket(server)) as other, pytest.raises(OrderRefused) as refused:
        other.order(Order("upgrade", wait=True))
    assert "under way already" in str(refused.value)
    go_on(server)
    assert control_client.upgrade_ended(connection).result == "done"


@pytest.mark.parametrize("rehearses", [True], indirect=True)
def test_the_master_that_is_killed_leaves_no_rehearsal(server: Server) -> None:
    connection = control_client.begin_upgrade(server)
    waits(server)
    os.kill(server.master, signal.SIGKILL)
    server.wait_exit(30)
    server.wait_nothing_left(30)
    connection.close()
