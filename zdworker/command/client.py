"""The command's side of the control socket: it finds a running master and exchanges messages with it.

Rules:

* A master is named by its pid, its pidfile or its socket. Without a name it is the only one that runs; where several
  run, none is guessed.
* The kernel is asked which sockets a process listens on, not a log or a file name.
* The text of every error says what to do.
* Every wait has an end, because a master that is stopped accepts no connection and answers nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zdworker.errors import MessageError, NoInstance, OrderRefused, SeveralInstances
from zdworker.ipc.control_directory import directory_of
from zdworker.ipc.messages import Message, Order, Refused, Report, decode, encode

ANSWER_TIMEOUT_S = 10.0
"""Seconds that a master has to accept a connection and to answer."""

CONNECT_RETRY_S = 0.05
"""Seconds between two tries to connect to a master whose queue of connections is full."""

UNIX_SOCKETS_FILE = "/proc/{}/net/unix"
LISTENING_FLAGS = "00010000"
"""The flags of a listening socket in that file (proc_net_unix(5), __SO_ACCEPTCON)."""


def find(pid: int | None = None, pidfile: str | None = None, path: str | None = None) -> str:
    """Return the path of a master's control socket.

    :raises NoInstance: there is none.
    :raises SeveralInstances: there are several, and none is named.
    """
    if path is not None:
        return path
    if pidfile is not None:
        pid = _read_pidfile(pidfile)
    if pid is not None:
        return _socket_of_process(pid)
    running = list(_running_masters())
    if len(running) == 1:
        return running[0]
    if not running:
        raise NoInstance("no running master was found: start one, or name it with --pid, --pidfile or --socket")
    raise SeveralInstances(f"several masters run, name one with --pid or --socket: {', '.join(running)}")


def _read_pidfile(name: str) -> int:
    try:
        return int(Path(name).read_text().strip())
    except (OSError, ValueError) as error:
        raise NoInstance(f"--pidfile {name} has no pid in it: {error}") from error


def _socket_of_process(pid: int) -> str:
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        raise NoInstance(f"no process has the pid {pid}") from None
    default = directory_of(owner) / f"{pid}.sock"
    if os.path.exists(default):  # not Path.exists(): in another user's directory that raises
        return str(default)
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    for path in _listening_paths(pid):
        with contextlib.suppress(NoInstance, MessageError, OrderRefused, TimeoutError):
            status(path, deadline)
            return path
    raise NoInstance(
        f"the process {pid} has no control socket that can be reached: it is no master of zdworker's, has "
        "zd_control_socket = 'none', or is another user's"
    )


def _listening_paths(pid: int) -> list[str]:
    """Return the paths of the sockets that a process listens on."""
    try:
        targets = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
        lines = Path(UNIX_SOCKETS_FILE.format(pid)).read_text().splitlines()
    except OSError:
        return []
    inodes = {target[8:-1] for target in targets if target.startswith("socket:[")}
    # Num RefCount Protocol Flags Type St Inode Path
    rows = [line.split(None, 7) for line in lines[1:]]
    found = [row[7] for row in rows if len(row) == 8 and row[3] == LISTENING_FLAGS and row[6] in inodes]
    return [path for path in found if path.startswith("/")]


def _running_masters() -> Iterator[str]:
    """Yield the paths of this user's control sockets on which a process listens."""
    named = os.environ.get("ZD_CONTROL_SOCKET", "")
    candidates = [Path(named)] if named.startswith("/") else []
    candidates += sorted(directory_of(os.geteuid()).glob("*.sock"))
    for path in dict.fromkeys(candidates):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            with contextlib.suppress(BlockingIOError):  # its queue of connections is full: it listens
                probe.connect(str(path))
            yield str(path)


def status(path: str, deadline: float | None = None) -> dict[str, Any]:
    """Return the status of the master that listens on ``path``.

    :param deadline: as for :class:`Connection`.
    :raises NoInstance: there is none, or this user may not connect to it.
    :raises OrderRefused: it does not carry the order out.
    :raises MessageError: its answer is not a message.
    :raises TimeoutError: it does not answer in time.
    """
    with Connection(path, deadline) as master:
        answer = master.order(Order("status"))
    if not isinstance(answer, Report):
        raise NoInstance(f"{path} gave a strange answer: {answer!r}")
    return answer.status


class Connection:
    """A connection to a master.

    :param deadline: when to give up connecting and ordering, by ``time.monotonic()``; at the latest after
        :data:`ANSWER_TIMEOUT_S` seconds.
    :raises NoInstance: no process listens there, or this user may not connect.
    :raises TimeoutError: the master does not accept the connection in time.
    """

    def __init__(self, path: str, deadline: float | None = None) -> None:
        self._path = path
        self._deadline = min(time.monotonic() + ANSWER_TIMEOUT_S, math.inf if deadline is None else deadline)
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

    def _connect(self) -> None:
        self._socket.setblocking(False)  # with a timeout, a full queue is an error at once, too (connect(2))
        while True:
            try:
                self._socket.connect(self._path)
                return
            except BlockingIOError:
                if time.monotonic() >= self._deadline:
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

    def order(self, order: Order) -> Message:
        """Send an order and return the first answer.

        :raises NoInstance: the master has ended.
        :raises OrderRefused: it does not carry the order out.
        :raises MessageError: the answer is not a message.
        :raises TimeoutError: there is none in time.
        """
        self._socket.settimeout(max(0.001, self._deadline - time.monotonic()))
        with contextlib.suppress(ConnectionError):  # the master has closed the connection: receive() raises for that
            self._socket.sendall(encode(order))
        return self.receive(self._deadline)

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
                    raise TimeoutError("timed out waiting; what was ordered goes on") from None
                with contextlib.suppress(NoInstance):  # a reload may give the control socket another path
                    status(self._path)
                continue
            if not data:
                raise NoInstance(f"the master on {self._path} has closed the connection: it has ended, or is too busy")
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        answer = decode(line)
        if isinstance(answer, Refused):
            raise OrderRefused(answer.reason)
        return answer
