"""The control socket: what the ``zdworker`` command talks to.

Rules:

* The socket has mode 0600 in a directory of mode 0700, and the kernel says who connects: this user, or root.
* One message is one line of JSON (``zdworker.ipc.messages``), from an :class:`~zdworker.ipc.messages.Order` on.
* No client can hold up the master: it is read when something has come, a bounded piece at a time; what it does not read
  fast enough is not kept for it; who says nothing is sent away; and there are only so many.
* A client that waits hears of the first reload that began after its order and came to an end. One that a newer reload
  overtakes is none: the newer one's code is newer still.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zdworker import syscalls
from zdworker.core.fleet import Fleet, WorkerState
from zdworker.core.rollout import CALLED_OFF
from zdworker.errors import ControlError, GenerationError
from zdworker.ipc.channel import Channel
from zdworker.ipc.control_directory import directory_of
from zdworker.ipc.messages import COMMANDS, Message, Order, Outcome, Progress, Refused, Report
from zdworker.master import status

if TYPE_CHECKING:
    from zdworker.master.supervisor import Supervisor

MOST_CLIENTS = 64
"""Clients at a time; more are turned away."""

PATIENCE = 10.0
"""Seconds that a client has for its order."""

ORDER_LIMIT = 4096
"""Bytes that an order may have."""

ROOM = 1 << 20
"""Bytes that may lie between the master and a client that does not read."""


@dataclass
class Client:
    """One connection. ``after`` is the last generation that does not count for what it waits for; None: it does not."""

    channel: Channel
    after: int | None = None
    rolls_back: bool = False
    told: Progress | None = None


class Control:
    """The server's side.

    :param supervisor: carries out what is asked for.
    :param roll_back: asks for a rollback; raises GenerationError.
    """

    def __init__(self, supervisor: Supervisor, roll_back: Callable[[], None]) -> None:
        self.path = ""
        self._supervisor = supervisor
        self._roll_back = roll_back
        self._listener: socket.socket | None = None
        self._clients: dict[int, Client] = {}

    # -- the socket ----------------------------------------------------------------------------------------------

    def open(self, path: str) -> None:
        """Listen on ``path``, and nowhere else any more.

        :param path: "" for none.
        :raises ControlError: that cannot be; what was open is open still.
        """
        if path == self.path:
            return
        listener = _listen(path) if path else None
        self._close_listener()
        self.path, self._listener = path, listener
        if listener is not None:
            self._supervisor.reactor.add(listener.fileno(), self._accept)

    def close(self) -> None:
        """Listen no more, and let go of every client."""
        self._close_listener()
        for client in list(self._clients.values()):
            self._drop(client)

    def _close_listener(self) -> None:
        if self._listener is None:
            return
        self._supervisor.reactor.remove(self._listener.fileno())
        self._listener.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        self.path, self._listener = "", None

    def _accept(self) -> None:
        assert self._listener is not None  # noqa: S101 (for the type checker: it is what has become readable)
        try:
            connection, _address = self._listener.accept()
        except OSError:
            return  # gone again, or no descriptor is free: it is asked again with the next poll
        if len(self._clients) >= MOST_CLIENTS or syscalls.peer_uid(connection) not in (None, 0, os.geteuid()):
            connection.close()
            return
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
        client = Client(Channel(connection, ORDER_LIMIT))
        self._clients[connection.fileno()] = client
        self._supervisor.reactor.add(connection.fileno(), lambda: self._hear(client))
        self._supervisor.reactor.later(PATIENCE, lambda: self._drop_silent(client))

    # -- clients -------------------------------------------------------------------------------------------------

    def _drop_silent(self, client: Client) -> None:
        if client.after is None:
            self._drop(client)

    def _drop(self, client: Client) -> None:
        descriptor = client.channel.fileno()
        if descriptor >= 0 and self._clients.pop(descriptor, None) is not None:
            self._supervisor.reactor.remove(descriptor)
            client.channel.close()

    def _hear(self, client: Client) -> None:
        received = client.channel.receive()
        for message, _sender in received.messages:
            if client.after is None:  # one order at a time
                self._answer(client, message)
        if received.error:
            self._say(client, Refused(f"{received.error}; send one JSON object a line: {_USAGE}"))
        if received.closed or received.error or client.channel.descriptors:
            self._drop(client)

    def _answer(self, client: Client, message: Message) -> None:
        if not isinstance(message, Order) or message.command not in COMMANDS:
            self._say(client, Refused(f"not an order: {message!r}; send {_USAGE}"))
            return
        try:
            self._carry_out(client, message)
        except GenerationError as error:
            client.after = None
            self._say(client, Refused(f"there can be no {message.command}: {error}"))
        else:
            if not message.wait:
                self._say(client, Report(self._supervisor.status()))

    def _carry_out(self, client: Client, order: Order) -> None:
        if order.command == "status":
            return
        if self._supervisor.core.fleet.stopping:
            raise GenerationError("the master is stopping")
        if order.command == "reload":
            client.after = self._supervisor.core.fleet.last_generation if order.wait else None
            self._supervisor.reload_by_order()
        else:
            # It may end at once, and always with a generation that exists already.
            client.after, client.rolls_back = 0 if order.wait else None, True
            self._roll_back()

    def _say(self, client: Client, message: Message) -> None:
        try:
            client.channel.send(message)
        except OSError:
            self._drop(client)  # it is gone, or does not read

    # -- who waits -----------------------------------------------------------------------------------------------

    def look(self, fleet: Fleet) -> None:
        """Tell those who wait how far it is."""
        waiting = [client for client in self._clients.values() if client.after is not None]
        if not waiting:
            return
        progress = _progress(fleet)
        for client in waiting:
            if progress != client.told:
                client.told = progress
                self._say(client, progress)

    def finished(self, reload: status.Reload, fleet: Fleet) -> None:
        """Tell those who wait for a reload how it has ended."""
        for client in list(self._clients.values()):
            # A rollback calls off what loads, and the reload that was to come after it: whoever waits for that, too.
            if client.after is not None and (reload.generation > client.after or reload.error == CALLED_OFF):
                client.after = None
                self._say(client, _outcome(reload, fleet, client.rolls_back))

    def stuck(self, reason: str, traceback: str, fleet: Fleet) -> None:
        """Tell those who wait that a reload goes on without success: it has no way back, and tries again and again."""
        duration = 0.0 if self._supervisor.journal.last is None else self._supervisor.journal.last.lasted()
        for client in [client for client in self._clients.values() if client.after is not None]:
            client.after = None
            serving = status.serving(fleet) or 0
            self._say(client, Outcome("degraded", fleet.reloading or 0, duration, serving, reason, traceback))


def _outcome(reload: status.Reload, fleet: Fleet, rolls_back: bool) -> Outcome:
    serving, duration = status.serving(fleet) or 0, reload.lasted()
    if rolls_back and reload.error == CALLED_OFF:
        return Outcome("done", serving, duration, serving)
    result, error = reload.result or "failed", reload.error or ""
    return Outcome(result, reload.generation, duration, serving, error, reload.traceback or "")


_USAGE = ", ".join(f'{{"type": "order", "command": "{command}"}}' for command in COMMANDS)


def _progress(fleet: Fleet) -> Progress:
    loading = fleet.loading.generation if fleet.loading is not None else None
    generation = loading or fleet.reloading or (fleet.current[-1] if fleet.current else 0)
    ready = sum(w.generation == generation and w.state is WorkerState.READY for w in fleet.workers.values())
    return Progress(fleet.state, generation, ready, fleet.size)


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Before it has a name: there is no moment in which another user could connect (Linux; elsewhere the directory
        # keeps them out, and the peer is checked).
        os.fchmod(listener.fileno(), 0o600)
        _remove_dead(path)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise ControlError(f"the control socket {path} cannot be opened: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


def _remove_dead(path: str) -> None:
    """Remove a socket that nobody listens on: its master was killed.

    :raises OSError: somebody does.
    """
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise FileExistsError(0, "there is a file, and it is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise FileExistsError(0, "another master listens there")


def default_path(pid: int) -> str:
    """Return the path of the control socket of the master ``pid``, in a directory that is this user's alone.

    :raises ControlError: there can be no such directory.
    """
    directory = directory_of(os.geteuid())
    try:
        directory.mkdir(mode=0o700, parents=False, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise ControlError(f"{directory} cannot be made for the control socket: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ControlError(f"{directory} is not a directory that only this user can enter: no control socket in there")
    for left in directory.glob("*.sock"):
        with contextlib.suppress(OSError):
            _remove_dead(str(left))
    return str(directory / f"{pid}.sock")
