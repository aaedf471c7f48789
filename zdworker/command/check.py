"""``zdworker check``: it starts the check as a program of its own, and prints what that finds.

Rules:

* The program (``python -m zdworker.check``) plays the master, of which the command may know nothing. Its findings come
  over a channel, one by one. However it ends, the command says so.
* What the program and the site's own code print is read all the time, and kept only in part: it is shown where it
  explains an error.
* A line has 80 columns, broken between words; what is longer than that stays whole, since it is a path to be copied.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zdworker import texts
from zdworker.ipc.channel import Channel
from zdworker.ipc.messages import CHECK_REPORT_BYTES, NEXT_PART, Checking, Finding

PROGRAM = "zdworker.check"
"""The module that is the program."""

MISUSE = 2
"""The exit code of the program for arguments that Gunicorn does not know."""

PRINTED_MAX = 64 * 1024
"""Characters of what was printed that are kept."""

END_CHECK_INTERVAL_S = 0.2
"""Seconds between two looks whether the program has ended."""

DETAIL_LINES_MAX = 24
"""Lines of a traceback, or of what was printed, that are shown: what is left of one screen."""

WIDTH = 80

_OWN_FRAME = re.compile(r'^\s*File "(<frozen |[^"]*/(zdworker|gunicorn|importlib|runpy\.py|threading\.py))')
"""A frame that is not the application's: of zdworker, of Gunicorn, of Python's own import."""


_LOGGED = re.compile(r"\[[0-9-]+ [0-9:]+ [+0-9-]+\] \[\d+\] \[([A-Z]+)\] ")
"""What a line of Gunicorn's log begins with, in its own format."""

_EMPTY = ("Traceback (most recent call last):", "During handling of the above", "The above exception was")
"""What is left of a traceback without its frames, but for the error."""


@dataclass
class Checked:
    """What came of a check. ``misuse`` is what Gunicorn says of its arguments if it does not understand them."""

    findings: list[Finding] = field(default_factory=list)
    misuse: str = ""

    def count(self, level: str) -> int:
        """Return how many findings there are of a level."""
        return sum(finding.level == level for finding in self.findings)

    def to_plain(self) -> dict[str, Any]:
        """Return it as ``zdworker check --json`` prints it."""
        errors, warnings = self.count("error"), self.count("warning")
        findings = [
            {"level": found.level, "about": found.about, "text": found.text, "details": found.details}
            for found in self.findings
        ]
        result = "failed" if errors else "done"
        return {"result": result, "errors": errors, "warnings": warnings, "findings": findings}


def gunicorn() -> list[str]:
    """Return the interpreter's arguments that start Gunicorn: its script in this environment, as a site does."""
    script = Path(sys.executable).with_name("gunicorn")
    return [str(script)] if script.exists() else ["-m", "gunicorn"]


class _Pipe:
    """What processes write into a pipe: all of it is read, and the end of each part is kept."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self.parts = [""]
        """What was written before the first :data:`NEXT_PART`, between that and the second, and so on."""

    def fileno(self) -> int:
        """Return the descriptor to read from."""
        return self._reader

    def read(self) -> bool:
        """Take what has been written; return False when no process has the pipe open for writing any more."""
        try:
            while data := os.read(self._reader, 65536):
                first, *others = data.decode(errors="replace").split(NEXT_PART)
                self.parts[-1] = (self.parts[-1] + first)[-PRINTED_MAX:]
                self.parts += others
        except BlockingIOError:
            return True
        return False

    def close_writer(self) -> None:
        """Leave writing to others."""
        os.close(self.writer)

    def close(self) -> None:
        """Close it for reading."""
        os.close(self._reader)


class Check:
    """One run of the program.

    :param arguments: the interpreter's arguments that start Gunicorn, such as ``-m gunicorn app:app``.
    :param unit: the systemd unit to look at, "" to look for it.
    :param show: is called with each finding.
    """

    def __init__(self, arguments: list[str], unit: str, show: Callable[[Finding], None]) -> None:
        self._arguments = arguments
        self._unit = unit
        self._show = show
        self._checked = Checked()
        self._checking = Checking("versions", 0.0)
        self._begun = 0
        self._printed, self._stacks = _Pipe(), _Pipe()

    def run(self) -> Checked:
        """Run the program to its end, and return what came of it."""
        own, other = socket.socketpair()
        own.setblocking(False)
        channel = Channel(own, CHECK_REPORT_BYTES)
        try:
            with self._start(other) as program, selectors.DefaultSelector() as selector:
                for each in (channel, self._printed, self._stacks):
                    selector.register(each, selectors.EVENT_READ)
                while program.poll() is None:
                    self._take_what_comes(selector, channel)
                code = program.wait()
            # Not the end of the channel: a process that the site's code has left may hold a copy of it.
            self._stacks.read()
            while self._receive(channel):
                pass
        finally:
            for each in (channel, self._printed, self._stacks):
                each.close()
        self._ended(code)
        return self._checked

    def _start(self, other: socket.socket) -> subprocess.Popen[bytes]:
        """Start the program, and close what is its own."""
        numbers = [other.fileno(), self._stacks.writer]
        safe_path = os.environ.get("PYTHONSAFEPATH", "")
        words = [sys.executable, "-m", PROGRAM, *map(str, numbers), self._unit, safe_path, "--", *self._arguments]
        try:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=self._printed.writer,
                stderr=self._printed.writer,
                pass_fds=numbers,
                # Else a types.py of the application would take the place of Python's own.
                env={**os.environ, "PYTHONSAFEPATH": "1"},
            )
        finally:
            other.close()
            self._printed.close_writer()
            self._stacks.close_writer()

    def _take_what_comes(self, selector: selectors.BaseSelector, channel: Channel) -> None:
        """Wait for something, not for long, and take it."""
        ready = [key.fileobj for key, _ in selector.select(END_CHECK_INTERVAL_S)]
        for pipe in (self._printed, self._stacks):
            if pipe in ready and not pipe.read():
                selector.unregister(pipe)
        if channel in ready and not self._receive(channel) and channel in selector.get_map():
            selector.unregister(channel)

    def _receive(self, channel: Channel) -> bool:
        """Take what the program has sent; return whether there may be more."""
        received = channel.receive()
        self._printed.read()  # what was printed before a finding may explain it
        for message, _sender in received.messages:
            if isinstance(message, Checking):
                self._checking = message
                self._begun += 1
            elif isinstance(message, Finding):
                self._take(message)
        return received.size > 0

    def _take(self, finding: Finding) -> None:
        if finding.printed and not finding.details:
            details, text = self._explanation(), finding.text
            # A text that ends in a colon goes on with the last line that was printed: Gunicorn's own word on it.
            if text.endswith(":"):
                text = f"{text} {details.rpartition(chr(10))[2]}"
            finding = Finding(finding.level, finding.about, text, details)
        self._checked.findings.append(finding)
        self._show(finding)

    def _explanation(self) -> str:
        """Return what was printed during what is being checked."""
        return texts.lines(self._printed.parts[min(self._begun, len(self._printed.parts) - 1)].strip())

    def _ended(self, code: int) -> None:
        """Say how the program has ended, if that was not by itself."""
        about, limit_s = self._checking.about, self._checking.limit_s
        stacks = "".join(self._stacks.parts)
        if stacks:
            text = f"not done within {limit_s:g} s (zd_boot_timeout): this is where it hangs"
            self._take(Finding("error", about, text, texts.lines(stacks.strip())))
        elif code == MISUSE:
            self._checked.misuse = self._explanation() or "Gunicorn does not understand its arguments"
        elif code > 0:
            text = f"the check was ended by the site's code, with exit code {code}"
            self._take(Finding("error", about, text, printed=True))
        elif code < 0:
            text = f"the check was killed by {signal.Signals(-code).name}"
            self._take(Finding("error", about, text, printed=True))


def line_of(finding: Finding) -> str:
    """Return a finding for a reader: a line, or several ones of at most 80 columns, and its details below."""
    text = f"{finding.level:<8} {texts.line(finding.about)}: {texts.line(finding.text, texts.REASON_MAX)}"
    found = textwrap.wrap(text, WIDTH, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False)
    details = shortened(texts.lines(finding.details)).splitlines() if finding.level == "error" else []
    return "\n".join([*found, *(f"         {line}".rstrip() for line in details)])


def shortened(details: str) -> str:
    """Return a traceback, or what was printed, without the frames that are not the application's, in few lines."""
    kept: list[str] = []
    own_frame = False
    for line in _without_info(details.splitlines()):
        is_frame = line.lstrip().startswith('File "')
        belongs = line.startswith("    ")  # the source of a frame, below it
        own_frame = bool(_OWN_FRAME.match(line)) if is_frame else own_frame and belongs
        if not own_frame:
            kept.append(line)
    if kept[:1] and kept[0].startswith(_EMPTY) and all(not line or line.startswith(_EMPTY) for line in kept[:-1]):
        return ""  # of a traceback nothing is left but the error itself, which is said already
    if len(kept) > DETAIL_LINES_MAX:
        half = DETAIL_LINES_MAX // 2
        kept = [*kept[:half], f"[… {len(kept) - 2 * half} lines are left out …]", *kept[-half:]]
    return "\n".join(kept)


def _without_info(lines: list[str]) -> list[str]:
    """Return lines without those of a log that are mere information, but for the last one: what was done last."""
    logged = [_LOGGED.match(line) for line in lines]
    information = [number for number, match in enumerate(logged) if match and match[1] in ("DEBUG", "INFO")]
    left_out = set(information[:-1])
    return [line[match.end() :] if (match := logged[n]) else line for n, line in enumerate(lines) if n not in left_out]


def total_of(checked: Checked) -> str:
    """Return the last line: how many errors and warnings there are."""
    errors, warnings = checked.count("error"), texts.counted(checked.count("warning"), "warning")
    if errors:
        return f"{texts.counted(errors, 'error')}, {warnings}"
    return f"no error, {warnings}" if checked.count("warning") else "all well"
