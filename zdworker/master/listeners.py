"""The listening sockets, all of them the master's.

Rules:

* A socket whose address the new configuration still has is kept as it is: nothing in its queue may get lost.
* With ``reuse_port`` each slot has a socket of its own, which goes from worker to worker: what waits in its queue when
  a worker leaves or dies is answered by the next one. The first slot's is the one that Gunicorn knows; the others are
  made when their slot gets its first worker.
* The kernel spreads connections over the sockets of an address whether anybody accepts or not. So it is told which
  ones to take (:meth:`Listeners.steer`): those of slots with a ready worker. A socket that is to go away gets nothing
  more, is accepted empty, and only then closed.
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
"""Seconds, at least, in which the socket of a slot that goes away is accepted empty before its worker has to leave: a
handshake that has begun ends in the socket in which it began."""

SO_ATTACH_REUSEPORT_CBPF = 51  # include/uapi/asm-generic/socket.h; socket(7)
_LOAD_RANDOM = (0x20, 0, 0, 0xFFFFF000 + 56)  # BPF_LD | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_RANDOM
_MODULO, _JUMP_IF_EQUAL, _RETURN = 0x94, 0x15, 0x06  # include/uapi/linux/bpf_common.h
_TCP_INFO_UNACKED = 24  # offset in struct tcp_info, include/uapi/linux/tcp.h; of a listener: its queue's length


@dataclass
class Group:
    """The sockets of one address, in the order in which the kernel numbers them.

    :param first: Gunicorn's own, and the first slot's.
    :param shared_out: each slot has its own; else all have the first.
    """

    first: Any
    shared_out: bool
    slots: list[int] = field(default_factory=lambda: [0])
    sockets: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sockets.append(self.first)

    def close(self, slot: int) -> None:
        """Close the socket of a slot; the last one takes its number (``reuseport_detach_sock`` in the kernel)."""
        place = self.slots.index(slot)
        # A child of the application may hold it too; shut down, it leaves the kernel's group all the same.
        with contextlib.suppress(OSError):
            self.sockets[place].shutdown(socket.SHUT_RDWR)
        self.sockets[place].close()
        self.slots[place], self.sockets[place] = self.slots[-1], self.sockets[-1]
        del self.slots[-1], self.sockets[-1]


class Listeners(Observer):
    """What is open, whichever configuration it belongs to."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._groups: list[Group] = []
        self._live: frozenset[int] = frozenset()

    def take(self, listeners: Iterable[Any], share_out: bool) -> None:
        """Take over what Gunicorn has opened.

        :param share_out: each slot shall have its own socket for these addresses.
        """
        for listener in listeners:
            # Gunicorn makes them inheritable for its own re-exec, which is not used. A fork server must not have them.
            os.set_inheritable(listener.fileno(), False)
            self._groups.append(Group(listener, share_out and _can_be_shared_out(listener)))

    def open(self, cfg: Any, known: Mapping[Any, Any]) -> list[Any]:
        """Return the listeners for the addresses of ``cfg``.

        :param known: those that are open already, by address.
        :raises GenerationError: a new one cannot be opened; nothing is left of the attempt.
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
        """Close all, and ``unlink`` those that have a path, as Gunicorn does."""
        every, self._groups = self.every(), []
        for listener in every:
            with contextlib.suppress(OSError):
                sock.close_sockets([listener], unlink)

    # -- reuse_port ----------------------------------------------------------------------------------------------

    def of_slot(self, slot: int, listeners: list[Any]) -> list[Any]:
        """Return what the worker of ``slot`` is to accept from, for each of ``listeners``.

        :raises OSError: a socket for a new slot cannot be opened.
        """
        return [self._socket(group, slot) for group in map(self._group_of, listeners)]

    def _group_of(self, listener: Any) -> Group:
        return next(group for group in self._groups if group.first is listener)

    def _socket(self, group: Group, slot: int) -> Any:
        if not group.shared_out:
            return group.first
        if slot not in group.slots:
            first = group.first
            # Not the configuration's address: that may leave the port to the kernel.
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
        return {slot for group in self._groups if group.shared_out for slot in group.slots}

    def keep_slots(self, slots: Iterable[int]) -> None:
        """Close the sockets of all slots but these; the first one's stays as long as its address does."""
        kept = {0, *slots}
        for group in self._groups:
            for slot in [number for number in group.slots if number not in kept]:
                group.close(slot)
                self._attach(group)

    def steer(self, live: Iterable[int]) -> None:
        """Have new connections go to the sockets of the slots ``live`` only. Without any they go to all."""
        wanted = frozenset(live)
        if wanted != self._live:
            self._live = wanted
            for group in self._groups:
                self._attach(group)

    def _attach(self, group: Group) -> None:
        if not group.shared_out:
            return
        places = [place for place, slot in enumerate(group.slots) if slot in self._live]
        program = _program(places or list(range(len(group.slots))))
        buffer = ctypes.create_string_buffer(program)
        option = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))  # struct sock_fprog
        # Where the kernel does not know it, connections are spread by their hash, as for everybody else.
        with contextlib.suppress(OSError):
            group.first.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, option)

    def waiting(self, slot: int) -> int:
        """Return how many connections wait to be accepted in the sockets that are only for ``slot``."""
        own = [g.sockets[g.slots.index(slot)] for g in self._groups if g.shared_out and slot in g.slots]
        return sum(_queue_length(listener) for listener in own)


def _can_be_shared_out(listener: Any) -> bool:
    return sys.platform.startswith("linux") and listener.family in (socket.AF_INET, socket.AF_INET6)


def _program(places: list[int]) -> bytes:
    """Return a classic BPF program that picks one of ``places`` at random (networking/filter in the kernel's docs)."""
    code = [_LOAD_RANDOM, (_MODULO, 0, 0, len(places))]
    for number, place in enumerate(places):
        code += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, place)]
    code.append((_RETURN, 0, 0, places[0]))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _queue_length(listener: Any) -> int:
    with contextlib.suppress(OSError, struct.error):
        information = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        return int(struct.unpack_from("=I", information, _TCP_INFO_UNACKED)[0])
    return 0
