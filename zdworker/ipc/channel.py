"""One end of a connection between master, fork server and worker: messages over a stream socket.

Rules: a message that is sent is sent whole. One that is posted is sent in its order, as the other end makes room for
it. What arrives is bounded. An end of file means that the other end was closed. Its absence does not mean that the
process lives, because a child of an application may hold a copy of the socket.
"""

from __future__ import annotations

import collections
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zdworker import syscalls
from zdworker.errors import MessageError
from zdworker.ipc.messages import Decoder, Message, encode

RECEIVE_READS_MAX = 16
"""Reads in one call: a sender without end must not hold up the reader. To empty a full socket buffer takes fewer."""

TURN_BYTES = 16 * 65536
"""Bytes that are read at a time from a process that is trusted."""


@dataclass
class Received:
    """The result of one read of a channel.

    ``messages`` are pairs of a message and its sender's pid, None where the kernel passes none. ``closed`` means that
    the other end is closed. ``error`` says why something that came is not a message that may come here, "" if all is
    well. ``size`` is how many bytes came.
    """

    messages: list[tuple[Message, int | None]] = field(default_factory=list)
    closed: bool = False
    error: str = ""
    size: int = 0


@dataclass
class _Unsent:
    """The rest of a message, and the descriptors that go with its first byte: copies, which are closed here."""

    data: bytes
    descriptors: list[int]

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []


class Channel:
    """One end of a channel. ``descriptors`` holds those that were received and not taken yet, in their order.

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
        self._unsent: collections.deque[_Unsent] = collections.deque()
        self.descriptors: list[int] = []

    @classmethod
    def pair(cls, accepts: Mapping[type[Message], int]) -> tuple[Channel, socket.socket]:
        """Return the master's end, which does not block and gets the pid of each sender, and the other end."""
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        syscalls.pass_credentials(own)
        own.setblocking(False)
        return cls(own, accepts, credentials=True), other

    def to_state(self, keep: Callable[[int], int]) -> dict[str, Any]:
        """Return it as :meth:`from_state` reads it, in another program of this process (an upgrade).

        :param keep: has a descriptor go along, and returns its number.
        """
        return {
            "socket": keep(self.fileno()),
            "decoder": self._decoder.to_state(),
            "unsent": [(rest.data, list(map(keep, rest.descriptors))) for rest in self._unsent],
            "descriptors": list(map(keep, self.descriptors)),
            "credentials": self._credentials,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], accepts: Mapping[type[Message], int]) -> Channel:
        """Return the channel that :meth:`to_state` has written out."""
        channel = cls(socket.socket(fileno=state["socket"]), accepts, credentials=state["credentials"])
        channel._socket.setblocking(False)
        channel._decoder.resume(state["decoder"])
        channel._unsent.extend(_Unsent(data, list(descriptors)) for data, descriptors in state["unsent"])
        channel.descriptors = list(state["descriptors"])
        return channel

    def fileno(self) -> int:
        """Return the descriptor, -1 when closed."""
        return self._socket.fileno()

    def send(self, message: Message, descriptors: list[int] | None = None) -> None:
        """Send a message whole.

        :raises OSError: the other end is closed, or does not read (``BlockingIOError``). The channel cannot be used any
            more, because a part of the message may have been sent.
        """
        syscalls.send_with_descriptors(self._socket, encode(message), descriptors or [])

    def post(self, message: Message, descriptors: list[int]) -> None:
        """Send a message, or as much of it as there is room for: :meth:`flush` sends the rest. For a channel that does
        not block.

        :raises OSError: the other end is gone, or there is no descriptor left for the copies that have to wait. Of this
            message nothing has been sent then.
        """
        data, sent = encode(message), 0
        if not self._unsent:
            sent = syscalls.send_some(self._socket, data, descriptors)
        if sent < len(data):
            self._unsent.append(_Unsent(data[sent:], _copies([] if sent else descriptors)))

    def flush(self) -> bool:
        """Send what there is room for; return whether nothing is left.

        :raises OSError: the other end is gone.
        """
        while self._unsent:
            first = self._unsent[0]
            sent = syscalls.send_some(self._socket, first.data, first.descriptors)
            if sent:
                first.close()
            if sent < len(first.data):
                first.data = first.data[sent:]
                return False
            self._unsent.popleft()
        return True

    def receive(self, most_bytes: int = TURN_BYTES) -> Received:
        """Return what has arrived; on a blocking channel, wait until something has.

        After an error nothing more is read, because what follows cannot be told apart from what was wrong.
        """
        received = Received()
        for _ in range(RECEIVE_READS_MAX):
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
        return syscalls.receive_with_descriptors(
            self._socket, size, descriptors=self._takes_descriptors, credentials=self._credentials
        )

    def take(self, names: list[str]) -> dict[str, list[int]]:
        """Return the descriptors that came with a message, by the names that its ``descriptors`` field has for them."""
        taken: dict[str, list[int]] = {}
        for name in names:
            taken.setdefault(name, []).append(self.descriptors.pop(0))
        return taken

    def close(self) -> None:
        """Close this end, with the descriptors that were received and not taken, and with what waits to be sent."""
        self._socket.close()
        while self._unsent:
            self._unsent.popleft().close()
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.descriptors = []


def _copies(descriptors: list[int]) -> list[int]:
    """Return a copy of each descriptor.

    :raises OSError: there are not enough of them left; none is open then.
    """
    with contextlib.ExitStack() as undo:
        copies = []
        for descriptor in descriptors:
            copies.append(os.dup(descriptor))
            undo.callback(os.close, copies[-1])
        undo.pop_all()
    return copies
