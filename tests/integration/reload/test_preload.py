"""``--preload`` is done in the fork server: one import per generation, none of it in the master."""

from __future__ import annotations

import os
import signal

import pytest

from tests.harness.application_site import Site
from tests.harness.processes import alive, wait_for
from tests.harness.server import Server, Start


def by_master(server: Server) -> list[bool]:
    """Return, for each hook that ran in the master, whether the application's module was there."""
    return [event["application_here"] for event in server.site.events() if event["by"] == server.master]


@pytest.mark.parametrize("preload", [True, False], ids=["preload", "no preload"])
def test_the_master_never_imports_the_application(start: Start, site: Site, preload: bool) -> None:
    server = start(workers=2, preload_app=preload)
    server.reload("two")
    killed = server.workers()[0]
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: not alive(killed), 30, "the worker is gone")
    server.wait_full()
    server.signal(signal.SIGTTIN)
    server.settings["workers"] = 3
    server.wait_full()
    assert len(by_master(server)) > 10
    assert not any(by_master(server))
    server.stop()
    assert site.events("on_exit")
    assert not any(by_master(server))


def test_one_import_per_generation(start: Start, site: Site) -> None:
    server = start(workers=4, preload_app=True)
    assert len(site.marks("import", "one")) == 1
    assert len(site.marks("startup", "one")) == 4
    server.reload("two")
    assert len(site.marks("import", "two")) == 1
    assert len(site.marks("startup", "two")) == 4
    assert site.marks("import", "two")[0]["pid"] in server.fork_servers()
    assert all(event["application_here"] for event in site.events("post_fork"))


def test_without_preload_each_worker_imports(start: Start, site: Site) -> None:
    server = start(workers=2)
    assert sorted(mark["pid"] for mark in site.marks("import")) == server.workers()
    assert not any(event["application_here"] for event in site.events("post_fork"))


def test_hooks_read_preload_app_as_it_was_set(start: Start, site: Site) -> None:
    server = start(workers=1, preload_app=True, extra=NOTE_PRELOAD)
    server.reload("two")
    assert [event["preload"] for event in site.events("preload")] == [True, True]


NOTE_PRELOAD = """

def when_ready(server):
    _note("preload", preload=server.cfg.preload_app)


def on_reload(server):
    _note("preload", preload=server.cfg.preload_app)
"""


def test_preload_can_be_turned_on_by_a_reload(start: Start, site: Site) -> None:
    server = start(workers=2, preload_app=False)
    server.configure(preload_app=True)
    server.reload("two")
    assert len(site.marks("import", "two")) == 1
    assert not any(by_master(server))
