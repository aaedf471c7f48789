"""The application under test. A copy of this file, with VERSION and MARKS filled in, is what gunicorn serves.

Rules: nothing but the standard library at import (except where a test asks for Starlette); every answer names
the version and the pid that gave it; marks are single appends, so that lines of several processes never mix.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

VERSION = "VERSION"
MARKS = "MARKS"
RELEASE = os.path.join(os.path.dirname(MARKS), "release")
"""The file with which a test says so."""
MEGABYTE = 1_000_000

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

kept: list[bytes] = []


def mark(event: str, **facts: Any) -> None:
    """Append one line to the file of marks; ``time.monotonic()`` is the same clock in all processes."""
    line = json.dumps({"event": event, "version": VERSION, "pid": os.getpid(), "time": time.monotonic(), **facts})
    descriptor = os.open(MARKS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await echo_websocket(receive, send)
    else:
        query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
        await ENDPOINTS.get(scope["path"], missing)(scope, receive, send, query)


async def lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            mark("startup")
            await send({"type": "lifespan.startup.complete"})
        else:
            mark("shutdown")
            await send({"type": "lifespan.shutdown.complete"})
            return


async def answer(send: Send, status: int = 200, **facts: Any) -> None:
    body = json.dumps({"version": VERSION, "pid": os.getpid(), **facts}).encode()
    await send({"type": "http.response.start", "status": status, "headers": head(len(body))})
    await send({"type": "http.response.body", "body": body})


def head(length: int | None = None) -> list[tuple[bytes, bytes]]:
    fields = [(b"x-version", VERSION.encode()), (b"x-pid", str(os.getpid()).encode())]
    return fields if length is None else [*fields, (b"content-length", str(length).encode())]


async def missing(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    await answer(send, 404)


async def version(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    await answer(send)


async def fixed(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Answer the same bytes in every version and process: ``ab`` counts another length as a failure."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"ok\n"})


async def sleep(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Answer after ``seconds``, without holding the event loop."""
    mark("request", path="/sleep")
    await asyncio.sleep(float(query["seconds"]))
    await answer(send)


async def hold(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Answer when the test says so."""
    mark("request", path="/hold")
    await released()
    await answer(send)


async def released() -> None:
    while not os.path.exists(RELEASE):  # noqa: ASYNC110  # another process says so
        await asyncio.sleep(0.05)


async def executor(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Answer after ``seconds`` in a thread that nothing can interrupt."""
    mark("request", path="/executor")
    await asyncio.get_running_loop().run_in_executor(None, time.sleep, float(query["seconds"]))
    await answer(send)


async def stream(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Send a piece each tenth of a second for ``seconds``, and a last one that says that it was the last.

    With ``hold`` the last one comes when the test says so, at the earliest.
    """
    mark("request", path="/stream")
    await send({"type": "http.response.start", "status": 200, "headers": head()})
    for number in range(int(float(query["seconds"]) * 10)):
        await send({"type": "http.response.body", "body": b"piece %d\n" % number, "more_body": True})
        await asyncio.sleep(0.1)
    if "hold" in query:
        await released()
    await send({"type": "http.response.body", "body": b"whole\n"})


async def large(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Send ``megabytes``: more than lies between an application and a client that does not read."""
    mark("request", path="/large")
    await send({"type": "http.response.start", "status": 200, "headers": head()})
    for _ in range(int(query["megabytes"])):
        await send({"type": "http.response.body", "body": bytes(MEGABYTE), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def echo(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Read the whole body; answer its length and its digest."""
    digest, length = hashlib.sha256(), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        digest.update(message.get("body", b""))
        length += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await answer(send, length=length, digest=digest.hexdigest())


async def refuse(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Answer 413 without having read a byte of the body."""
    mark("request", path="/refuse")
    await answer(send, 413)


async def allocate(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Take ``megabytes`` of memory and keep them."""
    kept.append(os.urandom(MEGABYTE) * int(query["megabytes"]))
    await answer(send)


async def environment(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    await answer(send, value=os.environ.get(query["name"]))


async def identity(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    await answer(send, uid=os.geteuid(), gid=os.getegid(), directory=os.getcwd())


async def abandon(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Leave a grandchild behind that ends with the exit status ``code`` once its parent is gone."""
    code = int(query["code"])
    subprocess.run(["sh", "-c", f"(sleep 0.2; exit {code}) >/dev/null 2>&1 & echo $! >abandoned"], check=True)
    with open("abandoned", encoding="ascii") as file:
        await answer(send, child=int(file.read()))


async def fork(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Leave a child behind that holds every descriptor of this worker for ``seconds``."""
    child = os.fork()
    if child == 0:
        try:
            time.sleep(float(query["seconds"]))
        finally:
            os._exit(0)
    await answer(send, child=child)


async def echo_websocket(receive: Receive, send: Send) -> None:
    """Send back each text; mark with which code the connection ended."""
    await receive()
    await send({"type": "websocket.accept"})
    mark("websocket")
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            mark("disconnect", code=message.get("code"))
            return
        try:
            await send({"type": "websocket.send", "text": message.get("text")})
        except OSError:  # it ended while this text was on its way
            mark("disconnect", code=None)
            return


ENDPOINTS = {
    "/": version,
    "/abandon": abandon,
    "/allocate": allocate,
    "/echo": echo,
    "/environment": environment,
    "/executor": executor,
    "/fixed": fixed,
    "/fork": fork,
    "/hold": hold,
    "/identity": identity,
    "/large": large,
    "/refuse": refuse,
    "/sleep": sleep,
    "/stream": stream,
}

mark("import")
