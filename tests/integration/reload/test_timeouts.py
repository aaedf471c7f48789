"""Each worker has the time limits of its own configuration, and one that hangs has crashed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client, request
from tests.harness.control_client import reload_error, status
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import UVICORN, WSGI, WorkerClass

LONG = 60
SHORT = 1
BETWEEN = 6.0
"""Seconds of a request that the long limit allows and the short one does not, nor with the master's margin."""


def ask(server: Server, seconds: float) -> int:
    with Client(server.address) as client:
        return client.ask("GET", f"/sleep?seconds={seconds}").status


def with_control(site: Site) -> dict[str, Any]:
    return {"zd_control_socket": str(site.directory / "control.sock")}


@pytest.mark.parametrize(("worker", "limit"), [(WSGI, "timeout"), (UVICORN, "graceful_timeout")], ids=str)
def test_a_shorter_limit_is_not_for_the_requests_of_the_old_workers(
    start_class: Start, site: Site, worker: WorkerClass, limit: str
) -> None:
    server = start_class(worker, workers=1, timeout=LONG, graceful_timeout=LONG, **with_control(site))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, server, BETWEEN)
        wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the request is being answered")
        server.configure(**{limit: SHORT})
        site.deploy("two")
        assert reload_error(server) is None
        assert slow.result() == 200
    assert status(server)["crashes"] == 0


def test_a_shorter_timeout_of_a_deploy_that_is_given_up(start_class: Start, site: Site) -> None:
    """It is in force as long as the new code is tried, which is longer than the old code's request may be silent."""
    server = start_class(WSGI, workers=1, timeout=LONG, **with_control(site))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, server, BETWEEN)
        wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the request is being answered")
        server.configure(timeout=SHORT, zd_boot_timeout=BETWEEN - 1)
        site.break_("hang")
        assert reload_error(server) is not None
        assert slow.result() == 200
    assert status(server)["crashes"] == 0


def test_a_worker_that_hangs_has_crashed(start_class: Start, site: Site) -> None:
    server = start_class(WSGI, workers=1, timeout=SHORT, **with_control(site))
    with Client(server.address) as client:
        client.send(request("GET", "/sleep?seconds=30"))
        wait_for(lambda: status(server)["crashes"] == 1, BOOT_TIMEOUT_S, "the crash is counted")
    wait_for(lambda: status(server)["state"] == "steady", BOOT_TIMEOUT_S, "there is another worker")
