"""Deploy after deploy while clients work without pause: the promise of the whole project."""

from __future__ import annotations

import signal
import time

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Load, Results
from tests.harness.fleet_watcher import FleetWatcher
from tests.harness.server import Server, Start

pytestmark = pytest.mark.load  # how long nobody is answered is a matter of who else works on this machine

NOISE = 0.25
"""Seconds without any answer that two busy cores show without a reload now and then."""
SLOW_IMPORT = "\ntime.sleep(0.3)\n"
"""Makes the application's import take longer than the noise: a fleet that waits for it would show a gap."""


def measure_steady_state() -> tuple[float, float]:
    """Let the load run for a second; return when that began and ended."""
    start = time.monotonic()
    time.sleep(1.0)
    return start, time.monotonic()


def check(results: Results, steady: tuple[float, float], reloads: tuple[float, float]) -> None:
    assert results.failures == []
    assert results.versions() == ["one", "two", "three", "four"]
    assert {answer.version for answer in results.since(reloads[1])} == {"four"}
    assert results.since(reloads[1]), "the load had ended before the last reload was over"
    gap = results.longest_gap(*reloads)
    assert gap <= max(NOISE, 2 * results.longest_gap(*steady)), f"no answer for {gap:.3f} s"


@pytest.mark.parametrize(
    ("worker_class", "preload"), [("zdworker.UvicornWorker", False), ("zdworker.UvicornH11Worker", True)]
)
def test_three_reloads_lose_no_request(start: Start, site: Site, worker_class: str, preload: bool) -> None:
    server = start(workers=4, worker_class=worker_class, preload_app=preload, pidfile="gunicorn.pid")
    pidfile = site.directory / "gunicorn.pid"
    master = int(pidfile.read_text())
    with (
        FleetWatcher(server) as seen,
        Load(server.address, "new") as new,
        Load(server.address, "kept") as kept,
    ):
        steady = measure_steady_state()
        begin = time.monotonic()
        for version in ("two", "three", "four"):
            site.deploy(version, extra=SLOW_IMPORT)
            reload_and_wait(server, version)
        reloads = begin, time.monotonic()
        measure_steady_state()
        for load in (new, kept):
            check(load.stop(), steady, reloads)
    assert master == server.master == int(pidfile.read_text())
    assert seen.fewest_accepting >= 4
    assert seen.most_living <= 5
    assert server.stop() == 0


def reload_and_wait(server: Server, version: str) -> None:
    server.signal(signal.SIGUSR2)
    server.wait_only(version, 60)


def test_hup_is_a_reload_too(start: Start, site: Site) -> None:
    server = start(workers=2)
    with Load(server.address, "new", clients=4) as new, Load(server.address, "kept", clients=4) as kept:
        site.deploy("two")
        server.signal(signal.SIGHUP)
        server.wait_only("two")
    assert new.stop().failures == []
    assert kept.stop().failures == []


def test_a_larger_surge_replaces_all_workers_at_once(start: Start) -> None:
    server = start(workers=3, zd_max_surge="100%")
    with FleetWatcher(server) as seen, Load(server.address, "kept", clients=6) as kept:
        server.reload("two")
    assert kept.stop().failures == []
    assert seen.fewest_accepting >= 3
    assert 4 <= seen.most_living <= 6


def test_stop_first_when_memory_is_short(start: Start) -> None:
    server = start(workers=3, zd_max_surge=0, zd_max_unavailable=1)
    with FleetWatcher(server) as seen, Load(server.address, "kept", clients=6) as kept:
        server.reload("two")
    assert kept.stop().failures == []
    assert seen.fewest_accepting == 2
    assert seen.most_living == 3
