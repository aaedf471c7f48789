"""FastAPI: what asgi_app.py answers, in the framework's own way. VERSION and MARKS are filled in."""

import hashlib
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

VERSION = "VERSION"
MARKS = "MARKS"


def mark(event: str) -> None:
    line = {"event": event, "version": VERSION, "pid": os.getpid(), "time": time.monotonic()}
    with open(MARKS, "a", encoding="ascii") as marks:
        marks.write(json.dumps(line) + "\n")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    mark("startup")
    yield
    mark("shutdown")


app = FastAPI(lifespan=lifespan)


def answer(**facts: str) -> dict[str, str | int]:
    return {"version": VERSION, "pid": os.getpid(), **facts}


@app.get("/")
async def version() -> dict[str, str | int]:
    return answer()


@app.post("/echo")
async def echo(request: Request) -> dict[str, str | int]:
    return answer(digest=hashlib.sha256(await request.body()).hexdigest())


@app.get("/sleep")
def sleep(seconds: float) -> dict[str, str | int]:
    """A plain function: it runs in a thread."""
    time.sleep(seconds)
    return answer()


mark("import")
