"""A program that is a directory, an archive, or was unpacked from one: a reload brings what a start would, or fails."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.harness.application_site import ENDPOINTS, Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, DEFAULT_CLASS, Server, Start
from zdworker.command import client, finder

MAIN = "from gunicorn.app.wsgiapp import run\n\nrun()\n"


BESIDE = """
import importlib.util

assert importlib.util.find_spec("beside") is None, "a start does not look beside the program"
"""


def pack(site: Site, version: str, target: Path) -> None:
    """Deploy ``version`` into the program."""
    site.deploy(version, extra=BESIDE)
    parts = {"__main__.py": MAIN, **{name: (site.directory / name).read_text() for name in ("app.py", ENDPOINTS)}}
    if target.suffix:
        new = target.with_suffix(".new")
        with zipfile.ZipFile(new, "w") as archive:
            for name, text in parts.items():
                archive.writestr(name, text)
        new.replace(target)
    else:
        target.mkdir(exist_ok=True)
        for name, text in parts.items():
            site.write(name, text).replace(target / name)
    (site.directory / "app.py").unlink(missing_ok=True)  # there is no other one beside it


@pytest.mark.parametrize("name", ["program", "program.pyz"])
def test_a_program_in_a_directory_or_an_archive(make_server: Start, site: Site, name: str) -> None:
    place = site.directory / "programs"
    place.mkdir()
    (place / "beside.py").touch()
    target = place / name
    pack(site, "one", target)
    server: Server = make_server(command=(sys.executable, str(target)))
    server.start()
    assert server.get()["version"] == "one"
    here = server.get("/identity")
    pack(site, "two", target)
    server.signal(server.reload_signal)
    server.wait_only("two")
    assert server.get()["version"] == "two"
    assert server.get("/identity")["directory"] == here["directory"]


def test_a_program_that_pex_has_unpacked(make_server: Start, site: Site) -> None:
    """With ``pex --venv`` it replaces itself with a script in a directory that is named after the contents."""
    unpacked, archive = site.directory / "4b825dc6", site.directory / "app.pex"
    pack(site, "one", unpacked)
    shutil.move(unpacked / "__main__.py", unpacked / "pex")
    (unpacked / "PEX-INFO").touch()
    archive.write_text("one")
    server = make_server(command=(sys.executable, str(unpacked / "pex")), environment={"PEX": str(archive)})
    server.start()
    path = finder.find(pid=server.master).path

    def last_generation() -> int:
        last = client.status(path)["last_reload"] or {}
        return int(last["generation"]) if last.get("result") is not None else 0

    server.signal(signal.SIGUSR2)
    wait_for(lambda: last_generation() == 2, BOOT_TIMEOUT_S, "the reload has ended")
    assert client.status(path)["last_reload"]["result"] == "done"  # nothing has changed
    archive.write_text("another")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: last_generation() == 3, BOOT_TIMEOUT_S, "the reload has ended")
    last = client.status(path)["last_reload"]
    assert last["result"] == "failed"
    assert last["error"].endswith(
        f"the program was unpacked from {archive} at its start, and that file has changed: "
        "only a restart unpacks it again"
    )
    wait_for(
        lambda: len(server.fork_servers()) == 1, BOOT_TIMEOUT_S, "only the present generation's fork server is left"
    )
    (victim,) = server.fork_servers()
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: server.fork_servers() not in ([], [victim]), BOOT_TIMEOUT_S, "the fork server is replaced")
    wait_for(lambda: client.status(path)["state"] == "failed", BOOT_TIMEOUT_S, "and no more than the reload has failed")
    assert server.get()["version"] == "one"


def test_a_program_that_alone_knows_where_zdworker_is(site: Site) -> None:
    """A default pex: the interpreter by itself finds none of its packages."""
    program = site.directory / "program.py"
    program.write_text(f"import sys\n\nsys.path += {sys.path!r}\n{MAIN}")
    python = os.path.realpath(sys.executable)
    ended = subprocess.run(
        [python, "-I", str(program), "-k", DEFAULT_CLASS, "-b", "127.0.0.1:0", "app:app"],
        cwd=site.directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOOT_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 3
    assert f"zdworker is not installed for {python}, only on the import path of the program" in ended.stderr
