"""What a configuration makes of the log goes with it, also when a reload is given up."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.control_client import reload_error
from tests.harness.processes import descriptors
from tests.harness.server import Server, Start

LOGCONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"level": "INFO", "handlers": ["root"]},
    "loggers": {"gunicorn.error": {"level": "INFO", "handlers": ["own"], "propagate": True}},
    "handlers": {
        "own": {"class": "logging.FileHandler", "filename": "other.log"},
        "root": {"class": "logging.FileHandler", "filename": "root.log"},
    },
}
SETTINGS: dict[str, dict[str, Any]] = {
    "capture_output": {"errorlog": "other.log", "capture_output": True},
    "logconfig_dict": {"logconfig_dict": LOGCONFIG},
}


def written(server: Server) -> set[str]:
    """Return the log files of the site that the master has open."""
    held = descriptors(server.master).values()
    return {os.path.basename(path) for path in held if path.endswith(("own.log", "other.log", "root.log"))}


@pytest.fixture
def server(start: Start, site: Site) -> Server:
    return start(workers=1, errorlog="own.log", zd_control_socket=str(site.directory / "control.sock"))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("how", ["given up", "taken out"])
def test_a_reload_leaves_nothing_of_it(server: Server, site: Site, name: str, how: str) -> None:
    streams = {number: descriptors(server.master)[number] for number in (1, 2)}
    before = server.settings["errorlog"], server.settings.get(name)
    server.configure(**SETTINGS[name])
    if how == "given up":
        site.break_("lifespan")
        assert reload_error(server) is not None
    else:
        site.deploy("two")
        assert reload_error(server) is None
        assert "other.log" in written(server)
        server.configure(errorlog=before[0], **{name: before[1] or type(SETTINGS[name][name])()})
        site.deploy("three")
        assert reload_error(server) is None
    assert written(server) == {"own.log"}
    assert {number: descriptors(server.master)[number] for number in (1, 2)} == streams
