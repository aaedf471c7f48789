"""The control socket, on which the master takes orders from the ``zdworker`` command.

Rules:

* The socket has mode 0600 in a directory of mode 0700, and the kernel names the user of each client: only this user and
  root may order.
* One message is one line of JSON (``zdworker.ipc.messages``). The first one is an
  :class:`~zdworker.ipc.messages.Order`.
* No client can block the master. A client is read when its socket is readable, a bounded piece at a time, and in each
  turn of the loop one order of all clients is answered. A client that does not read its answers or sends no order in
  time is disconnected. The number of clients is limited.
* Each order gets an answer. A client that waits gets the outcome of the first reload that started after its order. A
  newer reload that ends while that one is rolled out (it cannot be loaded, say) is not the client's. A superseded
  reload does not end the wait, because the reload that superseded it loads even newer code; where that is done, the
  client's outcome says that its own reload was superseded.
* A socket at a path that the settings name has a link in the directory where the command looks, so that it finds every
  master of its user.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from zdworker import syscalls, texts
from zdworker.core import events
from zdworker.core.fleet import Fleet
from zdworker.core.history import Requester
from zdworker.core.rollout import CALLED_OFF
from zdworker.errors import ControlError, GenerationError
from zdworker.ipc.channel import Channel
from zdworker.ipc.control_directory import directory_of, is_private
from zdworker.ipc.messages import (
    COMMANDS,
    HOLD_MAX_S,
    SCALE_MAX,
    History,
    Message,
    Order,
    Outcome,
    Probe,
    Progress,
    Refused,
    Report,
    Upgraded,
    UpgradeStep,
)
from zdworker.master.observers import Observer, Reload
from zdworker.master.reactor import Reactor
from zdworker.master.status import rolled_out, serving_generation
from zdworker.plain import attributes, set_attributes
from zdworker.settings import Settings

MAX_CLIENTS = 64
"""Clients at a time; further ones are disconnected at once."""

ORDER_TIMEOUT_S = 10.0
"""Seconds that a client has to send its order."""

ORDER_MAX_BYTES = 4096
"""Bytes that an order may have."""

SILENCE_CHECK_INTERVAL_S = 1.0
"""Seconds between two looks for silent clients."""

ACCEPT_RETRY_S = 0.5
"""Seconds without a look at those who want to connect, when the master has no descriptor or memory for one more."""

FILES_INTERVAL_S = 10.0
"""Seconds between two looks whether the socket's file is still there."""

ANSWERED_AT_ONCE = ("status", "history", "scale", "probe")
"""The orders of which nothing is to be waited for."""

CLIENT_BUFFER_BYTES = 1 << 20
"""Bytes of answers that the kernel holds for a client that does not read."""


_ACCEPTED: dict[type[Message], int] = {Order: ORDER_MAX_BYTES}
"""What a client may send."""


class Orders(Protocol):
    """The orders that a client may give, and what answers need; the supervisor is one."""

    @property
    def fleet(self) -> Fleet:
        """The facts."""

    def status(self) -> dict[str, Any]:
        """Return what ``zdworker status --json`` prints."""

    def history(self) -> list[dict[str, Any]]:
        """Return what ``zdworker history --json`` prints."""

    def reload(self, who: Requester, hold: float | None = None) -> None:
        """Start a rolling reload; with ``hold`` it stops at its canary, for so many seconds at the most."""

    def probe(self) -> tuple[int, socket.socket]:
        """Return the generation of the canary that is held, and a connection to that.

        :raises GenerationError: there can be none.
        """

    def resume(self) -> None:
        """Have a reload go on that stands at its canary.

        :raises GenerationError: there is none.
        """

    def roll_back(self, who: Requester) -> None:
        """Start to undo the newest reload.

        :raises GenerationError: there is no reload that can be undone.
        """

    def scale(self, workers: int) -> None:
        """Ask for this number of workers."""

    def upgrade(self, who: Requester) -> None:
        """Begin to replace the master's program.

        :raises GenerationError: that is impossible.
        """

    def waiting(self) -> tuple[str, int] | None:
        """Return what a reload waits for, as a line for users, and the seconds left for it; None if for nothing."""


@dataclass
class Client:
    """One connection.

    ``peer`` is its process, as far as the kernel tells. ``after`` is the newest generation before the client's order,
    None if the client does not wait. ``rolls_back`` means that it waits for a rollback, ``holds`` that it waits for a
    canary, ``upgrades`` that it waits for an upgrade. ``superseded`` is the generation that its own order has loaded,
    if a newer reload took its place. ``progress`` is the message that was sent to it last. ``orders`` have come and are
    not answered yet. After the last one the client is refused for ``error``, or dropped if it is ``leaving``.
    ``active_at`` is when it came or its last order was answered, by ``time.monotonic()``.
    """

    channel: Channel
    peer: syscalls.Peer | None = None
    after: int | None = None
    rolls_back: bool = False
    holds: bool = False
    upgrades: bool = False
    superseded: int | None = None
    progress: Progress | None = None
    orders: collections.deque[Message] = field(default_factory=collections.deque)
    error: str = ""
    leaving: bool = False
    active_at: float = field(default_factory=time.monotonic)


class Control(Observer):
    """The master's side of the control socket.

    :param orders: carries out what clients order.
    :param log: the master's logger.
    """

    def __init__(self, orders: Orders, reactor: Reactor, log: Any) -> None:
        self.path = ""
        self._inode: tuple[int, int] | None = None
        self._link = ""
        self._orders = orders
        self._reactor = reactor
        self._log = log
        self._listener: socket.socket | None = None
        self._clients: dict[int, Client] = {}
        self._with_orders: collections.deque[Client] = collections.deque()
        self._checks_silence = False
        self._latest: Reload | None = None
        reactor.call_later(FILES_INTERVAL_S, self._restore_files)

    # -- the socket ----------------------------------------------------------------------------------------------

    def configuration_changed(self, settings: Settings) -> None:
        """Listen where the settings say; a failure is only logged, because serving needs no control socket."""
        wanted = settings.control_socket
        self._remove_link()  # the new socket may be where it is
        try:
            self.open("" if wanted == "none" else wanted or default_path(os.getpid()))
        except ControlError as error:
            self._log.warning("The zdworker command will not reach this master: %s", error)
        self._place_link()

    def open(self, path: str) -> None:
        """Listen on ``path``, and close the socket that was open before.

        :param path: "" for none.
        :raises ControlError: that is impossible; the socket before stays open.
        """
        if path == self.path and (not path or os.path.lexists(path)):
            return
        listener = _listen(path) if path else None
        self._close_listener()
        self.path, self._listener = path, listener
        if listener is not None:
            self._inode = _inode_of(path)
            self._reactor.add(listener.fileno(), self._accept)
            self._log.info("The zdworker command reaches this master at %s", path)

    def _place_link(self) -> None:
        """Have the command find a socket that is not in the default directory; without a link it has to be named."""
        if not self.path:
            return
        with contextlib.suppress(ControlError, OSError):
            link, target = default_path(os.getpid()), os.path.abspath(self.path)
            if target != link:
                os.symlink(target, link)
                self._link = link

    def _remove_link(self) -> None:
        if self._link:
            with contextlib.suppress(OSError):
                os.unlink(self._link)
            self._link = ""

    def _restore_files(self) -> None:
        """Have the socket and the link come back if somebody has removed them: logind when the user has logged out, or
        systemd when a unit ends that shares the runtime directory.
        """
        is_lost = bool(self.path) and not os.path.lexists(self.path)
        if is_lost:
            with contextlib.suppress(ControlError):
                own_directory()
            with contextlib.suppress(ControlError):  # tried again the next time
                self.open(self.path)
        if is_lost or (self._link and not os.path.lexists(self._link)):
            self._place_link()
        self._reactor.call_later(FILES_INTERVAL_S, self._restore_files)

    def to_state(self, keep: Callable[[int], int]) -> dict[str, Any]:
        """Return the socket and the clients, for :meth:`adopt` in another program of this process (an upgrade).

        :param keep: has a descriptor go along, and returns its number.
        """
        return {
            "facts": {name: getattr(self, name) for name in ("path", "_inode", "_link", "_latest")},
            "listener": keep(self._listener.fileno()) if self._listener is not None else None,
            "clients": [
                {"channel": client.channel.to_state(keep), "facts": attributes(client, but=("channel",))}
                for client in self._clients.values()
            ],
        }

    def adopt(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`to_state` has returned."""
        set_attributes(self, state["facts"])
        if state["listener"] is not None:
            self._listener = socket.socket(fileno=state["listener"])
            self._listener.setblocking(False)
            self._reactor.add(self._listener.fileno(), self._accept)
        for known in state["clients"]:
            client = Client(Channel.from_state(known["channel"], _ACCEPTED))
            set_attributes(client, known["facts"])
            self._clients[client.channel.fileno()] = client
            self._reactor.add(client.channel.fileno(), partial(self._receive, client))
            if client.orders:
                self._reactor.pause(client.channel.fileno())
                self._with_orders.append(client)
        if self._with_orders:
            self._reactor.call_later(0.0, self._answer_next)
        self._check_silence()

    def close(self) -> None:
        """Close the socket and the connections of all clients."""
        self._close_listener()
        for client in list(self._clients.values()):
            self._drop(client)

    def _close_listener(self) -> None:
        if self._listener is None:
            return
        self._reactor.remove(self._listener.fileno())
        self._listener.close()
        with contextlib.suppress(OSError):
            if _inode_of(self.path) == self._inode:  # else another master has put its own socket there
                os.unlink(self.path)
        self._remove_link()
        self.path, self._listener = "", None

    def _accept(self) -> None:
        assert self._listener is not None  # noqa: S101 (for the type checker: it is what has become readable)
        try:
            connection, _address = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # it has left
        except OSError:
            # No descriptor or memory is free: the listener stays readable, and each poll would end at once.
            listener = self._listener.fileno()
            self._reactor.pause(listener)
            self._reactor.call_later(ACCEPT_RETRY_S, lambda: self._reactor.resume(listener))
            return
        peer = syscalls.peer(connection)
        if len(self._clients) >= MAX_CLIENTS or (peer is not None and peer.uid not in (0, os.geteuid())):
            connection.close()
            return
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CLIENT_BUFFER_BYTES)
        client = Client(Channel(connection, _ACCEPTED), peer)
        self._clients[connection.fileno()] = client
        self._reactor.add(connection.fileno(), lambda: self._receive(client))
        self._check_silence()

    def _check_silence(self) -> None:
        if self._clients and not self._checks_silence:
            self._checks_silence = True
            self._reactor.call_later(SILENCE_CHECK_INTERVAL_S, self._drop_silent)

    # -- clients -------------------------------------------------------------------------------------------------

    def _drop_silent(self) -> None:
        """Disconnect the clients that neither wait nor order anything; look again later if some are left.

        One timer for all: one for each would be kept until its time, for clients that left long ago.
        """
        since = time.monotonic() - ORDER_TIMEOUT_S
        for client in list(self._clients.values()):
            waits = client.after is not None or client.upgrades
            if not waits and not client.orders and client.active_at <= since:
                self._drop(client)
        self._checks_silence = bool(self._clients)
        if self._checks_silence:
            self._reactor.call_later(SILENCE_CHECK_INTERVAL_S, self._drop_silent)

    def _drop(self, client: Client) -> None:
        descriptor = client.channel.fileno()
        if descriptor >= 0 and self._clients.pop(descriptor, None) is not None:
            self._reactor.remove(descriptor)
            client.channel.close()
            client.orders.clear()

    def _receive(self, client: Client) -> None:
        """Read a piece of what a client has sent; no more is read of it until that is answered."""
        received = client.channel.receive(ORDER_MAX_BYTES)
        client.orders.extend(message for message, _sender in received.messages)
        client.error, client.leaving = received.error, received.closed
        if not client.orders:
            self._end_if_over(client)
            return
        self._reactor.pause(client.channel.fileno())
        self._with_orders.append(client)
        if len(self._with_orders) == 1:
            self._reactor.call_later(0.0, self._answer_next)

    def _answer_next(self) -> None:
        """Answer one order, of the client whose turn it is; the others have theirs in the next turns of the loop."""
        client = self._with_orders.popleft()
        if client.orders:
            client.active_at = time.monotonic()
            self._answer(client, client.orders.popleft())
        if client.channel.fileno() >= 0:  # else it did not read its answer
            if client.orders:
                self._with_orders.append(client)
            else:
                self._reactor.resume(client.channel.fileno())
                self._end_if_over(client)
        if self._with_orders:
            self._reactor.call_later(0.0, self._answer_next)

    def _end_if_over(self, client: Client) -> None:
        if client.error:
            self._send(client, Refused(f"{client.error}; send one JSON object a line: {_USAGE}"))
        if client.error or client.leaving:
            self._drop(client)

    def _answer(self, client: Client, message: Message) -> None:
        if not isinstance(message, Order) or message.command not in COMMANDS:
            self._send(client, Refused(f"not an order: {message!r}; send {_USAGE}"))
            return
        if (client.after is not None or client.upgrades) and message.command not in ANSWERED_AT_ONCE:
            self._send(client, Refused(f"there can be no {message.command}: the order before it is not done yet"))
            return
        try:
            if message.command == "probe":
                self._probe(client)
                return
            self._carry_out(client, message)
        except GenerationError as error:
            client.after, client.upgrades = None, False
            self._send(client, Refused(f"there can be no {message.command}: {error}"))
        else:
            if message.command == "history":
                self._send(client, History(self._orders.history()))
            elif not message.wait or message.command in ANSWERED_AT_ONCE:
                self._send(client, Report(self._orders.status()))

    def _probe(self, client: Client) -> None:
        generation, connection = self._orders.probe()
        with connection:
            self._send(client, Probe(generation, ["connection"]), [connection.fileno()])

    def _carry_out(self, client: Client, order: Order) -> None:
        if order.command in ("status", "history"):
            return
        if self._orders.fleet.stopping:
            raise GenerationError("the master is stopping")
        if order.command == "scale":
            if not 0 <= order.workers <= SCALE_MAX:
                raise GenerationError(f"{order.workers} is not a number of workers from 0 to {SCALE_MAX}")
            self._orders.scale(order.workers)
            return
        if order.command == "upgrade":
            client.upgrades = order.wait
            self._orders.upgrade(_process(client.peer))
            return
        client.superseded, client.rolls_back, client.holds = None, order.command == "rollback", order.hold_s > 0
        if order.command == "reload":
            if not 0 <= order.hold_s <= HOLD_MAX_S:
                raise GenerationError(f"{order.hold_s:g} is not a number of seconds from 0 to {HOLD_MAX_S:g}")
            client.after = self._orders.fleet.last_generation if order.wait else None
            self._orders.reload(_process(client.peer), order.hold_s or None)
        elif order.command == "resume":
            client.after = (self._orders.fleet.reloading or 1) - 1 if order.wait else None
            self._orders.resume()
        else:
            # A rollback may end at once, and goes to a generation that exists already, so every generation counts.
            client.after = 0 if order.wait else None
            self._orders.roll_back(_process(client.peer))

    def _send(self, client: Client, message: Message, descriptors: list[int] | None = None) -> None:
        try:
            client.channel.send(_for_program(message), descriptors)
        except OSError:
            self._drop(client)  # the client has left, or does not read

    # -- clients that wait ---------------------------------------------------------------------------------------

    def observe(self, fleet: Fleet, now: float) -> None:
        """Send the progress to the clients that wait."""
        waiting = [client for client in self._clients.values() if client.after is not None]
        if not waiting:
            return
        progress = _progress(fleet, self._orders.waiting())
        for client in waiting:
            if progress != client.progress:
                client.progress = progress
                self._send(client, progress)

    def upgrade_progress(self, step: str) -> None:
        """Send to the clients that wait for an upgrade which step of it begins."""
        for client in [client for client in self._clients.values() if client.upgrades]:
            self._send(client, UpgradeStep(step))

    def upgrade_ended(self, upgrade: Upgraded) -> None:
        """Send the outcome of an upgrade to the clients that wait for it."""
        for client in [client for client in self._clients.values() if client.upgrades]:
            client.upgrades, client.active_at = False, time.monotonic()
            self._send(client, upgrade)

    def reload_started(self, reload: Reload) -> None:
        """Remember the newest reload; answer the clients whose reload a rollback has called off before it began."""
        self._latest = reload
        if not reload.rollback:
            return
        # It begins only where no reload is under way, so these wait for one that was to follow a fork server's restart.
        for client in list(self._clients.values()):
            if client.after is not None and not client.rolls_back:
                client.after, client.active_at = None, time.monotonic()
                result, serving = events.Outcome.ROLLED_BACK.value, serving_generation(self._orders.fleet) or 0
                self._send(client, Outcome(result, reload.generation, 0.0, serving, CALLED_OFF))
            elif client.after is not None:
                # Theirs is this one: from here on they wait for it as for any reload.
                client.after, client.rolls_back = reload.generation - 1, False

    def canary_ready(self, generation: int, held: bool, fleet: Fleet) -> None:
        """Answer the clients that wait for a canary that is held."""
        duration_s = 0.0 if self._latest is None else self._latest.duration_s()
        for client in list(self._clients.values()):
            if held and client.holds and client.after is not None and generation > client.after:
                client.after, client.active_at = None, time.monotonic()
                self._send(client, Outcome("held", generation, duration_s, serving_generation(fleet) or 0))

    def reload_finished(self, reload: Reload, fleet: Fleet) -> None:
        """Send the outcome to the clients that wait for it."""
        for client in list(self._clients.values()):
            # A rollback also calls off a reload that is loading, and one that was to follow it.
            undone = reload.result is events.Outcome.ROLLED_BACK
            if client.after is None or not (reload.generation > client.after or undone):
                continue
            goes_on = fleet.reloading is not None and client.after < fleet.reloading < reload.generation
            if goes_on and not client.rolls_back:
                continue  # its own is rolled out, whatever becomes of a newer one that was to follow
            if reload.result is events.Outcome.SUPERSEDED:
                client.superseded = client.superseded or reload.generation
                continue
            client.after, client.active_at = None, time.monotonic()
            self._send(client, _outcome(reload, fleet, client))

    def degraded(self, reason: str, traceback: str, fleet: Fleet) -> None:
        """Answer the clients that wait for a reload that makes no progress and cannot go back, and is retried."""
        if fleet.reloading is None or not fleet.newest_verified:  # a canary that fails is turned back, or goes on
            return
        duration_s = 0.0 if self._latest is None else self._latest.duration_s()
        serving = serving_generation(fleet) or 0
        for client in list(self._clients.values()):
            if client.after is not None and fleet.reloading > client.after:  # else it waits for newer code
                client.after, client.active_at = None, time.monotonic()
                self._send(client, Outcome("degraded", fleet.reloading, duration_s, serving, reason, traceback))


def _process(peer: syscalls.Peer | None) -> Requester:
    """Return the process of a client, as far as it is known."""
    if peer is None:
        return Requester()
    name = syscalls.process_name(peer.pid) if peer.pid else None
    return Requester(uid=peer.uid, pid=peer.pid or None, command=texts.line(name) if name else None)


def _for_program(message: Message) -> Message:
    fields = {field.name: texts.for_json(getattr(message, field.name)) for field in dataclasses.fields(message)}
    return dataclasses.replace(message, **fields)


def _outcome(reload: Reload, fleet: Fleet, client: Client) -> Outcome:
    serving, duration_s = serving_generation(fleet) or 0, reload.duration_s()
    if client.rolls_back and reload.result is events.Outcome.ROLLED_BACK:
        return Outcome("done", serving, duration_s, serving)
    if client.superseded and reload.result is events.Outcome.DONE:
        reason = f"a newer reload took its place: its generation {reload.generation} serves"
        return Outcome(events.Outcome.SUPERSEDED.value, client.superseded, duration_s, serving, reason)
    result, words = reload.result or events.Outcome.FAILED, (reload.error or "", reload.traceback or "")
    named = {
        **dataclasses.asdict(reload.cost),
        **{name: getattr(reload, name) for name in ("label", "judgement", "note")},
    }
    return Outcome(result.value, reload.generation, duration_s, serving, *words, **named)


_USAGE = ", ".join(f'{{"type": "order", "command": "{command}"}}' for command in COMMANDS)


def _progress(fleet: Fleet, waiting: tuple[str, int] | None) -> Progress:
    return Progress(fleet.state, *rolled_out(fleet), fleet.size, *(waiting or ()))


def _inode_of(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The mode is set before the socket has a name, so that no other user can ever connect (on Linux; elsewhere the
        # directory's mode keeps other users out, and the peer's user is checked).
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
    """Remove a socket that no process listens on, because its master was killed.

    :raises OSError: a process listens on it.
    """
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise FileExistsError(0, "there is a file, and it is no socket")
    if _is_listened_on(path):
        raise FileExistsError(0, "another master listens there")
    os.unlink(path)


def _remove_dead_link(path: str) -> None:
    """Remove a link to a socket that no process listens on; anything else stays."""
    if os.path.islink(path) and not _is_listened_on(path):
        os.unlink(path)


def _is_listened_on(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # with the queue of a stopped process full, the connect would wait for that process
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            pass  # its queue is full: it listens
    return True


def own_directory() -> Path:
    """Return the directory for what this user's masters have there, which no other user can enter, and which exists.

    :raises ControlError: it cannot be made, or other users can enter it.
    """
    directory = directory_of(os.geteuid())
    try:
        directory.mkdir(mode=0o700, parents=False, exist_ok=True)
        private = is_private(directory, os.geteuid())
    except OSError as error:
        raise ControlError(f"{directory} cannot be made for the control socket: {error.strerror}") from error
    if not private:
        raise ControlError(f"{directory} is not a directory that only this user can enter: no control socket in there")
    return directory


def default_path(pid: int) -> str:
    """Return the default path of the control socket of the master ``pid``, in a directory for this user alone.

    Sockets in there on which no master listens any more are removed.

    :raises ControlError: the directory cannot be made, or other users can enter it.
    """
    directory = own_directory()
    path = directory / f"{pid}.sock"
    for left in directory.glob("*.sock"):
        with contextlib.suppress(OSError):
            _remove_dead_link(str(left))
            if left != path:
                _remove_dead(str(left))
    return str(path)
