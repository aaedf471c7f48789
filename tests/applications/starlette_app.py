"""Starlette: some endpoints of endpoints.py, in the framework's own way. VERSION and MARKS are filled in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from endpoints import Digest, Endpoints

VERSION = "VERSION"
MARKS = "MARKS"

endpoints = Endpoints(VERSION, MARKS)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    endpoints.started()
    yield
    endpoints.ended()


async def version(request: Request) -> JSONResponse:
    return JSONResponse(endpoints.facts())


async def echo(request: Request) -> JSONResponse:
    return JSONResponse(endpoints.facts(**Digest(await request.body()).facts()))


async def sleep(request: Request) -> JSONResponse:
    await endpoints.wait_async("/sleep", request.query_params)
    return JSONResponse(endpoints.facts())


routes = [Route("/", version), Route("/echo", echo, methods=["POST"]), Route("/sleep", sleep)]
app = Starlette(routes=routes, lifespan=lifespan)
endpoints.mark("import")
