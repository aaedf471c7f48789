"""What the addresses of ``bind`` mean, and which of them mean the same socket.

Rules:

* An address is what Gunicorn makes of an entry of ``bind`` (``gunicorn.util.parse_address``): a host and a port, the
  path of a Unix socket, or the number of a descriptor (``fd://``).
* Its key is what the kernel calls the socket (``getsockname(2)``), with the physical directory of a path. Two addresses
  with one key mean the same socket: ``localhost:80`` and ``127.0.0.1:80``, ``app.sock`` and its absolute path.
* The key of a descriptor is its number. It is a name and nothing more: Gunicorn closes the descriptor when it has made
  a socket of it, and the number may be another file's by now.
* To resolve a host may take long, so the master's loop does not do it.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gunicorn import systemd, util

from zdworker.errors import GenerationError

PORT_MAX = 65_535
"""The largest port (RFC 9293, 3.1)."""

Key = int | str | tuple[Any, ...]


@dataclass(frozen=True)
class Place:
    """One address of ``bind``, and its key.

    ``error`` is why its host could not be resolved, empty if it was; the key is the address itself then.
    """

    address: Key
    key: Key
    error: str = ""

    def __str__(self) -> str:
        if isinstance(self.address, int):
            return f"fd://{self.address}"
        if isinstance(self.address, str):
            return f"unix:{self.address}"
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def any_port(self) -> bool:
        """Whether the kernel chooses the port: then each such address is a socket of its own."""
        return isinstance(self.key, tuple) and self.key[1] == 0


def handed_over() -> list[int]:
    """Return the descriptors that systemd (sd_listen_fds(3)) or an old master hands over, as Gunicorn does."""
    number = systemd.listen_fds(unset_environment=False)
    if number:
        return list(range(systemd.SD_LISTEN_FDS_START, systemd.SD_LISTEN_FDS_START + number))
    given = os.environ.get("GUNICORN_FD", "") if "GUNICORN_PID" in os.environ else ""
    return [int(number) for number in given.split(",") if number]


def places(cfg: Any, directory: str) -> list[Place]:
    """Return the addresses of a configuration. This may take long: it resolves hosts.

    :param directory: where relative paths start.
    :raises GenerationError: an entry of ``bind`` is not an address.
    """
    try:
        return [_place(address, directory) for address in cfg.address]
    except RuntimeError as error:
        raise GenerationError(f"bind cannot be used: {error}") from error


def _place(address: Key, directory: str) -> Place:
    if isinstance(address, int):
        return Place(address, address)
    if isinstance(address, str):
        return Place(address, path_key(address, directory))
    host, port = address
    family = socket.AF_INET6 if util.is_ipv6(host) else socket.AF_INET  # as Gunicorn chooses it
    try:
        resolved, _, *rest = socket.getaddrinfo(host or None, 0, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ][4]
    except (OSError, UnicodeError) as error:
        return Place(address, address, str(error))
    return Place(address, (resolved, port, *rest))


def path_key(path: str, directory: str) -> str:
    """Return the key of a Unix socket: its name in the physical directory; an abstract one has no directory."""
    if path.startswith("\0"):
        return path
    head, name = os.path.split(os.path.join(directory, path))
    return os.path.join(os.path.realpath(head), name)


def keys(found: Iterable[Place]) -> set[Key]:
    """Return the keys of addresses."""
    return {place.key for place in found}


def shown(found: Iterable[Place]) -> str:
    """Return addresses for a reader."""
    return ", ".join(map(str, found)) or "nothing"


def refuse_unusable(found: Sequence[Place]) -> None:
    """Refuse a ``bind`` with which a start would fail, or listen nowhere.

    :raises GenerationError: it names no address, a port that there is not, or one socket twice.
    """
    if not found:
        raise GenerationError("bind names no address")
    known: dict[Key, Place] = {}
    for place in found:
        if isinstance(place.address, tuple) and not 0 <= place.address[1] <= PORT_MAX:
            raise GenerationError(f"bind names {place}: a port is a number from 0 to {PORT_MAX}")
        if place.key in known and not place.any_port:
            raise GenerationError(f"bind names the same socket twice: {known[place.key]} and {place}")
        known[place.key] = place


def refuse_unusable_at_start(found: Sequence[Place], handed_over: Sequence[int]) -> None:
    """Refuse a ``bind`` with which Gunicorn would end with a traceback, or listen nowhere.

    :param handed_over: the numbers of the descriptors that systemd or an old master hands over.
    :raises GenerationError: see :func:`refuse_unusable`; or a descriptor that it names is no socket.
    """
    if not handed_over:  # else bind is not used, or beside what an old master has opened
        refuse_unusable(found)
    for place in found:
        if place.key in handed_over:
            raise GenerationError(f"bind names {place}, which is handed over anyway: leave it out of bind")
        if isinstance(place.key, int) and not _is_socket(place.key):
            raise GenerationError(f"bind names {place}, but descriptor {place.key} is no open socket")


def _is_socket(number: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:
        return False
