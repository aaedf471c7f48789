"""``zd_health_path`` and ``zd_shutdown_delay``: what a balancer sees of a deploy (nothing) and of the end (in time)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from http.client import HTTPConnection
from typing import Any

from tests.harness.application_site import Site
from tests.harness.clients import Client, Load
from tests.harness.control_client import worker_states
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ALL, UVICORN, WorkerClass, for_each

DELAY = 8.0
LOOK = 1.0
"""Seconds in which the health path is asked again and again; they and the asking fit into the delay with ease."""


def start_known(start_class: Start, worker: WorkerClass, **settings: Any) -> Server:
    """Start a server, and wait until its master knows that all workers are ready: before that a stop has no delay."""
    server: Server = start_class(worker, **settings)
    ready = ["ready"] * server.expected
    wait_for(lambda: worker_states(server) == ready, BOOT_TIMEOUT_S, "the master knows that all are ready")
    return server


def health(server: Server) -> tuple[int, bytes]:
    """Ask as a balancer does, with a connection of its own."""
    with Client(server.address) as client:
        reply = client.ask("GET", "/health")
        return reply.status, reply.body


@for_each(ALL)
def test_balancers_are_told_before_the_end(start_class: Start, worker: WorkerClass) -> None:
    """Until the delay is over everything is answered as before, but for the health path."""
    server = start_known(start_class, worker, workers=2, zd_health_path="/health", zd_shutdown_delay=DELAY)
    assert health(server) == (200, b"ok\n")
    with Load(server.address, "new", clients=2, pause=0.02) as clients:
        told = time.monotonic()
        server.signal(signal.SIGTERM)
        wait_for(lambda: health(server) == (503, b"stopping\n"), DELAY, "the health path says so")
        server.signal(signal.SIGTERM)  # once more, as some platforms do
        seen = time.monotonic()
        while time.monotonic() < seen + LOOK:
            assert health(server) == (503, b"stopping\n")
        results = clients.stop()  # the balancer looks away
    assert results.failures == []
    assert server.wait_exit(BOOT_TIMEOUT_S) == 0
    assert time.monotonic() - told >= DELAY


TARGETS = ["/health", "/%68ealth", "http://example.org/health", "/health?from=balancer"]
METHODS = ["GET", "HEAD", "POST", "OPTIONS", "DELETE"]


@for_each(ALL)
def test_every_class_answers_alike(start_class: Start, worker: WorkerClass) -> None:
    """Whatever the method, and however the path is written."""
    server = start_class(worker, workers=1, zd_health_path="/health")
    targets = [target for target in TARGETS if worker.decodes or "%" not in target]
    answers = {}
    for method, target in [(method, target) for method in METHODS for target in targets]:
        with contextlib.closing(HTTPConnection(str(server.address[0]), int(server.address[1]), timeout=30)) as client:
            client.request(method, target)
            reply = client.getresponse()
            answers[method, target] = reply.status, reply.read()
    assert answers == {(m, t): (200, b"" if m == "HEAD" else b"ok\n") for m in METHODS for t in targets}


@for_each(ALL)
def test_a_reload_is_no_news_for_balancers(start_class: Start, worker: WorkerClass) -> None:
    """A worker that drains says 200 as well: the site takes traffic."""
    settings = {"preload_app": True, "zd_health_path": "/health", "zd_max_surge": "100%", "keepalive": 2}
    server = start_class(worker, workers=2, **settings)
    with contextlib.ExitStack() as stack:
        with server.reload_at_the_end("two"):
            kept = stack.enter_context(Client(server.address))
            server.wait_taken()
        assert kept.ask("GET", "/health").body == b"ok\n"
    server.wait_only("two")
    assert health(server) == (200, b"ok\n")


@for_each(ALL)
def test_a_term_to_the_whole_group_is_the_master_s(start_class: Start, worker: WorkerClass) -> None:
    """As Heroku sends it, and systemd without KillMode=mixed: the workers wait for what the master says."""
    server = start_known(start_class, worker, workers=2, zd_health_path="/health", zd_shutdown_delay=DELAY)
    with Load(server.address, "new", clients=2, pause=0.02) as clients:
        told = time.monotonic()
        server.signal_group(signal.SIGTERM)
        wait_for(lambda: health(server) == (503, b"stopping\n"), DELAY, "the health path says so")
        while time.monotonic() < told + DELAY / 2:
            assert health(server) == (503, b"stopping\n")
        results = clients.stop()
    assert results.failures == []
    assert server.wait_exit(BOOT_TIMEOUT_S) == 0
    assert time.monotonic() - told >= DELAY


@for_each(ALL)
def test_a_term_to_one_worker_has_it_replaced(start_class: Start, worker: WorkerClass) -> None:
    server = start_class(worker, workers=2, zd_shutdown_delay=60)
    old = server.workers()[0]
    with Load(server.address, "new", clients=2, pause=0.02) as clients:
        os.kill(old, signal.SIGTERM)
        wait_for(lambda: old not in server.workers(), BOOT_TIMEOUT_S, "it has gone")
        server.wait_full()
        assert clients.stop().failures == []
    server.signal(signal.SIGQUIT)
    assert server.wait_exit(45) == 0


SLOW_STARTUP = """
lifespan_of_all = lifespan

async def lifespan(receive, send):
    mark("starting")
    await asyncio.sleep(2)
    await lifespan_of_all(receive, send)
"""


def test_a_worker_that_still_starts_leaves_with_the_others(start_class: Start, site: Site) -> None:
    server = start_class(UVICORN, workers=1, zd_shutdown_delay=1, graceful_timeout=120)
    site.deploy("two", extra=SLOW_STARTUP)
    server.signal(signal.SIGUSR2)
    wait_for(lambda: site.marks("starting", "two"), BOOT_TIMEOUT_S, "a new worker has begun to start")
    server.signal(signal.SIGTERM)
    assert server.wait_exit(BOOT_TIMEOUT_S) == 0


def test_int_does_not_wait_for_the_shutdown_delay(start_class: Start) -> None:
    server = start_known(start_class, UVICORN, workers=1, zd_shutdown_delay=90)
    server.signal(signal.SIGTERM)
    server.signal(signal.SIGINT)
    assert server.wait_exit(BOOT_TIMEOUT_S) == 0


def test_status_says_that_the_master_stops(start_class: Start) -> None:
    """A worker that dies meanwhile is replaced, and told as well."""
    server = start_known(start_class, UVICORN, workers=1, zd_health_path="/health", zd_shutdown_delay=300)
    server.signal(signal.SIGTERM)
    wait_for(lambda: health(server)[0] == 503, BOOT_TIMEOUT_S, "the health path says so")
    (old,) = server.workers()
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: server.workers() and server.workers() != [old], BOOT_TIMEOUT_S, "it is replaced")
    wait_for(server.accepting, BOOT_TIMEOUT_S, "the replacement accepts")
    wait_for(lambda: health(server)[0] == 503, BOOT_TIMEOUT_S, "it says so too")
    server.signal(signal.SIGQUIT)
    assert server.wait_exit(BOOT_TIMEOUT_S) == 0
