"""Every kind of connection, of every worker class, at the moment at which its worker gets the order to leave.

Connections are opened to workers of version "one", which then all get the order to leave. The tests go on once none of
them accepts any more: that is the moment at which every server we measured loses requests. WSGIWorker gets a worker for
each connection, since it answers one at a time.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import MEGABYTE, Client, Reply, request
from tests.harness.drain_scenario import END, Outcomes, Scenario, Stage, Steps
from tests.harness.server import Server
from tests.harness.worker_classes import ALL, UVICORN_ZTTP, WorkerClass, uvicorn_has

scenario = Scenario()
BODY = b"0123456789abcdef" * 200
HALF = len(BODY) // 2
ECHO = request("POST", "/echo", BODY)
KEEP = 8
"""Seconds that an idle connection is kept."""


ZTTP_CLASS = """
from zdworker.workers.uvicorn.worker import UvicornWorker


class ZttpWorker(UvicornWorker):
    CONFIG_KWARGS = {"http": "zttp"}
"""


@pytest.fixture(scope="module", params=[False, True], ids=["stay", "hand_over"])
def hands_over(request: pytest.FixtureRequest) -> bool:
    """Whether the connections go on to the new workers; then none of them ends by the drain."""
    return bool(request.param)


@pytest.fixture(scope="module", params=(*ALL, UVICORN_ZTTP), ids=str)
def drained(
    request: pytest.FixtureRequest, hands_over: bool, class_settings: Callable[..., dict[str, Any]]
) -> Iterator[Outcomes]:
    """One server, one drain, all kinds of connection."""
    worker: WorkerClass = request.param
    settings = {"graceful_timeout": 30, "keepalive": KEEP, "zd_max_surge": "100%", "preload_app": True, "workers": 2}
    settings["zd_hand_over"] = hands_over
    count = 3
    if not worker.concurrent:  # each half-read request takes a thread
        settings["threads"], count = 32, 2
    if not worker.keeps:
        settings["threads"], settings["workers"], count = 1, len(scenario.of(worker)) + 2, 1
    site = Site()
    site.deploy("one")
    if worker is UVICORN_ZTTP:
        if not uvicorn_has("zttp_impl"):
            pytest.skip("this uvicorn has no zttp")
        (site.directory / "uvicorn_zttp.py").write_text(ZTTP_CLASS)
        settings["worker_class"] = "uvicorn_zttp.ZttpWorker"
    with Server(site, **class_settings(worker, **settings)) as server:
        yield scenario.play(Stage(server.start(), worker, count, hands_over), KEEP + 15)
    site.remove()


def assert_answered(stage: Stage, client: Client, reply: Reply) -> None:
    """The old worker answered, said that this was the connection's last answer, and the connection ended in order.

    With a hand-over it is not the last, and the new worker may have answered.
    """
    assert reply.status == 200
    assert reply.headers["x-version"] in (("one", "two") if stage.hands_over else ("one",))
    assert reply.last == (not stage.keeps)
    if reply.last:
        client.wait_end()


def assert_echoed(stage: Stage, client: Client) -> None:
    """The same, of a request whose whole body has arrived."""
    reply = client.reply()
    assert reply.json()["length"] == len(BODY)
    assert_answered(stage, client, reply)


# -- nothing was sent yet --------------------------------------------------------------------------------------------


@scenario.kind()
def test_connection_never_used(stage: Stage) -> Steps:
    """Accepted, silent until some time after the drain has begun."""
    clients = stage.opened()
    yield
    for delay, client in zip((0.0, 0.5, 1.0), clients, strict=False):
        time.sleep(delay)
        client.send(ECHO)
        assert_echoed(stage, client)


@scenario.kind()
def test_expect_continue_on_a_silent_connection(stage: Stage) -> Steps:
    """``Expect: 100-continue`` after the drain has begun."""
    clients = stage.opened()
    yield
    for client in clients:
        expect_continue(stage, client)
        client.send(BODY)
        assert_echoed(stage, client)


@scenario.kind()
def test_early_answer_to_an_upload(stage: Stage) -> Steps:
    """413 to a megabyte that nobody reads: a close on unread data would reset the connection."""
    clients = stage.opened()
    yield
    for client in clients:
        reply = client.ask("POST", "/refuse", bytes(MEGABYTE))
        assert reply.status == 413
        assert reply.headers["x-version"] in (("one", "two") if stage.hands_over else ("one",))


# -- half a request ----------------------------------------------------------------------------------------------------


def finish_half(stage: Stage, sent: int) -> Steps:
    clients = stage.half_sent(ECHO[:sent])
    yield
    for client in clients:
        client.send(ECHO[sent:])
    for client in clients:
        assert_echoed(stage, client)


@scenario.kind()
def test_half_a_request_line(stage: Stage) -> Steps:
    yield from finish_half(stage, 10)


@scenario.kind()
def test_half_a_head(stage: Stage) -> Steps:
    yield from finish_half(stage, 40)


@scenario.kind()
def test_half_a_body(stage: Stage) -> Steps:
    yield from finish_half(stage, -HALF)


@scenario.kind()
def test_body_that_comes_slowly(stage: Stage) -> Steps:
    """Chunked, a tenth of it before the drain, a piece each fifth of a second."""
    head = request("POST", "/echo", headers="Transfer-Encoding: chunked\r\n")
    chunk = b"%x\r\n%b\r\n" % (len(BODY), BODY)
    clients = stage.half_sent(head + chunk)
    yield
    for _ in range(9):
        for client in clients:
            client.send(chunk)
        time.sleep(0.2)  # the pace of the body
    for client in clients:
        client.send(b"0\r\n\r\n")
        reply = client.reply()
        assert reply.json()["length"] == 10 * len(BODY)
        assert_answered(stage, client, reply)


@scenario.kind()
def test_expect_continue_under_way(stage: Stage) -> Steps:
    """The client gets 100 Continue before the drain, and sends its body after."""
    clients = stage.opened()
    for client in clients:
        expect_continue(stage, client)
    yield
    for client in clients:
        client.send(BODY)
        assert_echoed(stage, client)


def expect_continue(stage: Stage, client: Client) -> None:
    head = f"Expect: 100-continue\r\nContent-Length: {len(BODY)}\r\n"
    client.send(request("POST", "/echo", headers=head))
    if stage.worker.continues:
        assert client.reply().status == 100
    else:
        stage.server.wait_read(client)


def answer_held(stage: Stage) -> None:
    """Have the application answer now, well after the drain has begun."""
    time.sleep(1)
    stage.server.site.answer_held()


# -- a whole request ---------------------------------------------------------------------------------------------------


@scenario.kind()
def test_request_in_flight(stage: Stage) -> Steps:
    clients = stage.in_flight("/hold", request("GET", "/hold"))
    yield
    answer_held(stage)
    for client in clients:
        assert_answered(stage, client, client.reply())


@scenario.kind()
def test_stream_to_its_end(stage: Stage) -> Steps:
    clients = stage.in_flight("/stream", request("GET", "/stream?seconds=1&hold=1"))
    yield
    answer_held(stage)
    for client in clients:
        reply = client.reply()
        assert reply.status == 200
        assert reply.headers["x-version"] == "one"
        assert reply.body.splitlines()[-1] == b"whole"
        assert len(reply.body.splitlines()) == 11


@scenario.kind()
def test_pipelined_requests(stage: Stage) -> Steps:
    """All that were sent together are answered, the last as the last; a class that pipelines none answers the first."""
    sent = request("GET", "/hold") + request("GET", "/") + ECHO
    clients = stage.in_flight("/hold", sent)
    yield
    answer_held(stage)
    for client in clients:
        first = client.reply()
        assert first.status == 200
        if stage.worker.pipelines:
            assert not first.last
            assert not client.reply().last
            assert_echoed(stage, client)
        else:
            assert first.last == (not stage.keeps)


@scenario.kind()
def test_client_that_goes_away(stage: Stage) -> Steps:
    """A connection that is reset in the middle of its request holds no drain; the others notice nothing."""
    clients = stage.half_sent(ECHO[:40])
    yield
    for client in clients:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()


# -- idle: last, since these have a time of their own --------------------------------------------------------------


def kept(stage: Stage) -> list[Client]:
    """Return connections on which a request was answered; a class that keeps none has closed them."""
    clients = stage.opened()
    for client in clients:
        reply = client.ask("POST", "/echo", BODY)
        assert reply.status == 200
        assert reply.last == (not stage.worker.keeps)
        if reply.last:
            client.wait_end()
    return clients


@scenario.kind()
def test_connection_idle_and_used_again(stage: Stage) -> Steps:
    """One more request on it is answered, as the last; a class that keeps no connection has said and done so before."""
    clients = kept(stage)
    yield
    if stage.worker.keeps:
        for client in clients:
            client.send(ECHO)
            assert_echoed(stage, client)


@scenario.kind(lambda worker: worker.keeps)
def test_connection_idle_and_left_alone(stage: Stage) -> Steps:
    """It ends with its own keep-alive time, and without a reset; that time goes on when it is handed over."""
    clients = kept(stage)
    yield
    if stage.hands_over and not stage.worker.ends_idle:
        return
    for client in clients:
        assert client.wait_end() <= KEEP + 10


def http10(path: str) -> bytes:
    return f"GET {path} HTTP/1.0\r\nHost: test\r\nConnection: keep-alive\r\n\r\n".encode()


@scenario.kind()
def test_http10_with_keep_alive(stage: Stage) -> Steps:
    """Kept if the class does so for HTTP/1.0, and answered once more; else closed after each answer, drain or not."""
    clients, silent = stage.opened(), stage.opened() if stage.worker.keeps else []
    for client in clients:
        client.send(http10("/"))
        reply = client.reply()
        assert ("keep-alive" in reply.headers.get("connection", "").lower()) == stage.worker.keeps_http10
        if not stage.worker.keeps_http10:
            client.close()  # as a client does that was not told that the connection is kept
    yield
    for client in [*(clients if stage.worker.keeps_http10 else []), *silent]:
        client.send(http10("/"))
        reply = client.reply()
        assert reply.status == 200
        kept_on = stage.hands_over and stage.worker.keeps_http10
        assert ("keep-alive" in reply.headers.get("connection", "").lower()) == kept_on
        if not kept_on and (stage.worker.ends_idle or not stage.hands_over):
            client.wait_end()


@scenario.kind()
def test_early_answer_to_an_upload_under_way(stage: Stage) -> Steps:
    """The rest of a body nobody wants is read, though its answer was given before the drain."""
    whole = request("POST", "/refuse", bytes(MEGABYTE))
    clients = stage.in_flight("/refuse", whole[:100_000])
    yield
    for client in clients:
        client.send(whole[100_000:])
        assert client.reply().status == 413


def test_no_connection_holds_the_worker(drained: Outcomes) -> None:
    """When all these are answered the drain is over, long before its deadline."""
    drained.check(END)
