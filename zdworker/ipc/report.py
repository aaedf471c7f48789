"""The worker's end of its report channel.

Rules: a report never raises and never blocks a worker for long. A worker keeps serving even when its master is dead or
stopped.
"""

from __future__ import annotations

import itertools
import select
import socket

from zdworker.ipc.messages import Answers, CountAnswers, Counts, Leave, Message, Stopping, encode
from zdworker.syscalls import unread

REPORT_TIMEOUT_S = 1.0
"""Seconds that a report of state may wait for room in the channel. Only a stopped master leaves the channel full."""

# Not O_NONBLOCK, which is a property of the open file, and other processes may share that. macOS has no MSG_NOSIGNAL,
# but Python ignores SIGPIPE anyway.
_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)

_ANNOUNCEMENT_BYTES = {kind: len(encode(kind())) for kind in (Stopping, Leave, CountAnswers)}
"""The size of each message that the master sends once at most and the worker only looks for."""

_ANNOUNCED = {
    sum(map(_ANNOUNCEMENT_BYTES.__getitem__, kinds)): kinds
    for number in range(1, len(_ANNOUNCEMENT_BYTES) + 1)
    for kinds in itertools.combinations(_ANNOUNCEMENT_BYTES, number)
}
"""Which of them have come, by the bytes of all together. No two sums are equal."""


class Reporter:
    """The worker's end of its report channel.

    :param channel: a connected stream socket, or None: reports go nowhere.
    """

    def __init__(self, channel: socket.socket | None) -> None:
        self._channel = channel
        self._pending = b""

    def send(self, message: Message) -> None:
        """Send ``message``; never raises.

        Counts and answers are dropped when the channel is full. A report of state waits for room, at most
        :data:`REPORT_TIMEOUT_S` seconds; if there is none by then, it is sent before the next report.
        """
        if self._channel is None:
            return
        expendable = isinstance(message, (Counts, Answers))
        if expendable and self._pending:
            self._flush(0.0)
            if self._pending:
                return
        self._pending += encode(message)
        self._flush(0.0 if expendable else REPORT_TIMEOUT_S)

    def was_announced(self, kind: type[Stopping | Leave | CountAnswers]) -> bool:
        """Return whether the master has sent a message of this kind since the worker's boot.

        The master sends each kind once at most, and nothing else after ``Start``.
        """
        # The bytes are counted and not read: reading a socket that gevent has patched would wait, and a message that
        # was read could not be found by the next call.
        waiting = 0 if self._channel is None else unread(self._channel)
        return kind in _ANNOUNCED.get(waiting, ())

    @property
    def is_connected(self) -> bool:
        """Whether the master still reads, and can announce what it does."""
        if self._channel is None:
            return False
        try:
            return self._channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _flush(self, timeout_s: float) -> None:
        try:
            self._write()
            if self._pending and timeout_s and self._channel is not None:
                _await_room(self._channel, timeout_s)
                self._write()
        except OSError:
            # The master is gone. The check of the parent decides whether this worker ends too.
            self._channel = None
            self._pending = b""

    def _write(self) -> None:
        while self._pending and self._channel is not None:
            try:
                sent = self._channel.send(self._pending, _FLAGS)
            except BlockingIOError:
                return
            self._pending = self._pending[sent:]


def _await_room(channel: socket.socket, timeout_s: float) -> None:
    # poll and not select, because a worker may have more descriptors than select can take.
    poll = select.poll()
    poll.register(channel, select.POLLOUT)
    poll.poll(int(timeout_s * 1000))
