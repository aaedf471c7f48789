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
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import GEVENT, THREAD, WorkerClass
from zdworker.workers.http2 import PING_LIMIT_S

LONG_LIMIT_S = 30.0
LONG_LIMIT = f"\nfrom zdworker.workers import http2 as _http2\n_http2.PING_LIMIT_S = {LONG_LIMIT_S}\n"
"""Code for gunicorn.conf.py, where a test has to be done with something before the limit."""

NO_ERROR = 0


for_both = pytest.mark.parametrize("kind", [THREAD, GEVENT], ids=str)


def serve(start: Start, site: Site, kind: WorkerClass, extra: str = "") -> Server:
    make_certificate(site.directory)
    tls = {"certfile": "certificate.pem", "keyfile": "key.pem", "http_protocols": "h2,h1"}
    times = {"keepalive": 40, "graceful_timeout": 60}
    return start(worker_class=kind.path, zd_max_surge="100%", preload_app=True, extra=extra, **times, **tls)


def answered_in_drain(server: Server, site: Site) -> tuple[Http2Client, int]:
    """Return a client that has its last two answers, has acknowledged nothing since, and the number of the second."""
    client = Http2Client(server.address)
    streams = [client.request("GET", "/hold"), client.request("GET", "/")]
    wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the application has the first")
    server.begin_reload("two")
    client.acknowledging = False
    site.answer_held()
    for number in streams:
        assert client.answer(number).headers["x-version"] == "one"
    return client, streams[-1]


@for_both
def test_goaway_waits_for_the_acknowledgement(start: Start, site: Site, kind: WorkerClass) -> None:
    server = serve(start, site, kind, LONG_LIMIT)
    client, last = answered_in_drain(server, site)
    client.read_for(1.0)
    assert client.goaways == []
    acknowledged = time.monotonic()
    client.acknowledging = True
    client.flush()
    client.until(lambda: client.goaways, "a goodbye")
    assert client.goaways == [(last, NO_ERROR)]
    assert time.monotonic() - acknowledged < LONG_LIMIT_S / 2


@for_both
def test_goaway_does_not_wait_for_ever(start: Start, site: Site, kind: WorkerClass) -> None:
    server = serve(start, site, kind)
    begun = time.monotonic()
    client, last = answered_in_drain(server, site)
    client.until(lambda: client.goaways, "a goodbye")
    assert client.goaways == [(last, NO_ERROR)]
    assert time.monotonic() - begun >= PING_LIMIT_S
