"""A first start that cannot work ends at once, with Gunicorn's exit status and the reason."""

from __future__ import annotations

import pytest

from tests.harness.application_site import BROKEN, BrokenKind, Site
from tests.harness.server import BOOT_TIMEOUT_S, Start

PROMPTLY = BOOT_TIMEOUT_S
"""Seconds, of which a loaded machine needs most to start the interpreters."""


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_application_at_the_start(make_server: Start, site: Site, kind: BrokenKind, preload: bool) -> None:
    boot_timeout = 3 if kind == "hang" else 10 * PROMPTLY
    server = make_server(workers=2, preload_app=preload, zd_boot_timeout=boot_timeout, pidfile="gunicorn.pid")
    unique = site.break_(kind)
    server.launch()
    assert server.wait_exit(PROMPTLY) in (3, 4)
    server.wait_nothing_left(10)
    assert server.port_free()
    assert not (site.directory / "gunicorn.pid").exists()
    if kind not in ("exit", "hang"):
        assert unique in server.log
    if kind in ("syntax", "import", "raise"):
        assert "Traceback (most recent call last)" in server.log


def test_application_that_is_not_there(make_server: Start, site: Site) -> None:
    server = make_server(application=["no_such_module:app"])
    server.launch()
    assert server.wait_exit(PROMPTLY) in (3, 4)
    assert "no_such_module" in server.log


def test_attribute_that_is_not_there(make_server: Start, site: Site) -> None:
    server = make_server(application=["app:no_such_attribute"])
    server.launch()
    assert server.wait_exit(PROMPTLY) in (3, 4)
    assert "no_such_attribute" in server.log


def test_broken_configuration_at_the_start(make_server: Start, site: Site) -> None:
    server = make_server(extra="\nraise RuntimeError('broken configuration')\n")
    server.launch()
    assert server.wait_exit(PROMPTLY) not in (0, None)
    assert "broken configuration" in server.log


def test_address_in_use(make_server: Start, site: Site) -> None:
    """Gunicorn tries five times, a second apart, then gives up with status 1."""
    server = make_server()
    server.reserved.listen()
    server.launch()
    assert server.wait_exit(PROMPTLY) == 1
    server.wait_nothing_left(10)
