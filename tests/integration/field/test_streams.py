"""Streams of libraries that look for the server's end: they see the drain begin, and end by themselves."""

from __future__ import annotations

import time

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client, request
from tests.harness.processes import alive, wait_for
from tests.harness.server import Start
from tests.harness.worker_classes import ASGI, UVICORN, UVICORN_H11, WorkerClass, for_each

pytest.importorskip("sse_starlette")

STREAM = """


from sse_starlette.sse import EventSourceResponse


async def _events():
    yield {"data": "first"}
    while True:
        await asyncio.sleep(3600)


async def stream(scope, receive, send, query):
    mark("request", path="/stream")
    await EventSourceResponse(_events())(scope, receive, send)


ENDPOINTS["/stream"] = stream
"""

GRACEFUL_TIMEOUT_S = 60


@for_each((UVICORN, UVICORN_H11, ASGI))
def test_a_stream_of_events_ends_with_the_drain(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """Without that, each worker of a reload is held to its graceful_timeout, and the stream is cut."""
    site.deploy("one", extra=STREAM)
    server = start_class(worker, workers=1, graceful_timeout=GRACEFUL_TIMEOUT_S)
    (old,) = server.workers()
    with Client(server.address, timeout=GRACEFUL_TIMEOUT_S / 2) as client:
        client.send(request("GET", "/stream"))
        received = b""
        while b"first" not in received:
            received += client.socket.recv(4096)
        site.deploy("two", extra=STREAM)
        server.signal(server.reload_signal)
        server.wait_retired([old])
        limit = time.monotonic() + GRACEFUL_TIMEOUT_S / 2
        while client.socket.recv(4096):  # a "ping" each 15 seconds
            assert time.monotonic() < limit, "the stream goes on"
    wait_for(lambda: not alive(old), GRACEFUL_TIMEOUT_S / 2, "the old worker has gone")
    server.wait_only("two")
