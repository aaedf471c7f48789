"""The command's side of the control socket: it exchanges messages with a master.

Rules:

* The text of every error says what to do.
* Every wait has an end, because a master that is stopped accepts no connection and answers nothing.
* The kernel names the user of the process that listens; what an untrusted user's process says is not read.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from typing import Any

from zdworker import syscalls
from zdworker.errors import MessageError, NoInstance, OrderRefused
from zdworker.ipc.messages import Message, Order, Probe, Refused, Report, decode, encode

ANSWER_TIMEOUT_S = 10.0
"""Seconds that a master has to accept a connection and to answer."""

CONNECT_RETRY_S = 0.05
"""Seconds between two tries to connect to a master whose queue of connections is full."""


def trusted_users(owner: int | None = None) -> frozenset[int]:
    """Return the users whose processes may answer as a master: this one and root.

    :param owner: the user whose master was named, which root alone may order; None if no master was named.
    """
    users = {0, os.geteuid()}
    if owner is not None and os.geteuid() == 0:
        users.add(owner)
    return frozenset(users)


def status(path: str, deadline: float | None = None, users: frozenset[int] | None = None) -> dict[str, Any]:
    """Return the status of the master that listens on ``path``.

    :param deadline: as for :class:`Connection`.
    :param users: as for :class:`Connection`.
    :raises NoInstance: there is none, or this user may not connect to it.
    :raises OrderRefused: it does not carry the order out.
    :raises MessageError: its answer is not a message.
    :raises TimeoutError: it does not answer in time.
    """
    with Connection(path, deadline, users) as master:
        return master.status()


class Connection:
    """A connection to a master.

    :param deadline: when to give up connecting and ordering, by ``time.monotonic()``. Connecting, and each order, is
        given up after :data:`ANSWER_TIMEOUT_S` seconds at the latest.
    :param users: the users that are trusted to be the master's; :func:`trusted_users` by default.
    :raises NoInstance: no process listens there, this user may not connect, or another user listens there.
    :raises TimeoutError: the master does not accept the connection in time.
    """

    def __init__(self, path: str, deadline: float | None = None, users: frozenset[int] | None = None) -> None:
        self._path = path
        self._users = trusted_users() if users is None else users
        self._deadline = math.inf if deadline is None else deadline
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._rest = b""
        try:
            self._connect()
        except TimeoutError:
            self.close()
            raise
        except PermissionError:
            self.close()
            raise NoInstance(f"{path} belongs to another user: run this as that one, or as root") from None
        except OSError as error:
            self.close()
            raise NoInstance(f"no master listens on {path}: {error.strerror or error}") from None
        self.peer = syscalls.peer(self._socket)
        """The process that listens there; None where that is unknown."""
        if self.peer is not None and self.peer.uid not in self._users:
            self.close()
            raise NoInstance(
                f"a process of another user (uid {self.peer.uid}) listens on {path}, and is not trusted: run this as "
                "that user, or as root with --pid or --socket"
            )

    def _answer_deadline(self) -> float:
        return min(time.monotonic() + ANSWER_TIMEOUT_S, self._deadline)

    def _connect(self) -> None:
        deadline = self._answer_deadline()
        self._socket.setblocking(False)  # with a timeout, a full queue is an error at once, too (connect(2))
        while True:
            try:
                self._socket.connect(self._path)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    text = f"the master on {self._path} accepts no connection: it is stopped, or has too much to do"
                    raise TimeoutError(text) from None
                time.sleep(CONNECT_RETRY_S)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def status(self) -> dict[str, Any]:
        """Ask for the status; see :func:`status`."""
        answer = self.order(Order("status"))
        if not isinstance(answer, Report):
            raise NoInstance(f"{self._path} gave a strange answer: {answer!r}")
        return answer.status

    def order(self, order: Order) -> Message:
        """Send an order and return the first answer.

        :raises NoInstance: the master has ended.
        :raises OrderRefused: it does not carry the order out.
        :raises MessageError: the answer is not a message.
        :raises TimeoutError: there is none in time.
        """
        deadline = self._answer_deadline()
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        with contextlib.suppress(ConnectionError):  # the master has closed the connection: receive() raises for that
            self._socket.sendall(encode(order))
        try:
            return self.receive(deadline)
        except TimeoutError:
            asks = order.command in ("status", "history")
            if not asks and time.monotonic() >= self._deadline:
                raise  # the caller wants no longer wait
            raise self._silent("" if asks else ". It carries the order out when it goes on") from None

    def _silent(self, further: str = "") -> TimeoutError:
        return TimeoutError(
            f"the master on {self._path} does not answer: it is stopped, or has too much to do{further}"
        )

    def probe(self) -> tuple[int, socket.socket]:
        """Return the generation of the canary that is held, and a connection to it, on which HTTP/1.1 is spoken.

        :raises NoInstance, OrderRefused, MessageError, TimeoutError: as :meth:`order` does.
        """
        deadline = self._answer_deadline()
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        descriptors: list[int] = []
        try:
            self._socket.sendall(encode(Order("probe")))
            while b"\n" not in self._rest:
                data, received, _flags, _address = socket.recv_fds(self._socket, 65536, 1)
                descriptors += received
                self._rest += data
                if not data:
                    raise NoInstance(f"the master on {self._path} has closed the connection: it has ended")
        except TimeoutError:
            raise self._silent() from None
        except ConnectionError as error:
            raise NoInstance(f"the master on {self._path} has ended: {error}") from None
        answer = self.receive(deadline)
        if not isinstance(answer, Probe) or len(descriptors) != 1:
            raise MessageError(f"a strange answer: {answer!r}")
        return answer.generation, socket.socket(fileno=descriptors[0])

    def receive(self, deadline: float | None) -> Message:
        """Return the next answer.

        :param deadline: when to give up, by ``time.monotonic()``; None: when the master is silent and does not answer
            another client either.
        :raises NoInstance: the master has ended.
        :raises OrderRefused: it does not carry the order out.
        :raises MessageError: the answer is not a message.
        :raises TimeoutError: there is none in time.
        """
        while b"\n" not in self._rest:
            self._socket.settimeout(ANSWER_TIMEOUT_S if deadline is None else max(0.001, deadline - time.monotonic()))
            try:
                data = self._socket.recv(65536)
            except ConnectionError:
                data = b""
            except TimeoutError:
                if deadline is not None:
                    raise TimeoutError("timed out waiting; the master still carries the order out") from None
                try:
                    status(self._path, users=self._users)
                except TimeoutError as error:
                    raise TimeoutError(f"timed out waiting: {error}") from None
                except NoInstance:
                    pass  # a reload may give the control socket another path
                continue
            if not data:
                raise NoInstance(f"the master on {self._path} has closed the connection: it has ended, or is too busy")
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        answer = decode(line)
        if isinstance(answer, Refused):
            raise OrderRefused(answer.reason)
        return answer
