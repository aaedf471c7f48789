"""One end of a connection between master, fork server and worker: messages over a stream socket.

Rules: a message is sent whole. What arrives is bounded. An end of file means that the other end was closed. Its absence
does not mean that the process lives, because a child of an application may hold a copy of the socket.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass, field

from zdworker import syscalls
from zdworker.errors import MessageError
from zdworker.ipc.messages import MESSAGE_MAX_BYTES, Decoder, Message, encode

RECEIVE_READS_MAX = 16
"""Reads in one call: a sender without end must not hold up the reader. To empty a full socket buffer takes fewer."""


@dataclass
class Received:
    """The result of one read of a channel.

    ``messages`` are pairs of a message and its sender's pid, None where the kernel passes none. ``closed`` means that
    the other end is closed. ``error`` says why something that came is not a message, "" if all is well.
    """

    messages: list[tuple[Message, int | None]] = field(default_factory=list)
    closed: bool = False
    error: str = ""


class Channel:
    """One end of a channel. ``descriptors`` holds those that were received and not taken yet, in their order.

    :param limit: the most bytes that one message of the other end may have.
    """

    def __init__(self, end: socket.socket, limit: int = MESSAGE_MAX_BYTES) -> None:
        self._socket = end
        self._decoder = Decoder(limit)
        self.descriptors: list[int] = []

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """Return the master's end, which does not block and gets the pid of each sender, and the other end."""
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        syscalls.pass_credentials(own)
        own.setblocking(False)
        return cls(own), other

    def fileno(self) -> int:
        """Return the descriptor, -1 when closed."""
        return self._socket.fileno()

    def send(self, message: Message, descriptors: list[int] | None = None) -> None:
        """Send a message whole.

        :raises OSError: the other end is closed, or does not read (``BlockingIOError``). The channel cannot be used any
            more, because a part of the message may have been sent.
        """
        syscalls.send_with_descriptors(self._socket, encode(message), descriptors or [])

    def receive(self) -> Received:
        """Return what has arrived; on a blocking channel, wait until something has."""
        received = Received()
        for _ in range(RECEIVE_READS_MAX):
            try:
                data, descriptors, sender = syscalls.receive_with_descriptors(self._socket)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data, descriptors, sender = b"", [], None
            self.descriptors += descriptors
            received.closed = not data
            try:
                for message in self._decoder.feed(data):
                    received.messages.append((message, sender))  # one by one: the messages before a bad line count
            except MessageError as error:
                received.error = str(error)
            if received.closed or self._socket.getblocking():
                break
        return received

    def take(self, names: list[str]) -> dict[str, list[int]]:
        """Return the descriptors that came with a message, by the names that its ``descriptors`` field has for them."""
        taken: dict[str, list[int]] = {}
        for name in names:
            taken.setdefault(name, []).append(self.descriptors.pop(0))
        return taken

    def close(self) -> None:
        """Close this end, and the descriptors that were received and not taken."""
        self._socket.close()
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.descriptors = []
