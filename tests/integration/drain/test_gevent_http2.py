"""HTTP/2 on GeventWorker: what a client sees of its streams when its worker gets the order to leave.

Gunicorn answers the streams of a connection one after the other, and by itself says GOAWAY to none of them.
"""

from __future__ import annotations

import contextlib

import pytest

from tests.harness.application_site import Site
from tests.harness.certificates import make_certificate
from tests.harness.http2_client import Http2Client, Stream
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import GEVENT

NO_ERROR = 0
KEEP = 20
"""Seconds that an idle connection is kept: more than a drain takes to begin."""
BODY = b"0123456789abcdef" * 50


def serve(start: Start, site: Site, keepalive: int) -> Server:
    """Start two workers that are replaced at once."""
    make_certificate(site.directory)
    return start(
        worker_class=GEVENT.path,
        http_protocols="h2,h1",
        certfile="certificate.pem",
        keyfile="key.pem",
        keepalive=keepalive,
        graceful_timeout=KEEP + 5,
        zd_max_surge="100%",
        preload_app=True,
    )


@pytest.fixture
def server(start: Start, site: Site) -> Server:
    return serve(start, site, KEEP)


def connections(server: Server, count: int = 5) -> list[Http2Client]:
    made = [Http2Client(server.address) for _ in range(count)]
    server.wait_taken()
    return made


def assert_old(client: Http2Client, stream: int) -> None:
    """The old worker has answered on ``stream``."""
    answer = client.answer(stream)
    assert (answer.status, answer.headers["x-version"]) == (200, "one")


def assert_goodbye(client: Http2Client, last: int) -> None:
    """GOAWAY says that ``last`` was answered, and nothing else."""
    client.until(lambda: client.goaways, "a goodbye")
    assert client.goaways == [(last, NO_ERROR)]


def test_kept_http2_connections_get_one_more_answer(server: Server) -> None:
    with server.reload_at_the_end("two"):
        clients = connections(server)
        for client in clients:
            assert_old(client, client.request("GET", "/"))
    for client in clients:
        stream = client.request("POST", "/echo", end=False)
        client.send(stream, BODY, end=True)
        assert_old(client, stream)
    for client in clients:
        assert_goodbye(client, 3)


def test_http2_connections_without_a_request_get_one(server: Server) -> None:
    with server.reload_at_the_end("two"):
        clients = connections(server)
    for client in clients:
        assert_old(client, client.request("GET", "/"))
    for client in clients:
        assert_goodbye(client, 1)


def test_http2_streams_in_flight_are_finished(server: Server, site: Site) -> None:
    """The one that the application has, and those that wait for it; GOAWAY comes behind the last."""
    (client,) = connections(server, 1)
    streams = [client.request("GET", path) for path in ("/hold", "/", "/sleep?seconds=0.1")]
    wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the application has the first")
    server.begin_reload("two")
    streams.append(client.request("GET", "/"))
    site.answer_held()
    for stream in streams:
        assert_old(client, stream)
    assert_goodbye(client, streams[-1])


def test_http2_body_still_arriving(server: Server) -> None:
    (client,) = connections(server, 1)
    assert_old(client, client.request("GET", "/"))
    stream = client.request("POST", "/echo", end=False)
    client.send(stream, BODY)
    server.wait_read()
    server.begin_reload("two")
    client.send(stream, BODY, end=True)
    assert_old(client, stream)
    assert client.streams[stream].json()["length"] == 2 * len(BODY)
    assert_goodbye(client, stream)


def test_idle_http2_connections_get_goaway(start: Start, site: Site) -> None:
    """Also where the time of one is over before the drain: Gunicorn 26.1 and later do that, and would name stream 0."""
    server = serve(start, site, 1)
    (client,) = connections(server, 1)
    assert_old(client, client.request("GET", "/"))
    old = server.begin_reload("two")
    assert_goodbye(client, 1)
    client.until_end()
    wait_for(lambda: not any(alive(pid) for pid in old), KEEP - 5, "nothing holds the old workers")


def test_a_request_behind_goaway_is_not_looked_at(server: Server, site: Site) -> None:
    """It is written in vain, but its client learns that, and may ask elsewhere: the connection is not closed before."""
    with server.reload_at_the_end("two"):
        (client,) = connections(server, 1)
        assert_old(client, client.request("GET", "/"))
    assert_old(client, client.request("GET", "/"))
    assert_goodbye(client, 3)
    late = client.request("GET", "/sleep?seconds=0")
    client.read_for(1.0)
    assert client.streams[late] == Stream()
    assert site.marks("request") == []


def test_http2_streams_without_a_pause(start: Start, site: Site) -> None:
    """A connection that is never quiet gets GOAWAY between two streams; a client of RFC 9113 asks elsewhere."""
    server = serve(start, site, 8)
    with server.reload_at_the_end("two"):
        (client,) = connections(server, 1)
    streams = [client.request("GET", "/sleep?seconds=0.3")]
    while not client.goaways:
        streams.append(client.request("GET", "/sleep?seconds=0.3"))
        client.until(lambda: client.streams[streams[-2]].whole or client.goaways, "an answer")
    last, _error = client.goaways[-1]
    for stream in streams:
        if stream <= last:
            assert_old(client, stream)


def test_http2_stream_beyond_the_deadline_is_cut(start: Start, site: Site) -> None:
    server = serve(start, site, 1)
    server.configure(graceful_timeout=2)
    server.reload("two")
    (client,) = connections(server, 1)
    client.request("GET", "/hold")
    wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the application has the request")
    old = server.begin_reload("three")
    with contextlib.suppress(ConnectionResetError):  # what it had sent is not read any more
        client.until_end()
    assert not any(stream.whole for stream in client.streams.values())
    wait_for(lambda: not any(alive(pid) for pid in old), KEEP, "nothing holds the old workers")
    assert sorted(event["pid"] for event in site.events("worker_exit") if event["pid"] in old) == sorted(old)
