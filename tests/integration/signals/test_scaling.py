"""``TTIN`` and ``TTOU``, and a number of workers that a reload changes."""

from __future__ import annotations

import signal

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start


def scale(server: Server, signum: signal.Signals, workers: int) -> None:
    server.settings["workers"] = workers
    server.signal(signum)
    server.wait_full()


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_ttin_and_ttou_under_load(start: Start, site: Site, preload: bool) -> None:
    server = start(workers=2, preload_app=preload)
    with (
        Load(server.address, "new", clients=8, pause=0.01) as new,
        Load(server.address, "kept", clients=8, pause=0.01) as kept,
    ):
        scale(server, signal.SIGTTIN, 3)
        scale(server, signal.SIGTTIN, 4)
        scale(server, signal.SIGTTOU, 3)
        scale(server, signal.SIGTTOU, 2)
    assert new.stop().failures == []
    assert kept.stop().failures == []
    changes = [(event["old"], event["new"]) for event in site.events("nworkers_changed")]
    assert changes == [(None, 2), (2, 3), (3, 4), (4, 3), (3, 2)]


def test_ttou_does_not_go_below_one_worker(start: Start) -> None:
    server = start(workers=1)
    with Load(server.address, "new", clients=2, pause=0.01) as load:
        server.signal(signal.SIGTTOU)
        server.reload("two")  # by its end the signal has long been handled
    assert load.stop().failures == []


def test_a_reload_takes_the_number_of_the_configuration(start: Start) -> None:
    server = start(workers=2)
    with Load(server.address, "kept", clients=8, pause=0.01) as load:
        for number, version in ((4, "two"), (1, "three"), (2, "four")):
            server.configure(workers=number)
            server.reload(version)
    assert load.stop().failures == []


def test_ttin_in_the_middle_of_a_reload(start: Start, site: Site) -> None:
    """A worker that is added while another one drains comes from the new code."""
    server = start(workers=2)
    site.deploy("two", extra="\ntime.sleep(0.3)\n")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: site.marks("startup", "two"), BOOT_TIMEOUT_S, "the first new worker has started")
    server.settings["workers"] = 3
    server.signal(signal.SIGTTIN)
    assert len(server.wait_only("two")) == 3
    assert len(site.marks("startup", "one")) == 2
