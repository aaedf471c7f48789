"""A small Starlette application with a page on which a deploy can be seen: every answer says which code gave it.

To watch one: ``gunicorn -k zdworker.UvicornWorker app:app`` in this directory, open http://127.0.0.1:8000/, change
``VERSION`` below, then ``zdworker reload`` or ``kill -USR2`` the master. README.md beside this file tells more.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

VERSION = "1.0"
HEADERS = {"x-version": VERSION}
PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8").replace("{{ version }}", VERSION)
LONGEST = 60.0  # seconds; nobody may hold a request longer than that by asking for it


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Runs in each worker; with ``--preload`` the lines above run once, for all of them."""
    app.state.started = time.time()
    yield


def who(connection: HTTPConnection) -> dict[str, Any]:
    """Who answers; of several the one that ``started`` last (Unix time) has the code that was deployed last."""
    return {"version": VERSION, "pid": os.getpid(), "started": connection.app.state.started}


async def page(request: Request) -> Response:
    return HTMLResponse(PAGE, headers=HEADERS)


async def version(request: Request) -> Response:
    return JSONResponse(who(request), headers=HEADERS)


async def last(request: Request) -> Response:
    """The last answer on its connection: a browser has no other way to ask for a new one."""
    return JSONResponse(who(request), headers=HEADERS | {"connection": "close"})


async def echo(request: Request) -> Response:
    return Response(await request.body(), media_type="application/octet-stream", headers=HEADERS)


async def slow(request: Request) -> Response:
    await asyncio.sleep(_seconds(request))
    return JSONResponse(who(request), headers=HEADERS)


async def stream(request: Request) -> Response:
    return StreamingResponse(_ticks(_seconds(request)), media_type="text/plain", headers=HEADERS)


async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_json(who(websocket))
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
    lifespan=lifespan,
    routes=[
        Route("/", page),
        Route("/version", version),
        Route("/last", last),
        Route("/echo", echo, methods=["POST"]),
        Route("/slow", slow),
        Route("/stream", stream),
        WebSocketRoute("/ws", ws),
    ],
)
