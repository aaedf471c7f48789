"""What a user installs: the built wheel in a new environment, each extra alone, and each class started from there.

The environment of the tests has every library, so it would hide one that an extra lacks.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.control_client import status
from tests.harness.documents import ROOT
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.virtual_environments import add_interpreter, site_packages

INSTALL_TIMEOUT_S = 600.0
CONSTRAINTS = ROOT / "constraints.txt"

WORKING = [
    ("", "UvicornWorker", {}),
    ("", "UvicornH11Worker", {}),
    ("", "ASGIWorker", {}),
    ("", "ThreadWorker", {}),
    ("", "WSGIWorker", {}),
    ("standard", "UvicornWorker", {}),
    ("fast", "ASGIWorker", {"http_parser": "fast"}),
    ("fast", "ThreadWorker", {"http_parser": "fast"}),
    ("gevent", "GeventWorker", {}),
    ("http2", "ThreadWorker", {"http_protocols": "h2,h1"}),
    ("tornado", "TornadoWorker", {}),
]
MISSING = [
    ("GeventWorker", {}, "zdworker[gevent]"),
    ("TornadoWorker", {}, "zdworker[tornado]"),
    ("ASGIWorker", {"http_parser": "fast"}, "zdworker[fast]"),
    ("ThreadWorker", {"http_parser": "fast"}, "zdworker[fast]"),
    ("ASGIWorker", {"asgi_loop": "uvloop"}, "zdworker[standard]"),
]

Installed = Callable[[str], Path]


def pip(*words: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Return the interpreter of an environment with the wheel and one extra, or none."""
    wheels = tmp_path_factory.mktemp("wheels")
    made: dict[str, Path] = {}

    def environment(extra: str) -> Path:
        if not any(wheels.iterdir()):
            pip("wheel", "--no-deps", "--wheel-dir", wheels, ROOT)
        if extra not in made:
            directory = tmp_path_factory.mktemp(f"with-{extra or 'nothing'}")
            (wheel,) = wheels.iterdir()
            target = f"{wheel}[{extra}]" if extra else wheel
            site_packages(directory).mkdir(parents=True)
            python = add_interpreter(directory)
            pip("--python", python, "install", "--constraint", CONSTRAINTS, target)
            made[extra] = python
        return made[extra]

    return environment


def server_of(make_server: Start, python: Path, name: str, settings: dict[str, Any]) -> Server:
    command = [str(python), "-m", "gunicorn"]
    return make_server(command=command, worker_class=f"zdworker.{name}", workers=1, **settings)


@pytest.mark.parametrize(("extra", "name", "settings"), WORKING, ids=lambda value: str(value) if value else "-")
def test_the_wheel_with_one_extra_starts_and_reloads(
    make_server: Start, installed: Installed, extra: str, name: str, settings: dict[str, Any]
) -> None:
    server = server_of(make_server, installed(extra), name, settings).start()
    assert server.get()["version"] == "one"
    server.reload("two")
    assert server.get()["version"] == "two"
    assert server.stop() == 0


@pytest.mark.parametrize(("name", "settings", "install"), MISSING, ids=lambda value: str(value) if value else "-")
def test_a_missing_library_is_one_line_that_names_the_extra(
    make_server: Start, site: Site, installed: Installed, name: str, settings: dict[str, Any], install: str
) -> None:
    server = server_of(make_server, installed(""), name, settings).launch()
    assert server.wait_exit(BOOT_TIMEOUT_S) != 0
    assert "Traceback" not in server.log
    assert [line for line in server.log.splitlines() if install in line], server.log


@pytest.mark.parametrize("settings", [{"worker_class": "zdworker.GeventWorker"}, {"http_parser": "fast"}], ids=str)
def test_a_reload_to_what_is_not_installed_fails(
    make_server: Start, site: Site, installed: Installed, settings: dict[str, Any]
) -> None:
    control = {"zd_control_socket": str(site.directory / "control.sock")}
    server = server_of(make_server, installed(""), "ThreadWorker", control).start()
    server.configure(**settings)
    server.signal(server.reload_signal)
    wait_for(lambda: status(server)["state"] == "failed", BOOT_TIMEOUT_S, "the reload has failed")
    assert "pip install" in status(server)["last_reload"]["error"]
    assert server.get()["version"] == "one"
    assert server.stop() == 0
