"""The ``zd_`` settings from file and environment in a real server; a bad one refuses the start."""

from __future__ import annotations

import signal
import time

import pytest

from tests.harness.application_site import Site
from tests.harness.fleet_watcher import FleetWatcher
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start


def assert_refused(server: Server, name: str) -> None:
    server.launch()
    assert server.wait_exit(BOOT_TIMEOUT_S) not in (0, None)
    naming = [line for line in server.log.splitlines() if name in line]
    assert len(naming) == 1, server.log
    assert "Traceback" not in server.log
    server.wait_nothing_left(10)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("zd_max_surge", "much"),
        ("zd_max_surge", -1),
        ("zd_max_surge", True),
        ("zd_max_unavailable", "200%"),
        ("zd_boot_timeout", 0),
        ("zd_min_ready_seconds", "soon"),
        ("zd_on_crash", "cry"),
        ("zd_no_such_setting", 1),
        ("zd_warmup", ["health"]),
        ("zd_max_rss", "much"),
        ("zd_health_path", "health"),
    ],
    ids=str,
)
@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_bad_setting_in_the_file(make_server: Start, name: str, value: object, preload: bool) -> None:
    assert_refused(make_server(preload_app=preload, **{name: value}), name)


def test_no_surge_and_none_unavailable(make_server: Start) -> None:
    assert_refused(make_server(zd_max_surge=0, zd_max_unavailable=0), "zd_max_unavailable")


def test_bad_setting_in_the_environment(make_server: Start) -> None:
    assert_refused(make_server(environment={"ZD_MAX_SURGE": "much"}), "ZD_MAX_SURGE")


def test_a_setting_in_the_environment_wins(start: Start) -> None:
    server = start(workers=2, zd_max_surge=1, environment={"ZD_MAX_SURGE": "0", "ZD_MAX_UNAVAILABLE": "1"})
    with FleetWatcher(server) as seen:
        server.reload("two")
    assert seen.most_living == 2
    assert seen.fewest_accepting == 1


def test_settings_come_with_a_reload(start: Start) -> None:
    server = start(workers=2)
    server.configure(zd_max_surge=0, zd_max_unavailable=1)
    with FleetWatcher(server) as seen:
        server.reload("two")
    assert seen.most_living == 2


def test_zd_min_ready_seconds(start: Start, site: Site) -> None:
    """A new worker that dies in its first seconds takes no old one with it."""
    server = start(workers=2, zd_min_ready_seconds=1)
    old = server.workers()
    site.deploy("two", extra=DIES_SOON)
    server.signal(signal.SIGUSR2)
    wait_for(lambda: site.marks("startup", "two"), BOOT_TIMEOUT_S, "the new worker has started")
    wait_for(lambda: len(server.fork_servers()) == 1 and server.workers() == old, BOOT_TIMEOUT_S, "the reload is over")
    begun = time.monotonic()
    server.reload("three")
    assert time.monotonic() - begun > 2 * 1


DIES_SOON = """

_startup = lifespan


async def lifespan(receive, send):
    asyncio.get_running_loop().call_later(0.3, os._exit, 1)
    await _startup(receive, send)
"""


def test_zd_boot_timeout(start: Start, site: Site) -> None:
    server = start(workers=2)
    old = server.workers()
    server.configure(zd_boot_timeout=2)  # for the worker that hangs, and for no other
    site.break_("hang")
    begun = time.monotonic()
    server.signal(signal.SIGUSR2)
    wait_for(lambda: server.workers() != old, BOOT_TIMEOUT_S, "the hanging worker is there")
    wait_for(lambda: server.workers() == old, BOOT_TIMEOUT_S, "the hanging worker is gone")
    assert 2 <= time.monotonic() - begun < 45
