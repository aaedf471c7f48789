"""Machines of two releases of Debian, with the recipe's user, places and first release.

Rules:

* What the pages say is run as they say it, in a checkout of the recipe's files.
* All releases of the application share one virtual environment with the wheel of this tree, which is made without a
  network: what differs is the code.
* What is not available (root, a program, Debian's archive, the namespaces) skips the tests, and says what it is.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.application_site import APPLICATIONS, ENDPOINTS
from tests.harness.documents import ROOT
from tests.harness.recipes import EXAMPLE, commands
from tests.integration.conftest import FAILED, pytest_runtest_makereport
from tests.systemd.machine import PROGRAMS, Machine

__all__ = ["pytest_runtest_makereport"]

ARCHIVE = "http://deb.debian.org/debian"
SUITES = {"bookworm": "3.11", "trixie": "3.13"}
"""Releases of Debian, with the version of their Python. They have systemd 252 and 257."""
PACKAGES = "systemd,python3,python3-venv"
KEPT_ROOTS = "SYSTEMD_ROOTS"
"""A variable with a directory, in which the roots stay for the next run: debootstrap takes minutes."""


@pytest.fixture(scope="session", params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def machine(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine that runs, with everything that :class:`Service` needs."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"a machine takes root and {', '.join(missing or PROGRAMS)}")
    own = tmp_path_factory.mktemp(suite)
    root = _root(suite, Path(os.environ.get(KEPT_ROOTS) or own))
    made = Machine(root, own / "log")
    try:
        made.__enter__()
    except AssertionError as error:
        pytest.skip(f"systemd does not run in namespaces here: {error}")
    try:
        _install(made, _wheels(own / "wheels", SUITES[suite]))
        yield made
    finally:
        made.__exit__()


def _root(suite: str, directory: Path) -> Path:
    root, begun = directory / suite, directory / f"{suite}.begun"
    if not root.exists():
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(begun, ignore_errors=True)
        words = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, str(begun), ARCHIVE]
        made = subprocess.run(words, capture_output=True, text=True, timeout=1800, check=False)
        if made.returncode:
            pytest.skip(f"debootstrap has failed: {made.stdout.strip().splitlines()[-1:]}")
        begun.rename(root)
    return root


def _wheels(directory: Path, python: str) -> Path:
    """Return a directory with zdworker's wheel and all that it needs."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(directory), str(ROOT)], check=True, timeout=300)
    only = ["--only-binary=:all:", "--python-version", python, "--find-links", str(directory)]
    subprocess.run([*pip, "download", "--dest", str(directory), *only, "zdworker[standard]"], check=True, timeout=300)
    return directory


def _install(machine: Machine, wheels: Path) -> None:
    shutil.copytree(wheels, machine.root / "wheels")
    shutil.copytree(EXAMPLE / "deploy", machine.root / "root/checkout/example_app/deploy")
    machine.run(f"cd /root/checkout && {commands('index.md', 'useradd --system')}")
    install = "venv/bin/pip install -q --no-index --find-links /wheels 'zdworker[standard]'"
    machine.run(f"cd /srv/app && python3 -m venv venv && {install}", "app")


class Service:
    """The recipe's service on a machine, and its application."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.address = str(machine.root / "run/app.sock")
        self._releases = itertools.count(1)

    def install(self) -> None:
        """Do what the page says, up to the service that runs."""
        self.machine.run(f"cd /root/checkout && {commands('systemd.md', 'install -m 644')}")

    def adapt(self, text: str) -> None:
        """Put lines for ``[Service]`` into a drop-in of the unit."""
        self.add_drop_in("adapted", f"[Service]\n{text}\n")

    def add_drop_in(self, name: str, text: str) -> None:
        """Put a drop-in of the unit in place."""
        directory = self.machine.root / "etc/systemd/system/app.service.d"
        directory.mkdir(exist_ok=True)
        (directory / f"{name}.conf").write_text(text)
        self.machine.run("systemctl daemon-reload")

    def deploy(self, version: str, *, broken: bool = False) -> None:
        """Have ``current`` lead to a release with this version, and nothing more."""
        name = f"{next(self._releases)}-{version}"
        place = self.machine.root / "srv/app/releases" / name
        place.mkdir()
        marks = place / "marks.jsonl"
        marks.touch()
        marks.chmod(0o666)
        text = (APPLICATIONS / "asgi_app.py").read_text().replace('VERSION = "VERSION"', f"VERSION = {version!r}")
        text = text.replace('MARKS = "MARKS"', f"MARKS = '/srv/app/releases/{name}/marks.jsonl'")
        (place / "app.py").write_text(f"raise RuntimeError({version!r})\n" if broken else text)
        shutil.copy(APPLICATIONS / ENDPOINTS, place)
        shutil.copy(EXAMPLE / "gunicorn.conf.py", place)
        (place / "venv").symlink_to("/srv/app/venv")
        self.machine.run(f"cd /srv/app && ln -sfn releases/{name} .current && mv -T .current current", "app")

    def order(self, words: str) -> str:
        """Run the command as the user of the application.

        :raises AssertionError: it has failed.
        """
        return self.machine.run(f"/srv/app/current/venv/bin/zdworker {words} --socket /run/app/control.sock", "app")

    def show(self, *names: str) -> dict[str, str]:
        """Return properties of the unit."""
        return self.machine.show("app.service", *names)

    @property
    def main(self) -> dict[str, str]:
        """What a reload and an upgrade leave as it is."""
        return self.show("MainPID", "ExecMainStartTimestampMonotonic", "ActiveState", "SubState", "NRestarts", "Result")

    def end(self) -> None:
        """Remove the service."""
        self.machine.run("systemctl disable --now app.socket app.service; systemctl reset-failed app", check=False)
        shutil.rmtree(self.machine.root / "etc/systemd/system/app.service.d", ignore_errors=True)
        for kind in ("service", "socket"):
            (self.machine.root / f"etc/systemd/system/app.{kind}").unlink(missing_ok=True)
        shutil.rmtree(self.machine.root / "srv/app/releases")
        (self.machine.root / "srv/app/releases").mkdir()
        self.machine.run("chown app: /srv/app/releases; rm -f /srv/app/current; systemctl daemon-reload")


@pytest.fixture
def service(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Service]:
    """The service with version "one" in place, not yet installed."""
    made = Service(machine)
    made.deploy("one")
    yield made
    if request.node.stash.get(FAILED, False):
        print(machine.run("systemctl status app; journalctl -b --no-pager -u app | tail -n 200", check=False))
    made.end()
