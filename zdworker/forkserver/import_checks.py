"""What a preloaded application has left open or running, and no worker should inherit.

Rules: this looks and warns, no more; what it cannot tell it does not guess, and nothing is raised. A connection is one
when the kernel says that it has a peer with a name: the two ends of a pair are this process's own. Threads that Python
does not know (of a C library) are left to that library: the most common ones, OpenBLAS's, start anew after a fork.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator

from zdworker.descendants import own_descendants

DESCRIPTORS = "/proc/self/fd"
EVENT_LOOP = "anon_inode:[eventpoll]"

_Socket = socket.socket
"""As it is before a worker class monkey-patches."""


def descriptors() -> dict[int, str]:
    """Return the open descriptors, and what each leads to (proc_pid_fd(5)); nothing where that cannot be known."""
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(DESCRIPTORS):
            with contextlib.suppress(OSError):  # one of them is the one that lists them
                found[int(name)] = os.readlink(f"{DESCRIPTORS}/{name}")
    return found


def warnings(before: dict[int, str]) -> list[str]:
    """Return a line for each kind of thing that the application should not have begun at import.

    :param before: the descriptors before it was imported.
    """
    opened = {number: target for number, target in descriptors().items() if before.get(number) != target}
    return [*_of_threads(), *_of_processes(), *_of_connections(opened), *_of_event_loops(opened)]


def _of_threads() -> Iterator[str]:
    names = ", ".join(thread.name for thread in threading.enumerate() if thread is not threading.main_thread())
    if names:
        yield (
            f"the application started threads at import ({names}): they do not exist in the workers; "
            "start them in the lifespan, or in post_fork"
        )


def _of_processes() -> Iterator[str]:
    names = ", ".join(map(str, own_descendants()))
    if names:
        yield (
            f"the application started processes at import ({names}): all workers share them, each reload starts more "
            "of them, and they end with their generation; start them in the lifespan, or in post_fork"
        )


def _of_connections(opened: dict[int, str]) -> Iterator[str]:
    peers = {_peer(number) for number, target in opened.items() if target.startswith("socket:")}
    names = ", ".join(sorted(peers - {""}))
    if names:
        yield (
            f"the application opened connections at import ({names}): all workers share them; "
            "open them in the lifespan, or in post_fork"
        )


def _peer(number: int) -> str:
    """Return the other end of a connection, "" if there is none or it is not known."""
    # A duplicate: closing it closes nothing of the application's. A default timeout would make its connection another.
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(None)
    try:
        return _name_of_peer(os.dup(number))
    except OSError:
        return ""
    finally:
        socket.setdefaulttimeout(timeout)


def _name_of_peer(number: int) -> str:
    with _Socket(fileno=number) as connection:
        if connection.type == socket.SOCK_STREAM:  # a datagram is whole, whoever sends it: syslog, statsd
            peer = connection.getpeername()
            return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else os.fsdecode(peer)
    return ""


def _of_event_loops(opened: dict[int, str]) -> Iterator[str]:
    # gevent's own knows when it was forked.
    if EVENT_LOOP in opened.values() and "gevent" not in sys.modules:
        yield (
            "the application left an event loop open at import: it is of no use in the workers; "
            "make it in the lifespan, or in post_fork"
        )
