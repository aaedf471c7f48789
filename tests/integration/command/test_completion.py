"""A TAB in bash, zsh and fish, each on a terminal of its own, behind an option that names a master."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from zdworker.command import client

DEADLINE_S = 60.0

SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], ['eval "$(zdworker completion bash)"']),
    "zsh": (
        ["zsh", "-f", "-i"],
        ["autoload -Uz compinit && compinit -D -u", 'eval "$(zdworker completion zsh)"'],
    ),
    "fish": (["fish", "--no-config", "-i"], ["zdworker completion fish | source"]),
}
"""How each is started, and what its start-up file would say."""


class Terminal:
    """A shell on a pseudo-terminal."""

    def __init__(self, words: list[str], environment: dict[str, str], directory: Path) -> None:
        self._master, theirs = pty.openpty()
        self._shell = subprocess.Popen(
            words,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            cwd=directory,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # fish wants it, and no thread runs
        )
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        self.shown = ""
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        """Wait until the shell has shown ``text`` since something was typed."""
        end = time.monotonic() + DEADLINE_S
        while text not in self.shown:
            left = end - time.monotonic()
            assert left > 0, f"no {text!r} in {self.shown!r}"
            if select.select([self._master], [], [], left)[0]:
                data = os.read(self._master, 65536).decode(errors="replace")
                self.shown += data
                if "\x1b[c" in data or "\x1b[0c" in data:
                    os.write(self._master, b"\x1b[?62c")  # what a terminal is (DA1); newer shells ask for it

    def run(self, line: str) -> None:
        """Have a line run to its end."""
        self.type(f'{line}; echo done-"4"2\n')
        self.wait_for("done-42")

    def close(self) -> None:
        self._shell.kill()
        self._shell.wait()
        os.close(self._master)


@pytest.fixture
def runtime(site: Site) -> Path:
    made = site.directory / "run"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def server(make_server: Start, runtime: Path) -> Server:
    made: Server = make_server(workers=1, environment={"XDG_RUNTIME_DIR": str(runtime)}).start()
    path = str(runtime / "zdworker" / f"{made.master}.sock")
    wait_for(lambda: client.status(path)["state"] == "steady", BOOT_TIMEOUT_S, "the start is over")
    return made


@pytest.fixture(params=SHELLS)
def terminal(request: pytest.FixtureRequest, server: Server, runtime: Path, tmp_path: Path) -> Iterator[Terminal]:
    words, lines = SHELLS[request.param]
    if shutil.which(words[0]) is None:
        pytest.skip(f"there is no {words[0]}")
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "TERM": "dumb",
        "LANG": "C.UTF-8",
        "PS1": "$ ",
        "XDG_RUNTIME_DIR": str(runtime),
        "TMPDIR": str(runtime),
        "XDG_CONFIG_HOME": str(home),
    }
    made = Terminal(words, environment, server.site.directory)
    try:
        for line in lines:
            made.run(line)
        yield made
    finally:
        made.close()


def test_a_tab_completes_the_pid_of_the_only_master(terminal: Terminal, server: Server) -> None:
    """Its first digits are not typed, so what is shown comes from the completion."""
    terminal.type("zdworker status --pid \t")
    terminal.wait_for(str(server.master))
    terminal.type("\n")
    terminal.wait_for(f"master {server.master}: steady")


def test_a_tab_completes_the_path_of_its_socket(terminal: Terminal, server: Server, runtime: Path) -> None:
    terminal.type("zdworker status --socket \t")
    terminal.wait_for(f"{server.master}.sock")
    terminal.type("\n")
    terminal.wait_for(f"master {server.master}: steady")


def test_a_tab_completes_commands(terminal: Terminal) -> None:
    terminal.type("zdworker histor\t--help\n")
    terminal.wait_for("Show the last 50 reloads")
