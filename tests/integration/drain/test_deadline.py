"""Clients and requests that would hold a worker forever: the drain ends at its bound, in order, and hurts no other.

The loads of ``test_connections.py`` are answered before the deadline; these cannot be.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Broken, Client, Load, request
from tests.harness.drain_scenario import END, Outcomes, Scenario, Stage, Steps
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server
from tests.harness.worker_classes import ALL, WorkerClass

scenario = Scenario()
LIMIT = 6
"""Seconds of ``graceful_timeout``."""
SLACK = 6
"""Seconds beyond the limit after which a worker's end is noticed. How much time it has itself the master sees to: it
kills the worker, whose end is not in order then."""
SILENT = 2000
MEGABYTES = 50
"""More than the buffers between two processes of one machine hold."""


@pytest.fixture(scope="module", params=ALL, ids=str)
def drained(request: pytest.FixtureRequest, class_settings: Callable[..., dict[str, Any]]) -> Iterator[Outcomes]:
    """One server, one drain, and other clients at work all the while."""
    worker: WorkerClass = request.param
    settings = {"graceful_timeout": LIMIT, "keepalive": 1, "zd_max_surge": "100%", "preload_app": True, "workers": 2}
    settings["zd_hand_over"] = False
    if not worker.concurrent:  # each of these clients takes a thread, or a process
        settings["threads"] = 32
    if worker.keeps:
        settings["timeout"] = 4  # less than the drain: its heartbeat goes on, or it would be aborted
    else:
        settings["threads"], settings["workers"] = 1, len(scenario.of(worker)) + 2
    site = Site()
    site.deploy("one")
    with Server(site, **class_settings(worker, **settings)) as server:
        server.start()
        old = server.workers()
        with Load(server.address, "kept", clients=2, think=0.1) as others:
            outcomes = scenario.play(Stage(server, worker, 1), LIMIT + SLACK)
            results = others.stop()
        outcomes.record("others", lambda: assert_unhurt(results.failures, results.versions()))
        outcomes.record("orderly", lambda: assert_orderly_end(server, old))
        outcomes.record("bound", lambda: assert_bound(*outcomes.seconds))
        outcomes.report = server.report()
        yield outcomes
    site.remove()


def assert_unhurt(failures: list[Any], versions: list[str]) -> None:
    assert failures == []
    assert versions == ["one", "two"]


def assert_bound(most: float, least: float) -> None:
    assert most >= LIMIT, "they were given their time"
    assert least <= LIMIT + SLACK


def assert_orderly_end(server: Server, old: list[int]) -> None:
    """Each of ``old`` went through one ``worker_exit`` and its application's end, said what it cut, was not aborted."""
    site = server.site

    def ended(hook: str) -> list[int]:
        return sorted(event["pid"] for event in site.events(hook) if event["pid"] in old)

    wait_for(lambda: ended("child_exit") == old, BOOT_TIMEOUT_S, "the master has seen each end")
    assert ended("worker_exit") == old
    assert {mark["pid"] for mark in site.marks("shutdown")} >= set(old)
    assert site.events("worker_abort") == []
    assert "graceful_timeout is over" in server.log


def assert_cut(client: Client) -> None:
    """What was asked for did not come, at most an answer that says so."""
    with contextlib.suppress(Broken):
        reply = client.reply()
        assert reply.status in (500, 503) or not reply.body.endswith(b"whole\n")


# -- slow clients ------------------------------------------------------------------------------------------------------


@scenario.kind()
def test_head_of_one_byte_a_second(stage: Stage) -> Steps:
    """A request's head that never gets complete: the connection is closed at the deadline."""
    (client,) = stage.half_sent(b"G")
    yield
    with pytest.raises(Broken):  # noqa: PT012  # which of the sends is the first that fails is the kernel's affair
        for byte in request("GET", "/", headers="X: y\r\n" * 10)[1:]:
            time.sleep(1)
            client.send(bytes([byte]))
    assert time.monotonic() - stage.begun <= LIMIT + SLACK + 2


@scenario.kind()
def test_body_that_never_ends(stage: Stage) -> Steps:
    (client,) = stage.half_sent(request("POST", "/echo", headers="Content-Length: 100000\r\n") + b"x" * 1000)
    yield
    assert_cut(client)


@scenario.kind()
def test_client_that_never_reads(stage: Stage) -> Steps:
    """Its answer is larger than all buffers, so somebody waits for it to read."""
    (client,) = stage.in_flight("/large", request("GET", f"/large?megabytes={MEGABYTES}"))
    yield
    wait_for(lambda: time.monotonic() > stage.begun + LIMIT + SLACK, BOOT_TIMEOUT_S, "the drain is over")
    with contextlib.suppress(Broken):
        assert len(client.reply().body) < MEGABYTES * 1_000_000


@scenario.kind()
def test_two_thousand_silent_connections(stage: Stage) -> Steps:
    """They end with the drain at the latest."""
    clients = [Client(stage.server.address) for _ in range(SILENT)]
    stage.server.wait_taken()
    yield
    wait_for(lambda: all(client.ended() for client in clients), LIMIT + SLACK, "all are closed")


# -- long requests -----------------------------------------------------------------------------------------------------


def too_long(stage: Stage, path: str) -> Steps:
    (client,) = stage.in_flight(path, request("GET", f"{path}?seconds=120"))
    yield
    assert_cut(client)
    assert time.monotonic() - stage.begun <= LIMIT + SLACK


@scenario.kind()
def test_request_beyond_the_deadline(stage: Stage) -> Steps:
    yield from too_long(stage, "/sleep")


@scenario.kind()
def test_thread_beyond_the_deadline(stage: Stage) -> Steps:
    """Nothing can interrupt it, and it holds no process."""
    yield from too_long(stage, "/executor")


@scenario.kind()
def test_stream_beyond_the_deadline(stage: Stage) -> Steps:
    yield from too_long(stage, "/stream")


# -- the drain ---------------------------------------------------------------------------------------------------------


def test_drain_ends_at_its_bound(drained: Outcomes) -> None:
    drained.check(END)
    drained.check("bound")


def test_drain_ends_in_order(drained: Outcomes) -> None:
    """``worker_exit``, the application's own end and counts in the log, no abort."""
    drained.check("orderly")


def test_other_requests_are_not_hurt_by_those_beyond_the_deadline(drained: Outcomes) -> None:
    """As long as there are threads (ThreadWorker) or processes (WSGIWorker) that are not held."""
    drained.check("others")
