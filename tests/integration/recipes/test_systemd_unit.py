"""The systemd unit: systemd's own tools read it, its commands run as it says, and its socket outlives every reload.

The service manager itself is played by the tests, and by ``systemd-socket-activate``: what it runs, with which
environment, descriptors and signals, is read from the unit.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.processes import listeners, wait_for
from tests.harness.recipes import (
    DEPLOY,
    adapted,
    environment_of,
    example_configuration,
    find,
    find_master,
    run,
    versions,
)
from tests.harness.server import Server, Start

NOTIFY_RELOAD_SINCE = 253
"""The version of systemd that has it (systemd.service(5), Type=)."""

needs = {
    name: pytest.mark.skipif(find(name) is None, reason=f"{name} is not installed")
    for name in ("systemd-analyze", "systemd-socket-activate")
}


class Unit:
    """The recipe's service in the directory of a site: /srv/app/current and /run/app are in there."""

    def __init__(self, site: Site) -> None:
        self.place = site.directory
        self.socket = str(self.place / "app.sock")
        changes = {
            "/srv/app/current/venv/bin/": f"{Path(sys.executable).parent}/",
            "/srv/app/current": str(self.place),
            "/run/app/": f"{self.place}/",
        }
        self.text = adapted("systemd/app.service", changes)
        self.service = self._parse(self.text)["Service"]

    @staticmethod
    def _parse(text: str) -> dict[str, dict[str, list[str]]]:
        """Return the values of each name, as a unit may have several of them."""
        sections: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        section = ""
        for line in text.splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif line and not line.startswith("#"):
                name, _, value = line.partition("=")
                sections[section][name].append(value)
        return sections

    def words(self, name: str) -> list[str]:
        return shlex.split(self.service[name][0])

    def environment(self) -> dict[str, str]:
        return dict(entry.split("=", 1) for entry in self.service["Environment"])

    def signal_all(self) -> bool:
        return self.service["KillMode"] != ["mixed"]


@pytest.fixture
def unit(site: Site) -> Unit:
    return Unit(site)


# -- systemd reads it ------------------------------------------------------------------------------------------


def units(place: Path, unit: Unit) -> list[str]:
    (place / "app.service").write_text(unit.text)
    (place / "app.socket").write_text((DEPLOY / "systemd" / "app.socket").read_text())
    return ["systemd-analyze", "verify", "--man=no", str(place / "app.service"), str(place / "app.socket")]


@needs["systemd-analyze"]
def test_systemd_understands_the_unit(unit: Unit, tmp_path: Path) -> None:
    verified = run(units(tmp_path, unit), tmp_path)
    assert (verified.returncode, verified.stdout) == (0, "")


@needs["systemd-analyze"]
def test_systemd_understands_the_notify_reload_variant(unit: Unit, tmp_path: Path) -> None:
    words = units(tmp_path, unit)
    drop_in = tmp_path / "app.service.d"
    drop_in.mkdir()
    (drop_in / "notify-reload.conf").write_text((DEPLOY / "systemd" / "notify-reload.conf").read_text())
    verified = run(words, tmp_path)
    version = int(run(["systemd-analyze", "--version"], tmp_path).stdout.split()[1])
    complaints = [line for line in verified.stdout.splitlines() if line]
    if version < NOTIFY_RELOAD_SINCE:
        assert [line.rpartition(": ")[2] for line in complaints] == ["notify-reload"], "only that is unknown"
    else:
        assert (verified.returncode, complaints) == (0, [])


# -- what it says is done --------------------------------------------------------------------------------------


@pytest.fixture
def server(make_server: Start, unit: Unit) -> Server:
    """The service, not yet started; systemd's tool waits for the first connection and then runs ExecStart."""
    server: Server = make_server(preload_app=True)
    example_configuration(server)
    variables = {"WEB_CONCURRENCY": "2", "HOME": str(unit.place), **unit.environment()}
    server.environment.update(environment_of(server, **variables))
    passed = [f"--setenv={name}={server.environment[name]}" for name in [*variables, "PATH", "XDG_RUNTIME_DIR"]]
    server.words = ["systemd-socket-activate", f"--listen={unit.socket}", *passed, *unit.words("ExecStart")]
    return server


@needs["systemd-socket-activate"]
def test_the_socket_of_systemd_outlives_reloads(server: Server, unit: Unit, site: Site) -> None:
    server.launch_as_is()
    wait_for(lambda: os.path.exists(unit.socket), 30, "systemd's tool listens")
    find_master(server, unit.socket)
    handed_over = listeners(server.master)
    assert len(_at(unit.socket, handed_over)) == 1
    with Load(unit.socket, "kept", clients=4, pause=0.01) as load:
        for version in ("two", "three"):
            site.deploy(version)
            reloaded = run(unit.words("ExecReload"), site.directory, server.environment)
            assert reloaded.returncode == 0, reloaded.stdout
            assert versions(unit.socket) == {version}
        unique = site.break_("raise")
        failed = run(unit.words("ExecReload"), site.directory, server.environment)
        assert failed.returncode == 1
        assert f"RuntimeError: broken {unique}" in failed.stdout
        assert versions(unit.socket) == {"three"}
        assert load.stop().failures == []
    assert listeners(server.master) >= handed_over
    assert server.environment["PWD"] == str(site.directory)
    assert not unit.signal_all()
    server.signal(signal.SIGTERM)
    assert server.wait_exit(30) == 0
    assert os.path.exists(unit.socket), "it is systemd's to remove"


@pytest.fixture
def held(unit: Unit) -> Iterator[socket.socket]:
    """What app.socket is: a listening socket that is there whether the service runs or not."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(unit.socket)
        listener.listen(2048)
        yield listener


def test_connections_wait_through_a_restart(server: Server, unit: Unit, held: socket.socket, site: Site) -> None:
    """``systemctl restart``: what no reload can renew (Python, Gunicorn, zdworker) is renewed so, without a loss."""
    hand_over = 'exec 3<&"$0"; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
    server.words = ["bash", "-c", hand_over, str(held.fileno()), *unit.words("ExecStart")]
    server.pass_fds = (held.fileno(),)
    server.launch_as_is()
    find_master(server, unit.socket)
    with Load(unit.socket, "new", clients=8, pause=0.02) as load:
        for version in ("two", "three"):
            site.deploy(version)
            server.signal(signal.SIGTERM)
            assert server.wait_exit(30) == 0
            server.launch_as_is()
            assert versions(unit.socket) == {version}
        results = load.stop()
    assert results.failures == []
    assert results.versions() == ["one", "two", "three"]


def _at(path: str, inodes: set[int]) -> set[int]:
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {int(fields[6]) for fields in lines if fields[-1] == path} & inodes
