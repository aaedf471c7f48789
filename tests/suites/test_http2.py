"""HTTP/2: frames of all kinds are answered as by stock, and h2load's requests too."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import hpack
import pytest

from tests.harness.application_site import Site
from tests.harness.certificates import make_certificate
from tests.harness.clients import trusting
from tests.harness.processes import wait_for
from tests.harness.server import Server
from tests.harness.worker_classes import ASGI, GEVENT, THREAD, UVICORN
from tests.suites import http2_cases
from tests.suites.conftest import Run, compare
from tests.suites.transcripts import Transcript
from tests.suites.variants import Variant, for_each

TLS = {"certfile": "certificate.pem", "keyfile": "key.pem"}
BOTH = {**TLS, "http_protocols": "h2,h1"}
VARIANTS = (
    Variant(
        "UvicornWorker, zttp",
        UVICORN,
        "asgi",
        settings=TLS,
        kwargs={"http": "zttp", "http2": True},
        needs=("uvicorn_worker", "zttp"),
    ),
    Variant("ASGIWorker", ASGI, "asgi", settings=BOTH),
    Variant("ThreadWorker", THREAD, "wsgi", settings={**BOTH, "threads": 32}),
    Variant("GeventWorker", GEVENT, "wsgi", settings=BOTH),
)
AT_ONCE = 16
SILENCE_S = 2.0
"""After which a server has said all; less than ``keepalive``."""
REQUESTS = 1000
H2LOAD_S = 40.0
ENDLESS = 1_000_000
"""Requests that h2load does not come to the end of: its connections end before."""
BEGUN = 100
HEAD = 9

COUNTS = """
import os
import app as site

calls = os.open("calls", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
"""
COUNTING = {
    "asgi": COUNTS
    + """

async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        return await site.lifespan(receive, send)
    os.write(calls, b".")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
""",
    "wsgi": COUNTS
    + """

def application(environ, start_response):
    os.write(calls, b".")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
""",
}
"""Applications that write down, in a file, each call."""


def play(address: tuple[str, int], sent: bytes) -> Transcript:
    """Send all, and write down the frames that come."""
    context = trusting()
    context.set_alpn_protocols(["h2"])
    data, end = b"", "closed"
    with context.wrap_socket(socket.create_connection(address, 30)) as client:
        assert client.selected_alpn_protocol() == "h2"
        with contextlib.suppress(ConnectionError, OSError):
            client.sendall(sent)
        client.settimeout(SILENCE_S)
        try:
            while piece := client.recv(65536):
                data += piece
        except TimeoutError:
            end = "left open"
        except OSError:
            pass
    return Transcript("\n".join(described(data)).encode(), end)


def described(data: bytes) -> list[str]:
    """Return a line for each frame; fields are decoded, and the date is left out."""
    decoder, lines = hpack.Decoder(), []
    while len(data) >= HEAD:
        size = HEAD + int.from_bytes(data[:3], "big")
        kind, flags, stream, payload = data[3], data[4], int.from_bytes(data[5:9], "big"), data[HEAD:size]
        data = data[size:]
        shown = payload.hex() if kind != http2_cases.GOAWAY else f"{payload[:8].hex()} {payload[8:]!r}"
        if kind == http2_cases.HEADERS:
            shown = repr([pair for pair in decoder.decode(payload, raw=True) if pair[0] != b"date"])
        elif kind == http2_cases.DATA:
            shown = repr(payload)
        lines.append(f"{kind} {flags} {stream} {shown}")
    return lines


def of_cases(server: Server) -> dict[str, Transcript]:
    address = server.reserved.getsockname()
    with ThreadPoolExecutor(AT_ONCE) as clients:
        played = clients.map(lambda sent: play(address, sent), http2_cases.CASES.values())
        return dict(zip(http2_cases.CASES, played, strict=True))


@for_each(VARIANTS)
def test_frames_are_answered_as_by_stock(run: Run, site: Site, variant: Variant) -> None:
    make_certificate(site.directory)
    server = run(stock=True)
    stock = of_cases(server)
    server.end()
    assert compare(variant, "HTTP/2", "steady", stock, of_cases(run(stock=False))) == []


def h2load(server: Server, requests: int) -> dict[str, int]:
    """Return how many requests succeeded and did not; nothing if they do not come to an end."""
    if shutil.which("h2load") is None:
        pytest.skip("h2load is not installed (apt: nghttp2-client)")
    words = ["h2load", f"-n{requests}", "-c10", "-m10", "https://%s:%s/" % server.reserved.getsockname()]
    try:
        output = subprocess.run(words, capture_output=True, text=True, timeout=H2LOAD_S, check=True).stdout
    except subprocess.TimeoutExpired:
        return {}
    return {word: int(number) for number, word in re.findall(r"(\d+) (succeeded|failed|errored|2xx)", output)}


@for_each(VARIANTS)
def test_h2load(run: Run, site: Site, variant: Variant) -> None:
    """A thousand requests, ten at a time on each of ten connections."""
    make_certificate(site.directory)
    server = run(stock=True)
    stock = h2load(server, REQUESTS)
    server.end()
    ours = h2load(run(stock=False), REQUESTS)
    print(f"h2load, {variant.name}: stock {stock}, ours {ours}")
    if not stock:
        pytest.skip(f"stock does not come to an end within {H2LOAD_S} s; ours: {ours or 'nor does it'}")
    assert ours == stock
    assert ours["succeeded"] == REQUESTS


@for_each(tuple(variant for variant in VARIANTS if variant.worker is not UVICORN))
def test_h2load_through_a_reload(run: Run, site: Site, variant: Variant) -> None:
    """Each call of the application is answered; the other requests come behind a GOAWAY, and a client may send them
    again (RFC 9113 6.8). h2load makes no new connections: it ends when all of its own have ended.

    With uvicorn it does not come to an end without a reload either.
    """
    make_certificate(site.directory)
    site.write("served.py", COUNTING[variant.kind])
    server = run(stock=False)
    old, calls = server.workers(), site.directory / "calls"
    with ThreadPoolExecutor(1) as beside:
        before = calls.stat().st_size
        loading = beside.submit(h2load, server, ENDLESS)
        wait_for(lambda: loading.done() or calls.stat().st_size > before + BEGUN, H2LOAD_S, "requests come")
        server.reload("two")
        found = loading.result()
    print(f"h2load through a reload, {variant.name}: {found}")
    assert not set(old) & set(server.workers())
    assert found["succeeded"] == found["2xx"] == calls.stat().st_size - before
