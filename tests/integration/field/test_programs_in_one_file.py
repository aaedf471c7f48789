"""A program that is a directory or an archive with a ``__main__.py``: each reload reads it again, as a start would."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from tests.harness.application_site import ENDPOINTS, Site
from tests.harness.server import Server, Start

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
