"""The way of a fork server back to its start: it runs its own command again in the same process (execve(2)).

Rules: pid, parent and death signal stay as they are, and so does the channel to the master, which has sent nothing more
than the first message. Everything else is as the master has given it: environment, directory, standard streams and
signals. Before, what was imported gets the end that it would have in a worker: its processes are ended, its executors
are stopped, and its ``atexit`` functions are called, within bounds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NoReturn

from zdworker import syscalls
from zdworker.descendants import end_own_descendants
from zdworker.forkserver.worker_boot import EXECUTORS_S, EXIT_HANDLERS_TIMEOUT_S, run_exit_functions, stop_executors
from zdworker.ipc.messages import Init, decode, encode

DESCRIPTORS_MAX = 65_536
"""Descriptors that are gone through where there is no /proc to list them; each costs about a microsecond."""

PROCESSES_GRACE_S = 0.5
"""Seconds between TERM and KILL for the processes that were started at import."""


class Restart:
    """What a fork server has been started with. Made before anything of that changes.

    :param channel: the descriptor of its channel to the master.
    """

    def __init__(self, channel: int) -> None:
        self._channel = channel
        arguments = len(sys.argv) - 1
        self._words = sys.orig_argv[: len(sys.orig_argv) - arguments]
        self._command = sys.argv[sys.argv.index("--") :]
        self._environment = dict(os.environ)
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._handlers = {signum: signal.getsignal(signum) for signum in signal.valid_signals()}
        self._directory = os.open(".", syscalls.OPEN_DIRECTORY)
        self._streams = {stream: os.dup(stream) for stream in (1, 2)}

    def forget(self) -> None:
        """Close what only a restart needs, and workers should not inherit."""
        for number in (self._directory, *self._streams.values()):
            os.close(number)

    def run(self, init: Init, stderr: int) -> NoReturn:
        """Start again.

        :param init: the first message that it gets this time.
        :param stderr: the descriptor of the master's standard error.
        :raises OSError: the kernel refuses it; the interpreter is gone, say.
        """
        # The alarm's handler runs where an application's function hangs, and Python would call the next one after it.
        signal.signal(signal.SIGALRM, lambda *_: self._execute(init, stderr))
        end_own_descendants(PROCESSES_GRACE_S)
        signal.setitimer(signal.ITIMER_REAL, EXIT_HANDLERS_TIMEOUT_S)
        stop_executors(EXECUTORS_S)
        run_exit_functions()
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._execute(init, stderr)

    def _execute(self, init: Init, stderr: int) -> NoReturn:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # what has ended is not to be a zombie for as long as this process lives
        signal.pthread_sigmask(signal.SIG_SETMASK, syscalls.HELD_SIGNALS)
        for signum, handler in self._handlers.items():
            if signal.getsignal(signum) is signal.SIG_IGN and handler is not signal.SIG_IGN:
                signal.signal(signum, signal.SIG_DFL)
        os.umask(self._umask)
        os.fchdir(self._directory)
        for stream, copy in self._streams.items():
            os.dup2(copy, stream)
        message = os.memfd_create("init")
        os.write(message, encode(init))
        os.lseek(message, 0, os.SEEK_SET)
        kept = (self._channel, message, stderr)
        keep_only({0, 1, 2, *kept})
        words = [*self._words, *map(str, kept), *self._command]
        os.execve(self._words[0], words, self._environment)  # noqa: S606  # the master's own command, without a shell


def first_message(number: int) -> Init:
    """Return what a fork server that has started again gets in the place of the master's first message.

    :raises ValueError: that is not there.
    """
    with os.fdopen(number, "rb") as file:
        message = decode(file.read())
    if not isinstance(message, Init):
        raise ValueError(f"not a first message: {message!r}")
    return message


def keep_only(kept: set[int]) -> None:
    """Have all other descriptors closed by ``execve``, those too that a C library has left inheritable."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # there is no /proc
        numbers = list(range(DESCRIPTORS_MAX))
    for number in numbers:
        with contextlib.suppress(OSError):
            os.set_inheritable(number, number in kept)
