"""Keep-alive connections go on to the next worker of their slot: no client notices a reload, which waits for none."""

from __future__ import annotations

import os
import signal

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client, Load, Reply, request
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Start
from tests.harness.worker_classes import HANDING_OVER, WSGI, WorkerClass, for_each

IDLE = 30
KEEPALIVE_S = 300
"""More seconds than any deadline of the tests: a reload that waited for it would fail."""


@for_each(HANDING_OVER)
def test_connections_go_on_to_the_successor(start_class: Start, worker: WorkerClass) -> None:
    """Idle and busy ones and such as were never used, through three reloads."""
    server = start_class(worker, keepalive=KEEPALIVE_S, preload_app=True)
    idle = [Client(server.address) for _ in range(IDLE)]
    silent = [Client(server.address) for _ in range(IDLE)]
    assert {client.ask("POST", "/echo", b"first").json()["version"] for client in idle} == {"one"}
    server.wait_taken()
    kept = Load(server.address, "kept", clients=8), Load(server.address, "kept", clients=8, think=0.3)
    with kept[0], kept[1]:
        for version in ("two", "three", "four"):
            server.reload(version)
        for client in idle + silent:  # the load, too, meets the last version meanwhile
            reply = client.ask("POST", "/echo", b"last")
            assert (reply.json()["version"], reply.json()["length"], reply.last) == ("four", 4, False)
        seen = [load.stop() for load in kept]
    assert [result.failures for result in seen] == [[], []]
    assert [result.told_to_close + result.reopened for result in seen] == [0, 0]
    assert all(result.versions() == ["one", "two", "three", "four"] for result in seen)


@for_each(HANDING_OVER)
def test_a_request_under_way_is_answered_by_the_old_worker_and_its_connection_moves(
    start_class: Start, site: Site, worker: WorkerClass
) -> None:
    server = start_class(worker, keepalive=KEEPALIVE_S, workers=1, preload_app=True)
    whole, half, body = (Client(server.address) for _ in range(3))
    whole.send(request("GET", "/hold"))
    sent = request("POST", "/echo", b"in pieces")
    half.send(sent[:20])
    body.send(sent[:-4])
    server.wait_read(whole, half, body)
    server.begin_reload("two")
    site.answer_held()
    half.send(sent[20:])
    body.send(sent[-4:])
    replies = [client.reply() for client in (whole, half, body)]
    assert [(reply.json()["version"], reply.last) for reply in replies] == [("one", False)] * 3
    server.wait_only("two")
    replies = [client.ask("GET", "/") for client in (whole, half, body)]
    assert [(reply.json()["version"], reply.last) for reply in replies] == [("two", False)] * 3


def test_silent_connections_of_a_class_without_keep_alive_move(start_class: Start) -> None:
    server = start_class(WSGI, workers=1, keepalive=KEEPALIVE_S, preload_app=True)
    silent = [Client(server.address) for _ in range(IDLE)]
    server.wait_taken()
    server.reload("two")
    assert {client.ask("GET", "/").json()["version"] for client in silent} == {"two"}


@for_each((HANDING_OVER[0],))
def test_a_reload_that_may_miss_workers_hands_over_where_a_successor_comes(
    start_class: Start, worker: WorkerClass
) -> None:
    """A worker whose successor boots waits for it; the one that leaves to make room has none yet."""
    shape = {"workers": 4, "zd_max_surge": "100%", "zd_max_unavailable": "50%"}
    server = start_class(worker, keepalive=KEEPALIVE_S, preload_app=True, **shape)
    idle = [Client(server.address) for _ in range(IDLE)]
    for version in ("two", "three", "four"):
        server.reload(version)
        replies = [client.ask("GET", "/") for client in idle]
        assert [(reply.json()["version"], reply.last) for reply in replies] == [(version, False)] * IDLE


@for_each((HANDING_OVER[0],))
@pytest.mark.parametrize("settings", [{"zd_hand_over": False}, {"zd_max_surge": 0, "zd_max_unavailable": 1}])
def test_without_a_successor_the_connections_end_as_announced(
    start_class: Start, worker: WorkerClass, settings: dict[str, object]
) -> None:
    server = start_class(worker, keepalive=KEEPALIVE_S, workers=1, preload_app=True, **settings)
    with Client(server.address) as client:
        assert not client.ask("GET", "/").last
        server.begin_reload("two")
        assert client.ask("GET", "/").last


@for_each(HANDING_OVER)
@pytest.mark.parametrize("cause", ["SIGTERM", "max_requests"])
def test_a_worker_that_is_replaced_alone_hands_over_too(start_class: Start, worker: WorkerClass, cause: str) -> None:
    """Its successor is ready first, and its clients notice nothing."""
    limits = {"max_requests": 25} if cause == "max_requests" else {}
    server = start_class(worker, keepalive=KEEPALIVE_S, workers=1, preload_app=True, **limits)
    (old,) = server.workers()
    idle, busy = (Client(server.address) for _ in range(2))
    assert idle.ask("GET", "/").json()["pid"] == old
    if cause == "SIGTERM":
        os.kill(old, signal.SIGTERM)
    replies: list[Reply] = []

    def is_replaced() -> bool:
        replies.append(busy.ask("GET", "/"))
        return not alive(old)

    wait_for(is_replaced, BOOT_TIMEOUT_S, "it is replaced")
    replies += [client.ask("GET", "/") for client in (idle, busy)]
    assert not any(reply.last for reply in replies)
    assert old not in {reply.json()["pid"] for reply in replies[-2:]}
