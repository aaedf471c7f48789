"""The listening sockets, all of which the master owns.

Rules:

* A socket whose address is in the new configuration too is kept open, so that no connection in its queue is lost.
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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gunicorn import sock

from zdworker.core.fleet import Fleet, WorkerState
from zdworker.errors import GenerationError
from zdworker.master.observers import Observer

HANDSHAKE_S = 0.25
"""Seconds for which the worker of a slot that goes away keeps accepting, at least: a handshake ends in the socket in
which it began."""

SO_ATTACH_REUSEPORT_CBPF = 51  # include/uapi/asm-generic/socket.h; socket(7)
_LOAD_RANDOM = (0x20, 0, 0, 0xFFFFF000 + 56)  # BPF_LD | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_RANDOM
_MODULO, _JUMP_IF_EQUAL, _RETURN = 0x94, 0x15, 0x06  # include/uapi/linux/bpf_common.h
_TCP_INFO_UNACKED = 24  # offset in struct tcp_info, include/uapi/linux/tcp.h; of a listener: its queue's length


@dataclass
class Group:
    """The sockets of one address, in the order in which the kernel numbers them.

    ``sockets`` and ``slots`` are parallel lists: each socket, and the slot that it belongs to.

    :param first: the one that Gunicorn has opened; it belongs to the first slot.
    :param socket_per_slot: whether each slot has a socket of its own; else all slots have ``first``.
    """

    first: Any
    socket_per_slot: bool
    slots: list[int] = field(default_factory=lambda: [0])
    sockets: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sockets.append(self.first)

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

    def take(self, listeners: Iterable[Any], socket_per_slot: bool) -> None:
        """Take over sockets that Gunicorn has opened.

        :param socket_per_slot: whether each slot gets a socket of its own for these addresses.
        """
        for listener in listeners:
            # Gunicorn makes them inheritable for its own re-exec, which is not used here; no fork server may get them.
            os.set_inheritable(listener.fileno(), False)
            self._groups.append(Group(listener, socket_per_slot and _can_have_socket_per_slot(listener)))

    def open(self, cfg: Any, known: Mapping[Any, Any]) -> list[Any]:
        """Return the listeners for the addresses of ``cfg``.

        :param known: those that are open already, by address.
        :raises GenerationError: a new one cannot be opened; those that this call has opened are closed again.
        """
        found = dict(known)
        opened: list[Any] = []
        for address in cfg.address:
            if address in found:
                continue
            try:
                found[address] = sock._sock_type(address)(address, cfg, self._log)
            except (OSError, ValueError, TypeError) as error:
                for listener in opened:
                    listener.close()
                raise GenerationError(f"the new address {address!r} cannot be opened: {error}") from error
            opened.append(found[address])
        self.take(opened, cfg.reuse_port)
        return [found[address] for address in cfg.address]

    def every(self) -> list[Any]:
        """Return all sockets that are open."""
        return [listener for group in self._groups for listener in group.sockets]

    def keep(self, used: list[Any]) -> None:
        """Close the addresses that are not among ``used``."""
        for group in [g for g in self._groups if g.first not in used]:
            self._groups.remove(group)
            for listener in group.sockets:
                listener.close()

    def close(self, unlink: bool) -> None:
        """Close all sockets, and remove the files of Unix sockets if ``unlink`` is set, as Gunicorn does."""
        every, self._groups = self.every(), []
        for listener in every:
            with contextlib.suppress(OSError):
                sock.close_sockets([listener], unlink)

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
