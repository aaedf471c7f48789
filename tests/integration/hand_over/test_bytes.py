"""No byte of a request is lost, and none is answered twice, however it arrives around the hand-over."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random

import pytest

from tests.harness.clients import request
from tests.harness.server import Server, Start
from tests.harness.worker_classes import HANDING_OVER, WorkerClass, for_each

KEEPALIVE_S = 300
RELOADS = 3


class Sender:
    """A client on one connection that sends requests in pieces of random sizes, some of them two at once."""

    def __init__(self, seed: int, most_bytes: int, pipelines: bool) -> None:
        self._random = random.Random(seed)
        self._most_bytes = most_bytes
        self._pipelines = pipelines
        self.answered = 0

    async def run(self, server: Server, over: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection(*server.address)
        while not over.is_set():
            bodies = [self._random.randbytes(self._random.randint(0, 60)) for _ in range(1 + self._pipelines)]
            data = b"".join(request("POST", "/echo", body) for body in bodies)
            while data:
                size = self._random.randint(1, self._most_bytes)
                writer.write(data[:size])
                data = data[size:]
                await asyncio.sleep(self._random.choice((0, 0, 0.0005)))
            for body in bodies:
                assert await self._digest(reader) == hashlib.sha256(body).hexdigest()
                self.answered += 1
        writer.close()

    async def _digest(self, reader: asyncio.StreamReader) -> str:
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).lower()
        assert head.startswith(b"http/1.1 200")
        assert b"connection: close" not in head
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        return str(json.loads(await reader.readexactly(int(length[15:])))["digest"])


@pytest.mark.load
@for_each(HANDING_OVER)
def test_each_byte_is_answered_once(start_class: Start, worker: WorkerClass) -> None:
    server = start_class(worker, workers=2, keepalive=KEEPALIVE_S, preload_app=True)
    kinds = [(1, False), (40, False)] + [(1, True), (400, True)] * worker.pipelines
    senders = [Sender(number, *kinds[number % len(kinds)]) for number in range(24)]

    async def run() -> None:
        over = asyncio.Event()
        tasks = [asyncio.create_task(sender.run(server, over)) for sender in senders]
        for number in range(RELOADS):
            await asyncio.to_thread(server.reload, f"v{number}")
        over.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert all(sender.answered for sender in senders)
