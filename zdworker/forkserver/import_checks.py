"""Warnings of what a preloaded application has left open or running at import, and workers should not inherit.

Rules: this warns and does no more. It raises nothing, and reports only what it knows for certain. A socket counts as a
connection when the kernel names a peer; the two ends of a socket pair, which have no name, belong to this process.
Threads that Python does not know (those of a C library) are left to that library: the most common ones, OpenBLAS's,
start again after a fork.
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
"""The socket class before a worker class monkey-patches it."""


def descriptors() -> dict[int, str]:
    """Return the open descriptors, and what each refers to (proc_pid_fd(5)); empty where there is no ``/proc``."""
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(DESCRIPTORS):
            with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed by now
                found[int(name)] = os.readlink(f"{DESCRIPTORS}/{name}")
    return found


def warnings(before: dict[int, str]) -> list[str]:
    """Return a line for each kind of thing that the application should not have started or opened at import.

    :param before: the result of :func:`descriptors` before the application was imported.
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
    """Return the address of a connection's other end, "" if there is none or it is not known."""
    # A duplicate can be closed without closing the application's socket. They share the open file, on which a default
    # timeout would set O_NONBLOCK.
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
        if (
            connection.type == socket.SOCK_STREAM
        ):  # datagrams (syslog, statsd) can be sent by all workers through one socket
            peer = connection.getpeername()
            return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else os.fsdecode(peer)
    return ""


def _of_event_loops(opened: dict[int, str]) -> Iterator[str]:
    # gevent's event loop notices a fork by itself.
    if EVENT_LOOP in opened.values() and "gevent" not in sys.modules:
        yield (
            "the application left an event loop open at import: it is of no use in the workers; "
            "make it in the lifespan, or in post_fork"
        )
