"""The findings of the check, on their way to the command.

Rules: each is sent when it is made, because what comes next may hang, or end the process. With what the check begins it
says for how long that may take; a timer in C ends the process after that with the stacks of all threads.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os

from zdworker import texts
from zdworker.ipc.channel import Channel
from zdworker.ipc.messages import NEXT_PART, Checking, Finding


class Findings:
    """Where findings go.

    :param channel: the channel to the command.
    :param stacks: the descriptor that stacks are written to.
    """

    def __init__(self, channel: Channel, stacks: int) -> None:
        self._channel = channel
        self._stacks = stacks
        self._printed = os.dup(2)  # whatever the site's code does to its standard error
        self.about = ""
        """What is being checked."""

    def begin(self, about: str, limit_s: float) -> None:
        """Begin to check something. If that takes ``limit_s`` seconds, the process writes its stacks, and ends."""
        self.about = about
        os.write(self._printed, NEXT_PART.encode())
        self._channel.send(Checking(about, limit_s))
        faulthandler.dump_traceback_later(limit_s, exit=True, file=self._stacks)

    def end(self) -> None:
        """Let the process live on without a limit."""
        faulthandler.cancel_dump_traceback_later()

    def ok(self, text: str, about: str = "") -> None:
        """Send that something is as it should be."""
        self._send("ok", text, about)

    def warning(self, text: str, about: str = "") -> None:
        """Send what works, and may not be meant so."""
        self._send("warning", text, about)

    def error(self, text: str, about: str = "", details: str = "", *, printed: bool = False) -> None:
        """Send what will not work. ``printed``: what was printed meanwhile explains it, if there are no ``details``."""
        self._send("error", text, about, details, printed=printed)

    def skipped(self, text: str, about: str = "") -> None:
        """Send what was not checked, and why."""
        self._send("skipped", text, about)

    def _send(self, level: str, text: str, about: str, details: str = "", *, printed: bool = False) -> None:
        shown = texts.line(text, texts.REASON_MAX)
        with contextlib.suppress(OSError):  # the command is gone, and so is who reads this
            self._channel.send(Finding(level, about or self.about, shown, texts.lines(details), printed))
