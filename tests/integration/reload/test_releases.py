"""Releases behind a link: flipped, reloaded, the old one deleted, workers killed, flipped again."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.virtual_environments import virtual_environment

Way = Callable[[Site], list[str]]


def module(site: Site) -> list[str]:
    return [sys.executable, "-m", "gunicorn"]


def relative_chdir(site: Site) -> list[str]:
    """Started beside ``current``, with paths below the start directory."""
    return ["sh", "-c", 'cd "$0" && PWD="$0" exec "$@"', str(site.directory), *module(site), "--chdir", "current"]


def absolute_chdir_without_pwd(site: Site) -> list[str]:
    words = ["env", "-u", "PWD", *module(site), "--chdir", str(site.directory / "current")]
    return ["sh", "-c", 'cd / && exec "$@"', "-", *words]


def within(site: Site) -> list[str]:
    """Started in ``current`` itself, as ``cd current && gunicorn`` does it."""
    return ["sh", "-c", 'cd "$0" && exec "$@"', str(site.directory / "current"), *module(site)]


def own_environment(site: Site) -> list[str]:
    """The virtual environment is in the release, and so is the interpreter of the ``gunicorn`` script."""
    return [
        "sh",
        "-c",
        'cd "$0" && exec "$@"',
        str(site.directory / "current"),
        str(site.directory / "current/venv/bin/gunicorn"),
    ]


def own_interpreter(site: Site) -> list[str]:
    """The virtual environment is in the release, and its interpreter is called from there, by a relative path."""
    words = ["venv/bin/python", "-m", "gunicorn"]
    return ["sh", "-c", 'cd "$0" && exec "$@"', str(site.directory / "current"), *words]


def relocatable_environment(site: Site) -> list[str]:
    """The same, installed in the release's own path: a shell finds the interpreter (``uv venv --relocatable``)."""
    return [*own_environment(site)[:-1], str(site.directory / "current/venv/bin/relocatable")]


WAYS: tuple[Way, ...] = (
    relative_chdir,
    absolute_chdir_without_pwd,
    within,
    own_environment,
    own_interpreter,
    relocatable_environment,
)


def release(site: Site, version: str) -> Path:
    site.release(version)
    place = site.directory / "releases" / version
    python = virtual_environment(place / "venv")
    # The name by which a script that was installed through the link knows its interpreter.
    through_link = f"#!{site.directory / 'current/venv/bin/python'}\n"
    relocatable = "#!/bin/sh\n'''exec' \"$(dirname -- \"$(realpath -- \"$0\")\")\"/'python' \"$0\" \"$@\"\n' '''\n"
    for name, line in (("gunicorn", through_link), ("relocatable", relocatable)):
        script = python.with_name(name)
        script.write_text(f"{line}import sys\nfrom gunicorn.app.wsgiapp import run\nsys.exit(run())\n")
        script.chmod(0o755)
    return place


def place_of(server: Server) -> str:
    directories = {str(server.get("/identity")["directory"]) for _ in range(4)}
    assert len(directories) == 1
    return directories.pop()


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_life_of_a_link_to_releases(make_server: Start, site: Site, way: Way, preload: bool) -> None:
    places = {"one": release(site, "one")}
    server = make_server(preload_app=preload, workers=2)
    server.words = [*way(site), "-c", str(site.directory / "gunicorn.conf.py"), "app:app"]
    server.start()
    assert place_of(server) == str(places["one"].resolve())
    for old, new in (("one", "two"), ("two", "three")):
        places[new] = release(site, new)
        # Flipped, but not reloaded: whatever comes back is what was running.
        kill_one(server)
        assert place_of(server) == str(places[old].resolve())
        server.signal(signal.SIGUSR2)
        server.wait_only(new)
        assert place_of(server) == str(places[new].resolve())
        shutil.rmtree(places[old])
        kill_one(server)
        assert set(server.versions().values()) == {new}
    assert server.stop() == 0


def kill_one(server: Server) -> None:
    started = len(server.site.marks("startup"))
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_for(lambda: len(server.site.marks("startup")) == started + 1, BOOT_TIMEOUT_S, "the replacement has started")
    server.wait_full()


def test_a_release_that_is_gone_leaves_preloaded_workers_serving(make_server: Start, site: Site) -> None:
    """Even deleted under a running server: what is in memory comes back from there."""
    place = release(site, "one")
    server = make_server(preload_app=True, workers=2)
    server.words = [*within(site), "-c", str(site.directory / "gunicorn.conf.py"), "app:app"]
    server.start()
    shutil.rmtree(place)
    kill_one(server)
    assert set(server.versions().values()) == {"one"}
    server.signal(signal.SIGUSR2)
    wait_for(lambda: "that was running is still serving" in server.log, BOOT_TIMEOUT_S, "the reload has failed")
    release(site, "two")
    server.signal(signal.SIGUSR2)
    server.wait_only("two")


def test_a_start_directory_that_is_gone_is_missed_by_nobody(make_server: Start, site: Site) -> None:
    """Started from a directory that has nothing to do with it, as by a script in a temporary one."""
    release(site, "one")
    began = site.directory / "began"
    began.mkdir()
    server = make_server(preload_app=True, workers=2)
    conf, current = site.directory / "gunicorn.conf.py", site.directory / "current"
    words = [*module(site), "-c", str(conf), "--chdir", str(current), "app:app"]
    server.words = ["sh", "-c", 'cd "$0" && PWD="$0" exec "$@"', str(began), *words]
    server.start()
    began.rmdir()
    release(site, "two")
    server.signal(signal.SIGUSR2)
    server.wait_only("two")
    kill_one(server)
    assert set(server.versions().values()) == {"two"}
