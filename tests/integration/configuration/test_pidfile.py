"""The pidfile goes with the configuration, as with a HUP to stock Gunicorn; and with the release if it is relative."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.control_client import reload_error
from tests.harness.server import Server, Start


@pytest.fixture
def server(start: Start, site: Site) -> Server:
    return start(workers=1, pidfile="first.pid", zd_control_socket=str(site.directory / "control.sock"))


def pidfiles(place: Path) -> dict[str, int]:
    """Return the pid in each pidfile of a directory."""
    return {file.name: int(file.read_text()) for file in place.glob("*.pid")}


def test_a_reload_moves_it_and_the_end_removes_it(server: Server, site: Site) -> None:
    server.configure(pidfile="second.pid")
    server.reload("two")
    assert pidfiles(site.directory) == {"second.pid": server.master}
    server.configure(pidfile=None)
    server.reload("three")
    assert pidfiles(site.directory) == {}
    server.configure(pidfile="third.pid")
    server.reload("four")
    assert pidfiles(site.directory) == {"third.pid": server.master}
    assert server.stop() == 0
    assert pidfiles(site.directory) == {}


def test_a_reload_brings_it_back(server: Server, site: Site) -> None:
    (site.directory / "first.pid").unlink()
    server.reload("two")
    assert pidfiles(site.directory) == {"first.pid": server.master}


def test_a_reload_to_one_that_cannot_be_written_changes_nothing(server: Server, site: Site) -> None:
    foreign = site.directory / "foreign"
    foreign.write_text("1\n")  # a process that runs
    for path in ("nowhere/second.pid", "foreign"):
        site.deploy("two")
        server.configure(pidfile=path)
        error = reload_error(server)
        assert error is not None
        assert f"the pidfile {site.directory / path} cannot be written" in error
        assert set(server.versions().values()) == {"one"}
        assert pidfiles(site.directory) == {"first.pid": server.master}
    assert foreign.read_text() == "1\n"


def test_its_own_place_gone_hinders_no_reload(make_server: Start, site: Site) -> None:
    place = site.directory / "run"
    place.mkdir()
    server = make_server(workers=1, pidfile="run/first.pid").start()
    (place / "first.pid").unlink()
    place.rmdir()
    server.reload("two")
    place.mkdir()
    server.reload("three")
    assert pidfiles(place) == {"first.pid": server.master}


def test_a_reload_that_is_given_up_leaves_it(server: Server, site: Site) -> None:
    site.break_("lifespan")
    server.configure(pidfile="second.pid")
    assert reload_error(server) is not None
    assert pidfiles(site.directory) == {"first.pid": server.master}


def test_a_relative_one_belongs_to_its_release(make_server: Start, site: Site) -> None:
    """``current/app.pid`` is there after each reload, for scripts that read it."""
    site.release("one")
    server = make_server("--chdir", "current", workers=1, pidfile="app.pid").start()
    site.release("two")
    server.signal(server.reload_signal)
    server.wait_only("two")
    found = {release: pidfiles(site.directory / "releases" / release) for release in ("one", "two")}
    assert found == {"one": {}, "two": {"app.pid": server.master}}
    assert server.stop() == 0
    assert pidfiles(site.directory / "current") == {}
