"""As PID 1 of a container: it reaps what is abandoned to it, takes every signal, and ends with TERM."""

from __future__ import annotations

import os
import shutil
import signal
import sys

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.processes import children, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="a namespace of its own takes root, and unshare"
)


@pytest.fixture
def server(make_server: Start) -> Server:
    words = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-m", "gunicorn"]
    server: Server = make_server(command=words, preload_app=True).launch()
    outside = server.master
    wait_for(lambda: children(outside), BOOT_TIMEOUT_S, "unshare has forked")
    server.master = children(outside)[0].pid
    wait_for(lambda: len(server.accepting()) == 2, BOOT_TIMEOUT_S, "two workers accept")
    return server


def serves(server: Server, version: str) -> bool:
    return {server.get()["version"] for _ in range(4)} == {version}


def settled(server: Server) -> bool:
    return len(server.fork_servers()) == 1 and len(server.accepting()) == 2 and len(server.children()) == 3


def test_the_master_as_pid_1(server: Server, site: Site) -> None:
    assert server.get("/abandon?code=3")["child"] > 1
    with Load(server.address, "new", clients=4) as load:
        site.deploy("two")
        server.signal(signal.SIGUSR2)
        wait_for(lambda: serves(server, "two"), BOOT_TIMEOUT_S, "the new code serves")
        assert load.stop().failures == []
    # The requests may have met new workers alone before the reload was over, and the old fork server has to end.
    wait_for(lambda: settled(server), BOOT_TIMEOUT_S, "two workers and a fork server are left")
    victim, other = server.accepting()
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: len(set(server.accepting()) - {victim, other}) == 1, BOOT_TIMEOUT_S, "the replacement accepts")
    wait_for(lambda: not server.zombies(), BOOT_TIMEOUT_S, "no zombie is left")
    wait_for(lambda: settled(server), BOOT_TIMEOUT_S, "two workers and a fork server are left")
    server.signal(signal.SIGTERM)
    assert server.wait_exit(BOOT_TIMEOUT_S) == 0
