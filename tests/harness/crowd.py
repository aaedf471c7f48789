"""A thousand clients that each keep one connection: do they notice a reload, and how.

Rules:

* Standard library only, but for ``clients.py``, which has what is counted: this file is also the program, which runs in
  a process of its own.
* Each client sends POSTs with bodies of its own on one connection as long as that lasts, and checks what comes back.
  All of them have been answered once when :meth:`Crowd.__enter__` returns.
* Nothing is tried again. An obedient client looks for the end of its connection before it sends, as a careful one does;
  one that is not sends all the same.
* Times are ``time.monotonic()``, the same clock in all processes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.harness.clients import Address, Answer, Failure, request

PATIENCE_S = 60.0
"""Seconds that a client waits for anything."""

CONNECTING = 50
"""Clients that connect at the same time."""


@dataclass(frozen=True)
class Plan:
    """What the clients do.

    :param clients: how many there are.
    :param idle: how many of them ask only twice: in the beginning and in the end.
    :param least_s: seconds that a client rests behind an answer, at least.
    :param most_s: and at most.
    :param bytes: size of a body.
    :param requests: after so many in all the load is over; 0: when :meth:`stop` is called.
    :param obeys: whether the clients obey ``Connection: close`` and look for the end of their connections.
    """

    address: Address
    clients: int = 1000
    idle: int = 0
    least_s: float = 0.1
    most_s: float = 10.0
    bytes: int = 200
    requests: int = 0
    obeys: bool = True


@dataclass
class Seen:
    """What the clients saw.

    :ivar reconnects: when they made connections beside the first of each.
    :ivar told_to_close: how many answers said ``Connection: close``.
    """

    answers: list[Answer]
    failures: list[Failure]
    reconnects: list[float]
    told_to_close: int


class Crowd:
    """The clients in a process of their own, from entering to :meth:`stop`."""

    def __init__(self, address: Address, **plan: Any) -> None:
        self.plan = Plan(address, **plan)
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: Seen | None = None

    def __enter__(self) -> Crowd:
        words = [sys.executable, __file__, json.dumps(asdict(self.plan))]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        started = self._process.stdout.readline()
        assert started == b"answered\n", started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._process is not None:
            self._process.kill()
            self._process.communicate()
        else:
            self.stop()

    def is_over(self) -> bool:
        """Whether all requests have been sent that there should be: then it waits to be stopped."""
        assert self._process is not None
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        try:
            return bool(self._process.stdout.peek(1))  # type: ignore[attr-defined]  # of a BufferedReader
        finally:
            os.set_blocking(self._process.stdout.fileno(), True)

    def stop(self) -> Seen:
        """End the load and return what it saw."""
        if self._seen is None:
            assert self._process is not None
            output, _ = self._process.communicate(timeout=2 * PATIENCE_S)
            plain = json.loads(output.rpartition(b"\n")[2])
            self._seen = Seen(
                [Answer(*answer) for answer in plain["answers"]],
                [Failure(*failure) for failure in plain["failures"]],
                plain["reconnects"],
                plain["told_to_close"],
            )
        return self._seen


class Failed(Exception):
    """A request failed; the text says how."""


class _Client:
    """One client, and its connection as long as there is one."""

    def __init__(self, crowd: _Clients) -> None:
        self._crowd = crowd
        self._connected = False
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self) -> None:
        """Send one request and wait for its answer; note what comes of it."""
        crowd, start = self._crowd, time.monotonic()
        fresh = self._reader is None
        try:
            plain = await asyncio.wait_for(self._answer(), PATIENCE_S)
        except Failed as error:
            how = str(error)
        except asyncio.TimeoutError:
            how = "timeout"
        except asyncio.IncompleteReadError as error:
            how = "cut" if error.partial else "closed"
        except ConnectionRefusedError:
            how = "refused"
        except ConnectionError:
            how = "reset"
        else:
            crowd.answers.append((start, time.monotonic() - start, str(plain["version"]), int(plain["pid"])))
            return
        crowd.failures.append((start, time.monotonic() - start, how, fresh))
        self.close()

    async def _answer(self) -> dict[str, Any]:
        crowd = self._crowd
        if crowd.plan.obeys and self._reader is not None and self._reader.at_eof():
            self.close()
        if self._reader is None or self._writer is None:
            if self._connected:
                crowd.reconnects.append(time.monotonic())
            self._connected = True
            self._reader, self._writer = await asyncio.open_connection(*crowd.plan.address)
        body = random.randbytes(crowd.plan.bytes)
        self._writer.write(request("POST", "/echo", body))
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise Failed(f"status {head[9:12].decode()}")
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        plain = json.loads(await self._reader.readexactly(int(length[15:])))
        assert isinstance(plain, dict)
        if plain["digest"] != hashlib.sha256(body).hexdigest():
            raise Failed("another body")
        if b"\r\nconnection: close" in head:
            crowd.told_to_close += 1
            if crowd.plan.obeys:
                self.close()
        return plain

    def close(self) -> None:
        """Have no connection any more."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


class _Clients:
    """All clients, and their common result."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.answers: list[tuple[float, float, str, int]] = []
        self.failures: list[tuple[float, float, str, bool]] = []
        self.reconnects: list[float] = []
        self.told_to_close = 0
        self._over = asyncio.Event()
        self._turns = asyncio.Semaphore(CONNECTING)

    async def run(self) -> None:
        """Work until standard input ends, then write everything out."""
        clients = [_Client(self) for _ in range(self.plan.clients)]
        await asyncio.gather(*(self._first(client) for client in clients))
        print("answered", flush=True)
        told = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        told.add_done_callback(lambda _: self._over.set())
        tasks = [asyncio.create_task(self._one(client, n < self.plan.idle)) for n, client in enumerate(clients)]
        await asyncio.wait(tasks)
        if self.plan.requests:
            print("over", flush=True)
        await told
        for client in clients:
            client.close()
        seen = {name: getattr(self, name) for name in ("answers", "failures", "reconnects", "told_to_close")}
        json.dump(seen, sys.stdout)

    async def _first(self, client: _Client) -> None:
        async with self._turns:
            await client.ask()

    async def _one(self, client: _Client, idle: bool) -> None:
        """The life of one client, after its first request."""
        while not self._over.is_set():
            rest = None if idle else random.uniform(self.plan.least_s, self.plan.most_s)
            try:
                await asyncio.wait_for(self._over.wait(), rest)
            except asyncio.TimeoutError:
                await client.ask()
                if self.plan.requests and len(self.answers) + len(self.failures) >= self.plan.requests:
                    self._over.set()
        if idle:
            await client.ask()


async def _main() -> None:
    plain = json.loads(sys.argv[1])
    await _Clients(Plan(**{**plain, "address": tuple(plain["address"])})).run()


if __name__ == "__main__":
    asyncio.run(_main())
