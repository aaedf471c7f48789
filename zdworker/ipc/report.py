"""The worker's end of its report channel.

Rules: a report never raises and never holds a worker up for long: a worker serves, whatever has become of its master.
"""

from __future__ import annotations

import select
import socket

from zdworker.ipc.messages import Counts, Leave, Message, Stopping, encode
from zdworker.syscalls import unread

PATIENCE = 1.0
"""Seconds that a report of state may wait for room in the channel: only a stopped master leaves none."""


# Not O_NONBLOCK: that is a property of the open file, which others may share. macOS has no MSG_NOSIGNAL, and Python
# ignores SIGPIPE anyway.
_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


_LENGTHS = {word: len(encode(word())) for word in (Stopping, Leave)}


class Reporter:
    """The worker's end of its report channel.

    :param channel: a connected stream socket, or None: reports go nowhere.
    """

    def __init__(self, channel: socket.socket | None) -> None:
        self._channel = channel
        self._pending = b""

    def send(self, message: Message) -> None:
        """Send ``message``. Counts are dropped when the channel is full; a report of state waits for room, at most
        :data:`PATIENCE` seconds, and then goes out before the next one. Never raises.
        """
        if self._channel is None:
            return
        expendable = isinstance(message, Counts)
        if expendable and self._pending:
            self._flush(0.0)
            if self._pending:
                return
        self._pending += encode(message)
        self._flush(0.0 if expendable else PATIENCE)

    def was_told(self, word: type[Stopping | Leave]) -> bool:
        """Whether the master has said ``word`` since birth. It says each once at most."""
        # Not read, only measured: a socket patched by gevent would wait, and another one may be asked again.
        waiting = 0 if self._channel is None else unread(self._channel)
        return waiting in (_LENGTHS[word], sum(_LENGTHS.values()))

    def _flush(self, patience: float) -> None:
        try:
            self._write()
            if self._pending and patience and self._channel is not None:
                _await_room(self._channel, patience)
                self._write()
        except OSError:
            # The master is gone; whether this worker should be too is for the parent check to say.
            self._channel = None
            self._pending = b""

    def _write(self) -> None:
        while self._pending and self._channel is not None:
            try:
                sent = self._channel.send(self._pending, _FLAGS)
            except BlockingIOError:
                return
            self._pending = self._pending[sent:]


def _await_room(channel: socket.socket, patience: float) -> None:
    # poll, not select: a worker may have more descriptors than select can take.
    poll = select.poll()
    poll.register(channel, select.POLLOUT)
    poll.poll(int(patience * 1000))
