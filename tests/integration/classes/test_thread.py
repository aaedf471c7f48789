"""What is special to ThreadWorker: which connections take a thread, and what becomes of those that take none."""

from __future__ import annotations

import time

import pytest

from tests.harness.application_site import FEW_DESCRIPTORS, Site
from tests.harness.certificates import make_certificate
from tests.harness.clients import Broken, Client, request
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import THREAD

PLAIN = request("GET", "/")
THREADS = 2


def start_one(start: Start, **settings: object) -> Server:
    return start(worker_class=THREAD.path, workers=1, threads=THREADS, **settings)


def start_tls(start: Start, site: Site, **settings: object) -> Server:
    make_certificate(site.directory)
    return start_one(start, certfile="certificate.pem", keyfile="key.pem", **settings)


def test_thread_worker_is_out_of_descriptors(start: Start) -> None:
    """It goes on with the connections that it has; Gunicorn's class ends with an error."""
    server = start_one(start, keepalive=60, extra=FEW_DESCRIPTORS)
    [worker] = server.workers()
    crowd = [Client(server.address) for _ in range(100)]
    wait_for(lambda: "Out of file descriptors" in server.log, BOOT_TIMEOUT_S, "it has run out of descriptors")
    last = request("GET", "/", headers="Connection: close\r\n")
    for client in crowd:
        client.send(last)
    assert {client.reply().json()["pid"] for client in crowd} == {worker}


EXITS = """

def leave(environ, start_response, query):
    mark("request", path="/leave")
    {statement}


ENDPOINTS["/leave"] = leave
"""


@pytest.mark.parametrize("statement", ["raise SystemExit(1)", "import asyncio; raise asyncio.CancelledError"])
def test_an_exit_in_one_thread_is_no_other_request_s(start: Start, site: Site, statement: str) -> None:
    site.deploy("one", extra=EXITS.format(statement=statement))
    server = start_one(start)
    [worker] = server.workers()
    other, leaving = Client(server.address), Client(server.address)
    other.send(request("GET", "/hold"))
    wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the other one is being answered")
    leaving.send(request("GET", "/leave"))
    leaving.wait_end()
    site.answer_held()
    assert other.reply().json()["pid"] == worker
    assert server.workers() == [worker]


def test_thread_worker_ends_a_silent_connection_when_its_time_is_over(start: Start) -> None:
    """After ``keepalive`` and 5 seconds, as in Gunicorn since 26: before, it held a thread for as long as it lasted."""
    server = start_one(start, keepalive=1)
    opened = time.monotonic()
    Client(server.address).wait_end()
    assert 5 < time.monotonic() - opened < 25


def test_thread_worker_ends_half_a_head_when_nothing_follows(start: Start) -> None:
    """After ``timeout`` seconds without a byte; also on a connection that was used before."""
    server = start_one(start, timeout=8, keepalive=4)
    client = Client(server.address)
    assert not client.ask("GET", "/").last
    client.send(PLAIN[:10])
    time.sleep(5)  # longer than an idle one would be kept, in all
    sent = time.monotonic()
    client.send(PLAIN[10:15])
    client.wait_end()
    assert 7.5 < time.monotonic() - sent < 28


def test_silent_tls_connections_take_no_thread(start: Start, site: Site) -> None:
    """More of them than threads, shaken hands with; all are answered in the drain."""
    server = start_tls(start, site, keepalive=90, graceful_timeout=60)
    silent = [Client(server.address, tls=True) for _ in range(5 * THREADS)]
    for _ in range(5):
        server.get(tls=True)  # long before one of the others has used up its time
    server.begin_reload("two")
    for client in silent:
        reply = client.ask("GET", "/")
        assert (reply.status, reply.headers["x-version"], reply.last) == (200, "one", True)


def test_unfinished_tls_handshakes_hold_threads(start: Start, site: Site) -> None:
    """As many as there are threads, and everybody else waits, as with Gunicorn's class; the drain ends at its bound."""
    server = start_tls(start, site, graceful_timeout=3)
    holders = [Client(server.address) for _ in range(THREADS)]
    for client in holders:
        client.begin_tls()
    server.wait_read(*holders)
    other = Client(server.address)
    other.socket.settimeout(1)
    with pytest.raises(Broken, match="timeout"):
        other.start_tls()
    old = server.begin_reload("two")
    assert server.get(tls=True)["version"] == "two"
    wait_for(lambda: not any(alive(pid) for pid in old), BOOT_TIMEOUT_S, "the old worker is gone")
    assert site.events("worker_abort") == []
