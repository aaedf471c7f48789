"""Starlette: what asgi_app.py answers, in the framework's own way. VERSION and MARKS are filled in."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

VERSION = "VERSION"
MARKS = "MARKS"


def mark(event: str) -> None:
    line = {"event": event, "version": VERSION, "pid": os.getpid(), "time": time.monotonic()}
    with open(MARKS, "a", encoding="ascii") as marks:
        marks.write(json.dumps(line) + "\n")


def answer(**facts: str) -> JSONResponse:
    return JSONResponse({"version": VERSION, "pid": os.getpid(), **facts})


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    mark("startup")
    yield
    mark("shutdown")


async def version(request: Request) -> JSONResponse:
    return answer()


async def echo(request: Request) -> JSONResponse:
    return answer(digest=hashlib.sha256(await request.body()).hexdigest())


async def sleep(request: Request) -> JSONResponse:
    await asyncio.sleep(float(request.query_params["seconds"]))
    return answer()


routes = [Route("/", version), Route("/echo", echo, methods=["POST"]), Route("/sleep", sleep)]
app = Starlette(routes=routes, lifespan=lifespan)
mark("import")
