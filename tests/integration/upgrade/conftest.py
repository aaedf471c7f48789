"""Servers whose control socket is where ``control_client`` looks, and one that runs by a link to its release."""

from __future__ import annotations

import pytest

from tests.harness.application_site import START_HOOKS, Site
from tests.harness.releases import TIMEOUT_S, Releases
from tests.harness.server import Start


@pytest.fixture
def make_server(make_server: Start, site: Site) -> Start:
    control = {"zd_control_socket": str(site.directory / "control.sock")}
    return lambda *arguments, **options: make_server(*arguments, **{**control, **options})


@pytest.fixture
def releases(make_server: Start, site: Site) -> Releases:
    """A server that runs by the link, and whose release is called "one"."""
    server = make_server(zd_boot_timeout=TIMEOUT_S, extra=START_HOOKS)
    made = Releases(site, server)
    server.configure()
    made.add("one")
    link = str(site.directory / "current")
    words = ["venv/bin/python", "-m", "gunicorn", "-c", "gunicorn.conf.py", "app:app"]
    server.words = ["sh", "-c", 'cd "$0" && exec "$@"', link, *words]
    server.launch_as_is().wait_full()
    return made
