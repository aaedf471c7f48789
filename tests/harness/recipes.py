"""The recipes: the files of ``example_app/deploy`` as tests run them, and the pages of ``docs/recipes`` that show them.

Rules:

* A file is run as it stands but for the changes that a test names: paths, addresses, times. A change that finds nothing
  to change fails, so that a file cannot drift away from its test.
* A page shows a file whole; a command that a test runs is taken from the page.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.harness import documents
from tests.harness.clients import Broken, Client
from tests.harness.documents import ROOT
from tests.harness.processes import wait_for
from tests.harness.server import Server, script

EXAMPLE = ROOT / "example_app"
DEPLOY = EXAMPLE / "deploy"


def adapted(name: str, changes: Mapping[str, str]) -> str:
    """Return the text of a file below ``example_app/deploy`` with ``changes`` made, all occurrences of each."""
    return changed((DEPLOY / name).read_text(), changes)


def changed(text: str, changes: Mapping[str, str]) -> str:
    """Return ``text`` with ``changes`` made.

    :raises AssertionError: one of them is not in there.
    """
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in\n{text}"
        text = text.replace(old, new)
    return text


def commands(page: str, beginning: str) -> str:
    """Return the one block of shell commands on a page that begins with these words."""
    blocks = documents.blocks(f"docs/recipes/{page}")
    found = [block.text for block in blocks if block.language == "sh" and block.text.startswith(beginning)]
    assert len(found) == 1, f"{len(found)} blocks of {page} begin with {beginning!r}"
    return found[0]


def path_with(*directories: Path) -> str:
    """Return a search path with ``directories`` and those of the running interpreter in front."""
    own = Path(sys.executable).parent
    return os.pathsep.join([*map(str, directories), str(own), os.environ.get("PATH", os.defpath)])


def find(name: str) -> str | None:
    """Return the path of a program, beside the running interpreter too; None if it is not installed."""
    return shutil.which(name, path=path_with())


def run(
    words: Sequence[str], directory: Path, environment: Mapping[str, str] | None = None, deadline: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its standard error is part of its output."""
    return subprocess.run(
        words,
        cwd=directory,
        env={**os.environ, "PATH": path_with(), **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=deadline,
        check=False,
    )


def example_configuration(server: Server, extra: str = "") -> None:
    """Give ``server`` the example's own gunicorn.conf.py in the place of that of the tests."""
    own = f"\ncontrol_socket = {str(server.site.directory / 'gunicorn.ctl')!r}\n"  # not in a real server's place
    server.site.write("gunicorn.conf.py", (EXAMPLE / "gunicorn.conf.py").read_text() + own + extra)


def environment_of(server: Server, **further: str) -> dict[str, str]:
    """Return what a command needs to find ``server`` and no other: a place for control sockets, and the programs."""
    return {"PATH": path_with(), "XDG_RUNTIME_DIR": str(server.site.directory), **further}


def find_master(server: Server, address: str | tuple[str, int] | None = None) -> None:
    """Wait until the application answers, and let ``server`` know its master, which somebody else has started."""
    where = server.address if address is None else address

    def answers() -> bool:
        assert server.running, server.log
        try:
            with Client(where) as client:
                return client.ask("GET", "/").status == 200
        except Broken:
            return False

    wait_for(answers, 30, "the application answers")
    status = run([script("zdworker"), "status", "--json"], server.site.directory, server.environment)
    server.master = int(json.loads(status.stdout)["pid"])


def versions(address: str | tuple[str, int], count: int = 8) -> set[str]:
    """Return the versions that answer ``count`` requests, each on a new connection."""
    found = set()
    for _ in range(count):
        with Client(address) as client:
            found.add(str(client.ask("GET", "/").json()["version"]))
    return found
