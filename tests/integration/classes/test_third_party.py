"""The worker class that the docs tell users to write, exactly as it stands there, through reloads under load."""

from __future__ import annotations

import os
import re
import signal

import pytest

from tests.harness.application_site import APPLICATIONS, Site
from tests.harness.clients import Load
from tests.harness.documents import ROOT
from tests.harness.fleet_watcher import FleetWatcher
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Start

DOCS = ROOT / "docs" / "own-worker-class.md"
(CODE,) = re.findall(r"```python\n(# my_worker\.py\n.*?)```", DOCS.read_text(), re.DOTALL)
CLASS = "my_worker.MyWorker"


@pytest.fixture
def third_party(site: Site) -> None:
    """Somebody else's worker class, and ours made of it, lie beside the application."""
    site.serve("wsgi")
    site.write("third_party.py", (APPLICATIONS / "third_party_worker.py").read_text())
    site.write("my_worker.py", CODE)


@pytest.mark.usefixtures("third_party")
def test_third_party_class_reloads_under_load(start: Start, site: Site) -> None:
    server = start(worker_class=CLASS, workers=3)
    with (
        FleetWatcher(server) as seen,
        Load(server.address, "new", clients=3) as new,
        Load(server.address, "slow", clients=1) as slow,
    ):
        for version in ("two", "three"):
            server.reload(version)
    assert new.stop().failures == []
    assert slow.stop().failures == []
    assert new.stop().versions() == ["one", "two", "three"]
    assert seen.fewest_accepting >= 3
    assert seen.most_living <= 4
    assert site.events("worker_abort") == []
    assert server.stop() == 0


@pytest.mark.usefixtures("third_party")
def test_third_party_worker_with_max_requests(start: Start) -> None:
    """The replacement is ready first, though the base class would simply end."""
    server = start(worker_class=CLASS, workers=2, max_requests=100)
    first = server.workers()
    with FleetWatcher(server) as seen, Load(server.address, "new", clients=2) as load:
        wait_for(lambda: not any(alive(pid) for pid in first), BOOT_TIMEOUT_S, "both workers were replaced")
    assert load.stop().failures == []
    assert seen.fewest_accepting >= 2


@pytest.mark.usefixtures("third_party")
def test_third_party_worker_that_gets_term_loses_no_request(start: Start) -> None:
    server = start(worker_class=CLASS, workers=2)
    with Load(server.address, "new", clients=2) as load:
        victim = server.workers()[0]
        os.kill(victim, signal.SIGTERM)
        wait_for(lambda: not alive(victim), BOOT_TIMEOUT_S, "it has gone")
        server.wait_full()
    assert load.stop().failures == []


@pytest.mark.usefixtures("third_party")
def test_third_party_workers_do_not_outlive_their_master(start: Start) -> None:
    """The parent check comes with the class: a worker whose master was killed ends within two seconds."""
    server = start(worker_class=CLASS, workers=2)
    server.signal(signal.SIGKILL)
    server.wait_nothing_left(10)  # on a machine with other work to do
