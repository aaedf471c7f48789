"""The way back from the master's next program (``upgraded.py``) to the one before, up to the moment of its adoption.

Rules:

* Whatever goes wrong in the next program before :meth:`Boot.adopted` leads back: the program before is executed again,
  with the same state. All that this takes is imported here, and it is next to nothing.
* Signals are blocked from before ``execve`` on. They are unblocked when there are handlers that note them, so that what
  the configuration starts does not inherit the block. The master handles them when it is adopted.
* A program that hangs is ended by an alarm, which leads back, too.
* Until it is adopted a program reads nothing from a descriptor that goes along, sends nothing, and signals no process.
  A rehearsal, which has the same descriptors, ends at that point with its answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import traceback
from types import FrameType
from typing import Any, NoReturn

HELD = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2", "SIGWINCH")
)
"""The signals that are kept for the master: those that it has handlers for, without SIGCHLD, which it need not get."""

PROCESSES_GRACE_S = 0.5
"""Seconds between TERM and KILL for the processes that a rehearsal's configuration has started."""

NUMBER = 1
"""The number of the state's format. Another one is needed where a default for what is missing is not enough."""

READ = (NUMBER,)
"""The formats that can be read: this one and the one before."""


class StateError(Exception):
    """The state cannot be read, or the command does not lead to a master."""


class Boot:
    """The state that was handed over, and the way back.

    :param state: the descriptor of the state.
    :param answer: the descriptor for a rehearsal's answer, -1 in the master.
    """

    def __init__(self, state: int, answer: int) -> None:
        self.rehearses = answer >= 0
        self.data = _content(state)
        """The state as it was written (``plain.py``)."""
        self.signals: list[int] = []
        """The signals that came and were not handled, in their order."""
        self._is_late = False
        self.has_begun = False
        """Whether Gunicorn's arbiter has been made: from here on there are objects for the descriptors."""
        self.without_configuration = ""
        """Why this program goes on without having evaluated its configuration; "" if it has."""
        self.is_adopted = False
        self.known: dict[str, Any] = {}
        """The state, once it is read."""
        self.places: dict[str, dict[str, str]] = {}
        """What the names that this program comes from have led to (``messages.Place``)."""
        self._answer = answer
        self._plain: dict[str, Any] = json.loads(self.data)
        self._descriptors: list[int] = list(self._plain["descriptors"].values())
        for number in self._descriptors:
            os.set_inheritable(number, False)
        os.close(state)
        if self.rehearses:
            os.set_inheritable(answer, False)

    @property
    def master(self) -> int:
        """The master's pid."""
        return int(self._plain["master"])

    @property
    def _timeout_s(self) -> float:
        return float(self._plain["timeout"])

    @property
    def failure(self) -> str:
        """Why this is the program before once more; "" if it is the next one."""
        return str(self._plain.get("failure") or "")

    def prepare(self) -> None:
        """Note signals instead of ending at them, and set the alarm."""
        self.signals += [int(signum) for signum in self._plain["signals"]]
        for signum in HELD:
            signal.signal(signum, self._note)
        if not self.rehearses:
            signal.signal(signal.SIGALRM, self._time_is_over)
            signal.setitimer(signal.ITIMER_REAL, self._timeout_s)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*HELD, signal.SIGCHLD, signal.SIGALRM))

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signals.append(signum)

    def _time_is_over(self, signum: int, frame: FrameType | None) -> None:
        error = TimeoutError(f"it has not taken the master over within {self._timeout_s:g} s")
        if not self.failure or self.has_begun or self._is_late:
            self.fail(error)
        self._is_late = True
        signal.setitimer(signal.ITIMER_REAL, self._timeout_s)
        raise error  # there is no program before this one, and it can do without what hangs: its configuration

    def refuse_other_formats(self) -> None:
        """Refuse a state that this version cannot read.

        :raises StateError: it cannot.
        """
        if self._plain["number"] not in READ:
            raise StateError(
                f"the master's state has format {self._plain['number']}, and this zdworker reads "
                f"{', '.join(map(str, READ))}: upgrade one version after the other, or restart"
            )

    def adopted(self, facts: dict[str, Any]) -> None:
        """Note that this program is the master from now on. A rehearsal ends here.

        :param facts: what a rehearsal answers.
        """
        if self.rehearses:
            self._end_rehearsal({"can": True, "places": self.places, **facts}, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        self.is_adopted = True

    def can_go_back(self) -> bool:
        """Return whether there is a program before this one, and it is still on disk."""
        back = self._plain["back"]
        return not self.failure and os.access(back["words"][0], os.X_OK) and os.path.isfile(back["file"])

    def forget(self) -> None:
        """Drop the state, which is of no use to a master that has gone on from it."""
        self.data, self.known, self._plain = b"", {}, {}

    def fail(self, error: BaseException) -> NoReturn:
        """Say why this program cannot be the master's, and go back to the one before, unless this is a rehearsal.

        Called where ``error`` is handled, so that the objects are still there that own the descriptors.
        """
        reason = reason_of(error)
        if self.rehearses:
            text = "".join(traceback.format_exception(error))
            self._end_rehearsal({"can": False, "reason": reason, "traceback": text}, 1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not self.can_go_back():
            print_error("zdworker: this program cannot take the master over, and there is none to go back to", error)
            os._exit(1)
        print_error("zdworker: the new program cannot take the master over, going back to the one before", error)
        self._go_back(reason)

    def _end_rehearsal(self, answer: dict[str, Any], code: int) -> NoReturn:
        with contextlib.suppress(OSError):
            data = json.dumps(answer).encode()
            while data:
                data = data[os.write(self._answer, data) :]
        with contextlib.suppress(Exception):
            from zdworker.descendants import end_own_descendants

            end_own_descendants(PROCESSES_GRACE_S)
        os._exit(code)

    def _go_back(self, reason: str) -> NoReturn:
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        back = self._plain["back"]
        message = os.memfd_create("zdworker-state")
        data = json.dumps({**self._plain, "signals": self.signals, "failure": reason}).encode()
        while data:
            data = data[os.write(message, data) :]
        for number in (message, *self._descriptors):
            os.set_inheritable(number, True)
        words = [*back["words"], "-m", "zdworker.upgraded", str(message), "-1", "--", *back["target"]]
        with contextlib.suppress(OSError):
            os.chdir(back["directory"])
        os.execve(words[0], words, back["environment"])  # noqa: S606  # the program before, without a shell


current: Boot | None = None
"""The upgrade by which this program has become the master's; None in a master that was started."""


def leave_signals_to_main_thread() -> None:
    """Block :data:`HELD` in a thread of the master, and in the threads and processes that it starts.

    The kernel gives a signal to any thread that does not block it, and Python only notes it there. What is noted while
    the main thread replaces the program would be lost.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def begin(state: int, answer: int) -> Boot:
    """Take what was handed over to this program; see :class:`Boot`."""
    global current
    current = Boot(state, answer)
    return current


def _content(descriptor: int) -> bytes:
    """Return what a file holds, wherever it was read up to."""
    pieces: list[bytes] = []
    while piece := os.pread(descriptor, 1 << 20, sum(map(len, pieces))):
        pieces.append(piece)
    return b"".join(pieces)


def reason_of(error: BaseException) -> str:
    """Return an error as one line for a reader; of an exit, what has led to it, too."""
    if isinstance(error, SystemExit):
        before = error.__context__
        return f"it exited with {error.code!r}" + (f" after {reason_of(before)}" if before is not None else "")
    return f"{type(error).__name__}: {error}"


def print_error(text: str, error: BaseException) -> None:
    """Write a text and a traceback to standard error, whatever has become of ``sys.stderr``."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}:\n{''.join(traceback.format_exception(error))}".encode())
