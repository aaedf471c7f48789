"""Flask: what wsgi_app.py answers, in the framework's own way. VERSION and MARKS are filled in."""

from __future__ import annotations

import hashlib
import json
import os
import time

from flask import Flask, request

VERSION = "VERSION"
MARKS = "MARKS"


def mark(event: str) -> None:
    line = {"event": event, "version": VERSION, "pid": os.getpid(), "time": time.monotonic()}
    with open(MARKS, "a", encoding="ascii") as marks:
        marks.write(json.dumps(line) + "\n")


def started() -> None:
    mark("startup")


def ended() -> None:
    mark("shutdown")


app = Flask(__name__)


def answer(**facts: str) -> dict[str, str | int]:
    return {"version": VERSION, "pid": os.getpid(), **facts}


@app.get("/")
def version() -> dict[str, str | int]:
    return answer()


@app.post("/echo")
def echo() -> dict[str, str | int]:
    return answer(digest=hashlib.sha256(request.get_data()).hexdigest())


@app.get("/sleep")
def sleep() -> dict[str, str | int]:
    time.sleep(float(request.args["seconds"]))
    return answer()


mark("import")
