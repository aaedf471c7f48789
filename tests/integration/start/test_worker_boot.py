"""The boot of a worker, with a sudden death at each of its steps: of the worker, its fork server, the master."""

from __future__ import annotations

import os
import signal

import pytest

from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

GONE = 15.0
"""Seconds after which nothing may be left of a server whose master was killed: two, and the machine may be busy."""

KILLING = """
import os, signal
from pathlib import Path
from zdworker.forkserver import worker_boot

STEP, VICTIM = {step!r}, {victim!r}
FORK_SERVER = os.getpid()  # the configuration is evaluated there, and its forks know

def kill(step):
    # Once only, and only when the test has armed it.
    if step != STEP or not Path("armed").exists():
        return
    target = {{"worker": os.getpid(), "fork server": FORK_SERVER, "master": int(Path("armed").read_text())}}[VICTIM]
    Path("armed").rename("fired")
    os.kill(target, signal.SIGKILL)

class KillingChannel(worker_boot.Channel):
    def send(self, *arguments):
        kill("before hello")
        super().send(*arguments)

    def receive(self):
        kill("before go")
        return super().receive()

tie = worker_boot._end_with_master

def kill_and_tie(master):
    kill("before the death signal")
    tie(master)

worker_boot.Channel = KillingChannel
worker_boot._end_with_master = kill_and_tie

def post_worker_init(worker):
    kill("before ready")
"""

STEPS = ["before hello", "before go", "before the death signal", "before ready"]


def kill_at_next_boot(server: Server, site: Site) -> None:
    """Have a worker boot, with a death at the step that the configuration names."""
    armed = site.directory / "armed"
    armed.with_suffix(".tmp").write_text(str(server.master))
    armed.with_suffix(".tmp").rename(armed)
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_for((site.directory / "fired").exists, BOOT_TIMEOUT_S, "the step was reached")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("victim", ["worker", "fork server"])
def test_a_death_during_a_boot_is_made_good(start: Start, site: Site, step: str, victim: str) -> None:
    server = start(workers=2, preload_app=True, extra=KILLING.format(step=step, victim=victim))
    other = server.workers()[1]
    kill_at_next_boot(server, site)
    assert other in server.wait_full()
    assert len(wait_for(server.fork_servers, BOOT_TIMEOUT_S, "there is a fork server")) == 1
    wait_for(lambda: not server.zombies(), BOOT_TIMEOUT_S, "no zombie is left")
    server.reload("two")


@pytest.mark.parametrize("step", STEPS)
def test_no_worker_boots_for_a_dead_master(start: Start, site: Site, step: str) -> None:
    server = start(workers=2, preload_app=True, extra=KILLING.format(step=step, victim="master"))
    kill_at_next_boot(server, site)
    server.wait_nothing_left(GONE)
    assert server.port_free()
