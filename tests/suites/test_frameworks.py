"""Servers and clients of frameworks, through a reload: no request fails, and what is long-lived ends at once, in order.

Rules: the clients are those of the frameworks' users, or the websockets library where a protocol has none. The code
with which the application saw a WebSocket end is a mark.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client, request
from tests.harness.processes import wait_for
from tests.harness.server import Server, Start
from tests.harness.worker_classes import ASGI, UVICORN, WorkerClass, for_each
from tests.suites.reloads import asking, in_thread

SERVICE_RESTART = 1012
GRACE_S = 30
END_S = 10.0
"""Within which a stream ends on a machine with other work; without a word of the drain it would be :data:`GRACE_S`."""

MARKED = """
import app as site


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        return await site.lifespan(receive, send)

    async def noted():
        message = await receive()
        if message["type"] == "websocket.disconnect":
            site.mark("closed", code=message.get("code"))
        return message

    await framework(scope, noted, send)


async def plain(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""

SOCKET_IO = """
import socketio

sio = socketio.AsyncServer(async_mode="asgi")


@sio.event
async def echo(sid, data):
    return data


framework = socketio.ASGIApp(sio, other_asgi_app=plain)
"""

GRAPHQL = """
import asyncio

from ariadne import QueryType, SubscriptionType, make_executable_schema
from ariadne.asgi import GraphQL
from ariadne.asgi.handlers import GraphQLTransportWSHandler

query, subscription = QueryType(), SubscriptionType()


@query.field("hello")
def hello(*_):
    return "hello"


@subscription.source("count")
async def count(*_):
    for number in range(10_000):
        yield number
        await asyncio.sleep(0.05)


@subscription.field("count")
def counted(number, *_):
    return number


schema = make_executable_schema("type Query { hello: String } type Subscription { count: Int }", query, subscription)
framework = GraphQL(schema, websocket_handler=GraphQLTransportWSHandler())
"""

CHANNELS = """
import django
from django.conf import settings

settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="a", ROOT_URLCONF=__name__)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path

urlpatterns = [path("", lambda request: HttpResponse("ok"))]


class Echo(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(text_data=text_data)


routes = URLRouter([path("ws", Echo.as_asgi())])
framework = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": routes})
"""

EVENTS = """
import asyncio

from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route


async def numbers():
    for number in range(10_000):
        yield {"data": str(number)}
        await asyncio.sleep(0.05)


async def events(request):
    return EventSourceResponse(numbers())


framework = Starlette(routes=[Route("/", lambda request: PlainTextResponse("ok")), Route("/events", events)])
"""

for_each_class = for_each((UVICORN, ASGI))


def serve(start: Start, site: Site, worker: WorkerClass, code: str, *libraries: str) -> Server:
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    site.write("served.py", MARKED + code)
    options = {"graceful_timeout": GRACE_S, "keepalive": 2, "workers": 1}
    return start(worker_class=worker.path, application=("served:application",), **options)


def uri(server: Server, scheme: str, path: str = "") -> str:
    return "%s://%s:%s%s" % (scheme, *server.reserved.getsockname(), path)


def messages(client: Any) -> Iterator[Any]:
    """Yield what comes on a WebSocket until it is closed, with whatever code."""
    from websockets.exceptions import ConnectionClosed

    with contextlib.suppress(ConnectionClosed):
        while True:
            yield client.recv()


def codes(site: Site) -> list[int]:
    return [mark["code"] for mark in site.marks("closed")]


@for_each_class
def test_socket_io(start: Start, site: Site, worker: WorkerClass) -> None:
    """The library's own client comes back by itself, once, to the new code."""
    server = serve(start, site, worker, SOCKET_IO, "socketio", "aiohttp")
    old = server.workers()

    async def talk(reload: asyncio.Event, reloaded: asyncio.Event) -> int:
        import socketio

        connects, again = 0, asyncio.Event()
        client = socketio.AsyncClient(reconnection_delay=0.1)

        @client.event  # type: ignore[untyped-decorator]  # it is not where the types are checked
        async def connect() -> None:
            nonlocal connects
            connects += 1
            if connects > 1:
                again.set()

        await client.connect(uri(server, "http"), transports=["websocket"])
        assert await client.call("echo", "before") == "before"
        reload.set()
        await reloaded.wait()
        await again.wait()
        assert await client.call("echo", "after") == "after"
        await client.disconnect()
        return connects

    async def both() -> int:
        reload, reloaded = asyncio.Event(), asyncio.Event()
        talking = asyncio.create_task(talk(reload, reloaded))
        await asyncio.wait({talking, asyncio.create_task(reload.wait())}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.to_thread(server.reload, "two")
        reloaded.set()
        return await asyncio.wait_for(talking, 30)

    with asking(server, ("/", None)) as answers:
        assert asyncio.run(both()) == 2
    assert answers.failures == []
    assert not set(old) & set(server.workers())
    assert codes(site)  # whatever it says: the code is what this client has answered to ours


@for_each_class
def test_graphql_subscription(start: Start, site: Site, worker: WorkerClass) -> None:
    websockets = pytest.importorskip("websockets.sync.client")
    server = serve(start, site, worker, GRAPHQL, "ariadne")
    with websockets.connect(uri(server, "ws"), subprotocols=["graphql-transport-ws"]) as client:
        client.send(json.dumps({"type": "connection_init"}))
        assert json.loads(client.recv())["type"] == "connection_ack"
        client.send(json.dumps({"id": "1", "type": "subscribe", "payload": {"query": "subscription { count }"}}))
        received: list[Any] = []
        reading = in_thread(lambda: received.extend(messages(client)))
        wait_for(lambda: len(received) > 3, 10, "the subscription sends")
        query = b'{"query": "{ hello }"}'
        with asking(server, ("/", None)) as answers:
            server.reload("two")
        reading.join(END_S)
        assert client.close_code == SERVICE_RESTART
    numbers = [json.loads(one)["payload"]["data"]["count"] for one in received]
    assert numbers == list(range(len(numbers)))
    assert answers.failures == []
    assert codes(site) == [SERVICE_RESTART]
    with Client(server.address) as plain:
        reply = plain.ask("POST", "/", query, headers="Content-Type: application/json\r\n")
        assert reply.json() == {"data": {"hello": "hello"}}


@for_each_class
def test_channels(start: Start, site: Site, worker: WorkerClass) -> None:
    websockets = pytest.importorskip("websockets.sync.client")
    server = serve(start, site, worker, CHANNELS, "channels", "django")
    with websockets.connect(uri(server, "ws", "/ws")) as client:
        client.send("hello")
        assert client.recv() == "hello"
        with asking(server, ("/", None)) as answers:
            server.reload("two")
        assert list(messages(client)) == []
        assert client.close_code == SERVICE_RESTART
    assert answers.failures == []
    assert codes(site) == [SERVICE_RESTART]


@for_each_class
def test_server_sent_events(start: Start, site: Site, worker: WorkerClass) -> None:
    """A stream sees the drain begin and ends, as it does when stock ends: its client comes back to the new code."""
    server = serve(start, site, worker, EVENTS, "sse_starlette", "starlette")
    received: list[bytes] = []
    old = server.workers()
    with Client(server.address) as client:
        client.send(request("GET", "/events"))
        reading = in_thread(lambda: received.extend(iter(lambda: client.socket.recv(65536), b"")))
        wait_for(lambda: b"data: 3" in b"".join(received), END_S, "the stream sends")
        with asking(server, ("/", None)) as answers:
            site.deploy("two")
            server.signal(server.reload_signal)
            server.wait_retired(old)
            retired = time.monotonic()
            reading.join(END_S)
            assert time.monotonic() - retired < END_S
            server.wait_only("two")
    assert answers.failures == []
