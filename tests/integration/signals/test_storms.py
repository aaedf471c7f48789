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


def settled(server: Server) -> Counter[str]:
    """Return the kinds when they have been the same for a second: some are there for a moment only."""
    seen = kinds(server)
    since = time.monotonic()

    def same() -> bool:
        nonlocal seen, since
        now = kinds(server)
        if now != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since > 1

    wait_for(same, BOOT_TIMEOUT_S, "the master opens and closes nothing any more")
    return seen


def assert_nothing_left_over(server: Server, before: Counter[str]) -> None:
    wait_for(lambda: not server.zombies(), BOOT_TIMEOUT_S, "no zombie is left")
    wait_for(lambda: len(server.fork_servers()) == 1, BOOT_TIMEOUT_S, "one fork server is left")
    wait_for(
        lambda: kinds(server) == before, BOOT_TIMEOUT_S, f"the master holds what it held: {before}, now {kinds(server)}"
    )
    count = 1 + 1 + server.expected
    wait_for(lambda: len(server.left()) == count, BOOT_TIMEOUT_S, "there is no other process")


GATED = """

while _os.path.exists("gate"):
    _time.sleep(0.01)
"""
"""The end of a configuration whose generation loads until the storm is over, however long that takes."""


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_ten_reload_signals_at_once(start: Start, site: Site, preload: bool) -> None:
    """At most one further generation follows the one under way."""
    server = start(workers=2, preload_app=preload, extra=GATED)
    before = settled(server)
    gate = site.write("gate", "")
    with FleetWatcher(server) as seen, Load(server.address, "new", clients=6, pause=0.01) as load:
        for number in range(10):
            site.deploy(f"v{number}")
            server.signal(signal.SIGUSR2)
            time.sleep(0.01)  # the pace of the storm
        gate.unlink()
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
    before = settled(server)
    with FleetWatcher(server) as seen, Load(server.address, "kept", clients=6, pause=0.01) as load:
        for number in range(10):
            site.deploy(f"v{number}")
            server.signal(signal.SIGUSR2)
            time.sleep(0.09)  # the pace of the storm
        server.wait_only("v9")
        assert_nothing_left_over(server, before)
    assert load.stop().failures == []
    assert seen.most_fork_servers <= 4  # of the workers before, of those that come, one that ends, one that loads
    assert seen.fewest_accepting >= 2
    assert seen.most_living <= 3


@pytest.mark.parametrize("signum", [signal.SIGUSR2, signal.SIGHUP], ids=lambda signum: signum.name)
def test_signal_to_the_whole_process_group(start: Start, site: Site, signum: signal.Signals) -> None:
    """One reload; requests in flight on workers that got the signal too are answered."""
    server = start(workers=2)
    with FleetWatcher(server) as seen, ThreadPoolExecutor() as pool:
        asked = [pool.submit(server.get, "/sleep?seconds=1") for _ in range(6)]
        wait_for(lambda: len(site.marks("request")) == 6, BOOT_TIMEOUT_S, "the requests are in flight")
        site.deploy("two")
        server.signal_group(signum)
        assert [request.result()["version"] for request in asked] == ["one"] * 6
        server.wait_only("two")
    assert len(seen.fork_servers) == 2
    assert len(seen.workers) == 4


def test_a_newer_deploy_follows_one_that_hangs(start: Start, site: Site) -> None:
    """As soon as that is given up: the code of each deploy would never be loaded if the next one ended its load."""
    server = start(workers=2, preload_app=True, zd_boot_timeout=10)
    before = settled(server)
    site.break_("hang")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: site.marks("hang"), BOOT_TIMEOUT_S, "the import hangs")
    server.reload("two")
    assert_nothing_left_over(server, before)


def test_eight_reloads_leave_nothing_over(start: Start) -> None:
    server = start(workers=1, keepalive=1)
    server.reload("first")
    before = settled(server)
    for number in range(8):
        server.reload(f"v{number}")
    assert_nothing_left_over(server, before)
