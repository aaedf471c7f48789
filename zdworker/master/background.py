"""A call that must not hold up the master's loop, made in a thread of its own.

Rules: what comes of it is handled on the main thread, by the loop. The thread is a daemon: one that never comes back
keeps nothing from ending. Nothing is shared with it but what the call is given.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from zdworker import syscalls
from zdworker.master.reactor import Reactor

Result = TypeVar("Result")


def call_in_background(
    reactor: Reactor, function: Callable[[], Result], done: Callable[[Result | BaseException], None]
) -> threading.Thread:
    """Call ``function`` in a thread with a working directory of its own, where the system has such a thing.

    :return: the thread.
    :param done: is called by the loop with what ``function`` has returned, or with the exception that it has raised.
    """

    def run() -> None:
        result: Result | BaseException
        try:
            syscalls.unshare_directory()
            result = function()
        except BaseException as error:  # noqa: BLE001  # an exit, too: ``done`` handles it
            result = error
        reactor.call_from_thread(lambda: done(result))

    thread = threading.Thread(target=run, name="zdworker-background", daemon=True)
    thread.start()
    return thread
