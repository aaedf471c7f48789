"""Processes that an application leaves behind become the master's children, and are none of its workers."""

from __future__ import annotations

import os
import signal

import pytest

from tests.harness.application_site import Site
from tests.harness.processes import alive, read_process, stand_still, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Start


@pytest.mark.parametrize("code", [0, 3, 4])
def test_abandoned_child_that_ends(start: Start, site: Site, code: int) -> None:
    """3 and 4 are Gunicorn's own signs for a worker that cannot boot: here they mean nothing."""
    server = start(workers=2)
    workers = server.workers()
    child = server.get(f"/abandon?code={code}")["child"]
    wait_for(lambda: read_process(child) is None, BOOT_TIMEOUT_S, "the child has ended and was reaped")
    assert server.get()["pid"] in workers
    server.reload("two")
    wait_for(lambda: not server.zombies(), BOOT_TIMEOUT_S, "no zombie is left")
    assert server.stop() == 0


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_child_that_holds_the_channel_of_its_dead_parent(start: Start, site: Site, preload: bool) -> None:
    """Death is what the kernel says, not the end of a channel: a forked child keeps that open."""
    server = start(workers=2, preload_app=preload)
    answer = server.get("/fork?seconds=60")
    child, worker = answer["child"], answer["pid"]
    stand_still(child)
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: not alive(worker), BOOT_TIMEOUT_S, "the worker is dead")
    wait_for(
        lambda: site.events("child_exit"), BOOT_TIMEOUT_S, "the master has seen it, which ends the child only then"
    )
    wait_for(lambda: len(site.marks("startup")) == 3, BOOT_TIMEOUT_S, "the replacement has started")
    wait_for(lambda: read_process(child) is None, BOOT_TIMEOUT_S, "the child was ended and reaped")
    server.wait_full()
    server.reload("two")


def test_child_that_takes_no_signal_does_not_hold_a_reload(start: Start, site: Site) -> None:
    server = start(workers=1)
    child = server.get("/fork?seconds=60")["child"]
    stand_still(child)
    site.deploy("two")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: server.site.events("child_exit"), BOOT_TIMEOUT_S, "the master has seen the old worker's end")
    assert server.get()["version"] == "two"
    server.wait_only("two")
    wait_for(lambda: not alive(child), BOOT_TIMEOUT_S, "the child has been ended")
