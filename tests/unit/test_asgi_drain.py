"""The ASGI wrapper: it is out of the way until the drain, and WebSockets then end with 1012 in good order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from zdworker.workers.applications import AsgiApplication as Application
from zdworker.workers.applications import Event, Receive, Scope, Send
from zdworker.workers.asgi import drain
from zdworker.workers.asgi.drain import AsgiDrain, LiveWebSocket, WebSocketEnded

WEBSOCKET: dict[str, Any] = {"type": "websocket"}


class FrameworkError(Exception):
    """Stands for Starlette's WebSocketDisconnect."""


async def nothing() -> Event:
    return {"type": "none"}


class Peer:
    """The server's side of a WebSocket: like uvicorn's, a close from here reaches the application's receive."""

    def __init__(self) -> None:
        self.sent: list[Event] = []
        self.queue: asyncio.Queue[Event] = asyncio.Queue()
        self.ended = asyncio.Event()

    async def send(self, message: Event) -> None:
        self.sent.append(message)
        if message["type"] == "websocket.close":
            self.ended.set()
            self.queue.put_nowait({"type": "websocket.disconnect", "code": message.get("code", 1000)})

    async def receive(self) -> Event:
        return await self.queue.get()

    def closes(self) -> list[int]:
        return [message.get("code", 1000) for message in self.sent if message["type"] == "websocket.close"]


async def listening(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def pushing(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})
    try:
        while True:
            await send({"type": "websocket.send", "text": "tick"})
            await asyncio.sleep(0)
    except OSError:
        raise FrameworkError from scope.get("cause")


def test_http_goes_straight_through_and_the_server_is_told_of_it_in_the_drain() -> None:
    seen: list[Any] = []
    prepared: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["type"], receive, send))

    async def send(message: Event) -> None:
        """Go nowhere."""

    async def scenario() -> None:
        drain = AsgiDrain(app)
        await drain({"type": "http"}, nothing, send)
        await drain({"type": "lifespan"}, nothing, send)
        drain.prepare = prepared.append
        await drain({"type": "lifespan"}, nothing, send)
        assert prepared == []
        await drain({"type": "http"}, nothing, send)

    asyncio.run(scenario())
    assert seen == [(kind, nothing, send) for kind in ("http", "lifespan", "lifespan", "http")]
    assert prepared == [send]


def test_the_drain_closes_live_websockets_and_the_application_sees_it() -> None:
    async def scenario() -> list[Peer]:
        drain, peers = AsgiDrain(listening), [Peer() for _ in range(3)]
        tasks = [asyncio.ensure_future(drain(WEBSOCKET, peer.receive, peer.send)) for peer in peers]
        await asyncio.sleep(0)
        assert len(drain.websockets) == 3
        drain.begin(0.0)
        await asyncio.wait_for(asyncio.gather(*tasks), 10.0)
        assert not drain.websockets
        return peers

    for peer in asyncio.run(scenario()):
        assert peer.closes() == [1012]


async def slow_to_answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})
    while (await receive())["type"] == "websocket.receive":
        await asyncio.sleep(0.05)
        await send({"type": "websocket.send", "text": "answer"})


async def never_answering(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})
    await receive()
    await asyncio.sleep(3600)


@pytest.mark.parametrize(
    ("application", "said"),
    [
        (slow_to_answer, ["websocket.accept", "websocket.send", "websocket.close"]),
        (never_answering, ["websocket.accept", "websocket.close"]),
    ],
)
def test_a_message_is_answered_before_the_close(
    monkeypatch: pytest.MonkeyPatch, application: Application, said: list[str]
) -> None:
    monkeypatch.setattr(drain, "ANSWER_WAIT_S", 0.2)

    async def scenario() -> list[str]:
        drain, peer = AsgiDrain(application), Peer()
        task = asyncio.ensure_future(drain(WEBSOCKET, peer.receive, peer.send))
        peer.queue.put_nowait({"type": "websocket.receive", "text": "question"})
        await asyncio.sleep(0)
        drain.begin(0.0)
        await asyncio.wait_for(peer.ended.wait(), 10.0)
        task.cancel()
        return [message["type"] for message in peer.sent]

    assert asyncio.run(scenario()) == said


def test_closing_is_spread_evenly() -> None:
    async def scenario() -> list[float]:
        loop, closed = asyncio.get_running_loop(), []
        drain = AsgiDrain(listening)

        def peer() -> Peer:
            made = Peer()
            inner = made.send

            async def send(message: Event) -> None:
                if message["type"] == "websocket.close":
                    closed.append(loop.time())
                await inner(message)

            made.send = send  # type: ignore[method-assign]
            return made

        peers = [peer() for _ in range(4)]
        tasks = [asyncio.ensure_future(drain(WEBSOCKET, each.receive, each.send)) for each in peers]
        await asyncio.sleep(0)
        begun = loop.time()
        drain.begin(0.2)
        await asyncio.wait_for(asyncio.gather(*tasks), 10.0)
        return [moment - begun for moment in closed]

    moments = sorted(asyncio.run(scenario()))
    # None is early, whatever else the machine does; late they may be.
    assert all(moment >= place * 0.05 - 0.01 for place, moment in enumerate(moments))
    assert len(moments) == 4


def test_an_upgrade_during_the_drain_is_accepted_then_closed() -> None:
    async def scenario() -> Peer:
        drain, peer = AsgiDrain(listening), Peer()
        drain.begin(0.0)
        await asyncio.wait_for(drain(WEBSOCKET, peer.receive, peer.send), 10.0)
        return peer

    assert [message["type"] for message in asyncio.run(scenario()).sent] == ["websocket.accept", "websocket.close"]


def test_one_that_is_not_accepted_yet_is_closed_when_it_is() -> None:
    async def scenario() -> Peer:
        go = asyncio.Event()

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            await go.wait()
            await listening(scope, receive, send)

        drain, peer = AsgiDrain(late), Peer()
        task = asyncio.ensure_future(drain(WEBSOCKET, peer.receive, peer.send))
        await asyncio.sleep(0)
        drain.begin(0.0)
        await asyncio.sleep(0.01)
        assert peer.sent == []
        go.set()
        await asyncio.wait_for(task, 10.0)
        return peer

    assert [message["type"] for message in asyncio.run(scenario()).sent] == ["websocket.accept", "websocket.close"]


@pytest.mark.parametrize("cause", [None, ValueError("another")])
def test_an_application_that_only_sends_ends_without_an_error(cause: Exception | None) -> None:
    async def scenario() -> None:
        drain, peer = AsgiDrain(pushing), Peer()
        task = asyncio.ensure_future(drain({**WEBSOCKET, "cause": cause}, peer.receive, peer.send))
        await asyncio.sleep(0.01)
        drain.begin(0.0)
        await asyncio.wait_for(task, 10.0)  # whatever the framework made of it
        assert peer.closes() == [1012]
        assert peer.sent[-1]["type"] == "websocket.close"

    asyncio.run(scenario())


def test_an_error_of_the_application_itself_is_not_hidden() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await listening(scope, receive, send)
        raise ValueError("the application's own")

    async def scenario() -> None:
        drain, peer = AsgiDrain(broken), Peer()
        task = asyncio.ensure_future(drain(WEBSOCKET, peer.receive, peer.send))
        await asyncio.sleep(0)
        drain.begin(0.0)
        with pytest.raises(ValueError, match="own"):
            await asyncio.wait_for(task, 10.0)

    asyncio.run(scenario())


def test_after_our_close_the_application_s_close_is_nothing_and_its_send_an_oserror() -> None:
    async def scenario() -> Peer:
        peer = Peer()
        websocket = LiveWebSocket(nothing, peer.send)
        await websocket.send({"type": "websocket.accept"})
        await websocket.close()
        await websocket.send({"type": "websocket.close", "code": 1000})
        with pytest.raises(WebSocketEnded):
            await websocket.send({"type": "websocket.send", "text": "late"})
        await websocket.close()
        return peer

    assert asyncio.run(scenario()).closes() == [1012]


def test_one_that_the_application_closed_is_let_alone() -> None:
    async def scenario() -> Peer:
        peer = Peer()
        websocket = LiveWebSocket(nothing, peer.send)
        await websocket.send({"type": "websocket.accept"})
        await websocket.send({"type": "websocket.close", "code": 4000})
        await websocket.close()
        return peer

    assert asyncio.run(scenario()).closes() == [4000]


@pytest.mark.parametrize("error", [OSError(), RuntimeError("already closed")])
def test_a_close_that_fails_is_the_end_of_it(error: Exception) -> None:
    async def send(message: Event) -> None:
        if message["type"] == "websocket.close":
            raise error

    async def scenario() -> None:
        websocket = LiveWebSocket(nothing, send)
        await websocket.send({"type": "websocket.accept"})
        await websocket.close()

    asyncio.run(scenario())


def test_the_server_may_have_to_tell_the_application() -> None:
    async def scenario() -> list[Send]:
        peer, told = Peer(), list[Send]()
        websocket = LiveWebSocket(nothing, peer.send, told.append)
        await websocket.send({"type": "websocket.accept"})
        assert told == []
        await websocket.close()
        await websocket.close()
        assert told == [peer.send]
        return told

    asyncio.run(scenario())


def test_what_a_cut_application_gets_is_what_any_server_raises() -> None:
    assert issubclass(WebSocketEnded, OSError)  # ASGI 2.4, uvicorn, Gunicorn 27
    assert issubclass(WebSocketEnded, RuntimeError)  # Gunicorn before
