"""In a drain, a client that is held up gets no GOAWAY that it could read in the middle of its requests, for a while.

It shows by the acknowledgement of a PING that it goes on.
"""

from __future__ import annotations

import time

import pytest

from tests.harness.application_site import Site
from tests.harness.certificates import make_certificate
from tests.harness.http2_client import Http2Client
from tests.harness.processes import wait_for
from tests.harness.server import Server, Start
from tests.harness.worker_classes import GEVENT, THREAD, WorkerClass
from zdworker.workers.http2 import PING_LIMIT_S

NO_ERROR = 0


@pytest.fixture(params=[THREAD, GEVENT], ids=lambda kind: kind.name)
def server(request: pytest.FixtureRequest, start: Start, site: Site) -> Server:
    kind: WorkerClass = request.param
    make_certificate(site.directory)
    tls = {"certfile": "certificate.pem", "keyfile": "key.pem", "http_protocols": "h2,h1"}
    return start(worker_class=kind.path, keepalive=9, graceful_timeout=15, zd_max_surge="100%", preload_app=True, **tls)


def answered_in_drain(server: Server, site: Site) -> tuple[Http2Client, int]:
    """Return a client that has its last two answers, has acknowledged nothing since, and the number of the second."""
    client = Http2Client(server.address)
    streams = [client.request("GET", "/hold"), client.request("GET", "/")]
    wait_for(lambda: site.marks("request"), 5, "the application has the first")
    server.begin_reload("two")
    client.acknowledging = False
    site.answer_held()
    for number in streams:
        assert client.answer(number).headers["x-version"] == "one"
    return client, streams[-1]


def test_goaway_waits_for_the_acknowledgement(server: Server, site: Site) -> None:
    client, last = answered_in_drain(server, site)
    client.read_for(PING_LIMIT_S / 3)
    assert client.goaways == []
    acknowledged = time.monotonic()
    client.acknowledging = True
    client.flush()
    client.until(lambda: client.goaways, "a goodbye")
    assert client.goaways == [(last, NO_ERROR)]
    assert time.monotonic() - acknowledged < PING_LIMIT_S / 2


def test_goaway_does_not_wait_for_ever(server: Server, site: Site) -> None:
    begun = time.monotonic()
    client, last = answered_in_drain(server, site)
    client.until(lambda: client.goaways, "a goodbye")
    assert client.goaways == [(last, NO_ERROR)]
    assert time.monotonic() - begun >= PING_LIMIT_S
