"""The queue through which a worker hands its connections over to the next worker of its slot.

Rules:

* A queue belongs to a slot, and the master owns it: a pair of Unix sockets that keep the bounds of messages. Each
  worker of the slot holds both ends. One that drains writes to the one end, one that serves reads from the other.
* A message has up to :data:`BATCH` connections: their descriptors (``SCM_RIGHTS`` in unix(7)), and a JSON list with
  what the kernel does not know of each. Bytes that a client has sent and that have not been read move with the socket.
* What is not taken stays in the queue for the next worker, so a successor that crashes costs time and no connection.
* Nothing here waits. A queue that is full says so, and the giver decides how long it tries.
* A message is taken only if this process has descriptors left for its connections: the kernel drops what has no room.
* The master closes a queue for writing (``shutdown(2)``) when the slot has no successor. From that moment on nothing
  can get into it, and its readers find its end behind what is in it, so that no connection is left between two workers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import resource
import select
import socket
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from zdworker import syscalls

_poll, _Socket = select.poll, socket.socket
"""As they are before a worker class monkey-patches them: gevent's would switch to another greenlet."""

BATCH = 100
"""Connections in one message; the kernel allows 253 (SCM_MAX_FD). A larger one would hold up the loops of both ends."""

BUFFER_BYTES = 1 << 20
"""Bytes that a queue is asked to hold, as far as the system allows it (``net.core.wmem_max``)."""

MESSAGE_BYTES = 64 * 1024
"""Bytes that are read for one message: more than :data:`BATCH` connections take."""

SPARE_DESCRIPTORS = 8
"""Descriptors that a worker keeps for what it does meanwhile."""

COUNT_INTERVAL_S = 1.0
"""Seconds for which a number of descriptors that was counted is trusted."""

_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EMSGSIZE, errno.ETOOMANYREFS)
"""What a queue answers that takes no more now; ETOOMANYREFS: too many descriptors of this user are under way."""


@dataclass(frozen=True)
class Connection:
    """A connection between two requests, with what the kernel does not know of it.

    ``idle_until`` is when its keep-alive time is over, by ``time.monotonic()``, which all processes share; None for one
    without such a time, such as one that has not been used yet. ``requests`` is how many were answered on it, ``proxy``
    what the PROXY protocol said of the client, as the giver's server keeps it.
    """

    sock: socket.socket
    idle_until: float | None = None
    requests: int = 0
    proxy: dict[str, Any] | None = field(default=None, repr=False)

    def client(self) -> Any:
        """Return the client's address, as ``accept(2)`` does; an empty one if the client has gone."""
        try:
            return self.sock.getpeername()
        except OSError:
            return ""

    def to_plain(self) -> dict[str, Any]:
        """Return what goes along with the descriptor, as what JSON can hold."""
        return {"idle_until": self.idle_until, "requests": self.requests, "proxy": self.proxy}

    @classmethod
    def from_plain(cls, sock: socket.socket, plain: object) -> Connection:
        """Return the connection of ``to_plain``; what is missing or strange gets its default."""
        known = plain if isinstance(plain, dict) else {}
        idle_until, requests, proxy = (known.get(name) for name in ("idle_until", "requests", "proxy"))
        return cls(
            sock,
            float(idle_until) if isinstance(idle_until, (int, float)) else None,
            requests if isinstance(requests, int) else 0,
            proxy if isinstance(proxy, dict) else None,
        )


class QueueClosed(Exception):
    """The slot has no successor, so nothing can be given any more."""


class HandOverQueue:
    """Both ends of a slot's queue.

    :param giving: the end that is written to.
    :param taking: the end that is read from.
    """

    def __init__(self, giving: socket.socket, taking: socket.socket) -> None:
        # A default timeout that the application has set (socket.setdefaulttimeout) would have each call wait.
        giving.setblocking(False)
        taking.setblocking(False)
        self._giving = giving
        self._taking = taking
        self._room = Room()
        self.lacks_descriptors = False
        """Whether the last message was left where it is, because this process has too few descriptors for it."""

    @classmethod
    def open(cls) -> HandOverQueue:
        """Return a new queue; the master does this.

        :raises OSError: there are no descriptors left, or the system has no such sockets (macOS).
        """
        taking, giving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        giving.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        return cls(giving, taking)

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is something to take, or when the queue is closed."""
        return self._taking.fileno()

    def descriptors(self) -> list[int]:
        """Return both descriptors, in the order of the constructor's parameters."""
        return [self._giving.fileno(), self._taking.fileno()]

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be given any more."""
        poll = _poll()
        poll.register(self._taking, select.POLLRDHUP)
        return bool(poll.poll(0))

    def shut(self) -> None:
        """Close the queue for writing, in all processes."""
        with contextlib.suppress(OSError):
            self._giving.shutdown(socket.SHUT_WR)

    def give(self, connections: Sequence[Connection]) -> bool:
        """Give connections, at most :data:`BATCH`, and close them here; return False if there is no room now.

        :raises QueueClosed: nothing can be given any more.
        """
        data = json.dumps([connection.to_plain() for connection in connections]).encode()
        descriptors = [connection.sock.fileno() for connection in connections]
        try:
            syscalls.send_message(self._giving, data, descriptors)
        except OSError as error:
            if error.errno in _FULL:
                return False
            raise QueueClosed from error
        for connection in connections:
            connection.sock.close()
        return True

    def take(self) -> list[Connection]:
        """Return the connections of one message; none if nothing is there, or if :attr:`lacks_descriptors`."""
        self.lacks_descriptors = False
        try:
            # This peeks at the data alone: another worker of the slot may take the message first, and copies of its
            # descriptors would be served twice.
            waiting = len(_known(self._taking.recv(MESSAGE_BYTES, socket.MSG_PEEK)))
            if not self._room.has(waiting):
                self.lacks_descriptors = True
                return []
            piece = syscalls.receive_with_descriptors(self._taking, MESSAGE_BYTES, descriptors=True, credentials=False)
        except OSError:
            return []
        known = _known(piece.data)
        sockets = [_stream_socket(descriptor) for descriptor in piece.descriptors]
        known += [None] * (len(sockets) - len(known))
        pairs = zip(sockets, known, strict=False)  # what is known of more sockets than there are is dropped
        return [Connection.from_plain(sock, plain) for sock, plain in pairs if sock is not None]

    def close(self) -> None:
        """Close both ends in this process."""
        self._giving.close()
        self._taking.close()


class Room:
    """How many descriptors this process may still open. It is counted once a second at most, because that takes long
    in a process with thousands.
    """

    def __init__(self) -> None:
        self._left = 0
        self._counted_at = -math.inf

    def has(self, number: int) -> bool:
        """Return whether there are so many and some to spare, and count on their use."""
        now = time.monotonic()
        if self._left < number + SPARE_DESCRIPTORS or now > self._counted_at + COUNT_INTERVAL_S:
            self._left, self._counted_at = _descriptors_left(), now
        if self._left < number + SPARE_DESCRIPTORS:
            return False
        self._left -= number
        return True


def _descriptors_left() -> int:
    try:
        used = len(os.listdir("/proc/self/fd"))
    except FileNotFoundError:  # there is no /proc, so this cannot be known
        return sys.maxsize
    except OSError:  # there is not even one to look with
        return 0
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit - used


def _known(data: bytes) -> list[object]:
    """Return what a message says of its connections; what is strange is left out."""
    try:
        known = json.loads(data) if data else []
    except ValueError:
        known = []
    return known if isinstance(known, list) else []


def _stream_socket(descriptor: int) -> socket.socket | None:
    """Return the socket of a descriptor; None, and it is closed, if it is not one that serves a client."""
    if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        sock = _Socket(fileno=descriptor)
        if sock.type == socket.SOCK_STREAM:
            sock.setblocking(False)
            return sock
        sock.close()
        return None
    os.close(descriptor)
    return None
