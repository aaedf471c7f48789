"""Flask: some endpoints of endpoints.py, in the framework's own way. VERSION and MARKS are filled in."""

from __future__ import annotations

from flask import Flask, request

from endpoints import Digest, Endpoints, Facts

VERSION = "VERSION"
MARKS = "MARKS"

endpoints = Endpoints(VERSION, MARKS)
started, ended = endpoints.started, endpoints.ended
app = Flask(__name__)


@app.get("/")
def version() -> Facts:
    return endpoints.facts()


@app.post("/echo")
def echo() -> Facts:
    return endpoints.facts(**Digest(request.get_data()).facts())


@app.get("/sleep")
def sleep() -> Facts:
    endpoints.wait("/sleep", request.args)
    return endpoints.facts()


endpoints.mark("import")
