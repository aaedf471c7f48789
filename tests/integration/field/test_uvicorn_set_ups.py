"""Set-ups of uvicorn that people copy: a factory, an instrumented event loop."""

from __future__ import annotations

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Start

FACTORY_CLASS = """
from zdworker import UvicornWorker


class Worker(UvicornWorker):
    CONFIG_KWARGS = {"factory": True}
"""

FACTORY = """


def create():
    return app
"""

BROKEN_ASYNCIO = """

import asyncio


def _broken(*args, **kwargs):
    raise TypeError("an instrumentation has replaced this function, and is broken")


asyncio.wait_for = asyncio.tasks.wait_for = asyncio.wait = asyncio.tasks.wait = _broken
"""


@pytest.mark.parametrize("preload", [False, True])
def test_an_application_factory(make_server: Start, site: Site, preload: bool) -> None:
    site.write("factory_worker.py", FACTORY_CLASS)
    site.deploy("one", extra=FACTORY)
    settings = {"worker_class": "factory_worker.Worker", "workers": 1, "preload_app": preload}
    server = make_server(application=["app:create"], **settings).start()
    site.deploy("two", extra=FACTORY)
    server.signal(server.reload_signal)
    server.wait_only("two")
    assert server.get()["version"] == "two"
    assert server.stop() == 0


@pytest.mark.parametrize("worker_class", ["zdworker.UvicornWorker", "zdworker.UvicornH11Worker"])
def test_an_instrumentation_that_breaks_asyncio(start: Start, site: Site, worker_class: str) -> None:
    """Uvicorn's own loop uses neither of the functions, and serves."""
    site.deploy("one", extra=BROKEN_ASYNCIO)
    server = start(worker_class=worker_class, workers=2)
    with Load(server.address, "kept", clients=2) as load:
        site.deploy("two", extra=BROKEN_ASYNCIO)
        server.signal(server.reload_signal)
        server.wait_only("two")
    assert load.stop().failures == []
    assert server.stop() == 0


LIMIT_CLASS = """
from zdworker import UvicornWorker


class Worker(UvicornWorker):
    CONFIG_KWARGS = {"limit_max_requests": 50, "timeout_graceful_shutdown": 1}

    def callback_notify(self):
        raise RuntimeError("nothing calls this")
"""


def test_a_limit_of_requests_is_max_requests(start: Start, site: Site) -> None:
    """Uvicorn would end the worker, and with it a part of the service."""
    site.write("limited.py", LIMIT_CLASS)
    server = start(worker_class="limited.Worker", workers=2)
    first = server.workers()
    with Load(server.address, "new", clients=2) as load:
        wait_for(lambda: not any(alive(pid) for pid in first), BOOT_TIMEOUT_S, "both workers were replaced")
    assert load.stop().failures == []
    for name in ("callback_notify", "timeout_graceful_shutdown"):
        assert [line for line in server.log.splitlines() if name in line and "has no effect" in line], server.log
