"""The command's side of the control socket: finding a running master, and talking to it.

Rules:

* A master is named by its pid, its pidfile or its socket; without a name it is the only one that runs. Where there are
  several, none is guessed.
* What the kernel knows is asked, not the log or a name: which sockets a process listens on.
* Every failure is a line that says what to do.
* Every wait has an end: a master may be stopped, and then it accepts nothing and answers nothing.
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

PATIENCE = 10.0
"""Seconds that a master has to accept a connection and to answer."""

CONNECT_RETRY_S = 0.05
"""Seconds between two tries to connect to a master whose queue of connections is full."""

SOCKETS = "/proc/{}/net/unix"
LISTENING = "00010000"
"""Flag of a listening socket in that file (proc_net_unix(5), __SO_ACCEPTCON)."""


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
        return _of_process(pid)
    running = list(_running())
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


def _of_process(pid: int) -> str:
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        raise NoInstance(f"no process has the pid {pid}") from None
    default = directory_of(owner) / f"{pid}.sock"
    if os.path.exists(default):  # not Path.exists(): in another user's directory that raises
        return str(default)
    until = time.monotonic() + PATIENCE
    for path in _listening(pid):
        with contextlib.suppress(NoInstance, MessageError, OrderRefused, TimeoutError):
            status(path, until)
            return path
    raise NoInstance(
        f"the process {pid} has no control socket that can be reached: it is no master of zdworker's, has "
        "zd_control_socket = 'none', or is another user's"
    )


def _listening(pid: int) -> list[str]:
    """Return the paths of the sockets that a process listens on."""
    try:
        targets = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
        lines = Path(SOCKETS.format(pid)).read_text().splitlines()
    except OSError:
        return []
    inodes = {target[8:-1] for target in targets if target.startswith("socket:[")}
    # Num RefCount Protocol Flags Type St Inode Path
    rows = [line.split(None, 7) for line in lines[1:]]
    found = [row[7] for row in rows if len(row) == 8 and row[3] == LISTENING and row[6] in inodes]
    return [path for path in found if path.startswith("/")]


def _running() -> Iterator[str]:
    """Yield the control sockets of this user that somebody listens on."""
    named = os.environ.get("ZD_CONTROL_SOCKET", "")
    candidates = [Path(named)] if named.startswith("/") else []
    candidates += sorted(directory_of(os.geteuid()).glob("*.sock"))
    for path in dict.fromkeys(candidates):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            with contextlib.suppress(BlockingIOError):  # its queue of connections is full: it listens
                probe.connect(str(path))
            yield str(path)


def status(path: str, until: float | None = None) -> dict[str, Any]:
    """Return how things are with the master that listens on ``path``.

    :param until: as for :class:`Conversation`.
    :raises NoInstance: there is none, or it is not ours to ask.
    :raises TimeoutError: it does not answer in time.
    """
    with Conversation(path, until) as master:
        answer = master.order(Order("status"))
    if not isinstance(answer, Report):
        raise NoInstance(f"{path} gave a strange answer: {answer!r}")
    return answer.status


class Conversation:
    """A connection to a master.

    :param until: when to give up connecting and ordering, by ``time.monotonic()``; never later than in
        :data:`PATIENCE` seconds.
    :raises NoInstance: nobody listens there, or this user may not.
    :raises TimeoutError: the master does not accept the connection in time.
    """

    def __init__(self, path: str, until: float | None = None) -> None:
        self._path = path
        self._until = min(time.monotonic() + PATIENCE, math.inf if until is None else until)
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
        self._socket.setblocking(False)  # a timeout would not do: a full queue fails at once with one (connect(2))
        while True:
            try:
                self._socket.connect(self._path)
                return
            except BlockingIOError:
                if time.monotonic() >= self._until:
                    text = f"the master on {self._path} accepts no connection: it is stopped, or has too much to do"
                    raise TimeoutError(text) from None
                time.sleep(CONNECT_RETRY_S)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._socket.close()

    def order(self, order: Order) -> Message:
        """Give an order, and return the first answer.

        :raises NoInstance: the master is gone.
        :raises OrderRefused: it does not carry it out.
        :raises TimeoutError: there is none in time.
        """
        self._socket.settimeout(max(0.001, self._until - time.monotonic()))
        with contextlib.suppress(ConnectionError):  # it has closed the connection at once: hear() says so
            self._socket.sendall(encode(order))
        return self.hear(self._until)

    def hear(self, until: float | None) -> Message:
        """Return the next answer.

        :param until: when to give up, by ``time.monotonic()``; None: when the master is silent, and does not answer
            another client either.
        :raises NoInstance: the master has ended.
        :raises OrderRefused: it does not carry the order out.
        :raises TimeoutError: there is none in time.
        """
        while b"\n" not in self._rest:
            self._socket.settimeout(PATIENCE if until is None else max(0.001, until - time.monotonic()))
            try:
                data = self._socket.recv(65536)
            except ConnectionError:
                data = b""
            except TimeoutError:
                if until is not None:
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
