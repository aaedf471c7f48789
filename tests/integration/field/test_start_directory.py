"""A generation is started where a start at this moment would be, and is refused when that has changed by its end.

Rules: each release is reached by the link ``current`` only, as deploy scripts have it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import zipfile
from pathlib import Path
from typing import Any

import gunicorn
import pytest

from tests.harness.application_site import ENDPOINTS, Site
from tests.harness.control_client import status
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, DEFAULT_CLASS, Server, Start

GUNICORN = (sys.executable, "-m", "gunicorn")

REMOVED_IS_GONE = """
import importlib.util

assert importlib.util.find_spec("removed") is None, "a module of the release before"
"""
"""A version that has no module ``removed`` any more."""

IMPORTS_FROM_LIB = """
import of_lib

assert of_lib.VERSION == VERSION, of_lib.VERSION
"""
"""A version whose ``lib`` is its own."""

WAITS = """
mark("waits")
os.close(os.open({gate!r}, os.O_RDONLY))
"""
"""A version whose import waits until a named pipe is opened for writing."""


def release(site: Site, version: str, source: str = "", extra: str = "") -> Path:
    """Make a release with the application in its folder ``source``, and point ``current`` to it."""
    place = site.directory / "releases" / version
    (place / source).mkdir(parents=True)
    site.deploy(version, extra=extra)
    shutil.move(site.directory / "app.py", place / source / "app.py")
    shutil.copy2(site.directory / ENDPOINTS, place / source)
    point_to(site, place)
    return place


def point_to(site: Site, place: Path) -> None:
    """Let ``current`` lead to ``place``, which need not exist."""
    new = site.directory / ".current"
    new.symlink_to(place)
    new.replace(site.directory / "current")


def begin(make_server: Start, site: Site, *words: str, **options: Any) -> Server:
    """Start a server in ``current``, as a shell does; a release is there."""
    settings = {"workers": 1, "zd_control_socket": str(site.directory / "control.sock"), **options}
    server = make_server(**settings)
    conf = str(site.directory / "gunicorn.conf.py")
    server.words = ["sh", "-c", 'cd "$0" && exec "$@"', str(site.directory / "current"), *words, "-c", conf, "app:app"]
    return server.start()


def failure(server: Server) -> str:
    """Reload, and return why that has failed."""
    before = status(server)["reloads"]
    server.signal(signal.SIGUSR2)

    def ended() -> dict[str, Any]:
        found = status(server)
        last: dict[str, Any] = found["last_reload"] or {}
        return last if found["reloads"] > before and last["result"] else {}

    last = wait_for(ended, BOOT_TIMEOUT_S, "the reload has ended")
    assert last["result"] == "failed", last
    return str(last["error"])


# -- everything relative is resolved in the generation's own directory -----------------------------------------


def test_a_relative_import_path_follows_the_link(make_server: Start, site: Site) -> None:
    environment = {"PYTHONPATH": "src:.", "PYTHONPYCACHEPREFIX": "cache", "PYTHONDONTWRITEBYTECODE": ""}
    one = release(site, "one", "src")
    (one / "removed.py").touch()
    server = begin(make_server, site, *GUNICORN, environment=environment)
    two = release(site, "two", "src", REMOVED_IS_GONE)
    server.signal(signal.SIGUSR2)
    server.wait_only("two")
    assert (two / "cache").is_dir()
    (known,) = status(server)["generations"]
    assert known["directory"] == str(two)
    assert known["interpreter"] == os.path.realpath(sys.executable)
    assert known["application"] == str(two / "src" / "app.py")
    assert str(two / "src") in known["path"]
    assert not [entry for entry in known["path"] if entry.startswith(str(one))]


def test_a_relative_import_path_beside_chdir(make_server: Start, site: Site) -> None:
    def release_with_lib(version: str) -> None:
        lib = release(site, version, "src", IMPORTS_FROM_LIB) / "lib"
        lib.mkdir()
        (lib / "of_lib.py").write_text(f"VERSION = {version!r}\n")

    release_with_lib("one")
    server = begin(make_server, site, *GUNICORN, "--chdir", "src", environment={"PYTHONPATH": "lib"}, preload_app=True)
    release_with_lib("two")
    server.signal(signal.SIGUSR2)
    server.wait_only("two")


@pytest.mark.parametrize("script", ["../tools/start.py", "site/start.py"])
def test_a_relative_script(make_server: Start, site: Site, script: str) -> None:
    """One beside the releases, which ``..`` of ``current`` leads to, and one that leaves its start directory."""
    text = "import os\n\nos.chdir('site')\nfrom gunicorn.app.wsgiapp import run\n\nrun()\n"

    def deploy(version: str) -> None:
        path = release(site, version, "site") / script
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    deploy("one")
    server = begin(make_server, site, sys.executable, script)
    deploy("two")
    server.signal(signal.SIGUSR2)
    server.wait_only("two")


# -- a start directory that cannot be entered ------------------------------------------------------------------


def test_a_link_that_leads_nowhere(make_server: Start, site: Site) -> None:
    """Without a configuration file, which would be missed in any case."""
    release(site, "one")
    arguments = "--no-control-socket" * (gunicorn.version_info >= (25, 1))
    control = str(site.directory / "control.sock")
    server = make_server(workers=1, environment={"ZD_CONTROL_SOCKET": control, "GUNICORN_CMD_ARGS": arguments})
    words = [*GUNICORN, "-k", DEFAULT_CLASS, "-b", "%s:%s" % server.address, "app:app"]
    server.words = ["sh", "-c", 'cd "$0" && exec "$@"', str(site.directory / "current"), *words]
    server.launch_as_is().wait_full()
    point_to(site, site.directory / "releases" / "nowhere")
    error = failure(server)
    assert f"the start directory {site.directory / 'current'} cannot be entered (No such file or directory)" in error
    assert set(server.versions().values()) == {"one"}
    release(site, "two")
    server.signal(signal.SIGUSR2)
    server.wait_only("two")


# -- what a start would use is compared at the end of a load ----------------------------------------------------


@pytest.mark.parametrize("way", ["directory", "chdir", "import path"])
def test_a_link_that_moves_while_a_generation_loads(make_server: Start, site: Site, way: str) -> None:
    current, gate = site.directory / "current", site.directory / "gate"
    os.mkfifo(gate)
    release(site, "one")
    words = {"directory": (), "chdir": ("--chdir", str(current)), "import path": ("--pythonpath", str(current))}
    server = make_server(workers=1, preload_app=True, zd_control_socket=str(site.directory / "control.sock"))
    command = [*GUNICORN, "-c", str(site.directory / "gunicorn.conf.py"), *words[way], "app:app"]
    start = site.directory if way != "directory" else current
    server.words = ["sh", "-c", 'cd "$0" && exec "$@"', str(start), *command]
    server.start()
    two = release(site, "two", extra=WAITS.format(gate=str(gate)))
    server.signal(signal.SIGUSR2)
    wait_for(lambda: site.marks("waits", "two"), BOOT_TIMEOUT_S, "the new code is being imported")
    three = release(site, "three")
    gate.open("wb").close()

    def error() -> str:
        return str((status(server)["last_reload"] or {}).get("error") or "")

    moved = f"{current} pointed to {two} when the generation started and points to {three} now: reload again"
    assert moved in wait_for(error, BOOT_TIMEOUT_S, "the reload has failed")
    assert set(server.versions().values()) == {"one"}
    server.signal(signal.SIGUSR2)
    server.wait_only("three")


# -- what is no difference -------------------------------------------------------------------------------------

MOVES_ITS_PATH = """
import sys as _sys

_sys.path.insert(0, "added/by/the/configuration")
_sys.path.append("__editable__.finder.__path_hook__")
"""
"""A configuration that adds to the import path what is no file: setuptools' editable packages do the same."""

KEEPS_ITS_PATH = """
import sys

assert "__editable__.finder.__path_hook__" in sys.path, sys.path
sys.path.insert(0, "/added/by/the/application")
"""


def test_an_application_in_an_archive_and_odd_entries_of_the_import_path(make_server: Start, site: Site) -> None:
    """A zip archive and a namespace package, and a configuration and an application that change ``sys.path``."""

    def deploy(version: str) -> None:
        place = release(site, version, extra=KEEPS_ITS_PATH)
        with zipfile.ZipFile(place / "app.zip", "w") as archive:
            archive.writestr("space/", "")  # without it the import system sees no package
            archive.write(place / "app.py", "space/app.py")
        (place / "app.py").unlink()

    deploy("one")
    server = make_server(workers=1, preload_app=True, extra=MOVES_ITS_PATH, environment={"PYTHONPATH": "app.zip"})
    server.settings["zd_control_socket"] = str(site.directory / "control.sock")
    words = [*GUNICORN, "-c", str(site.directory / "gunicorn.conf.py"), "space.app:app"]
    server.words = ["sh", "-c", 'cd "$0" && exec "$@"', str(site.directory / "current"), *words]
    server.start()
    deploy("two")
    server.signal(signal.SIGUSR2)
    server.wait_only("two")
    (known,) = status(server)["generations"]
    assert known["application"] == str(site.directory / "releases/two/app.zip/space/app.py")
