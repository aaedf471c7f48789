"""HTTP/2 at the drain of an ASGIWorker, and of uvicorn where it has that: whatever a client has begun is answered, and
GOAWAY tells the truth.

Connections are opened to workers of version "one", which are then all told to leave; the kinds go on once none of them
accepts any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import gunicorn.config
import httpx
import pytest

from tests.harness.application_site import Site
from tests.harness.certificates import make_certificate
from tests.harness.clients import trusting
from tests.harness.drain_scenario import END, Outcomes, Scenario, Stage, Steps
from tests.harness.http2_client import Http2Client, Stream
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ASGI, uvicorn_has

scenario = Scenario()
NO_ERROR = 0
NOTICE = (2**31 - 1, NO_ERROR)
"""The GOAWAY that only asks for no further streams (RFC 9113 6.8)."""
KEEP = 3
LIMIT = 12
BODY = b"0123456789abcdef" * 200

UVICORN = """
from zdworker.workers.uvicorn.worker import UvicornWorker


class Http2Worker(UvicornWorker):
    CONFIG_KWARGS = {"http": "zttp", "http2": True}
"""
"""uvicorn has HTTP/2 since 0.54, with zttp, and only if it is asked for."""

HOLDS_APART = """

async def hold_apart(scope, receive, send, query):
    mark("request", path="/hold_apart")
    while not os.path.exists("release_apart"):
        await asyncio.sleep(0.05)
    await answer(send)


ENDPOINTS["/hold_apart"] = hold_apart
"""
"""A request that one kind holds, whatever another one does."""

KINDS = ["ASGIWorker", "ASGIWorker in clear text", "UvicornWorker"]


def settings_of(kind: str, site: Site) -> dict[str, Any]:
    settings: dict[str, Any] = {"worker_class": "zdworker.ASGIWorker", "http_protocols": "h2,h1"}
    if kind.startswith("Uvicorn"):
        if not uvicorn_has("zttp_h2_impl"):
            pytest.skip("this uvicorn has no HTTP/2")
        (site.directory / "uvicorn_http2.py").write_text(UVICORN)
        settings = {"worker_class": "uvicorn_http2.Http2Worker"}
    if kind.endswith("clear text"):
        if not hasattr(gunicorn.config, "HTTP2Cleartext"):
            pytest.skip("Gunicorn has that since 26.2")
        settings["http2_cleartext"] = "prior-knowledge"
    else:
        make_certificate(site.directory)
        settings |= {"certfile": "certificate.pem", "keyfile": "key.pem"}
    return {**settings, "keepalive": KEEP, "graceful_timeout": LIMIT, "zd_max_surge": "100%", "preload_app": True}


@pytest.fixture(scope="module", params=KINDS)
def drained(request: pytest.FixtureRequest) -> Iterator[Outcomes]:
    """One server, one drain, all kinds of connection."""
    site = Site()
    site.deploy("one", extra=HOLDS_APART)
    with Server(site, **settings_of(request.param, site)) as server:
        yield scenario.play(Stage(server.start(), ASGI, 1), LIMIT + 8)
    site.remove()


def connect(server: Server) -> Http2Client:
    return Http2Client(server.address, tls="certfile" in server.settings)


def in_flight(stage: Stage, client: Http2Client, path: str) -> int:
    """Open a stream, and return its number when the application has its request."""
    before = len(stage.server.site.marks("request"))
    number = client.request("GET", path)
    wait_for(
        lambda: len(stage.server.site.marks("request")) > before, BOOT_TIMEOUT_S, "the application has the request"
    )
    return number


def assert_old(stream: Stream) -> None:
    assert stream.whole
    assert not stream.reset
    assert stream.status == 200
    assert stream.headers["x-version"] == "one"


@scenario.kind()
def test_http2_connection_idle_and_used_again(stage: Stage) -> Steps:
    client = connect(stage.server)
    assert_old(client.get("/"))
    yield
    number = client.request("GET", "/")
    assert_old(client.answer(number))
    client.until_end()
    assert client.goaways == [(number, NO_ERROR)]


@scenario.kind()
def test_http2_connection_idle_and_left_alone(stage: Stage) -> Steps:
    """GOAWAY when its keep-alive time is over, in which all that was answered is named."""
    client = connect(stage.server)
    number = client.request("GET", "/")
    assert_old(client.answer(number))
    yield
    begun = time.monotonic()
    client.until_end()
    assert client.goaways == [(number, NO_ERROR)]
    assert time.monotonic() - begun < KEEP + 6


@scenario.kind()
def test_http2_connection_never_used(stage: Stage) -> Steps:
    client = connect(stage.server)
    assert client.read()  # the server's settings: it is accepted
    yield
    number = client.request("GET", "/")
    assert_old(client.answer(number))
    client.until_end()
    assert client.goaways == [(number, NO_ERROR)]


@scenario.kind()
def test_http2_body_still_arriving(stage: Stage) -> Steps:
    client = connect(stage.server)
    number = client.request("POST", "/echo", end=False)
    client.send(number, BODY)
    client.get("/")  # frames are read in their order: the worker has the body's beginning
    yield
    for _ in range(5):
        client.send(number, BODY)
        time.sleep(0.1)  # the pace of the body
    client.send(number, BODY, end=True)
    assert_old(client.answer(number))
    if gunicorn.version_info[0] != 26:  # drain or not, that one takes the first piece for the whole
        assert client.streams[number].json()["length"] == 7 * len(BODY)
    client.until_end()
    assert [last for last, _ in client.goaways] == [3]


@scenario.kind()
def test_http2_streams_in_flight_and_new_ones(stage: Stage) -> Steps:
    """All are answered; GOAWAY comes when no stream is in flight, never before."""
    client = connect(stage.server)
    slow = in_flight(stage, client, "/hold_apart")
    yield
    late = client.request("GET", "/sleep?seconds=1" if gunicorn.version_info[0] == 26 else "/stream?seconds=1")
    assert client.goaways == []
    (stage.server.site.directory / "release_apart").touch()
    assert_old(client.answer(slow))
    assert_old(client.answer(late))
    if gunicorn.version_info[0] != 26:  # that one never ends a stream whose last piece is empty
        assert client.streams[late].body.endswith(b"whole\n")
    client.until_end()
    assert client.goaways == [(late, NO_ERROR)]


@scenario.kind(lambda _: gunicorn.version_info >= (27,))  # before, streams are answered one after the other
def test_http2_streams_that_always_overlap(stage: Stage) -> Steps:
    """A shutdown notice when half of the time is over; a client that obeys it loses nothing."""
    client = connect(stage.server)
    running = [in_flight(stage, client, "/hold")]
    yield
    while not client.goaways:
        running.append(client.request("GET", "/hold"))
        client.read_for(0.5)
    assert client.goaways == [NOTICE]
    stage.server.site.answer_held()
    for number in running:
        assert_old(client.answer(number))
    client.until_end()
    assert client.goaways == [NOTICE, (running[-1], NO_ERROR)]


def test_no_http2_connection_holds_the_worker(drained: Outcomes) -> None:
    drained.check(END)


@pytest.mark.parametrize("kind", KINDS)
def test_httpx_through_three_reloads(start: Start, site: Site, kind: str) -> None:
    server = start(**settings_of(kind, site))
    scheme = "https" if "certfile" in server.settings else "http"
    url = f"{scheme}://%s:%s" % server.address
    seen: list[tuple[str, str]] = []

    async def requests(over: asyncio.Event) -> None:
        async with httpx.AsyncClient(verify=trusting(), http1=False, http2=True, base_url=url, timeout=20) as client:
            while not over.is_set():
                try:
                    answer = await client.post("/echo", content=BODY)
                    seen.append((answer.http_version, answer.headers["x-version"]))
                except httpx.HTTPError as error:
                    seen.append(("failed", repr(error)))

    def answered_by(version: str) -> bool:
        assert not any(protocol == "failed" for protocol, _ in seen), seen
        return any(answered == version for _, answered in seen)

    async def main() -> None:
        over = asyncio.Event()
        clients = [asyncio.create_task(requests(over)) for _ in range(8)]
        for version in ("one", "two", "three", "four"):
            if version != "one":
                await asyncio.to_thread(server.reload, version)
            await asyncio.to_thread(wait_for, partial(answered_by, version), BOOT_TIMEOUT_S, f"{version} has answered")
        over.set()
        await asyncio.gather(*clients)

    asyncio.run(main())
    assert {protocol for protocol, _ in seen} == {"HTTP/2"}, [how for what, how in seen if what != "HTTP/2"]
    assert {version for _, version in seen} == {"one", "two", "three", "four"}
