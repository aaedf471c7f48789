"""Recipes that hand out ids to workers in ``pre_fork`` and ``post_fork``, as they are copied from site to site."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

PROMETHEUS = """

def nworkers_changed(server, new_value, old_value):
    server._worker_id_current_workers = new_value


def _next_worker_id(server):
    if getattr(server, "_worker_id_overload", None):
        return server._worker_id_overload.pop()
    in_use = {w._worker_id for w in tuple(server.WORKERS.values()) if w.alive}
    free = set(range(1, server._worker_id_current_workers + 1)) - in_use
    return free.pop()


def on_reload(server):
    server._worker_id_overload = set(range(1, server.cfg.workers + 1))


def pre_fork(server, worker):
    worker._worker_id = _next_worker_id(server)


def post_fork(server, worker):
    _os.environ["APP_WORKER_ID"] = str(worker._worker_id)
    _os.environ["APP_SIBLINGS"] = str(len(server.WORKERS))
    _os.environ["APP_SLOT"] = str(worker.slot)
    _os.environ["APP_DEVICE"] = worker.device
"""

CLASS = """
from zdworker import UvicornWorker


class Worker(UvicornWorker):
    device = "gpu"
"""

APPLICATION = """


import os

mark(
    "id",
    number=int(os.environ["APP_WORKER_ID"]),
    siblings=int(os.environ["APP_SIBLINGS"]),
    slot=int(os.environ["APP_SLOT"]),
    device=os.environ["APP_DEVICE"],
)
"""


@pytest.fixture
def made(make_server: Start, site: Site) -> Start:
    """Make a server with the recipe, whose application tells what it was given."""
    site.write("devices.py", CLASS)
    site.deploy("one", extra=APPLICATION)
    return lambda **settings: make_server(extra=PROMETHEUS, worker_class="devices.Worker", workers=4, **settings)


def given(server: Server, pids: list[int]) -> list[dict[str, Any]]:
    """Return what these workers were given, in the order of the pids."""
    marks = {mark["pid"]: mark for mark in server.site.marks("id")}
    return [marks[pid] for pid in pids]


def test_each_worker_of_a_start_has_an_id_of_its_own(made: Start) -> None:
    """The hook of each sees those before it, as it does where one is forked after the other."""
    server = made().start()
    found = given(server, server.workers())
    assert sorted(mark["number"] for mark in found) == [1, 2, 3, 4]
    assert sorted(mark["siblings"] for mark in found) == [0, 1, 2, 3]
    assert sorted(mark["slot"] for mark in found) == [0, 1, 2, 3]
    assert {mark["device"] for mark in found} == {"gpu"}
    assert server.stop() == 0


def test_a_replacement_gets_the_id_of_the_worker_that_it_replaces(made: Start) -> None:
    """With max_requests it is there before that one has gone."""
    server = made(max_requests=100).start()
    first = server.workers()
    with Load(server.address, "new", clients=2) as load:
        wait_for(lambda: not any(alive(pid) for pid in first), BOOT_TIMEOUT_S, "all workers were replaced")
    assert load.stop().failures == []
    assert sorted(mark["number"] for mark in given(server, server.wait_full())) == [1, 2, 3, 4]
    assert "KeyError" not in server.log


def test_the_ids_of_a_reload(made: Start, site: Site) -> None:
    server = made().start()
    site.deploy("two", extra=APPLICATION)
    server.signal(server.reload_signal)
    server.wait_only("two")
    found = given(server, server.workers())
    assert sorted(mark["number"] for mark in found) == [1, 2, 3, 4]
    assert sorted(mark["slot"] for mark in found) == [0, 1, 2, 3]
    assert "KeyError" not in server.log
