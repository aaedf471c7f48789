"""Servers whose control socket is where ``control_client`` looks."""

from __future__ import annotations

import pytest

from tests.harness.application_site import Site
from tests.harness.server import Start


@pytest.fixture
def make_server(make_server: Start, site: Site) -> Start:
    control = {"zd_control_socket": str(site.directory / "control.sock")}
    return lambda *arguments, **options: make_server(*arguments, **{**control, **options})
