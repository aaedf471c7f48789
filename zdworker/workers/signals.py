"""The worker's signal handlers, and the application's own beside them.

Rules:

* Python knows one handler for a signal. One that the application sets, at import, in lifespan startup or later, takes
  the place of the worker's, and the drain would never begin. The worker looks from time to time, takes the signal back
  and calls both: the application's first, then its own.
* What the application's handler raises, an exit included, is logged and ends nothing: the worker leaves by its drain.
  The same holds for one that sets the default action and sends the signal again, as programs do that clean up and die
  of it, unless a further thread of the worker takes that signal.
* A handler that a library sets in C (libev for gevent, ``faulthandler``) is unknown to Python. The kernel is asked for
  it, and it is called by the kernel: with its action in place the signal is raised once more.
* A process that the application forks inherits these handlers. They change nothing there as long as the worker serves:
  a signal may have gone to the whole process group, and requests that are still to be answered may need that process.
  When the worker exits, or is gone, the signal does there what it does by default.
"""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from zdworker import syscalls

Handler = Callable[[int, FrameType | None], Any]


class SharedFlag:
    """A flag that a process and what it forks from then on have in common."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 1)

    def set(self) -> None:
        """Set it, for all of them and for good."""
        self._page[0] = 1

    def is_set(self) -> bool:
        """Return whether one of them has set it."""
        return self._page[0] != 0


class Handlers:
    """The handlers of one worker's process.

    :param log: the worker's logger.
    :param worker: is each handler's ``__self__``, as it is of a method. Libraries ask the object behind the handler of
        ``SIGTERM`` whether it is about to end (sse-starlette does, ``should_exit``, which is uvicorn's name).
    """

    def __init__(self, log: Any, worker: object = None) -> None:
        self._log = log
        self._worker = worker
        self._own: dict[int, _WithApplications] = {}
        self._exiting = SharedFlag()

    def set(self, signum: int, handler: Handler, *, interrupts: bool = True) -> None:
        """Set the worker's handler of a signal.

        :param interrupts: a system call that waits is interrupted by it, as Python's default is.
        """
        own = _WithApplications(signum, handler, interrupts, self._exiting, self._log)
        own.__self__ = self._worker
        self._own[signum] = own
        self._own[signum].install()

    def take_back(self) -> None:
        """Put the worker's handlers in place again, and have them call the application's. To be called on the main
        thread; elsewhere nothing is done, because Python sets handlers there only.
        """
        for signum, own in self._own.items():
            theirs: Any = signal.getsignal(signum)
            if theirs is own:
                if own.is_in_place():
                    continue
                theirs = _InC(signum)
            try:
                own.install()
            except ValueError:
                return
            own.applications = theirs if callable(theirs) else None
            if not own.is_logged:
                own.is_logged = True
                self._log.info(
                    "The application has set %s for %s: the worker's handler is in place again%s",
                    _name(theirs),
                    signal.Signals(signum).name,
                    ", and calls it as well" if callable(theirs) else "",
                )

    def application_handles(self, signum: int) -> bool:
        """Return whether the application has a handler of its own for a signal."""
        return signum in self._own and self._own[signum].applications is not None

    def exiting(self) -> None:
        """Let the signals have their default effect in what the application has forked."""
        self._exiting.set()


class _InC:
    """The handler of a signal that a library has set in C, and that is in place now."""

    def __init__(self, signum: int) -> None:
        self._action = syscalls.signal_action(signum)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Have the kernel call it. The worker's handler is put in place again afterwards, by what calls this one."""
        syscalls.set_signal_action(signum, self._action)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signum])
        signal.raise_signal(signum)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signum])

    def __repr__(self) -> str:
        return "a handler in C"


class _WithApplications:
    """The worker's handler of a signal, with the application's own of the same signal before it."""

    __self__: object
    """See :class:`Handlers`."""

    def __init__(self, signum: int, handler: Handler, interrupts: bool, exiting: SharedFlag, log: Any) -> None:
        self.applications: Handler | None = None
        self.is_logged = False
        self._signum = signum
        self._handler = handler
        self._interrupts = interrupts
        self._exiting = exiting
        self._log = log
        self._pid = os.getpid()
        self._action = syscalls.SignalAction(b"")
        self._calling = False

    def install(self) -> None:
        """Become the handler.

        :raises ValueError: this is not the main thread.
        """
        signal.signal(self._signum, self)
        signal.siginterrupt(self._signum, self._interrupts)
        self._action = syscalls.signal_action(self._signum)

    def is_in_place(self) -> bool:
        """Return whether the kernel goes by it: Python may take it for the handler, and a library has set another."""
        return syscalls.signal_action(self._signum) == self._action

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        if os.getpid() != self._pid:
            self._in_forked_process()
        elif not self._calling:  # the application's handler may call the one before it, which is this one
            self._call_applications(signum, frame)
            self._handler(signum, frame)

    def _call_applications(self, signum: int, frame: FrameType | None) -> None:
        if self.applications is None:
            return
        self._calling = True
        signal.pthread_sigmask(signal.SIG_BLOCK, [signum])
        try:
            self.applications(signum, frame)
        except BaseException:  # noqa: BLE001  # an exit, too: see the rules
            self._log.exception("The application's handler of %s raised", signal.Signals(signum).name)
        finally:
            self._end_call(signum)

    def _end_call(self, signum: int) -> None:
        """Be in place again, and let what the application's handler has sent come to nothing."""
        theirs = signal.getsignal(signum)
        if theirs is not self:
            self.applications = theirs if callable(theirs) else None
        self.install()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signum])  # after which Python calls this handler, if there was one
        self._calling = False

    def _in_forked_process(self) -> None:
        if self._exiting.is_set() or not _exists(self._pid):
            signal.signal(self._signum, signal.SIG_DFL)
            os.kill(os.getpid(), self._signum)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _name(handler: Any) -> str:
    return str(getattr(handler, "__qualname__", None) or getattr(handler, "name", None) or repr(handler))
