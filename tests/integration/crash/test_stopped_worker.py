"""A worker that stands still, or spins: Gunicorn's timeout ends it, and no reload waits for it forever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.harness import control_client
from tests.harness.application_site import Site
from tests.harness.clients import Client, request
from tests.harness.processes import alive, stand_still, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import KEEPING, WorkerClass, for_each

SPIN = """

async def spin(scope, receive, send, query):
    mark("request", path="/spin")
    while True:
        pass


ENDPOINTS["/spin"] = spin
"""


def stop(server: Server) -> int:
    victim = server.workers()[0]
    stand_still(victim)
    return victim


def spin(server: Server) -> int:
    with Client(server.address) as client:
        client.send(request("GET", "/spin"))
        begun = wait_for(lambda: server.site.marks("request"), BOOT_TIMEOUT_S, "a worker spins")
    return int(begun[-1]["pid"])


@pytest.mark.parametrize("how", [stop, spin], ids=lambda how: how.__name__)
@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
class TestStandingStill:
    """One of three workers does nothing any more."""

    def test_a_stopped_worker_is_replaced_after_the_timeout(
        self, start: Start, site: Site, how: Callable[[Server], int], preload: bool
    ) -> None:
        site.deploy("one", extra=SPIN)
        server = start(
            workers=3, timeout=5, preload_app=preload, zd_control_socket=str(site.directory / "control.sock")
        )
        wait_for(lambda: control_client.ready(server, 1) == 3, BOOT_TIMEOUT_S, "the master knows that all are ready")
        victim = how(server)
        wait_for(lambda: not alive(victim), BOOT_TIMEOUT_S, "it is ended")
        server.wait_full()
        assert set(server.versions().values()) == {"one"}
        if how is stop:
            wait_for(lambda: "was killed by SIGKILL" in server.log, BOOT_TIMEOUT_S, "the log says so")
        assert "out of memory" not in server.log  # the master itself has killed it

    def test_a_reload_replaces_a_stopped_worker(
        self, start: Start, site: Site, how: Callable[[Server], int], preload: bool
    ) -> None:
        """It cannot drain, so it is killed a second after the drain's time."""
        site.deploy("one", extra=SPIN)
        server = start(workers=3, timeout=60, graceful_timeout=2, preload_app=preload)
        victim = how(server)
        server.reload("two")
        assert not alive(victim)
        assert server.stop() == 0


@for_each(KEEPING)
def test_requests_to_a_stopped_worker_are_answered_when_it_continues(start_class: Start, worker: WorkerClass) -> None:
    """Longer than a connection is kept: when it goes on, its timers are due, but so is the request."""
    server = start_class(worker, workers=1, keepalive=3, timeout=60)
    (pid,) = server.workers()
    clients = [Client(server.address) for _ in range(5)]
    for client in clients:
        assert not client.ask("GET", "/").last
    stand_still(pid)
    for client in clients:
        client.send(request("POST", "/echo", b"meanwhile"))
    time.sleep(3.5)  # the time that a connection is kept has to pass: that is what this is about
    os.kill(pid, signal.SIGCONT)
    assert [client.reply().json()["length"] for client in clients] == [9] * 5
