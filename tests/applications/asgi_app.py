"""The application under test for ASGI. A copy of this file, with VERSION and MARKS filled in, is what gunicorn serves.

The meaning of the endpoints stands in endpoints.py. A test may append code; the modules that such code needs are
imported here.
"""

from __future__ import annotations

import asyncio  # noqa: F401  # for appended code
import os  # noqa: F401  # for appended code
import time  # noqa: F401  # for appended code
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from endpoints import FIXED_BODY, Digest, Endpoints, wait_async

VERSION = "VERSION"
MARKS = "MARKS"

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

endpoints = Endpoints(VERSION, MARKS)
mark = endpoints.mark


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await echo_websocket(receive, send)
    else:
        query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
        await ENDPOINTS.get(scope["path"], shared)(scope, receive, send, query)


async def lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            endpoints.started()
            await send({"type": "lifespan.startup.complete"})
        else:
            endpoints.ended()
            await send({"type": "lifespan.shutdown.complete"})
            return


async def answer(send: Send, status: int = 200, **facts: Any) -> None:
    body = endpoints.body(**facts)
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*head(), length]})
    await send({"type": "http.response.body", "body": body})


def head() -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in endpoints.head()]


async def shared(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Answer what endpoints.py defines."""
    path = scope["path"]
    if path in endpoints.at_once:
        await answer(send, **endpoints.at_once[path](query))
    elif path in endpoints.waiting:
        await endpoints.wait_async(path, query)
        await answer(send)
    elif path in endpoints.streaming:
        await send({"type": "http.response.start", "status": 200, "headers": head()})
        for step in endpoints.stream(path, query):
            if isinstance(step, bytes):
                await send({"type": "http.response.body", "body": step, "more_body": True})
            else:
                await wait_async(step)
        await send({"type": "http.response.body", "body": b""})
    else:
        await answer(send, 404)


async def fixed(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    length = (b"content-length", str(len(FIXED_BODY)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": FIXED_BODY})


async def echo(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Read the whole body before the answer."""
    digest = Digest()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        digest.add(message.get("body", b""))
        if not message.get("more_body"):
            break
    await answer(send, **digest.facts())


async def refuse(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Answer 413 without having read a byte of the body."""
    mark("request", path="/refuse")
    await answer(send, 413)


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


ENDPOINTS = {"/echo": echo, "/fixed": fixed, "/refuse": refuse}
"""What ASGI does in its own way, and what a test appends."""

endpoints.mark("import")
