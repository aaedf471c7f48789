"""The application under test for Tornado. A copy of this file, with VERSION and MARKS filled in, is what is served.

The meaning of the endpoints stands in endpoints.py. A test may append code; the modules that such code needs are
imported here.
"""

from __future__ import annotations

import asyncio  # noqa: F401  # for appended code
import json  # noqa: F401  # for appended code
import os  # noqa: F401  # for appended code
import time  # noqa: F401  # for appended code
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import Application, RequestHandler, stream_request_body
from tornado.websocket import WebSocketHandler

from endpoints import FIXED_BODY, Digest, Endpoints, wait_async

VERSION = "VERSION"
MARKS = "MARKS"

endpoints = Endpoints(VERSION, MARKS)
mark, started, ended = endpoints.mark, endpoints.started, endpoints.ended


class Endpoint(RequestHandler):
    """What all have in common."""

    def set_default_headers(self) -> None:
        for name, value in endpoints.head():
            self.set_header(name, value)

    def answer(self, status: int = 200, **facts: Any) -> None:
        self.set_status(status)
        self.finish(endpoints.body(**facts))


class Shared(Endpoint):
    """Answers what endpoints.py defines."""

    async def get(self) -> None:
        path = self.request.path
        query = {name: self.get_argument(name) for name in self.request.query_arguments}
        if path in endpoints.at_once:
            self.answer(**endpoints.at_once[path](query))
        elif path in endpoints.waiting:
            await endpoints.wait_async(path, query)
            self.answer()
        else:
            await self.stream(path, query)

    async def stream(self, path: str, query: dict[str, str]) -> None:
        for step in endpoints.stream(path, query):
            if isinstance(step, bytes):
                self.write(step)
                try:
                    await self.flush()
                except StreamClosedError:
                    return
            else:
                await wait_async(step)


class Missing(Endpoint):
    """404."""

    def prepare(self) -> None:
        self.answer(404)


class Fixed(RequestHandler):
    """Answers the same bytes in every version and process."""

    def get(self) -> None:
        self.finish(FIXED_BODY)


@stream_request_body
class Echo(Endpoint):
    """Reads the whole body before the answer."""

    def initialize(self) -> None:
        self.digest = Digest()

    def data_received(self, chunk: bytes) -> None:
        self.digest.add(chunk)

    def post(self) -> None:
        self.answer(**self.digest.facts())


@stream_request_body
class Refuse(Endpoint):
    """Answers 413 without having read a byte of the body."""

    def prepare(self) -> None:
        mark("request", path="/refuse")
        self.answer(413)

    def data_received(self, chunk: bytes) -> None:
        """Do nothing with what comes all the same."""


class EchoWebSocket(WebSocketHandler):
    """Sends back each text; marks with which code the connection ended."""

    def open(self, *args: str, **kwargs: str) -> None:
        mark("websocket")

    def on_message(self, message: str | bytes) -> None:
        self.write_message(message)

    def on_close(self) -> None:
        mark("disconnect", code=self.close_code)


app = Application(
    [
        *((path, Shared) for path in (*endpoints.at_once, *endpoints.waiting, *endpoints.streaming)),
        ("/echo", Echo),
        ("/fixed", Fixed),
        ("/refuse", Refuse),
        ("/websocket", EchoWebSocket),
    ],
    default_handler_class=Missing,
    log_function=lambda handler: None,
)

endpoints.mark("import")
