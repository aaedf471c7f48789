"""A worker dies: only its own requests are hurt, and what comes in its place is the code that was running."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Load, Results
from tests.harness.control_client import worker_states
from tests.harness.fleet_watcher import FleetWatcher
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

pytestmark = pytest.mark.load  # how long nobody is answered is a matter of who else works on this machine

PAUSE = 0.01
"""Seconds between a client's requests, where it is not the load that matters."""
GAP = 0.3
"""Seconds without any answer that a crash of one worker in four may cost."""
AT_ONCE = {True: 3.0, False: 10.0}
"""Seconds, by preload, from the death to the lifespan of the replacement, with two busy cores."""


NOTICED_S = 2.0
"""Seconds after which each client has noticed that its connection is gone, with two busy cores."""


def kill_one(server: Server) -> tuple[int, float]:
    """Kill the oldest worker as the kernel does when memory is short; return its pid and the time."""
    victim = server.workers()[0]
    os.kill(victim, signal.SIGKILL)
    return victim, time.monotonic()


def assert_only_the_moment_is_hurt(results: Results, moment: float, clients: int) -> None:
    """Each client can have had one request on the dead worker, under way when it died."""
    assert len(results.failures) <= clients
    for failure in results.failures:
        assert failure.how in ("reset", "closed", "cut", "pipe", "reset while idle")
        assert failure.time <= moment + NOTICED_S, failure
        assert failure.time + failure.latency >= moment - 0.1, failure


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_a_worker_is_killed_under_load(start: Start, site: Site, preload: bool) -> None:
    server = start(workers=4, preload_app=preload)
    with (
        Load(server.address, "new") as new,
        Load(server.address, "kept") as kept,
        FleetWatcher(server) as seen,
    ):
        victim, moment = kill_one(server)
        wait_for(lambda: len(site.marks("startup")) == 5, BOOT_TIMEOUT_S, "the replacement has started")
        workers = server.wait_full()
        time.sleep(0.5)  # the load goes on: a gap would show
        over = time.monotonic()
    for load in (new, kept):
        results = load.stop()
        assert_only_the_moment_is_hurt(results, moment, 24)
        assert results.longest_gap(moment, over) < GAP
    assert victim not in workers
    assert site.marks("startup")[-1]["time"] - moment < AT_ONCE[preload]
    assert seen.fewest_accepting >= 3
    assert seen.most_living <= 4


def test_respawn_is_the_running_generation_when_the_files_are_broken(start: Start, site: Site) -> None:
    server = start(workers=4, preload_app=True)
    with Load(server.address, "new", clients=8) as new:
        site.break_("syntax")
        _, moment = kill_one(server)
        wait_for(lambda: len(site.marks("startup")) == 5, BOOT_TIMEOUT_S, "the replacement has started")
        server.wait_full()
    assert set(server.versions().values()) == {"one"}
    assert site.marks("startup")[-1]["time"] - moment < AT_ONCE[True]
    assert_only_the_moment_is_hurt(new.stop(), moment, 8)
    assert len(site.marks("import")) == 1


def test_respawn_after_a_reload_is_the_new_generation(start: Start, site: Site) -> None:
    server = start(workers=2, preload_app=True)
    server.reload("two")
    site.break_("raise")
    kill_one(server)
    server.wait_full()
    assert set(server.versions().values()) == {"two"}


def test_broken_files_without_preload_leave_the_others_serving(start: Start, site: Site) -> None:
    """The respawn reads the disk again: tried with growing pauses, it succeeds once the files are whole."""
    server = start(workers=3)
    with Load(server.address, "new", clients=6, pause=PAUSE) as new:
        unique = site.break_("raise")
        victim, moment = kill_one(server)
        wait_for(lambda: len(site.events("pre_fork")) >= 3 + 3, BOOT_TIMEOUT_S, "the respawn was tried again")
        tries = [event["time"] for event in site.events("pre_fork")[3:]]
        assert tries[2] - tries[1] > 0.2, "without a pause between the tries"
        assert len(server.accepting()) == 2
        site.deploy("one")
        workers = server.wait_full()
    assert victim not in workers
    wait_for(lambda: unique in server.log, BOOT_TIMEOUT_S, "the reason is in the log")
    assert_only_the_moment_is_hurt(new.stop(), moment, 6)


def test_all_workers_are_killed_at_once(start: Start, site: Site) -> None:
    server = start(workers=3, preload_app=True)
    old = server.workers()
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(site.marks("startup")) == 6, BOOT_TIMEOUT_S, "three replacements have started")
    assert not set(server.wait_full()) & set(old)
    assert server.get()["version"] == "one"


def test_worker_killed_in_the_middle_of_a_reload(start: Start, site: Site) -> None:
    """The old worker of a slot whose turn has not come dies: its replacement does not stop the reload."""
    server = start(workers=3)
    with Load(server.address, "new", clients=6, pause=PAUSE) as new:
        site.deploy("two")
        server.configure(zd_min_ready_seconds=5)  # so long no further slot has its turn
        server.signal(signal.SIGUSR2)
        server.wait_started("two")
        wait_for(lambda: len(server.accepting()) >= 3, BOOT_TIMEOUT_S, "the fleet is full")
        old = [pid for pid, version in server.versions().items() if version == "one"]
        os.kill(old[-1], signal.SIGKILL)
        moment = time.monotonic()
        server.wait_only("two")
    assert_only_the_moment_is_hurt(new.stop(), moment, 6)


def test_exit_when_a_worker_crashes_if_asked_for(start: Start, site: Site) -> None:
    """``zd_on_crash = "exit"`` leaves it to systemd: the master ends, and not with success."""
    server = start(workers=2, zd_on_crash="exit")
    wait_for(lambda: worker_states(server) == ["ready"] * 2, BOOT_TIMEOUT_S, "the master knows that both are ready")
    kill_one(server)
    assert server.wait_exit(BOOT_TIMEOUT_S) != 0
    server.wait_nothing_left(10)
