"""FastAPI: some endpoints of endpoints.py, in the framework's own way. VERSION and MARKS are filled in."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

from endpoints import Digest, Endpoints, Facts

VERSION = "VERSION"
MARKS = "MARKS"

endpoints = Endpoints(VERSION, MARKS)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    endpoints.started()
    yield
    endpoints.ended()


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def version() -> Facts:
    return endpoints.facts()


@app.post("/echo")
async def echo(request: Request) -> Facts:
    return endpoints.facts(**Digest(await request.body()).facts())


@app.get("/sleep")
def sleep(request: Request) -> Facts:
    """A plain function: it runs in a thread."""
    endpoints.wait("/sleep", request.query_params)
    return endpoints.facts()


endpoints.mark("import")
