"""Clients that speak another protocol, or none: they are answered at once, or take nothing away from the others."""

from __future__ import annotations

import contextlib
import socket
import struct

import gunicorn
import pytest

from tests.harness.application_site import Site
from tests.harness.certificates import make_certificate
from tests.harness.clients import Client, request
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ASGI, GEVENT, THREAD, WSGI, WorkerClass, for_each

ANSWER_S = 30.0
"""Seconds in which an answer comes "at once" on a machine with other work; what is silent waits for 60."""
SILENT_CLIENTS = 12
"""More than there are threads, and workers."""

V1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11" + struct.pack("!H", 12) + socket.inet_aton("192.0.2.1") * 2 + bytes(4)
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def connect(server: Server, data: bytes) -> socket.socket:
    client = socket.create_connection(server.reserved.getsockname(), timeout=ANSWER_S)
    client.sendall(data)
    return client


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\r\n",
        b"EHLO example.org\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
    ],
    ids=["TLS on the plain port", "HTTP/0.9", "SMTP", "bare line feeds"],
)
@for_each((THREAD, WSGI))
def test_what_is_no_http_is_refused_at_once(start_class: Start, worker: WorkerClass, data: bytes) -> None:
    server = start_class(worker, workers=1, timeout=60)
    with connect(server, data) as client:
        assert client.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert server.get()["version"] == "one"


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
@for_each((THREAD, WSGI, GEVENT))
def test_silent_clients_behind_a_proxy_take_nothing(start_class: Start, worker: WorkerClass, header: bytes) -> None:
    """A proxy sends its header as soon as its client has connected."""
    server = start_class(worker, workers=1, threads=4 if worker is THREAD else 1, timeout=60, proxy_protocol=True)
    with contextlib.ExitStack() as silent:
        for _ in range(SILENT_CLIENTS):
            silent.enter_context(connect(server, header))
        with connect(server, header + REQUEST) as client:
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


@for_each((THREAD, WSGI))
def test_a_reload_behind_a_proxy_loses_no_request(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """The header came before the drain, and the request comes in it."""
    server = start_class(
        worker,
        workers=1,
        threads=4 if worker is THREAD else 1,
        proxy_protocol=True,
        graceful_timeout=20,
        keepalive=int(BOOT_TIMEOUT_S),  # the connection has to last until the new code has loaded
    )
    with connect(server, V2) as client:
        server.wait_taken()
        server.begin_reload("two")
        client.sendall(REQUEST)
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
    server.wait_only("two")


@for_each((GEVENT,))
def test_half_a_head_has_keepalive_seconds(start_class: Start, worker: WorkerClass) -> None:
    server = start_class(worker, workers=1, timeout=60, keepalive=1)
    with connect(server, b"GET / HT") as client:
        while client.recv(4096):
            pass


@pytest.mark.skipif(gunicorn.version_info < (27,), reason="the base closes the connection before it can be kept")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@for_each((ASGI,))
def test_the_next_request_after_an_early_answer_to_an_upload(
    start_class: Start, site: Site, worker: WorkerClass, tls: bool
) -> None:
    """The response did not say that the connection ends; with TLS the request was swallowed, and closed after 5 s."""
    make_certificate(site.directory)
    settings = {"certfile": "certificate.pem", "keyfile": "key.pem"} if tls else {}
    server = start_class(worker, workers=1, **settings)
    upload = request("POST", "/refuse", bytes(100_000))
    with Client(server.address, tls=tls) as client:
        client.send(upload[:50_000])
        reply = client.reply()
        assert (reply.status, reply.last) == (413, False)
        client.send(upload[50_000:])
        assert client.ask("GET", "/").status == 200
