"""The application under test for WSGI. A copy of this file, with VERSION and MARKS filled in, is what gunicorn serves.

The meaning of the endpoints stands in endpoints.py. A test may append code; the modules that such code needs are
imported here.
"""

from __future__ import annotations

import os  # noqa: F401  # for appended code
import time  # noqa: F401  # for appended code
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

from endpoints import FIXED_BODY, Digest, Endpoints, Wait, wait

VERSION = "VERSION"
MARKS = "MARKS"

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Query = dict[str, str]

endpoints = Endpoints(VERSION, MARKS)
mark, started, ended, head = endpoints.mark, endpoints.started, endpoints.ended, endpoints.head


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    return ENDPOINTS.get(environ["PATH_INFO"], shared)(environ, start_response, query)


def answer(start_response: StartResponse, status: str = "200 OK", **facts: Any) -> list[bytes]:
    body = endpoints.body(**facts)
    start_response(status, [*head(), ("Content-Length", str(len(body)))])
    return [body]


def shared(environ: Environ, start_response: StartResponse, query: Query) -> Iterable[bytes]:
    """Answer what endpoints.py defines."""
    path = environ["PATH_INFO"]
    if path in endpoints.at_once:
        return answer(start_response, **endpoints.at_once[path](query))
    if path in endpoints.waiting:
        endpoints.wait(path, query)
        return answer(start_response)
    if path in endpoints.streaming:
        start_response("200 OK", head())
        return pieces(endpoints.stream(path, query))
    return answer(start_response, "404 Not Found")


def pieces(steps: Iterable[Wait | bytes]) -> Iterator[bytes]:
    for step in steps:
        if isinstance(step, bytes):
            yield step
        else:
            wait(step)


def fixed(environ: Environ, start_response: StartResponse, query: Query) -> list[bytes]:
    start_response("200 OK", [("Content-Length", str(len(FIXED_BODY)))])
    return [FIXED_BODY]


def echo(environ: Environ, start_response: StartResponse, query: Query) -> list[bytes]:
    """Read the whole body before the answer."""
    digest = Digest()
    while piece := environ["wsgi.input"].read(65536):
        digest.add(piece)
    return answer(start_response, **digest.facts())


def refuse(environ: Environ, start_response: StartResponse, query: Query) -> list[bytes]:
    """Answer 413 without having read a byte of the body."""
    mark("request", path="/refuse")
    return answer(start_response, "413 Content Too Large")


ENDPOINTS: dict[str, Callable[[Environ, StartResponse, Query], Iterable[bytes]]] = {
    "/echo": echo,
    "/fixed": fixed,
    "/refuse": refuse,
}
"""What WSGI does in its own way, and what a test appends."""

endpoints.mark("import")
