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

from zdworker.command import client, finder
from zdworker.errors import ZdError

VERSION = "1.0"
HEADERS = {"x-version": VERSION}
PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8").replace("{{ version }}", VERSION)
LONGEST = 60.0  # seconds; nobody may hold a request longer than that by asking for it
FRESH = 1.0  # seconds for which a status is kept, and that the master has for its answer
COUNTED = ("handed_over", "told_to_close", "cut_requests")  # what became of the connections of workers that left


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Runs in each worker; with ``--preload`` the lines above run once, for all of them."""
    app.state.started = time.time()
    app.state.seen = {"lock": asyncio.Lock(), "at": -FRESH, "status": None}
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


async def status(request: Request) -> Response:
    """What the master reports of the deploy, null without one; each worker asks at most once in ``FRESH`` seconds."""
    seen = request.app.state.seen
    async with seen["lock"]:
        if time.monotonic() > seen["at"] + FRESH:
            seen["status"] = await asyncio.to_thread(_ask_master)  # the loop must not wait for another process
            seen["at"] = time.monotonic()
    return JSONResponse(seen["status"], headers=HEADERS)


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


def _ask_master() -> dict[str, Any] | None:
    """What the page shows of ``zdworker status --json``: anybody may see it, so it has no path and no traceback."""
    if "ZD_GENERATION" not in os.environ:
        return None  # plain uvicorn, say
    deadline = time.monotonic() + FRESH
    try:
        master = finder.find(pid=os.getppid(), deadline=deadline)  # a worker's parent is the master
        report = client.status(master.path, deadline, master.users)
    except (ZdError, TimeoutError):
        return None  # it is stopped, or ends, or has no control socket
    return {
        "state": report["state"],
        "canary": _part(report["canary"], "generation", "held", "left_s"),
        "workers": [_part(worker, "generation", "pid", "state") for worker in report["workers"]],
        "generations": [
            {**_part(one, "generation", "label"), "answers": _part(one["answers"], "answers", "errors", "exceptions")}
            for one in report["generations"]
        ],
        "last_reload": _part(report["last_reload"], "generation", "started_at", "result", *COUNTED),
        "totals": _part(report["totals"], *COUNTED),
    }


def _part(facts: Any, *names: str) -> Any:
    return facts and {name: facts[name] for name in names}


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
        Route("/status", status),
        Route("/echo", echo, methods=["POST"]),
        Route("/slow", slow),
        Route("/stream", stream),
        WebSocketRoute("/ws", ws),
    ],
)
