"""One end of a conversation between master, fork server and worker: messages over a stream socket.

Rules: a message that was sent is sent whole; what arrives is bounded; an end of file says that the other end was
closed, never that a process has died (a child of an application may hold a copy).
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass, field

from zdworker import syscalls
from zdworker.errors import MessageError
from zdworker.ipc.messages import LIMIT, Decoder, Message, encode

READS = 16
"""Reads at a time: whoever sends without end must not hold the reader; a full socket's buffer takes fewer."""


@dataclass
class Received:
    """What one look at a channel brought: messages with the pid of who sent them, and whether the other end closed."""

    messages: list[tuple[Message, int | None]] = field(default_factory=list)
    closed: bool = False
    error: str = ""


class Channel:
    """A channel's end. ``descriptors`` holds those that came along and were not taken yet, in their order.

    :param limit: the most bytes that one message of the other end may have.
    """

    def __init__(self, end: socket.socket, limit: int = LIMIT) -> None:
        self._socket = end
        self._decoder = Decoder(limit)
        self.descriptors: list[int] = []

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """Return our end, which does not block and is told who speaks, and the other one to hand over."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        syscalls.pass_credentials(ours)
        ours.setblocking(False)
        return cls(ours), theirs

    def fileno(self) -> int:
        """Return the descriptor, -1 when closed."""
        return self._socket.fileno()

    def send(self, message: Message, descriptors: list[int] | None = None) -> None:
        """Send a message whole.

        :raises OSError: the other end is gone, or does not read (``BlockingIOError``): it is of no use any more.
        """
        syscalls.send_with(self._socket, encode(message), descriptors or [])

    def receive(self) -> Received:
        """Return what is there; on a blocking channel, wait for something first."""
        received = Received()
        for _ in range(READS):
            try:
                data, descriptors, sender = syscalls.receive_with(self._socket)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data, descriptors, sender = b"", [], None
            self.descriptors += descriptors
            received.closed = not data
            try:
                for message in self._decoder.feed(data):
                    received.messages.append((message, sender))  # one by one: a bad line must not cost the good ones
            except MessageError as error:
                received.error = str(error)
            if received.closed or self._socket.getblocking():
                break
        return received

    def take(self, names: list[str]) -> dict[str, list[int]]:
        """Return the descriptors that belong to a message, by the names it gives them."""
        taken: dict[str, list[int]] = {}
        for name in names:
            taken.setdefault(name, []).append(self.descriptors.pop(0))
        return taken

    def close(self) -> None:
        """Close this end, and whatever came along unasked."""
        self._socket.close()
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.descriptors = []
