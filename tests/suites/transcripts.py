"""What a client of the corpus receives, written down so that it can be compared.

Rules:

* All that comes is read until the server closes. When nothing has come for :data:`QUIET_S`, the client ends its side;
  what comes then counts too.
* A reset is an end like any other: whether one comes depends on what was read when the socket was closed.
* What differs by nature is made equal: dates. In a drain the fields that speak of the connection are left out, since
  saying that it ends is what a drain is for. Of a refusal only the status is kept: its words depend on the pieces in
  which a request came.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from tests.suites.raw_requests import ANSWER, PAUSE, SILENCE, Case

KEEPALIVE_S = 3
"""``keepalive`` in service: longer than it takes to send a head a byte at a time."""
QUIET_S = 6.0
"""More than ``keepalive``, and than an answer takes on a machine with other work."""
ANSWER_S = 2.0
"""How long a client waits for an answer before it goes on without."""
PAUSE_S = 0.03
SILENCE_S = 1.0
READ_S = 0.3
"""How long a server has to read the first byte by itself."""
DATE = re.compile(rb"(\r\nDate: )[^\r\n]+", re.IGNORECASE)
REFUSED = re.compile(rb"(HTTP/1\.\d (?:400|413|414|417|431|501|505) [^\r]*\r\n).*", re.DOTALL)
CONNECTION = re.compile(rb"\r\n(?:Connection|Keep-Alive): [^\r\n]*", re.IGNORECASE)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Transcript:
    """All that came, and how it ended: "closed", "closed behind us", "left open"."""

    received: bytes
    end: str

    def in_drain(self) -> Transcript:
        """Return what of it a drain does not change."""
        return Transcript(REFUSED.sub(rb"\1", CONNECTION.sub(b"", self.received)), "")


class Begun(NamedTuple):
    """A connection on which the first byte of a case was sent."""

    socket: socket.socket
    case: Case


def connect(address: tuple[str, int]) -> socket.socket:
    made = socket.create_connection(address, 30)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def begin(address: tuple[str, int], case: Case) -> Begun:
    """Connect, and send one byte."""
    made, first = connect(address), case.steps[0]
    assert isinstance(first, bytes)
    made.sendall(first[:1])
    return Begun(made, Case(case.name, (first[1:], *case.steps[1:])))


def play(begun: Begun) -> Transcript:
    """Do what the client does, and read to the end."""
    received: list[bytes] = []
    end = "closed"
    with begun.socket as client, contextlib.suppress(ConnectionError):
        with contextlib.suppress(ConnectionError):  # it has ended early: what it said is there to be read
            for step in begun.case.steps:
                _take(client, step, received)
        end = _read_to_the_end(client, received)
    return Transcript(DATE.sub(rb"\1*", b"".join(received)), end)


def _take(client: socket.socket, step: bytes | str, received: list[bytes]) -> None:
    if isinstance(step, bytes):
        _send(client, step, received)
    elif step == PAUSE:
        time.sleep(PAUSE_S)
    elif step == ANSWER:
        _read(client, ANSWER_S, received)
    elif step == SILENCE:
        while _read(client, SILENCE_S, received):
            pass


def _read(client: socket.socket, within_s: float, received: list[bytes]) -> bytes | None:
    """Read what comes within a time; return it, or None if nothing does."""
    if not select.select([client], [], [], within_s)[0]:
        return None
    received.append(client.recv(65536))
    return received[-1]


def _read_to_the_end(client: socket.socket, received: list[bytes]) -> str:
    """Read until the server closes, and end our side if that takes long; return how it ended."""
    for end in ("closed", "closed behind us"):
        while piece := _read(client, QUIET_S, received):
            pass
        if piece is not None:
            return end
        client.shutdown(socket.SHUT_WR)
    return "left open"


def _send(client: socket.socket, data: bytes, received: list[bytes]) -> None:
    """Send, and read meanwhile: a server that answers a large pipeline reads no more until its answers are taken."""
    client.setblocking(False)
    try:
        while data:
            readable, writable, _ = select.select([client], [client], [], QUIET_S)
            if writable:
                data = data[client.send(data) :]
            elif readable and (piece := client.recv(65536)):
                received.append(piece)
            else:
                return
    finally:
        client.settimeout(30)


def transcripts(begun: Iterable[Begun], at_once: int) -> dict[str, Transcript]:
    """Play all, ``at_once`` at a time; return what came, by the cases' names."""
    return _at_once(lambda one: (one.case.name, play(one)), begun, at_once)


def of_corpus(
    address: tuple[str, int], cases: Iterable[Case], at_once: int, *, byte_first: bool = False
) -> dict[str, Transcript]:
    """Play all, each on a connection that is made when it is its turn.

    :param byte_first: the first byte comes alone, as with what begins before a drain: parsers word errors differently.
        There are fewer clients at a time then, so that the server does read it alone.
    """

    def one(case: Case) -> tuple[str, Transcript]:
        if not byte_first:
            return case.name, play(Begun(connect(address), case))
        begun = begin(address, case)
        time.sleep(READ_S)
        return case.name, play(begun)

    return _at_once(one, cases, max(at_once // 4, 4) if byte_first else at_once)


def _at_once(
    one: Callable[[Item], tuple[str, Transcript]], items: Iterable[Item], at_once: int
) -> dict[str, Transcript]:
    with ThreadPoolExecutor(at_once) as clients:
        return dict(clients.map(one, items))
