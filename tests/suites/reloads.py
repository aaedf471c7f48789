"""Requests that go on through a reload."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.harness.clients import Broken, Client
from tests.harness.server import Server

CLIENTS = 4


@dataclass
class Answers:
    """What the clients have got: a line for each request that failed, and how many did not."""

    failures: list[str] = field(default_factory=list)
    good: int = 0


def ask(server: Server, answers: Answers, path: str, body: bytes | None) -> None:
    """Send one request after the other on keep-alive connections, until the server says that one ends."""
    with Client(server.address) as client:
        for _ in range(20):
            if client.ended():
                return
            reply = client.ask("GET" if body is None else "POST", path, body)
            if reply.status == 200:
                answers.good += 1
            else:
                answers.failures.append(f"{reply.status} {reply.body[:200]!r}")
            if reply.last:
                return


@contextlib.contextmanager
def asking(server: Server, *requests: tuple[str, bytes | None]) -> Iterator[Answers]:
    """Have clients send ``requests``, paths and bodies, until the end of the ``with`` block."""
    answers, over = Answers(), threading.Event()

    def client(path: str, body: bytes | None) -> None:
        while not over.wait(0.01):
            try:
                ask(server, answers, path, body)
            except Broken as error:
                answers.failures.append(f"{path}: {error}")

    threads = [threading.Thread(target=client, args=requests[n % len(requests)]) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()


def in_thread(function: Callable[[], object]) -> threading.Thread:
    """Run ``function`` beside the test."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread
