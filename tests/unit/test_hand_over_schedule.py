"""A connection that moves from worker to worker at any moment: each request is answered, once, in order and whole.

The workers are uvicorn's real protocols on a real event loop, the client is the other end of a socket pair. What
happens when is Hypothesis's choice: pieces of requests arrive, the loop turns, the application answers, the connection
is handed over.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from tests.harness.clients import request
from tests.harness.worker_classes import uvicorn_has
from zdworker.ipc.hand_over import HandOverQueue
from zdworker.workers.uvicorn.connections import detach, drainable, resume

PROTOCOLS = ["httptools", "h11"] + ["zttp"] * uvicorn_has("zttp_impl")
TURNS = 200
"""Turns of the loop within which what has been sent is answered."""

Step = tuple[str, int]


class Stage:
    """A client, the connection in one worker after the other, and an application that answers when the test says so."""

    def __init__(self, http: str) -> None:
        self._answers = asyncio.Semaphore(0)
        self.config = uvicorn.Config(
            self._app, http=http, interface="asgi3", ws="none", log_config=None, lifespan="off"
        )
        self.config.load()
        self._queue = HandOverQueue.open()
        self._client, self._first = socket.socketpair()
        self._client.setblocking(False)
        self.protocol: Any = None
        self.received = b""
        self.moves = 0

    async def begin(self) -> None:
        """Have the first worker accept the connection."""
        self._first.setblocking(False)
        await self._attach(self._first)

    async def _attach(self, sock: socket.socket) -> None:
        protocol_class = drainable(self.config.http_protocol_class)

        def protocol() -> Any:
            return protocol_class(config=self.config, server_state=ServerState(), app_state={})

        loop = asyncio.get_running_loop()
        _transport, self.protocol = await loop.connect_accepted_socket(protocol, sock)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            assert message["type"] == "http.request", "the client has not gone"
            body += message["body"]
            more = message["more_body"]
        await self._answers.acquire()
        digest = hashlib.sha256(body).hexdigest().encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"64")]})
        await send({"type": "http.response.body", "body": digest})

    async def turn(self) -> None:
        """Have the loop turn once, and the client read what has come."""
        await asyncio.sleep(0)
        try:
            data = self._client.recv(1 << 16)
        except BlockingIOError:
            return
        assert data, "the connection is not closed"
        self.received += data

    def send(self, data: bytes) -> None:
        """Have the client send."""
        self._client.sendall(data)

    def answer(self) -> None:
        """Have the application answer one request, or the next one that comes."""
        self._answers.release()

    async def move(self) -> None:
        """Hand the connection over if it can move now."""
        connection = detach(self.protocol)
        if connection is None:
            return
        assert self._queue.give([connection])
        await self.turn()
        (taken,) = self._queue.take()
        await self._attach(taken.sock)
        resume(self.protocol, taken)
        self.moves += 1

    async def end(self) -> None:
        """Close everything."""
        self.protocol.transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self._client.close()
        self._queue.close()


async def play(http: str, bodies: list[bytes], steps: list[Step]) -> tuple[list[str], int]:
    """Play ``steps``, then all that is left.

    :return: the bodies of the answers, and how often the connection has moved.
    """
    stage = Stage(http)
    await stage.begin()
    data = b"".join(request("POST", "/", body) for body in bodies)
    for step, number in steps:
        if step == "send":
            stage.send(data[:number])
            data = data[number:]
        elif step == "answer":
            stage.answer()
        elif step == "move":
            await stage.move()
        for _ in range(number if step == "turn" else 0):
            await stage.turn()
    stage.send(data)
    for _ in bodies:
        stage.answer()
    for _ in range(TURNS):
        await stage.turn()
        await stage.move()
    await stage.end()
    heads = stage.received.split(b"HTTP/1.1 200 OK\r\n")
    assert heads[0] == b""
    assert b"connection: close" not in stage.received.lower()
    return [head.partition(b"\r\n\r\n")[2].decode() for head in heads[1:]], stage.moves


STEPS = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 120)),
    st.tuples(st.just("turn"), st.integers(1, 3)),
    st.tuples(st.sampled_from(["move", "answer"]), st.just(0)),
)


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("http", PROTOCOLS)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=80), min_size=1, max_size=4), st.lists(STEPS, max_size=30))
def test_each_request_is_answered_once_whenever_the_connection_moves(
    http: str, make_loop: Callable[[], asyncio.AbstractEventLoop], bodies: list[bytes], steps: list[Step]
) -> None:
    loop = make_loop()
    try:
        answers, moves = loop.run_until_complete(play(http, bodies, steps))
    finally:
        loop.close()
    assert answers == [hashlib.sha256(body).hexdigest() for body in bodies]
    assert moves, "behind the last answer it can move in any case"
