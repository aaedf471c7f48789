"""What a person reads who types ``zdworker`` at a terminal of 80 columns and 24 rows.

Rules: the command is run as users run it, in the directory of the site unless the test says another one, and sees the
masters of this test alone. What it prints counts in rows, as a terminal shows it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.harness.server import Server

COLUMNS, ROWS = 80, 24


def environment(runtime: Path) -> dict[str, str]:
    """Return the environment of a master, or of a command, that meets only those of ``runtime``."""
    return {"XDG_RUNTIME_DIR": str(runtime), "TMPDIR": str(runtime)}


class Screen:
    """What one call of the command has left on the screen, standard error included.

    :param code: its exit code.
    """

    def __init__(self, text: str, code: int) -> None:
        self.text = text
        self.code = code

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def rows(self) -> int:
        """Return how many rows of a terminal it takes."""
        return sum(max(1, -(-len(line) // COLUMNS)) for line in self.lines)

    def __str__(self) -> str:
        return f"exit code {self.code}, {self.rows} rows\n{self.text}"


def begin(server: Server, *words: str, directory: Path | None = None) -> subprocess.Popen[str]:
    """Start the command, and wait for nothing."""
    where = directory or server.site.directory
    return subprocess.Popen(
        [sys.executable, "-m", "zdworker", *words],
        cwd=where,
        env={**os.environ, **environment(server.site.directory), "PWD": str(where), "COLUMNS": str(COLUMNS)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str], deadline: float = 60) -> Screen:
    """Wait for the end of a command, and return what it has printed.

    :raises AssertionError: that does not fit on a screen.
    """
    with process:
        text, _ = process.communicate(timeout=deadline)
    screen = Screen(text, process.returncode)
    assert screen.rows <= ROWS, screen
    return screen


def typed(server: Server, *words: str, directory: Path | None = None) -> Screen:
    """Run the command to its end."""
    return end(begin(server, *words, directory=directory))
