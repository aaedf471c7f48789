"""The listening sockets, all of which the master owns.

Rules:

* A socket that the new configuration names too, by whatever address (``addresses.py``), is kept open, so that no
  connection in its queue is lost.
* A Unix socket whose file is gone, or has given way to another, is one that no client reaches: it does not count as
  open. Only its own file is removed, never that of another server.
* With ``reuse_port`` each slot has a socket of its own, which goes from worker to worker: connections that wait in its
  queue when a worker leaves or dies are answered by the next one. The first slot's socket is the one that Gunicorn
  knows; each other one is opened when its slot gets its first worker.
* The kernel spreads connections over the sockets of an address whether a process accepts from them or not. So the
  master selects the sockets that get connections (:meth:`Listeners.steer`): those of slots with a ready worker. A
  socket that goes away gets no more connections, is accepted empty, and is closed after that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gunicorn import sock

from zdworker.core.fleet import Fleet, WorkerState
from zdworker.errors import GenerationError
from zdworker.forkserver import worker_boot
from zdworker.master.addresses import Key, Place, path_key
from zdworker.master.observers import Observer
from zdworker.plain import attributes, set_attributes

HANDSHAKE_S = 0.25
"""Seconds for which the worker of a slot that goes away keeps accepting, at least: a handshake ends in the socket in
which it began."""

SO_ATTACH_REUSEPORT_CBPF = 51  # include/uapi/asm-generic/socket.h; socket(7)
_LOAD_RANDOM = (0x20, 0, 0, 0xFFFFF000 + 56)  # BPF_LD | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_RANDOM
_MODULO, _JUMP_IF_EQUAL, _RETURN = 0x94, 0x15, 0x06  # include/uapi/linux/bpf_common.h
_TCP_INFO_UNACKED = 24  # offset in struct tcp_info, include/uapi/linux/tcp.h; of a listener: its queue's length


@dataclass(eq=False)
class Group:
    """The sockets of one address, in the order in which the kernel numbers them.

    ``sockets`` and ``slots`` are parallel lists: each socket, and the slot that it belongs to.

    :param first: the one that Gunicorn has opened; it belongs to the first slot.
    :param socket_per_slot: whether each slot has a socket of its own; else all slots have ``first``.
    :param place: the address of ``bind`` that it was opened for; None for a socket that was handed over by systemd or
        by an old master. Such a one stays for as long as no ``bind`` has named it.
    """

    first: Any
    socket_per_slot: bool
    place: Place | None
    slots: list[int] = field(default_factory=lambda: [0])
    sockets: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sockets.append(self.first)
        self.handed_over = self.place is None or isinstance(self.place.key, int)
        name = self.first.getsockname()
        name = os.fsdecode(name) if isinstance(name, bytes) else name  # an abstract one
        path = name if isinstance(name, str) and name and not name.startswith("\0") else None
        if path is not None and self.handed_over and not os.path.isabs(path):
            path = None  # it starts in a directory that is not known here
        self._path = os.path.abspath(path) if path is not None else None
        self._file = _file_identity(self._path)
        self._text = f"unix:{self._path}" if self._path else str(self.first)
        self._names: set[Key] = {path_key(self._path, "/") if self._path else name}
        if self.place is not None:
            self._names |= {self.place.address, self.place.key}

    def __str__(self) -> str:
        return self._text

    def is_named(self, place: Place) -> bool:
        """Return whether this is the socket that an address means, and clients that go there reach it."""
        return place.key in self._names and (self.handed_over or self._has_its_file())

    def has_lost(self, place: Place) -> bool:
        """Return whether another server has put its file in the place of this socket's."""
        return place.key in self._names and not self._has_its_file() and _file_identity(self._path) is not None

    def _has_its_file(self) -> bool:
        # The inode is not reused for another file while the socket is open.
        return _file_identity(self._path) == self._file

    def unlink(self) -> None:
        """Remove the file of a Unix socket, if it is this socket's."""
        if self._path and self._file and self._has_its_file():
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def close(self, slot: int) -> None:
        """Close the socket of a slot; the last socket takes its number (``reuseport_detach_sock`` in the kernel)."""
        position = self.slots.index(slot)
        # A child of the application may hold a copy. The shutdown removes the socket from the kernel's group even so.
        with contextlib.suppress(OSError):
            self.sockets[position].shutdown(socket.SHUT_RDWR)
        self.sockets[position].close()
        self.slots[position], self.sockets[position] = self.slots[-1], self.sockets[-1]
        del self.slots[-1], self.sockets[-1]


class Listeners(Observer):
    """All open listening sockets, of all configurations."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._groups: list[Group] = []
        self._live: frozenset[int] = frozenset()

    def take(self, listeners: Iterable[Any], places: Iterable[Place | None], socket_per_slot: bool) -> None:
        """Take over sockets that Gunicorn has opened.

        :param places: the address of each; None for one that was handed over.
        :param socket_per_slot: whether each slot gets a socket of its own for these addresses.
        """
        for listener, place in zip(listeners, places, strict=True):
            # Gunicorn makes them inheritable for its own re-exec, which is not used here; no fork server may get them.
            os.set_inheritable(listener.fileno(), False)
            self._groups.append(Group(listener, socket_per_slot and _can_have_socket_per_slot(listener), place))

    def to_state(self, keep: Callable[[int], int]) -> dict[str, Any]:
        """Return the sockets, for :meth:`adopt` in another program of this process (an upgrade).

        :param keep: has a descriptor go along, and returns its number.
        """
        return {
            "live": self._live,
            "groups": [
                {
                    "first": group.sockets.index(group.first),
                    "socket_per_slot": group.socket_per_slot,
                    "place": group.place,
                    "sockets": [(keep(one.fileno()), one.cfg_addr) for one in group.sockets],
                    "facts": attributes(group, but=("first", "socket_per_slot", "place", "sockets")),
                }
                for group in self._groups
            ],
        }

    def adopt(self, state: dict[str, Any], cfg: Any) -> dict[int, Any]:
        """Go on with the sockets that :meth:`to_state` has returned.

        :param cfg: the configuration in force.
        :return: Gunicorn's listener for each descriptor.
        """
        self._live = state["live"]
        found: dict[int, Any] = {}
        for known in state["groups"]:
            for number, address in known["sockets"]:
                found[number] = worker_boot.listener(number, cfg, self._log)
                found[number].cfg_addr = address
            first, _address = known["sockets"][known["first"]]
            group = Group(found[first], known["socket_per_slot"], known["place"])
            set_attributes(group, known["facts"])
            group.sockets = [found[number] for number, _address in known["sockets"]]
            self._groups.append(group)
        return found

    def open(self, cfg: Any, places: Sequence[Place]) -> list[Any]:
        """Return the listeners for addresses: those that are open already, and new ones for new addresses.

        Those that were handed over and that no ``bind`` has named are among them.

        :param cfg: the configuration with which new ones are opened.
        :raises GenerationError: a new one cannot be opened; those that this call has opened are closed again.
        """
        known = len(self._groups)
        found: list[Group] = []
        try:
            for place in places:
                found.append(self._find(place, found) or self._open(place, cfg))
        except GenerationError:
            for group in self._groups[known:]:
                self._close(group)
            raise
        for group in self._groups[known:]:
            self._log.info("Now listening at: %s", group)
        for place, group in zip(places, found, strict=True):
            group.place = group.place or place
        found += [group for group in self._groups if group.place is None]
        return [group.first for group in dict.fromkeys(found)]

    def claims(self, place: Place) -> bool:
        """Return whether an address is open already; the socket belongs to it from now on."""
        group = self._find(place)
        if group is not None:
            group.place = group.place or place
        return group is not None

    def _find(self, place: Place, taken: Sequence[Group] = ()) -> Group | None:
        """Return the sockets that an address means, None if there are none.

        :param taken: those of other addresses, for an address whose port the kernel chooses.
        """
        named = (group for group in self._groups if group.is_named(place))
        return next((group for group in named if not (place.any_port and group in taken)), None)

    def _open(self, place: Place, cfg: Any) -> Group:
        if isinstance(place.key, int):
            raise GenerationError(
                f"{place} cannot be opened by a reload: a descriptor is handed over at the start, and closed when bind "
                "does not name it; that needs a restart"
            )
        if any(group.has_lost(place) for group in self._groups):
            raise GenerationError(f"{place} is the socket of another server now: stop that one, or remove the file")
        address = place.key[:2] if isinstance(place.key, tuple) else place.key
        if isinstance(place.address, str) and os.path.isabs(place.address):
            address = place.address  # its physical path may be too long for a socket
        try:
            if place.error:
                raise OSError(place.error)
            with _umask_restored(address):
                listener = sock._sock_type(address)(address, cfg, self._log)
        except (OSError, ValueError, OverflowError) as error:
            raise GenerationError(f"the new address {place} cannot be opened: {error}") from error
        self.take([listener], [place], cfg.reuse_port)
        return self._groups[-1]

    def listens(self, place: Place) -> bool:
        """Return whether an address is listened on, by the kernel's account of its socket."""
        group = self._find(place)
        try:
            return group is not None and bool(group.first.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        except (OSError, AttributeError):  # it is closed; Gunicorn's wrapper has no socket then
            return False

    def every(self) -> list[Any]:
        """Return all sockets that are open."""
        return [listener for group in self._groups for listener in group.sockets]

    def keep(self, used: list[Any]) -> None:
        """Close the addresses that are not among ``used``."""
        for group in [g for g in self._groups if g.first not in used]:
            closed = str(group)
            self._close(group)
            self._log.info("Closed: %s", closed)

    def _close(self, group: Group) -> None:
        self._groups.remove(group)
        if not group.handed_over:
            group.unlink()
        for listener in group.sockets:
            listener.close()

    def close(self, unlink: bool) -> None:
        """Close all sockets, and remove the files of Unix sockets if ``unlink`` is set, as Gunicorn does."""
        groups, self._groups = self._groups, []
        for group in groups:
            if unlink:
                group.unlink()
            for listener in group.sockets:
                with contextlib.suppress(OSError):
                    listener.close()

    # -- reuse_port ----------------------------------------------------------------------------------------------

    def of_slot(self, slot: int, listeners: list[Any]) -> list[Any]:
        """Return the sockets from which the worker of ``slot`` accepts, one for each of ``listeners``.

        :raises OSError: a socket for a new slot cannot be opened.
        """
        return [self._socket(group, slot) for group in map(self._group_of, listeners)]

    def _group_of(self, listener: Any) -> Group:
        return next(group for group in self._groups if group.first is listener)

    def _socket(self, group: Group, slot: int) -> Any:
        if not group.socket_per_slot:
            return group.first
        if slot not in group.slots:
            first = group.first
            # Not the configuration's address, which may leave the port to the kernel.
            group.sockets.append(type(first)(first.getsockname(), first.conf, self._log))
            group.slots.append(slot)
            os.set_inheritable(group.sockets[-1].fileno(), False)
            self._attach(group)
        return group.sockets[group.slots.index(slot)]

    def observe(self, fleet: Fleet, now: float) -> None:
        """With ``reuse_port``: steer connections to slots with a ready worker, and close the sockets of gone slots."""
        if not any(group.socket_per_slot for group in self._groups):
            return
        workers = fleet.workers.values()
        self.steer(worker.slot for worker in workers if worker.state is WorkerState.READY)
        self.keep_slots({*range(fleet.size), *(worker.slot for worker in workers)})

    def slots(self) -> set[int]:
        """Return the slots that have a socket of their own."""
        return {slot for group in self._groups if group.socket_per_slot for slot in group.slots}

    def keep_slots(self, slots: Iterable[int]) -> None:
        """Close the sockets of all slots but these; the first slot's is kept as long as its address."""
        kept = {0, *slots}
        for group in self._groups:
            for slot in [number for number in group.slots if number not in kept]:
                group.close(slot)
                self._attach(group)

    def steer(self, live: Iterable[int]) -> None:
        """Have the kernel give new connections to the sockets of the slots ``live`` only; without any, to all."""
        wanted = frozenset(live)
        if wanted != self._live:
            self._live = wanted
            for group in self._groups:
                self._attach(group)

    def _attach(self, group: Group) -> None:
        if not group.socket_per_slot:
            return
        positions = [position for position, slot in enumerate(group.slots) if slot in self._live]
        program = _program(positions or list(range(len(group.slots))))
        buffer = ctypes.create_string_buffer(program)
        option = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))  # struct sock_fprog
        # A kernel without this option keeps spreading connections by their hash.
        with contextlib.suppress(OSError):
            group.first.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, option)

    def waiting(self, slot: int) -> int:
        """Return the number of connections that wait to be accepted in the sockets of ``slot`` alone."""
        own = [g.sockets[g.slots.index(slot)] for g in self._groups if g.socket_per_slot and slot in g.slots]
        return sum(_queue_length(listener) for listener in own)


@contextlib.contextmanager
def _umask_restored(address: Key) -> Iterator[None]:
    """Restore the umask if the body raises: Gunicorn leaves it changed when a Unix socket cannot be bound."""
    umask = os.umask(0) if isinstance(address, str) else None
    if umask is not None:
        os.umask(umask)
    try:
        yield
    except BaseException:
        if umask is not None:
            os.umask(umask)
        raise


def _file_identity(path: str | None) -> tuple[int, int] | None:
    """Return what tells a file from every other; None without a file."""
    try:
        found = os.stat(path) if path else None
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found else None


def _can_have_socket_per_slot(listener: Any) -> bool:
    return sys.platform.startswith("linux") and listener.family in (socket.AF_INET, socket.AF_INET6)


def _program(positions: list[int]) -> bytes:
    """Return a classic BPF program that picks one of ``positions`` at random (networking/filter.rst in Linux)."""
    code = [_LOAD_RANDOM, (_MODULO, 0, 0, len(positions))]
    for number, position in enumerate(positions):
        code += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, position)]
    code.append((_RETURN, 0, 0, positions[0]))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _queue_length(listener: Any) -> int:
    with contextlib.suppress(OSError, struct.error):
        information = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        return int(struct.unpack_from("=I", information, _TCP_INFO_UNACKED)[0])
    return 0
