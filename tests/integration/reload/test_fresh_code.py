"""A reload runs what is on disk now: the application, all that it ever imports, packages that were upgraded."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.server import Server, Start
from tests.harness.virtual_environments import add_interpreter, site_packages

PRELOAD = pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])

REPORTS = """

import importlib

import starlette
import transitive
import uvicorn


async def reports(scope, receive, send, query):
    names = ("lazy", "from_a_new_path")
    found = {{name: getattr(importlib.import_module(name), "WHICH", None) for name in names[:{known}]}}
    await answer(send, uvicorn=uvicorn.__version__, starlette=starlette.__version__, near=transitive.WHICH, **found)


ENDPOINTS["/reports"] = reports
"""


class Environment:
    """A virtual environment with packages of its own in front of those of this one."""

    def __init__(self, directory: Path) -> None:
        self.packages = site_packages(directory)
        self.packages.mkdir(parents=True)
        self.python = add_interpreter(directory)
        here = Path(sysconfig.get_path("purelib"))
        # Not a plain path: that would not look at its .pth files, one of which may lead to the package under test.
        (self.packages / "zz_base.pth").write_text(f"import site; site.addsitedir({str(here)!r})\n")
        for name in ("uvicorn", "starlette"):
            shutil.copytree(here / name, self.packages / name, ignore=shutil.ignore_patterns("__pycache__"))
            self.upgrade(name, "1")

    def upgrade(self, name: str, version: str) -> None:
        file = self.packages / name / "__init__.py"
        file.write_text(f"{file.read_text()}\n__version__ = {version!r}\n")


def deploy(site: Site, version: str, known: int = 1) -> None:
    site.write("transitive.py", f"from behind import WHICH\nSIZE = {version!r}\n")
    site.write("behind.py", f"WHICH = {version!r}\n")
    site.write("lazy.py", f"WHICH = {version!r}\n")
    site.deploy(version, extra=REPORTS.format(known=known))


def reports(server: Server) -> dict[str, Any]:
    found = server.get("/reports")
    return {name: found[name] for name in ("version", "near", "lazy", "uvicorn", "starlette")}


@PRELOAD
def test_everything_that_is_imported_is_new(make_server: Start, site: Site, preload: bool) -> None:
    environment = Environment(site.directory / "environment")
    deploy(site, "one")
    command = [str(environment.python), "-m", "gunicorn"]
    server = make_server(command=command, preload_app=preload, workers=2).start()
    before = {"version": "one", "near": "one", "lazy": "one", "uvicorn": "1", "starlette": "1"}
    assert reports(server) == before

    deploy(site, "two", known=2)
    environment.upgrade("uvicorn", "2")
    environment.upgrade("starlette", "2")
    (site.directory / "added").mkdir()
    (site.directory / "added" / "from_a_new_path.py").write_text("WHICH = 'added'\n")
    (environment.packages / "added.pth").write_text(f"{site.directory / 'added'}\n")
    server.signal(server.reload_signal)
    server.wait_only("two")
    assert [reports(server) for _ in range(4)] == [
        {"version": "two", "near": "two", "lazy": "two", "uvicorn": "2", "starlette": "2"}
    ] * 4
    assert server.get("/reports")["from_a_new_path"] == "added"
