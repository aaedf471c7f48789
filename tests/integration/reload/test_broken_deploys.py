"""A broken deploy changes nothing: the old code serves, the log says why, the next good one goes through."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from xprocess import ProcessStarter, XProcess

from tests.harness import control_client
from tests.harness.application_site import BROKEN, BrokenKind, Site
from tests.harness.clients import Broken, Client, Load
from tests.harness.fleet_watcher import FleetWatcher, Seen
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

SILENT: tuple[BrokenKind, ...] = ("exit", "hang")
"""Kinds that leave no text of their own: nothing runs that could say something."""
BOOT_TIMEOUT = 12
"""Seconds of ``zd_boot_timeout``: more than a boot takes under the load of these tests."""
PAUSE = 0.01
"""Seconds between a client's requests: the boots need a share of two cores."""


@pytest.fixture(params=[False, True], ids=["no preload", "preload"])
def server(request: pytest.FixtureRequest, start: Start) -> Server:
    return start(workers=2, preload_app=request.param, zd_boot_timeout=BOOT_TIMEOUT)


@pytest.fixture
def seen(server: Server) -> Iterator[Seen]:
    with FleetWatcher(server) as seen:
        yield seen


def try_reload(server: Server) -> None:
    """Send USR2, and wait until a further generation has failed and gone."""
    before = server.fork_servers()
    assert control_client.reload(server)["result"] == "failed"
    wait_for(lambda: server.fork_servers() == before, BOOT_TIMEOUT_S, "the further generation has been given up")


def assert_untouched(server: Server, workers: list[int]) -> None:
    assert server.running
    wait_for(lambda: server.workers() == workers, BOOT_TIMEOUT_S, "only the old workers are there")
    assert server.accepting() == workers
    assert server.get()["pid"] in workers


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_application_at_a_reload(server: Server, site: Site, seen: Seen, kind: BrokenKind) -> None:
    workers = server.workers()
    with (
        Load(server.address, "new", clients=12, pause=PAUSE) as new,
        Load(server.address, "kept", clients=12, pause=PAUSE) as kept,
    ):
        unique = site.break_(kind)
        try_reload(server)
        assert_untouched(server, workers)
        server.reload("two")
    for load in (new, kept):
        results = load.stop()
        assert results.failures == []
        assert results.versions() == ["one", "two"]
    assert kind in SILENT or unique in server.log
    assert seen.fewest_accepting >= 2
    assert seen.most_living <= 3


FAILS_WHEN_TOLD = """
import pathlib, time

pathlib.Path({booting!r}).touch()
while not pathlib.Path({told!r}).exists():
    time.sleep(0.01)
raise RuntimeError("as told")
"""

WAITS_IN_THE_MASTER = """
import pathlib as _pathlib, threading as _threading

if _threading.current_thread() is not _threading.main_thread():
    _note("evaluating")
    while not _pathlib.Path({told!r}).exists():
        _time.sleep(0.01)
"""


def test_a_good_deploy_goes_through_although_the_broken_one_before_it_fails_meanwhile(
    start: Start, site: Site, tmp_path: Path
) -> None:
    """The master evaluates the newer configuration when the broken one's canary fails, and the old one is restored."""
    server = start(workers=2)
    booting, fail, go_on = tmp_path / "booting", tmp_path / "fail", tmp_path / "go on"
    with Load(server.address, "new", clients=3, pause=PAUSE) as load:
        site.write("app.py", FAILS_WHEN_TOLD.format(booting=str(booting), told=str(fail)))
        server.signal(signal.SIGUSR2)
        wait_for(booting.exists, BOOT_TIMEOUT_S, "its first worker boots")
        site.deploy("two")
        server.extra += WAITS_IN_THE_MASTER.format(told=str(go_on))
        server.configure()
        server.signal(signal.SIGUSR2)
        wait_for(lambda: site.events("evaluating"), BOOT_TIMEOUT_S, "the master evaluates the newer configuration")
        fail.touch()
        wait_for(
            lambda: control_client.worker_states(server) == ["ready"] * 2,
            BOOT_TIMEOUT_S,
            "the broken deploy's worker is gone",
        )
        go_on.touch()
        server.wait_only("two")
    assert load.stop().failures == []


def connectable(server: Server) -> bool:
    try:
        Client(server.address).close()
    except Broken:
        return False
    return True


@pytest.fixture(scope="module")
def standing(xprocess: XProcess) -> Iterator[Server]:
    """One long-lived server, on which one deploy after the other fails: each has to leave it whole for the next."""
    site = Site()
    site.deploy("one")
    server = Server(site, workers=2, zd_boot_timeout=BOOT_TIMEOUT)
    server.configure()

    class Starter(ProcessStarter):  # type: ignore[misc]  # xprocess has no types
        """How pytest-xprocess starts it."""

        args = server.words
        env = server.environment
        popen_kwargs: ClassVar[dict[str, Any]] = {"cwd": site.directory}
        timeout = BOOT_TIMEOUT_S

        def startup_check(self) -> bool:
            return connectable(server)

    pid, log = xprocess.ensure("gunicorn", Starter, restart=True, persist_logs=False)
    server.log_file = Path(log)
    server.adopt(pid)
    server.wait_full()
    yield server
    xprocess.getinfo("gunicorn").terminate(kill_proc_tree=False)
    server.wait_nothing_left(30)
    server.end()
    site.remove()


@pytest.mark.parametrize(
    "extra",
    [
        "raise RuntimeError('broken configuration')",
        "import sys; sys.exit(0)",
        "import sys; sys.exit(4)",
        "def broken(:",
        "workers = 'many'",
        "worker_class = 'sync'",
        "worker_class = 'a_module_that_is_not_there.Worker'",
        "zd_no_such_setting = 1",
        "zd_max_surge = 'much'",
        "import time; time.sleep(600)",
        "import os; os._exit(0)",
        "logconfig_dict = {'version': 7}",
        "errorlog = '/no/such/directory/error.log'",
        "certfile = '/no/such/file'",
        "bind = '203.0.113.1:80'",
        "def on_reload(server, too, many): pass",
    ],
)
def test_broken_configuration_at_a_reload(standing: Server, extra: str) -> None:
    workers, before = standing.workers(), str(standing.get()["version"])
    with Load(standing.address, "kept", clients=4, pause=PAUSE) as load:
        standing.site.deploy(f"with {extra}")
        standing.extra = f"\n{extra}\n"
        standing.configure()
        try_reload(standing)
        assert_untouched(standing, workers)
        standing.extra = ""
        standing.configure()
        standing.reload(f"after {extra}")
        assert standing.get()["version"] == f"after {extra}"
    results = load.stop()
    assert results.failures == []
    assert results.versions() == [before, f"after {extra}"]


def test_configuration_file_that_is_gone(start: Start, site: Site) -> None:
    server = start(workers=2)
    workers = server.workers()
    (site.directory / "gunicorn.conf.py").unlink()
    try_reload(server)
    assert_untouched(server, workers)
    server.configure()
    server.reload("two")


def test_a_later_worker_that_fails_is_tried_again(start: Start, site: Site) -> None:
    """The first new worker starts, the second one not at once: the reload is finished with patience."""
    server = start(workers=2, zd_boot_timeout=BOOT_TIMEOUT)
    with Load(server.address, "new", clients=6) as new:
        site.deploy("two", extra=SECOND_FAILS)
        server.signal(signal.SIGUSR2)
        server.wait_only("two")
    assert new.stop().failures == []


SECOND_FAILS = """

try:
    os.open("first", os.O_CREAT | os.O_EXCL)
except FileExistsError:
    try:
        os.open("second", os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        pass
    else:
        raise RuntimeError("the second worker fails")
"""
