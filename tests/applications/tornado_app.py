"""The application under test for Tornado: the endpoints of asgi_app.py, whose rules hold here too.

There is no lifespan: ``started`` and ``ended`` are called by the hooks ``post_worker_init`` and ``worker_exit``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import Application, RequestHandler, stream_request_body
from tornado.websocket import WebSocketHandler

VERSION = "VERSION"
MARKS = "MARKS"
RELEASE = os.path.join(os.path.dirname(MARKS), "release")
"""The file with which a test says so."""
MEGABYTE = 1_000_000

kept: list[bytes] = []


def mark(event: str, **facts: Any) -> None:
    """Append one line to the file of marks; ``time.monotonic()`` is the same clock in all processes."""
    line = json.dumps({"event": event, "version": VERSION, "pid": os.getpid(), "time": time.monotonic(), **facts})
    descriptor = os.open(MARKS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


def started() -> None:
    mark("startup")


def ended() -> None:
    mark("shutdown")


class Endpoint(RequestHandler):
    """What all have in common."""

    def set_default_headers(self) -> None:
        self.set_header("X-Version", VERSION)
        self.set_header("X-Pid", str(os.getpid()))

    def answer(self, status: int = 200, **facts: Any) -> None:
        self.set_status(status)
        self.finish(json.dumps({"version": VERSION, "pid": os.getpid(), **facts}))


class Version(Endpoint):
    """Says which version and process answers."""

    def get(self) -> None:
        self.answer()


class Missing(Endpoint):
    """404."""

    def prepare(self) -> None:
        self.answer(404)


class Fixed(RequestHandler):
    """The same bytes in every version and process: ``ab`` counts another length as a failure."""

    def get(self) -> None:
        self.finish(b"ok\n")


class Sleep(Endpoint):
    """Answers after ``seconds``, without holding the event loop."""

    async def get(self) -> None:
        mark("request", path="/sleep")
        await asyncio.sleep(float(self.get_argument("seconds")))
        self.answer()


class Hold(Endpoint):
    """Answers when the test says so."""

    async def get(self) -> None:
        mark("request", path="/hold")
        await released()
        self.answer()


async def released() -> None:
    while not os.path.exists(RELEASE):  # noqa: ASYNC110  # another process says so
        await asyncio.sleep(0.05)


class Executor(Endpoint):
    """Answers after ``seconds`` in a thread that nothing can interrupt."""

    async def get(self) -> None:
        mark("request", path="/executor")
        seconds = float(self.get_argument("seconds"))
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, seconds)
        self.answer()


class Stream(Endpoint):
    """A piece each tenth of a second for ``seconds``, and a last one that says that it was the last.

    With ``hold`` the last one comes when the test says so, at the earliest.
    """

    async def get(self) -> None:
        mark("request", path="/stream")
        for number in range(int(float(self.get_argument("seconds")) * 10)):
            self.write(b"piece %d\n" % number)
            await self.flush()
            await asyncio.sleep(0.1)
        if self.get_argument("hold", ""):
            await released()
        self.finish(b"whole\n")


class Large(Endpoint):
    """More bytes than lie between an application and a client that does not read."""

    async def get(self) -> None:
        mark("request", path="/large")
        for _ in range(int(self.get_argument("megabytes"))):
            self.write(bytes(MEGABYTE))
            try:
                await self.flush()
            except StreamClosedError:
                return


@stream_request_body
class Echo(Endpoint):
    """Reads the whole body; answers its length and its digest."""

    def initialize(self) -> None:
        self.digest, self.length = hashlib.sha256(), 0

    def data_received(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.length += len(chunk)

    def post(self) -> None:
        self.answer(length=self.length, digest=self.digest.hexdigest())


@stream_request_body
class Refuse(Endpoint):
    """Answers 413 without having read a byte of the body."""

    def prepare(self) -> None:
        mark("request", path="/refuse")
        self.answer(413)

    def data_received(self, chunk: bytes) -> None:
        """Do nothing with what comes all the same."""


class Allocate(Endpoint):
    """Takes ``megabytes`` of memory and keeps them."""

    def get(self) -> None:
        kept.append(os.urandom(MEGABYTE) * int(self.get_argument("megabytes")))
        self.answer()


class EchoWebSocket(WebSocketHandler):
    """Sends back each text; marks with which code the connection ended."""

    def open(self, *args: str, **kwargs: str) -> None:
        mark("websocket")

    def on_message(self, message: str | bytes) -> None:
        self.write_message(message)

    def on_close(self) -> None:
        mark("disconnect", code=self.close_code)


app = Application(
    [
        ("/", Version),
        ("/allocate", Allocate),
        ("/echo", Echo),
        ("/executor", Executor),
        ("/fixed", Fixed),
        ("/hold", Hold),
        ("/large", Large),
        ("/refuse", Refuse),
        ("/sleep", Sleep),
        ("/stream", Stream),
        ("/websocket", EchoWebSocket),
    ],
    default_handler_class=Missing,
    log_function=lambda handler: None,
)

mark("import")
