"""Too many signals, or signals to everyone: one orderly reload to the newest code, and nothing left over."""

from __future__ import annotations

import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.fleet_watcher import FleetWatcher
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start


def kinds(server: Server) -> Counter[str]:
    """Return how many descriptors of each kind the master holds, by what they are, not which."""
    targets = server.descriptors().values()
    return Counter("heartbeat" if "/wgunicorn-" in target else target.partition(":[")[0] for target in targets)


def assert_nothing_left_over(server: Server, before: Counter[str]) -> None:
    wait_for(lambda: not server.zombies(), 5, "no zombie is left")
    wait_for(lambda: len(server.fork_servers()) == 1, 5, "one fork server is left")
    wait_for(lambda: kinds(server) == before, 5, f"the master holds what it held: {before}, now {kinds(server)}")
    assert len(server.left()) == 1 + 1 + server.expected


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_ten_reload_signals_at_once(start: Start, site: Site, preload: bool) -> None:
    """At most one further generation follows the one under way."""
    server = start(workers=2, preload_app=preload)
    before = kinds(server)
    with FleetWatcher(server) as seen, Load(server.address, "new", clients=6, pause=0.01) as load:
        for number in range(10):
            site.deploy(f"v{number}")
            server.signal(signal.SIGUSR2)
            time.sleep(0.01)  # the pace of the storm
        server.wait_only("v9")
        assert_nothing_left_over(server, before)
    assert load.stop().failures == []
    assert len(seen.fork_servers) <= 1 + 2
    assert seen.fewest_accepting >= 2
    assert seen.most_living <= 3


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_ten_reload_signals_within_a_second(start: Start, site: Site, preload: bool) -> None:
    """Whenever the signals arrive, the newest code wins and the fleet is never disturbed."""
    server = start(workers=2, preload_app=preload)
    before = kinds(server)
    with FleetWatcher(server) as seen, Load(server.address, "kept", clients=6, pause=0.01) as load:
        for number in range(10):
            site.deploy(f"v{number}")
            server.signal(signal.SIGUSR2)
            time.sleep(0.09)  # the pace of the storm
        server.wait_only("v9")
        assert_nothing_left_over(server, before)
    assert load.stop().failures == []
    assert seen.most_fork_servers <= 3
    assert seen.fewest_accepting >= 2
    assert seen.most_living <= 3


@pytest.mark.parametrize("signum", [signal.SIGUSR2, signal.SIGHUP], ids=lambda signum: signum.name)
def test_signal_to_the_whole_process_group(start: Start, site: Site, signum: signal.Signals) -> None:
    """One reload; requests in flight on workers that got the signal too are answered."""
    server = start(workers=2)
    with FleetWatcher(server) as seen, ThreadPoolExecutor() as pool:
        asked = [pool.submit(server.get, "/sleep?seconds=1") for _ in range(6)]
        wait_for(lambda: len(site.marks("request")) == 6, 5, "the requests are in flight")
        site.deploy("two")
        server.signal_group(signum)
        assert [request.result()["version"] for request in asked] == ["one"] * 6
        server.wait_only("two")
    assert len(seen.fork_servers) == 2
    assert len(seen.workers) == 4


def test_newer_deploy_supersedes_one_that_hangs(start: Start, site: Site) -> None:
    server = start(workers=2, preload_app=True, zd_boot_timeout=60)
    before = kinds(server)
    with FleetWatcher(server) as seen:
        site.break_("hang")
        server.signal(signal.SIGUSR2)
        wait_for(lambda: len(seen.fork_servers) == 2, BOOT_TIMEOUT_S, "the hanging generation is under way")
        server.reload("two", 15)
        assert_nothing_left_over(server, before)


def test_eight_reloads_leave_nothing_over(start: Start) -> None:
    server = start(workers=1, keepalive=1)
    server.reload("first")
    before = kinds(server)
    for number in range(8):
        server.reload(f"v{number}")
    assert_nothing_left_over(server, before)
