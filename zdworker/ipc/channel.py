"""One end of a conversation between master, fork server and worker: messages over a stream socket.

Rules: a message that was sent is sent whole; what arrives is bounded; an end of file says that the other end was
closed, never that a process has died (a child of an application may hold a copy).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from zdworker import syscalls
from zdworker.errors import MessageError
from zdworker.ipc.messages import Decoder, Message, encode

READS = 16
"""Reads at a time: whoever sends without end must not hold the reader; a full socket's buffer takes fewer."""

TURN_BYTES = 16 * 65536
"""Bytes that are read at a time from a process that is trusted."""


@dataclass
class Received:
    """What one look at a channel brought: messages with the pid of who sent them, whether the other end closed, why
    something was no message that may come here, and how many bytes it all was.
    """

    messages: list[tuple[Message, int | None]] = field(default_factory=list)
    closed: bool = False
    error: str = ""
    size: int = 0


class Channel:
    """A channel's end. ``descriptors`` holds those that came along and were not taken yet, in their order.

    :param accepts: the kinds of message that the other end may send, with the most bytes of each; all by default.
    :param takes_descriptors: whether the other end may send descriptors. The kernel closes those that come otherwise.
    :param credentials: whether the kernel passes the sender's pid.
    """

    def __init__(
        self,
        end: socket.socket,
        accepts: Mapping[type[Message], int] | None = None,
        *,
        takes_descriptors: bool = False,
        credentials: bool = False,
    ) -> None:
        self._socket = end
        self._decoder = Decoder(accepts=accepts)
        self._takes_descriptors = takes_descriptors
        self._credentials = credentials
        self.descriptors: list[int] = []

    @classmethod
    def pair(cls, accepts: Mapping[type[Message], int]) -> tuple[Channel, socket.socket]:
        """Return our end, which does not block and is told who speaks, and the other one to hand over."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        syscalls.pass_credentials(ours)
        ours.setblocking(False)
        return cls(ours, accepts, credentials=True), theirs

    def fileno(self) -> int:
        """Return the descriptor, -1 when closed."""
        return self._socket.fileno()

    def send(self, message: Message, descriptors: list[int] | None = None) -> None:
        """Send a message whole.

        :raises OSError: the other end is gone, or does not read (``BlockingIOError``): it is of no use any more.
        """
        syscalls.send_with(self._socket, encode(message), descriptors or [])

    def receive(self, most_bytes: int = TURN_BYTES) -> Received:
        """Return what is there; on a blocking channel, wait for something first.

        After an error nothing more is read: what follows cannot be told apart from what was wrong.
        """
        received = Received()
        for _ in range(READS):
            try:
                piece = self._receive_piece(min(65536, most_bytes - received.size))
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                piece = syscalls.Piece(b"", [], None, refused=False)
            self.descriptors += piece.descriptors
            received.size += len(piece.data)
            received.closed = not piece.data
            try:
                if piece.refused:
                    raise MessageError("descriptors came along, and this end of a channel takes none")
                for message in self._decoder.feed(piece.data):
                    received.messages.append((message, piece.sender))  # one by one: those before a bad line count
            except MessageError as error:
                received.error = str(error)
            if received.closed or received.error or received.size >= most_bytes or self._socket.getblocking():
                break
        return received

    def _receive_piece(self, size: int) -> syscalls.Piece:
        return syscalls.receive_with(
            self._socket, size, descriptors=self._takes_descriptors, credentials=self._credentials
        )

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
