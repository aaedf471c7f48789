"""Memory of a worker over many connections that are made, used and closed.

Rules:

* Most connections end as they should; some are left in the middle of a request, some unused, some reset.
* What counts is growth behind the first round, in which a worker gets what it needs. The worker's objects tell it; its
  memory stands beside, as that also depends on how many connections happened to wait for their end at one time.
"""

from __future__ import annotations

import http.client
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator

from tests.benchmarks.figures import Figure
from tests.benchmarks.rates import CONTESTS, Contest
from tests.benchmarks.servers import Server, serve
from zdworker.syscalls import resident_memory

GOAL = 0.01
"""The most objects that a worker may hold more for each connection."""

ROUNDS = 5
"""Rounds after the first one, which a worker may grow in."""

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close is a reset

SETTLE_S = 7.0
"""Seconds after which connections that were left have had their time."""

BATCH = 50
"""Connections that are open at the same time."""


def _used(client: socket.socket) -> None:
    client.sendall(REQUEST)
    _read(client)


def _used_twice(client: socket.socket) -> None:
    _used(client)
    try:
        _used(client)
    except OSError:
        return  # a class that keeps none


def _asked_to_close(client: socket.socket) -> None:
    client.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    _read(client)


def _left_in_the_middle(client: socket.socket) -> None:
    client.sendall(REQUEST[:20])


def _unused(client: socket.socket) -> None:
    """Send nothing."""


def _reset(client: socket.socket) -> None:
    client.sendall(REQUEST)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def _read(client: socket.socket) -> None:
    data = b""
    while b"}" not in data:
        piece = client.recv(65536)
        if not piece:
            raise ConnectionResetError
        data += piece


MANNERS: tuple[Callable[[socket.socket], None], ...] = (
    *(_used, _used, _used_twice, _used_twice, _asked_to_close),
    *(_used, _used_twice, _left_in_the_middle, _unused, _reset),
)


def _connect(server: Server, number: int) -> None:
    """Make, use and close ``number`` connections, :data:`BATCH` at a time."""
    made = _manners()
    for _ in range(number // BATCH):
        clients = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(BATCH)]
        for client in clients:
            next(made)(client)
            client.close()


def _manners() -> Iterator[Callable[[socket.socket], None]]:
    while True:
        yield from MANNERS


def _held(server: Server) -> tuple[int, int, int]:
    """Return the worker's pid, and how many objects and bytes it holds."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("GET", "/objects", headers={"connection": "close"})
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return answer["pid"], answer["objects"], resident_memory(answer["pid"]) or 0


def growth(contest: Contest, quick: bool) -> Figure:
    """Objects that a worker of zdworker has more behind each connection, over 100,000 of them."""
    number = 1_000 if quick else 20_000
    with serve(f"zdworker.{contest.name}", 1, "", *contest.options, kind=contest.kind) as server:
        found = []
        for _ in range(1 + ROUNDS):
            _connect(server, number)
            time.sleep(SETTLE_S)
            found.append(_held(server))
    if len({pid for pid, _objects, _size in found}) != 1:
        raise RuntimeError("another worker answers")
    objects, sizes = [one[1] for one in found], [one[2] for one in found]
    grown = (objects[-1] - objects[0]) / (ROUNDS * number)
    parts = {
        "objects behind each round": ", ".join(f"{count:,}" for count in objects),
        "resident memory, MiB": ", ".join(f"{size / 2**20:.1f}" for size in sizes),
    }
    name = f"`{contest.name}`: objects left by each of {ROUNDS * number:,} connections"
    return Figure(name, f"at most {GOAL}", f"{grown:.4f}", grown <= GOAL, parts)


def _growth(contest: Contest) -> Callable[[bool], Figure]:
    return lambda quick: growth(contest, quick)


CONNECTIONS = {f"{contest.name}-connections": _growth(contest) for contest in CONTESTS}
