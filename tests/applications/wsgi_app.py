"""The application under test for WSGI worker classes: the endpoints of asgi_app.py, whose rules hold here too.

There is no lifespan: ``started`` and ``ended`` are called by the hooks ``post_worker_init`` and ``worker_exit``.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs

VERSION = "VERSION"
MARKS = "MARKS"
RELEASE = os.path.join(os.path.dirname(MARKS), "release")
"""The file with which a test says so."""
MEGABYTE = 1_000_000

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Query = dict[str, str]

kept: list[bytes] = []


def mark(event: str, **facts: Any) -> None:
    """Append one line to the file of marks; ``time.monotonic()`` is the same clock in all processes."""
    line = json.dumps({"event": event, "version": VERSION, "pid": os.getpid(), "time": time.monotonic(), **facts})
    descriptor = os.open(MARKS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


def started() -> None:
    mark("startup")


def ended() -> None:
    mark("shutdown")


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    return ENDPOINTS.get(environ["PATH_INFO"], missing)(environ, start_response, query)


def answer(start_response: StartResponse, status: str = "200 OK", **facts: Any) -> list[bytes]:
    body = json.dumps({"version": VERSION, "pid": os.getpid(), **facts}).encode()
    start_response(status, [*head(), ("Content-Length", str(len(body)))])
    return [body]


def head() -> list[tuple[str, str]]:
    return [("X-Version", VERSION), ("X-Pid", str(os.getpid()))]


def missing(environ: Environ, start_response: StartResponse, query: Query) -> list[bytes]:
    return answer(start_response, "404 Not Found")


def version(environ: Environ, start_response: StartResponse, query: Query) -> list[bytes]:
    return answer(start_response)


def fixed(environ: Environ, start_response: StartResponse, query: Query) -> list[bytes]:
    """Answer the same bytes in every version and process: ``ab`` counts another length as a failure."""
    start_response("200 OK", [("Content-Length", "3")])
    return [b"ok\n"]


def sleep(environ: Environ, start_response: StartResponse, query: Query) -> list[bytes]:
    """Answer after ``seconds``."""
    mark("request", path="/sleep")
    time.sleep(float(query["seconds"]))
    return answer(start_response)


def hold(environ: Environ, start_response: StartResponse, query: Query) -> list[bytes]:
    """Answer when the test says so."""
    mark("request", path="/hold")
    wait_for_release()
    return answer(start_response)


def wait_for_release() -> None:
    while not os.path.exists(RELEASE):
        time.sleep(0.05)


def executor(environ: Environ, start_response: StartResponse, query: Query) -> list[bytes]:
    """Answer after ``seconds`` in a further thread, which nothing can interrupt."""
    mark("request", path="/executor")
    ThreadPoolExecutor(1).submit(time.sleep, float(query["seconds"])).result()
    return answer(start_response)


def stream(environ: Environ, start_response: StartResponse, query: Query) -> Iterator[bytes]:
    """Send a piece each tenth of a second for ``seconds``, and a last one that says that it was the last.

    With ``hold`` the last one comes when the test says so, at the earliest.
    """
    mark("request", path="/stream")
    start_response("200 OK", head())
    for number in range(int(float(query["seconds"]) * 10)):
        yield b"piece %d\n" % number
        time.sleep(0.1)
    if "hold" in query:
        wait_for_release()
    yield b"whole\n"


def large(environ: Environ, start_response: StartResponse, query: Query) -> Iterator[bytes]:
    """Send ``megabytes``: more than lies between an application and a client that does not read."""
    mark("request", path="/large")
    start_response("200 OK", head())
    for _ in range(int(query["megabytes"])):
        yield bytes(MEGABYTE)


def echo(environ: Environ, start_response: StartResponse, query: Query) -> list[bytes]:
    """Read the whole body; answer its length and its digest."""
    digest, length = hashlib.sha256(), 0
    while piece := environ["wsgi.input"].read(65536):
        digest.update(piece)
        length += len(piece)
    return answer(start_response, length=length, digest=digest.hexdigest())


def refuse(environ: Environ, start_response: StartResponse, query: Query) -> list[bytes]:
    """Answer 413 without having read a byte of the body."""
    mark("request", path="/refuse")
    return answer(start_response, "413 Content Too Large")


def allocate(environ: Environ, start_response: StartResponse, query: Query) -> list[bytes]:
    """Take ``megabytes`` of memory and keep them."""
    kept.append(os.urandom(MEGABYTE) * int(query["megabytes"]))
    return answer(start_response)


ENDPOINTS: dict[str, Callable[[Environ, StartResponse, Query], Iterable[bytes]]] = {
    "/": version,
    "/allocate": allocate,
    "/echo": echo,
    "/executor": executor,
    "/fixed": fixed,
    "/hold": hold,
    "/large": large,
    "/refuse": refuse,
    "/sleep": sleep,
    "/stream": stream,
}

mark("import")
