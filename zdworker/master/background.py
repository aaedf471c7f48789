"""A call that must not hold up the master's loop, made in a thread of its own.

Rules: what comes of it is handled on the main thread, by the loop. A thread that never comes back keeps nothing from
ending. Nothing is shared with it but what the call is given.
"""

from __future__ import annotations

import threading
from _thread import start_new_thread
from collections.abc import Callable
from typing import TypeVar

from zdworker import syscalls
from zdworker.master.reactor import Reactor

Result = TypeVar("Result")


class Call:
    """A call that goes on, or has ended."""

    ident: int
    """Of its thread, as :func:`threading.get_ident` has it."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def is_alive(self) -> bool:
        """Return whether it goes on."""
        return not self._over.is_set()

    def join(self, timeout: float) -> None:
        """Wait for its end, ``timeout`` seconds at most."""
        self._over.wait(timeout)

    def ended(self) -> None:
        """Note that it has ended."""
        self._over.set()


def call_in_background(
    reactor: Reactor, function: Callable[[], Result], done: Callable[[Result | BaseException], None]
) -> Call:
    """Call ``function`` in a thread with a working directory of its own, where the system has such a thing.

    :param done: is called by the loop with what ``function`` has returned, or with the exception that it has raised.
    :raises RuntimeError: the system gives no thread.
    """
    call = Call()

    def run() -> None:
        result: Result | BaseException
        try:
            syscalls.unshare_directory()
            result = function()
        except BaseException as error:  # noqa: BLE001  # an exit, too: ``done`` handles it
            result = error
        try:
            reactor.call_from_thread(lambda: done(result))
        finally:
            call.ended()

    # Not threading.Thread: its start() waits without end for a thread that gets no memory for its first steps.
    call.ident = start_new_thread(run, ())
    return call
