"""TLS connections of every worker class when its worker gets the order to leave; see test_connections.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.certificates import make_certificate
from tests.harness.clients import MEGABYTE, Client, request
from tests.harness.drain_scenario import END, Outcomes, Scenario, Stage, Steps
from tests.harness.server import Server
from tests.harness.worker_classes import ALL, WorkerClass

scenario = Scenario()
BODY = b"0123456789abcdef" * 200
ECHO = request("POST", "/echo", BODY)


@pytest.fixture(scope="module", params=ALL, ids=str)
def drained(request: pytest.FixtureRequest, class_settings: Callable[..., dict[str, Any]]) -> Iterator[Outcomes]:
    """One server, one drain, all kinds of connection."""
    worker: WorkerClass = request.param
    settings: dict[str, Any] = {"certfile": "certificate.pem", "keyfile": "key.pem", "keepalive": 15, "workers": 2}
    count = 3
    if not worker.concurrent:
        settings["threads"], count = 32, 2
    if not worker.keeps:
        settings["threads"], settings["workers"], count = 1, len(scenario.of(worker)) + 2, 1
    site = Site()
    site.deploy("one")
    make_certificate(site.directory)
    settings = class_settings(worker, graceful_timeout=30, zd_max_surge="100%", preload_app=True, **settings)
    with Server(site, **settings) as server:
        yield scenario.play(Stage(server.start(), worker, count), 20)
    site.remove()


def assert_answered_and_ended(client: Client) -> None:
    """The old worker answers a request now, says that it is the last one, and ends the connection."""
    reply = client.reply()
    assert reply.status == 200
    assert reply.headers["x-version"] == "one"
    assert reply.last
    assert reply.json()["length"] == len(BODY)


@scenario.kind()
def test_tls_handshake_not_begun(stage: Stage) -> Steps:
    clients = stage.opened()
    yield
    for client in clients:
        client.start_tls()
        client.send(ECHO)
        assert_answered_and_ended(client)


@scenario.kind()
def test_half_a_tls_handshake(stage: Stage) -> Steps:
    clients = stage.opened()
    for client in clients:
        client.begin_tls()
    stage.server.wait_read(*clients)
    yield
    for client in clients:
        client.finish_tls()
        client.send(ECHO)
        assert_answered_and_ended(client)


@scenario.kind()
def test_tls_connection_never_used(stage: Stage) -> Steps:
    """The handshake was done before the drain, and that was all."""
    clients = stage.opened(tls=True)
    yield
    for client in clients:
        client.send(ECHO)
        assert_answered_and_ended(client)


@scenario.kind()
def test_half_a_body_over_tls(stage: Stage) -> Steps:
    clients = stage.half_sent(ECHO[:-1000], tls=True)
    yield
    for client in clients:
        client.send(ECHO[-1000:])
        assert_answered_and_ended(client)


@scenario.kind(lambda worker: worker.keeps)
def test_tls_connection_idle_and_used_again(stage: Stage) -> Steps:
    clients = stage.opened(tls=True)
    for client in clients:
        assert not client.ask("POST", "/echo", BODY).last
    yield
    for client in clients:
        client.send(ECHO)
        assert_answered_and_ended(client)


@scenario.kind()
def test_early_answer_to_an_upload_over_tls(stage: Stage) -> Steps:
    """413 to a megabyte that nobody reads."""
    clients = stage.opened(tls=True)
    yield
    for client in clients:
        assert client.ask("POST", "/refuse", bytes(MEGABYTE)).status == 413


def test_no_tls_connection_holds_the_worker(drained: Outcomes) -> None:
    drained.check(END)
