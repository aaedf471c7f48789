"""What users order while the first generation still loads: it counts, and it counts once."""

from __future__ import annotations

import os
import signal

from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start


def changes(site: Site) -> list[tuple[int | None, int]]:
    return [(event["old"], event["new"]) for event in site.events("nworkers_changed")]


def scale(server: Server, site: Site, signum: signal.Signals) -> None:
    """Order one more worker or one fewer, and wait until the master has the order: signals of a kind are one."""
    before = len(changes(site))
    server.signal(signum)
    wait_for(lambda: len(changes(site)) == before + 1, BOOT_TIMEOUT_S, "the master has the order")


def test_workers_are_added_and_taken_away_during_the_first_load(make_server: Start, site: Site) -> None:
    gate = site.directory / "gate"
    os.mkfifo(gate)
    site.deploy("one", extra=f'\n\nmark("waits")\nos.close(os.open({str(gate)!r}, os.O_RDONLY))\n')
    server = make_server(workers=2, preload_app=True).launch()
    wait_for(lambda: site.marks("waits"), BOOT_TIMEOUT_S, "the code is being imported")
    for signum in (signal.SIGTTIN, signal.SIGTTIN, signal.SIGTTOU):
        scale(server, site, signum)
    server.settings["workers"] = 3
    gate.write_bytes(b"")
    server.wait_full()
    server.settings["workers"] = 4
    scale(server, site, signal.SIGTTIN)
    server.wait_full()
    assert changes(site) == [(None, 2), (2, 3), (3, 4), (4, 3), (3, 4)]
    assert server.stop() == 0
