"""The pages that a new user follows, followed from top to bottom: every file is written, every command typed.

Rules:

* A block with a title is a file. One of ``sh`` is typed; one that begins with ``gunicorn`` is left running until the
  next such one. One of ``text`` is what the command before it, or that Gunicorn, prints.
* Of what is printed each line has to be there, in this order; more may be. ``…`` is anything, and so is a number of two
  digits or more (pids, times, counts). A table may be wider or narrower.
* Two things are not as on the page: the port is one that is free, and ``pip install`` finds what is under test already
  there, so that nothing is downloaded.
* Before ``zdworker status`` is typed, the workers have reported that the clients of the commands before it are gone. A
  report is up to a second old: time that a reader takes to type, and this one does not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.harness import documents, processes
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, NO_SESSION, reserve_port

VARIES = re.compile(r"(\d\d+(?:\.\d+)?|\d\.\d+|…| +|[─━]+)")
TYPED = 180.0
"""Seconds that a command may take."""


class Reader:
    """Does what a page says, in a directory of its own."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="zd-"))
        self.reserved = reserve_port()
        self.address = "%s:%s" % self.reserved.getsockname()
        runtime = self.directory / ".run"
        runtime.mkdir(mode=0o700)
        own = [str(self.directory / ".venv" / "bin"), os.path.dirname(sys.executable)]
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ZD_", "GUNICORN_"))},
            "PATH": os.pathsep.join([*own, os.environ.get("PATH", os.defpath)]),
            "PWD": str(self.directory),
            "XDG_RUNTIME_DIR": str(runtime),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        self.output: str | None = ""
        """What the last command has printed; None when that is the Gunicorn that runs."""
        self._log = self.directory / ".log"
        self._gunicorn: subprocess.Popen[bytes] | None = None

    def follow(self, page: str) -> None:
        """Do all that ``page`` says.

        :raises AssertionError: something is not as it says.
        """
        for block in documents.blocks(page):
            text = block.text.replace("127.0.0.1:8000", self.address)
            place = f"{page}:{block.line}"
            if block.title:
                (self.directory / block.title).write_text(text)
            elif block.language == "sh" and block.opening.startswith("gunicorn "):
                self._start(text)
            elif block.language == "sh":
                self._type(text, place)
            else:
                assert block.language == "text", f"{place}: neither a file, a command nor what it prints"
                self._compare(text, place)

    def _type(self, text: str, place: str) -> None:
        if text.startswith("zdworker status"):
            wait_for(self._without_clients, BOOT_TIMEOUT_S, f"{place}: no client is connected any more")
        environment = dict(self.environment)
        if "pip install" in text:  # what the tests have already; setproctitle they do not, since it renames processes
            environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
        done = subprocess.run(
            ["bash", "-e", "-c", text],
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TYPED,
            text=True,
            check=False,
        )
        self.output = done.stdout
        assert done.returncode == 0, f"{place}: {done.returncode}\n{done.stdout}\n{self._said()}"

    def _compare(self, text: str, place: str) -> None:
        if self.output is None:
            wait_for(lambda: not missing(text, self._said()), BOOT_TIMEOUT_S, f"{place}: {missing(text, self._said())}")
        else:
            assert not missing(text, self.output), f"{place}: {missing(text, self.output)!r} is not in\n{self.output}"

    def _start(self, text: str) -> None:
        self.end_gunicorn()
        with self._log.open("wb") as log:
            self._gunicorn = subprocess.Popen(
                ["bash", "-c", f"exec {text}"],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self._steady, BOOT_TIMEOUT_S, "it serves")
        self.output = None

    def _steady(self) -> bool:
        assert self._gunicorn is not None
        assert self._gunicorn.poll() is None, self._said()
        return self._status().get("state") == "steady"

    def _without_clients(self) -> bool:
        workers = self._status().get("workers")
        return workers is not None and not any(worker["connections"] for worker in workers)

    def _status(self) -> dict[str, Any]:
        """Return what ``zdworker status --json`` prints; nothing while no master answers it."""
        words = [sys.executable, "-m", "zdworker", "status", "--json"]
        asked = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=TYPED, check=False)
        return dict(json.loads(asked.stdout)) if asked.returncode == 0 else {}

    def _said(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def end_gunicorn(self) -> None:
        """End the Gunicorn that runs, in order."""
        if self._gunicorn is None:
            return
        process, self._gunicorn = self._gunicorn, None
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(BOOT_TIMEOUT_S) == 0, self._said()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def close(self) -> None:
        """Leave nothing."""
        try:
            self.end_gunicorn()
            wait_for(lambda: not processes.belonging(self.directory, NO_SESSION), BOOT_TIMEOUT_S, "nothing is left")
        finally:
            self.reserved.close()
            shutil.rmtree(self.directory, ignore_errors=True)


def missing(shown: str, printed: str) -> str | None:
    """Return the first line of ``shown`` that is not in ``printed``, behind the one before it."""
    position = 0
    for line in filter(None, map(str.strip, shown.splitlines())):
        parts = VARIES.split(line)
        masked = [re.escape(part) if number % 2 == 0 else _mask(part) for number, part in enumerate(parts)]
        found = re.compile("".join(masked)).search(printed, position)
        if found is None:
            return line
        position = found.end()
    return None


def _mask(part: str) -> str:
    if part[0].isdigit():
        return r"\d+(?:\.\d+)?"
    return ".*" if part == "…" else f"{part[0]}+"


@pytest.mark.parametrize(("page", "needs"), documents.FOLLOWED.items(), ids=documents.FOLLOWED)
def test_a_documentation_page_can_be_followed(page: str, needs: tuple[str, ...]) -> None:
    absent = [name for name in needs if importlib.util.find_spec(name) is None]
    absent += [] if shutil.which("curl") else ["curl"]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    reader = Reader()
    try:
        reader.follow(page)
    finally:
        reader.close()


def test_output_that_a_page_promises_and_is_missing_is_noticed() -> None:
    assert (
        missing("done: generation 2, after 0.9 s\n…\nmaster 4711", "x\ndone: generation 2, after 12.3 s\nmaster 5\n")
        is None
    )
    assert missing("generation 2", "generation 3") == "generation 2"
    assert missing("one\ntwo", "two\none") == "two"
