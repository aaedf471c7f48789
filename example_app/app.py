"""A small Starlette application whose every answer says which version of the code gave it.

Change ``VERSION``, then ``kill -USR2`` the master: that is a deploy.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

VERSION = "1.0"
HEADERS = {"x-version": VERSION}
PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8").replace("{{ version }}", VERSION)
LONGEST = 60.0  # seconds; nobody may hold a request longer than that by asking for it


async def page(request: Request) -> Response:
    return HTMLResponse(PAGE.replace("{{ pid }}", str(os.getpid())), headers=HEADERS)


async def version(request: Request) -> Response:
    return JSONResponse({"version": VERSION, "pid": os.getpid()}, headers=HEADERS)


async def echo(request: Request) -> Response:
    return Response(await request.body(), media_type="application/octet-stream", headers=HEADERS)


async def slow(request: Request) -> Response:
    await asyncio.sleep(_seconds(request))
    return JSONResponse({"version": VERSION, "pid": os.getpid()}, headers=HEADERS)


async def stream(request: Request) -> Response:
    return StreamingResponse(_ticks(_seconds(request)), media_type="text/plain", headers=HEADERS)


async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(f"version {VERSION}, pid {os.getpid()}")
    async for text in websocket.iter_text():  # ends when either side closes; 1012 means: come back, to new code
        await websocket.send_text(text)


async def _ticks(seconds: float) -> AsyncIterator[str]:
    for tick in range(max(1, round(seconds * 10))):
        yield f"{tick} {VERSION}\n"
        await asyncio.sleep(0.1)
    yield "end\n"


def _seconds(request: Request) -> float:
    """The query's ``s`` (seconds), 1 when it is missing or no sensible number."""
    try:
        seconds = float(request.query_params.get("s", "1"))
    except ValueError:
        return 1.0
    return min(seconds, LONGEST) if seconds >= 0 else 1.0  # NaN is not


app = Starlette(
    routes=[
        Route("/", page),
        Route("/version", version),
        Route("/echo", echo, methods=["POST"]),
        Route("/slow", slow),
        Route("/stream", stream),
        WebSocketRoute("/ws", ws),
    ]
)
