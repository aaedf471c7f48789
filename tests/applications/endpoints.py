"""What each endpoint of the application under test means, whatever serves it. A copy of this file lies beside app.py.

Rules:

* Nothing here knows a server. The applications (asgi_app.py, wsgi_app.py, tornado_app.py and those of the frameworks)
  turn a request into a path and a query, and send what they get here in the way of their server.
* Nothing but the standard library is imported; every answer names the version and the pid that gave it.
* An endpoint that waits yields what it waits for and does not wait itself, so that one definition serves threads and
  event loops. Its request is marked when it begins.
* Marks are single appends, so that lines of several processes never mix.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

MEGABYTE = 1_000_000
FIXED_BODY = b"ok\n"
"""What ``/fixed`` answers in every version and process: ``ab`` counts another length as a failure."""
RELEASE_CHECK_INTERVAL_S = 0.05
STREAM_PIECES_PER_S = 10

Query = Mapping[str, str]
Facts = dict[str, Any]


class Wait(NamedTuple):
    """A time in which an endpoint does nothing. With ``in_thread`` it passes in a thread that nothing can interrupt."""

    seconds: float
    in_thread: bool = False


def wait(step: Wait) -> None:
    """Wait in this thread, or for a further one."""
    if step.in_thread:
        ThreadPoolExecutor(1).submit(time.sleep, step.seconds).result()
    else:
        time.sleep(step.seconds)


async def wait_async(step: Wait) -> None:
    """Wait without holding the event loop."""
    if step.in_thread:
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, step.seconds)
    else:
        await asyncio.sleep(step.seconds)


class Digest:
    """A body that was read: ``/echo`` answers its length and its digest."""

    def __init__(self, body: bytes = b"") -> None:
        self._digest, self._length = hashlib.sha256(), 0
        self.add(body)

    def add(self, piece: bytes) -> None:
        """Take the next piece of the body."""
        self._digest.update(piece)
        self._length += len(piece)

    def facts(self) -> Facts:
        return {"length": self._length, "digest": self._digest.hexdigest()}


class Endpoints:
    """The endpoints of one version.

    :param version: what answers and marks name.
    :param marks: the file of marks. The file ``release`` beside it ends what ``/hold`` waits for.
    """

    def __init__(self, version: str, marks: str) -> None:
        self.version = version
        self._marks = marks
        self._release = os.path.join(os.path.dirname(marks), "release")
        self._kept: list[bytes] = []
        self.at_once: dict[str, Callable[[Query], Facts]] = {
            "/": lambda query: {},
            "/abandon": self._abandon,
            "/allocate": self._allocate,
            "/environment": lambda query: {"value": os.environ.get(query["name"])},
            "/fork": self._fork,
            "/identity": lambda query: {"uid": os.geteuid(), "gid": os.getegid(), "directory": os.getcwd()},
        }
        """What answers at once: the facts of the answer, beside version and pid."""
        self.waiting: dict[str, Callable[[Query], Iterator[Wait]]] = {
            "/executor": lambda query: iter([Wait(float(query["seconds"]), in_thread=True)]),
            "/hold": lambda query: self._until_released(),
            "/sleep": lambda query: iter([Wait(float(query["seconds"]))]),
        }
        """What answers after it has waited; the answer has no further facts."""
        self.streaming: dict[str, Callable[[Query], Iterator[Wait | bytes]]] = {
            "/large": self._large,
            "/stream": self._stream,
        }
        """What sends a body in pieces."""

    def mark(self, event: str, **facts: Any) -> None:
        """Append one line to the file of marks; ``time.monotonic()`` is the same clock in all processes."""
        line = json.dumps({"event": event, **self.facts(time=time.monotonic(), **facts)})
        descriptor = os.open(self._marks, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)

    def started(self) -> None:
        """Mark the start of a worker; where there is no lifespan, the hook ``post_worker_init`` calls this."""
        self.mark("startup")

    def ended(self) -> None:
        """Mark the end of a worker; where there is no lifespan, the hook ``worker_exit`` calls this."""
        self.mark("shutdown")

    def facts(self, **further: Any) -> Facts:
        return {"version": self.version, "pid": os.getpid(), **further}

    def body(self, **further: Any) -> bytes:
        """Return the body of an answer with these facts."""
        return json.dumps(self.facts(**further)).encode()

    def head(self) -> list[tuple[str, str]]:
        """Return the header fields of every answer."""
        return [("X-Version", self.version), ("X-Pid", str(os.getpid()))]

    def wait(self, path: str, query: Query) -> None:
        """Begin a request to an endpoint that waits, and wait in this thread until it may answer."""
        self.mark("request", path=path)
        for step in self.waiting[path](query):
            wait(step)

    async def wait_async(self, path: str, query: Query) -> None:
        """Begin a request to an endpoint that waits, and wait until it may answer, without holding the event loop."""
        self.mark("request", path=path)
        for step in self.waiting[path](query):
            await wait_async(step)

    def stream(self, path: str, query: Query) -> Iterator[Wait | bytes]:
        """Begin a request to an endpoint that streams; yield the pieces, and for what to wait between them."""
        self.mark("request", path=path)
        yield from self.streaming[path](query)

    def wait_for_release(self) -> None:
        """Wait in this thread until the test lets held requests be answered."""
        for step in self._until_released():
            wait(step)

    def _until_released(self) -> Iterator[Wait]:
        while not os.path.exists(self._release):
            yield Wait(RELEASE_CHECK_INTERVAL_S)

    def _stream(self, query: Query) -> Iterator[Wait | bytes]:
        """Send a piece each tenth of a second for ``seconds``, and a last one that says that it was the last.

        With ``hold`` the last one comes when the test says so, at the earliest.
        """
        for number in range(int(float(query["seconds"]) * STREAM_PIECES_PER_S)):
            yield b"piece %d\n" % number
            yield Wait(1 / STREAM_PIECES_PER_S)
        if "hold" in query:
            yield from self._until_released()
        yield b"whole\n"

    def _large(self, query: Query) -> Iterator[Wait | bytes]:
        """Send ``megabytes``: more than lies between an application and a client that does not read."""
        for _ in range(int(query["megabytes"])):
            yield bytes(MEGABYTE)

    def _allocate(self, query: Query) -> Facts:
        """Take ``megabytes`` of memory and keep them."""
        self._kept.append(os.urandom(MEGABYTE) * int(query["megabytes"]))
        return {}

    def _abandon(self, query: Query) -> Facts:
        """Leave a grandchild behind that ends with the exit status ``code`` once its parent is gone."""
        code = int(query["code"])
        subprocess.run(["sh", "-c", f"(sleep 0.2; exit {code}) >/dev/null 2>&1 & echo $! >abandoned"], check=True)
        with open("abandoned", encoding="ascii") as file:
            return {"child": int(file.read())}

    def _fork(self, query: Query) -> Facts:
        """Leave a child behind that holds every descriptor of this worker for ``seconds``."""
        child = os.fork()
        if child == 0:
            try:
                time.sleep(float(query["seconds"]))
            finally:
                os._exit(0)
        return {"child": child}
