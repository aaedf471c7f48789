"""A configuration that takes long in the master, or never ends there: the loop goes on, and the site with it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.server import Server, Start
from zdworker.command import client, finder

SLOW = """
import os as _os, time as _time

if _os.path.exists("slow"):
    with open("slow") as _file:
        _pid, _seconds = _file.read().split()
    if int(_pid) == _os.getpid():
        _time.sleep(float(_seconds))
"""
"""Takes long only in the process and for the time that a file names."""

PROMPT_S = 2.0
"""Seconds within which a master whose loop turns answers, on a machine with other work to do."""


def begin(start: Start, site: Site, seconds: float, **settings: Any) -> Server:
    """Start a server whose next reload takes long in the master."""
    server = start(workers=2, extra=SLOW, **settings)
    (site.directory / "slow").write_text(f"{server.master} {seconds}")
    return server


def status(server: Server) -> dict[str, Any]:
    """Ask for the status once."""
    return client.status(finder.find(pid=server.master).path)


def ended(server: Server) -> dict[str, Any]:
    """Return the last reload, if it has ended; else nothing."""
    last: dict[str, Any] = status(server)["last_reload"] or {}
    return last if last.get("result") is not None else {}


def longest_answer(server: Server, seconds: float) -> float:
    """Ask for the status again and again; return how long the slowest answer took."""
    end, slowest = time.monotonic() + seconds, 0.0
    path = finder.find(pid=server.master).path
    while (asked := time.monotonic()) < end:
        client.status(path)
        slowest = max(slowest, time.monotonic() - asked)
        time.sleep(0.05)  # the pace of the questions
    return slowest


def test_the_loop_goes_on_while_a_configuration_is_evaluated(start: Start, site: Site) -> None:
    server = begin(start, site, 6.0)
    site.deploy("two")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: status(server)["state"] == "rolling", 30, "the reload has begun")
    victim = server.workers()[0]
    os.kill(victim, signal.SIGKILL)
    assert longest_answer(server, 4.0) < PROMPT_S
    wait_for(lambda: victim not in server.workers() and len(server.workers()) >= 2, 30, "the crash is made good")
    server.wait_only("two")


def test_a_configuration_that_never_ends_in_the_master_fails_the_reload(start: Start, site: Site) -> None:
    server = begin(start, site, 3600.0, zd_boot_timeout=5)
    site.deploy("two")
    server.signal(signal.SIGUSR2)
    last = wait_for(lambda: ended(server), 60, "the reload has ended")
    assert last["result"] == "failed"
    assert "zd_boot_timeout" in last["error"]
    assert server.get()["version"] == "one"
    (site.directory / "slow").unlink()
    server.reload("two")
    server.stop()
