"""The load of WebSockets: clients that stay connected, ask ten times a second, and come back when they are closed.

Rules:

* This file imports nothing of the project: it is also the program of the load, a process of its own.
* A socket that the server ends with a close frame (RFC 6455, 5.5.1) was closed in order, unless a question waited for
  its answer. All else that ends one is a failure, and so is a connection that does not come about.
* Times are ``time.monotonic()``, the same clock in all processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter

import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed, WebSocketException

PAUSE = 0.1
PATIENCE = 30.0


class Clients:
    """The clients of one load, and what they saw, as JSON has it."""

    def __init__(self, address: str, number: int) -> None:
        self.address, self.number = address, number
        self.over = asyncio.Event()
        self.answered = asyncio.Event()
        self.answers: list[tuple[float, float, str, int]] = []
        self.failures: list[tuple[float, float, str, bool]] = []
        self.closed: Counter[str] = Counter()

    async def one(self) -> None:
        """The life of one client."""
        while not self.over.is_set():
            began = time.monotonic()
            try:
                async with websockets.asyncio.client.connect(
                    self.address, open_timeout=PATIENCE, close_timeout=1, proxy=None
                ) as socket:
                    await self.talk(socket)
            except (OSError, TimeoutError, WebSocketException) as error:
                self.failures.append((began, time.monotonic() - began, f"connect: {type(error).__name__}", True))
                await asyncio.sleep(PAUSE)

    async def talk(self, socket: websockets.asyncio.client.ClientConnection) -> None:
        """Ask until one side ends it."""
        asked = 0.0
        try:
            while not self.over.is_set():
                began = time.monotonic()
                await socket.send("?")
                asked = began  # a send that raises has asked nothing
                answer = json.loads(await asyncio.wait_for(socket.recv(), PATIENCE))
                self.answers.append((asked, time.monotonic() - asked, answer["version"], answer["pid"]))
                self.answered.set()
                asked = 0.0
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(socket.recv(), PAUSE)  # nothing comes, but the end is noticed
        except (ConnectionClosed, asyncio.TimeoutError) as error:
            self.ended(error, asked)

    def ended(self, error: Exception, asked: float) -> None:
        """Note how a socket ended; ``asked``: when the question was sent that has no answer, or 0."""
        received = error.rcvd if isinstance(error, ConnectionClosed) else None
        how = f"closed {received.code}" if received else "cut" if isinstance(error, ConnectionClosed) else "timeout"
        self.closed[how] += 1
        if asked:
            self.failures.append((asked, time.monotonic() - asked, f"{how}, unanswered", False))
        elif not received:
            self.failures.append((time.monotonic(), 0.0, how, False))


async def run(address: str, number: int) -> None:
    """Work until standard input ends, then write everything out."""
    clients = Clients(address, number)
    tasks = [asyncio.create_task(clients.one()) for _ in range(number)]
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(clients.answered.wait(), PATIENCE)
    print("answered", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    clients.over.set()
    await asyncio.wait(tasks, timeout=PATIENCE)
    seen = {"answers": clients.answers, "failures": clients.failures, "closed": clients.closed}
    seen |= {"reopened": 0, "told_to_close": 0}
    json.dump(seen, sys.stdout)
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int(sys.argv[2])))
