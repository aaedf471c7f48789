"""WebSockets when their worker gets the order to leave: each is closed with 1012, in its turn, and none is reset."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.harness.application_site import Site
from tests.harness.clients import Client
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import WEBSOCKETS, WorkerClass, for_each
from zdworker.workers.asgi.websocket_schedule import CLOSE_INTERVAL_S

BUSY = 40
IDLE = 1000
SPREAD = 2
"""Seconds of ``zd_websocket_drain``."""
LIMIT = 20
"""Seconds of ``graceful_timeout``."""
PATIENCE = 2 * BOOT_TIMEOUT_S
"""Seconds that a client waits for a text or for the end: it is silent while the new code is loaded."""


@dataclass
class Talk:
    """What one client saw."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    code: int | None = None
    told: float = 0.0
    """When the server got the order to reload."""
    ended: float = 0.0
    sent: list[str] = field(default_factory=list)
    received: list[str] = field(default_factory=list)


async def opened(server: Server, count: int) -> list[ClientConnection]:
    """Open connections, a few at a time."""
    url = "ws://%s:%s/websocket" % server.address
    made: list[ClientConnection] = []
    while len(made) < count:
        some = min(100, count - len(made))
        # No compression and no pings: a thousand clients share the cores with what is tested.
        made += await asyncio.gather(
            *(connect(url, proxy=None, compression=None, ping_interval=None, close_timeout=20) for _ in range(some))
        )
    return made


async def listen(websocket: ClientConnection, talk: Talk) -> None:
    """Take what comes until the connection ends."""
    try:
        while True:
            talk.received.append(str(await asyncio.wait_for(websocket.recv(), PATIENCE)))
            talk.begun.set()
    except ConnectionClosed as closed:
        talk.code, talk.ended = closed.rcvd.code if closed.rcvd else None, time.monotonic()


async def chat(websocket: ClientConnection, talk: Talk) -> None:
    """Send a text now and then, until the connection ends."""
    listening = asyncio.create_task(listen(websocket, talk))
    while not listening.done():
        talk.sent.append(f"message {len(talk.sent)}")
        try:
            await websocket.send(talk.sent[-1])
        except ConnectionClosed:
            talk.sent.pop()
        await asyncio.wait({listening}, timeout=0.05)


async def converse(server: Server, count: int, *, busy: bool) -> list[Talk]:
    """Hold ``count`` conversations until each is ended by the server, which reloads meanwhile."""
    websockets = await opened(server, count)
    talks = [Talk() for _ in websockets]
    said = chat if busy else listen
    going = [asyncio.create_task(said(*pair)) for pair in zip(websockets, talks, strict=True)]
    if busy:
        await asyncio.gather(*(talk.begun.wait() for talk in talks))
    server.site.deploy("two")
    for talk in talks:
        talk.told = time.monotonic()
    server.signal(server.reload_signal)
    await asyncio.gather(*going)
    return talks


@for_each(WEBSOCKETS)
def test_busy_websockets(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """Each gets 1012, one behind the other; what came back before that is what was sent, in order."""
    server = start_class(worker, zd_max_surge="100%", graceful_timeout=LIMIT, zd_websocket_drain=SPREAD)
    talks = asyncio.run(converse(server, BUSY, busy=True))
    assert Counter(talk.code for talk in talks) == {1012: BUSY}
    assert all(talk.received == talk.sent[: len(talk.received)] for talk in talks)
    ends = sorted(talk.ended for talk in talks)
    told = min(talk.told for talk in talks)
    assert ends[-1] - told >= (BUSY / 2 - 1) * CLOSE_INTERVAL_S, "one worker at least has half of them, or more"
    assert len({int((end - told) / 0.25) for end in ends}) >= 3, "they are not all told at once"
    server.wait_only("two")
    assert "graceful_timeout is over" not in server.log
    assert len(site.marks("disconnect", "one")) == BUSY, "the application has seen each end"
    assert {mark["code"] for mark in site.marks("disconnect", "one")} <= {None, 1000, 1005, 1012}


@for_each(WEBSOCKETS)
def test_a_thousand_idle_websockets(start_class: Start, worker: WorkerClass) -> None:
    """They are gone within ``graceful_timeout``, each with 1012."""
    server = start_class(worker, zd_max_surge="100%", graceful_timeout=LIMIT, zd_websocket_drain=SPREAD)
    old = server.workers()
    talks = asyncio.run(converse(server, IDLE, busy=False))
    assert Counter(talk.code for talk in talks) == {1012: IDLE}
    wait_for(lambda: not any(alive(pid) for pid in old), BOOT_TIMEOUT_S, "nothing holds the old workers any more")
    assert "graceful_timeout is over" not in server.log
    server.wait_only("two")


@for_each(WEBSOCKETS)
def test_upgrade_during_the_drain(start_class: Start, worker: WorkerClass) -> None:
    """On a connection that said nothing before: accepted, then closed with 1012."""
    settings = {"zd_max_surge": "100%", "zd_websocket_drain": 0, "zd_hand_over": False}
    server = start_class(worker, graceful_timeout=LIMIT, **settings)
    silent = Client(server.address)
    server.wait_taken()
    server.begin_reload("two")
    silent.socket.setblocking(False)
    url = "ws://%s:%s/websocket" % server.address

    async def upgrade() -> Talk:
        talk = Talk()
        async with connect(url, sock=silent.socket, proxy=None) as websocket:
            await listen(websocket, talk)
        return talk

    assert asyncio.run(upgrade()).code == 1012


@for_each(WEBSOCKETS)
def test_a_client_that_does_not_answer_the_close(start_class: Start, worker: WorkerClass) -> None:
    """It holds its worker until the deadline at most, and then it is cut."""
    server = start_class(worker, zd_max_surge="100%", graceful_timeout=2, zd_websocket_drain=0)
    silent = Client(server.address)
    silent.send(UPGRADE)
    assert silent.reply().status == 101
    old = server.begin_reload("two")
    wait_for(lambda: not any(alive(pid) for pid in old), 2 + 8, "the old workers are gone")
    server.wait_only("two")


UPGRADE = (
    b"GET /websocket HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
"""The example of RFC 6455, 1.3."""
