"""Failures that are no reload's first worker: what is said of them, and that nobody is hurt by them."""

from __future__ import annotations

import os
import re
import signal
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from zdworker.command import client

ONLY_THE_FIRST_BOOTS = """
import os


def post_fork(server, worker):
    try:
        os.open("first", os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        raise RuntimeError("only the first one boots") from None
"""


def begin(start: Start, site: Site, **settings: Any) -> Server:
    return start(workers=2, zd_control_socket=str(site.directory / "control.sock"), **settings)


def status(server: Server) -> dict[str, Any]:
    return client.status(str(server.site.directory / "control.sock"))


def deploy_what_fails_later(server: Server, state: str) -> dict[str, Any]:
    server.site.deploy("two")
    server.extra = ONLY_THE_FIRST_BOOTS
    server.configure()
    server.signal(signal.SIGUSR2)
    wait_for(lambda: status(server)["state"] == state, BOOT_TIMEOUT_S, f"the state is {state}")
    return status(server)


def mend(server: Server) -> None:
    server.extra = ""
    server.configure()
    server.reload("three")
    wait_for(lambda: status(server)["state"] == "steady", BOOT_TIMEOUT_S, "the reload is done")


def test_a_later_worker_that_never_boots_brings_the_old_code_back(start: Start, site: Site) -> None:
    """What served before is in memory: after some tries all slots have it again."""
    server = begin(start, site, preload_app=True)
    with Load(server.address, "new", clients=4, pause=0.01) as load:
        last = deploy_what_fails_later(server, "failed")["last_reload"]
        server.wait_only("one")
        assert last["result"] == "failed"
        told = r"Reload to generation 2 failed, .* \(slot [01], which goes back to it\)"
        wait_for(lambda: re.search(told, server.log), BOOT_TIMEOUT_S, "the log says so")
        assert "only the first one boots" in last["traceback"]
        mend(server)
    assert load.stop().failures == []


def test_a_later_worker_that_never_boots_without_a_way_back(start: Start, site: Site) -> None:
    """The code before is not in memory: old and new workers keep serving until there is code that works."""
    server = begin(start, site)
    with Load(server.address, "new", clients=4, pause=0.01) as load:
        deploy_what_fails_later(server, "degraded")
        assert len(server.accepting()) == 2
        told = r"Degraded: 5 new workers in a row failed.* \(slot [01], next try in \d+\.\d s\)"
        wait_for(lambda: re.search(told, server.log), BOOT_TIMEOUT_S, "the log says so")
        mend(server)
    assert load.stop().failures == []


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_a_process_that_cannot_be_replaced_makes_the_state_degraded(start: Start, site: Site, preload: bool) -> None:
    """A worker whose code is broken on disk by now, or the fork server that held it: degraded, until that is fixed."""
    server = begin(start, site, preload_app=preload)
    site.break_("raise")
    os.kill(server.fork_servers()[0] if preload else server.workers()[0], signal.SIGKILL)
    wait_for(lambda: status(server)["state"] == "degraded", BOOT_TIMEOUT_S, "it is degraded")
    assert server.get()["version"] == "one"
    site.deploy("two")
    mend(server)
