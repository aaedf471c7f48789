"""HTTP/2 on ThreadWorker: what a client sees of its streams when its worker gets the order to leave.

Gunicorn answers the streams of a connection one after the other, in a thread that it has for as long as it lasts, and
says GOAWAY only to a connection that is busy just then. Here an idle connection takes no thread, and all get it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from functools import partial

import httpx
import pytest

from tests.harness.application_site import Site
from tests.harness.certificates import make_certificate
from tests.harness.clients import trusting
from tests.harness.http2_client import Http2Client, Stream
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import THREAD

NO_ERROR = 0
KEEP = 6
"""Seconds that an idle connection is kept where a test waits for its end; else it is :data:`LONG_KEEP`."""
LONG_KEEP = 20
THREADS = 4


def serve(start: Start, site: Site, **settings: object) -> Server:
    """Start two workers that are replaced at once."""
    make_certificate(site.directory)
    wanted = {"certfile": "certificate.pem", "keyfile": "key.pem", "http_protocols": "h2,h1", "threads": THREADS}
    wanted |= {"keepalive": LONG_KEEP, "zd_max_surge": 2, "graceful_timeout": LONG_KEEP + 10, "preload_app": True}
    return start(worker_class=THREAD.path, **{**wanted, **settings})


@pytest.fixture
def server(start: Start, site: Site) -> Server:
    return serve(start, site)


def assert_old(stream: Stream) -> None:
    assert stream.whole
    assert not stream.reset
    assert stream.status == 200
    assert stream.headers["x-version"] == "one"


def assert_told_goodbye(client: Http2Client, last: int) -> None:
    """GOAWAY names ``last`` as the last that was answered, and the connection ends."""
    client.until_end()
    assert client.goaways == [(last, NO_ERROR)]


def test_kept_http2_connections_get_one_more_answer(server: Server) -> None:
    """More of them than threads."""
    with server.reload_at_the_end("two"):
        clients = [Http2Client(server.address) for _ in range(3 * THREADS)]
        for client in clients:
            assert_old(client.get("/"))
    for client in clients:
        assert client.goaways == []
        assert_old(client.get("/"))
        assert_told_goodbye(client, 3)


def test_http2_connections_without_a_request_get_one(server: Server) -> None:
    with server.reload_at_the_end("two"):
        clients = [Http2Client(server.address) for _ in range(3 * THREADS)]
        server.wait_taken()
    for client in clients:
        assert_old(client.get("/"))
        assert_told_goodbye(client, 1)


def test_http2_streams_in_flight_and_new_ones_are_answered(server: Server, site: Site) -> None:
    """The one that the application has, those that wait for it, and one that comes in the drain; then GOAWAY."""
    client = Http2Client(server.address)
    streams = [client.request("GET", "/hold"), client.request("GET", "/stream?seconds=1")]
    wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the application has the first")
    server.begin_reload("two")
    streams.append(client.request("GET", "/"))
    site.answer_held()
    for number in streams:
        assert_old(client.answer(number))
    assert_told_goodbye(client, streams[-1])


def test_http2_body_still_arriving(server: Server) -> None:
    client = Http2Client(server.address)
    assert_old(client.get("/"))
    number = client.request("POST", "/echo", end=False)
    client.send(number, b"x" * 1000)
    server.wait_read()
    server.begin_reload("two")
    client.send(number, b"y" * 1000, end=True)
    assert_old(client.answer(number))
    assert client.streams[number].json()["length"] == 2000
    assert_told_goodbye(client, number)


def test_idle_http2_connections_get_goaway_when_their_time_is_over(start: Start, site: Site) -> None:
    """Used or not: GOAWAY, and not just an end; a request that crosses it can be sent again elsewhere."""
    server = serve(start, site, keepalive=KEEP)
    with server.reload_at_the_end("two") as old:
        used, unused = Http2Client(server.address), Http2Client(server.address)
        assert_old(used.get("/"))
        unused.read_for(0.5)  # the settings of both sides: what comes later makes it young again
    told = time.monotonic()
    assert_told_goodbye(used, 1)
    assert_told_goodbye(unused, 0)
    assert time.monotonic() - told < KEEP + 10
    del used, unused
    wait_for(lambda: not any(alive(pid) for pid in old), 10, "nothing holds the old workers")


def test_http2_client_that_never_pauses_gets_goaway_between_two_requests(start: Start, site: Site) -> None:
    """Its next request is there before the last one's answer is; after a while it gets GOAWAY all the same."""
    server = serve(start, site, keepalive=1)
    client = Http2Client(server.address)
    assert_old(client.get("/"))
    site.deploy("two")
    server.signal(signal.SIGUSR2)
    numbers = [client.request("GET", "/stream?seconds=0.2"), client.request("GET", "/stream?seconds=0.2")]
    while not client.goaways:
        before_last = client.streams[numbers[-2]]
        client.until(lambda: before_last.whole or client.goaways, "an answer or GOAWAY")  # noqa: B023  # at once
        if before_last.whole:
            numbers.append(client.request("GET", "/stream?seconds=0.2"))
    [(last, code)] = client.goaways
    assert code == NO_ERROR
    for number in numbers:
        if number <= last:
            assert_old(client.streams[number])
        else:
            assert not client.streams[number].status
    server.wait_only("two")


def test_httpx_loses_no_request(start: Start, site: Site) -> None:
    """The one client that everybody uses, with several streams on a connection, through three reloads."""
    server = serve(start, site, keepalive=2, zd_max_surge=1)
    answers = asyncio.run(_asked_through_reloads(server, 3))
    assert len(answers) > 100
    assert {version for version, _ in answers} == {"one", "two", "three", "four"}
    assert {protocol for _, protocol in answers} == {"HTTP/2"}


async def _asked_through_reloads(server: Server, clients: int) -> list[tuple[str, str]]:
    url = "https://%s:%s/echo" % server.address
    answers: list[tuple[str, str]] = []
    over = asyncio.Event()

    async def ask(client: httpx.AsyncClient, pause: float) -> None:
        while not over.is_set():
            reply = await client.post(url, content=b"x" * 3000)
            assert reply.status_code == 200
            answers.append((reply.headers["x-version"], reply.http_version))
            await asyncio.sleep(pause)

    def answered_by(version: str) -> bool:
        return any(answered == version for answered, _ in answers)

    async def reload() -> None:
        for version in ("two", "three", "four"):
            await asyncio.to_thread(server.reload, version, 60)
            await asyncio.to_thread(wait_for, partial(answered_by, version), BOOT_TIMEOUT_S, f"{version} has answered")
        await asyncio.to_thread(wait_for, lambda: len(answers) > 100, BOOT_TIMEOUT_S, "many requests are answered")
        over.set()

    async with _Clients(clients) as made:
        jobs = [ask(client, pause) for client in made for pause in (0.0, 0.02, 0.2)]
        await asyncio.gather(reload(), *jobs)
    return answers


class _Clients:
    """Several clients at once."""

    def __init__(self, count: int) -> None:
        self._made = [httpx.AsyncClient(http2=True, verify=trusting(), timeout=30) for _ in range(count)]

    async def __aenter__(self) -> list[httpx.AsyncClient]:
        return self._made

    async def __aexit__(self, *_error: object) -> None:
        for client in self._made:
            await client.aclose()
