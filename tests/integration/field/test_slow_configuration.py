"""A configuration that takes long in the master, or never ends there: the loop goes on, and the site with it."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from zdworker.command import client, finder

SLOW = """
import os as _os, time as _time

if _os.path.exists("slow"):
    with open("slow") as _file:
        _pid = int(_file.read())
    if _pid == _os.getpid():
        open("evaluated", "w").close()
        while _os.path.exists("slow"):
            _time.sleep(0.05)
"""
"""Takes long only in the process that a file names, and as long as there is that file."""

ANSWERS = 20


def begin(start: Start, site: Site, **settings: Any) -> Server:
    """Start a server whose next reload takes long in the master: until the file ``slow`` is removed."""
    server = start(workers=2, extra=SLOW, **settings)
    site.write("slow", str(server.master))
    return server


def status(server: Server) -> dict[str, Any]:
    """Ask for the status once."""
    return client.status(finder.find(pid=server.master).path)


def ended(server: Server) -> dict[str, Any]:
    """Return the last reload, if it has ended; else nothing."""
    last: dict[str, Any] = status(server)["last_reload"] or {}
    return last if last.get("result") is not None else {}


def test_the_loop_goes_on_while_a_configuration_is_evaluated(start: Start, site: Site) -> None:
    """The master answers, and replaces a worker that has crashed."""
    server = begin(start, site, zd_boot_timeout=3 * BOOT_TIMEOUT_S)
    site.deploy("two")
    server.signal(signal.SIGUSR2)
    wait_for((site.directory / "evaluated").exists, BOOT_TIMEOUT_S, "the configuration is being evaluated")
    victim = server.workers()[0]
    os.kill(victim, signal.SIGKILL)
    for _ in range(ANSWERS):
        assert status(server)["state"] == "rolling"
    wait_for(lambda: victim not in server.workers(), BOOT_TIMEOUT_S, "it has died")
    server.wait_full()
    assert status(server)["state"] == "rolling"
    (site.directory / "slow").unlink()
    server.wait_only("two")


def test_a_configuration_that_never_ends_in_the_master_fails_the_reload(start: Start, site: Site) -> None:
    server = begin(start, site, zd_boot_timeout=30)
    site.deploy("two")
    server.signal(signal.SIGUSR2)
    last = wait_for(lambda: ended(server), 2 * BOOT_TIMEOUT_S, "the reload has ended")
    assert last["result"] == "failed"
    assert "zd_boot_timeout" in last["error"]
    assert server.get()["version"] == "one"
    (site.directory / "slow").unlink()
    server.reload("two")
    server.stop()
