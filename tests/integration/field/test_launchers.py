"""Programs that start Gunicorn themselves: each generation runs them once more, and they can know it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from tests.harness import documents
from tests.harness.application_site import Site
from tests.harness.control_client import status, upgrade
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start, reserve_port

(LAUNCHER,) = [block.text for block in documents.blocks("docs/embedding.md") if block.title == "serve.py"]
CHECKED = "    if is_first_run():\n        admin"
UNCHECKED = "    if True:\n        admin"
GENERATION = """


import os

mark("generation", number=os.environ["ZD_GENERATION"])
"""


@pytest.fixture
def server(make_server: Start, site: Site) -> Server:
    """A server that the launcher of the documentation starts; it opens a port of its own before."""
    made = make_server(zd_control_socket=str(site.directory / "control.sock"))
    made.words = [sys.executable, "serve.py"]
    made.environment["ZD_CONTROL_SOCKET"] = str(made.settings["zd_control_socket"])
    return made


@pytest.fixture
def admin() -> Iterator[int]:
    """The launcher's own port, which nobody else gets."""
    with reserve_port() as held:
        yield held.getsockname()[1]


def write(site: Site, server: Server, admin: int, launcher: str) -> None:
    port = str(server.reserved.getsockname()[1])
    site.write("serve.py", launcher.replace("8000", port).replace("9000", str(admin)))


def test_a_launcher_that_asks_is_run_once_more_for_each_generation(server: Server, site: Site, admin: int) -> None:
    assert CHECKED in LAUNCHER
    write(site, server, admin, LAUNCHER)
    site.deploy("one", extra=GENERATION)
    server.start()
    site.deploy("two", extra=GENERATION)
    server.signal(server.reload_signal)
    server.wait_only("two")
    assert {mark["number"] for mark in site.marks("generation", "one")} == {"1"}
    assert {mark["number"] for mark in site.marks("generation", "two")} == {"2"}
    assert server.stop() == 0


def test_an_upgrade_runs_a_launcher_that_asks(server: Server, site: Site, admin: int) -> None:
    """The rehearsal leaves the launcher's port alone, and the program that takes the master's place opens it again."""
    write(site, server, admin, LAUNCHER)
    server.start()
    for _ in range(2):
        outcome = upgrade(server)
        assert (outcome.result, outcome.error) == ("done", "")
        socket.create_connection(("127.0.0.1", admin), timeout=5.0).close()
    assert server.stop() == 0


def test_a_launcher_that_does_not_ask_is_told_why_it_failed(server: Server, site: Site, admin: int) -> None:
    """Its port is taken, by itself."""
    write(site, server, admin, LAUNCHER)
    server.start()
    write(site, server, admin, LAUNCHER.replace(CHECKED, UNCHECKED))
    server.signal(server.reload_signal)
    wait_for(lambda: status(server)["state"] == "failed", BOOT_TIMEOUT_S, "the reload has failed")
    error = str(status(server)["last_reload"]["error"])
    assert "serve.py was run once more, to load generation 2" in error
    assert "ZD_GENERATION" in error
    assert "Address already in use" in error
    assert server.stop() == 0
