"""The end of the master: exit 0, on time, requests answered, nothing left running."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client, Load, request
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

LIMIT = 3
SLACK = 15
"""Seconds beyond ``graceful_timeout`` that the whole server may take to end, on a machine with other work to do."""


def in_flight(server: Server, paths: list[str]) -> list[Client]:
    clients = [Client(server.address) for _ in paths]
    for client, path in zip(clients, paths, strict=True):
        client.send(request("GET", path))
    wait_for(lambda: len(server.site.marks("request")) == len(paths), BOOT_TIMEOUT_S, "the requests are in flight")
    return clients


def assert_clean_end(server: Server, limit: float) -> None:
    """The master exits with 0 within ``limit`` seconds; no process, port, pidfile or control socket stays."""
    assert server.wait_exit(limit) == 0
    server.wait_nothing_left(SLACK)
    assert server.port_free()
    assert not (server.site.directory / "gunicorn.pid").exists()
    assert not (server.site.directory / "gunicorn.ctl").exists()
    assert len(server.site.events("on_exit")) == 1


def fork_server_is_starting(server: Server) -> bool:
    return len(server.fork_servers()) == 2


def worker_is_booting(server: Server) -> bool:
    return bool(server.site.marks("import", "two"))


def worker_is_draining(server: Server) -> bool:
    return bool(server.site.marks("startup", "two")) and len(server.accepting()) < len(server.workers())


@pytest.mark.parametrize("stage", [fork_server_is_starting, worker_is_booting, worker_is_draining])
def test_term_during_a_reload(start: Start, site: Site, stage: Callable[[Server], bool]) -> None:
    server = start(workers=3, graceful_timeout=LIMIT, pidfile="gunicorn.pid")
    clients = in_flight(server, ["/executor?seconds=60"] * 3)  # these make every drain last
    site.deploy("two", extra="\ntime.sleep(0.3)\n")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: stage(server), 10, stage.__name__)
    server.signal(signal.SIGTERM)
    assert_clean_end(server, LIMIT + SLACK)
    for client in clients:
        client.close()


def test_term_to_the_whole_group_answers_what_is_in_flight(start: Start) -> None:
    server = start(workers=2, graceful_timeout=30, pidfile="gunicorn.pid")
    clients = in_flight(server, ["/sleep?seconds=1.5", "/stream?seconds=2", "/executor?seconds=1.5"] * 2)
    server.signal_group(signal.SIGTERM)
    for client in clients:
        assert client.reply().status == 200
    assert_clean_end(server, SLACK)


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_term_answers_what_is_in_flight(start: Start, site: Site, preload: bool) -> None:
    server = start(workers=2, preload_app=preload, graceful_timeout=30, pidfile="gunicorn.pid")
    clients = in_flight(server, ["/sleep?seconds=1.5", "/stream?seconds=2"] * 3)
    silent = Client(server.address)
    server.wait_taken()
    workers = server.workers()
    server.signal(signal.SIGTERM)
    wait_for(lambda: not server.accepting(), BOOT_TIMEOUT_S, "the drain has begun")
    assert silent.ask("POST", "/echo", b"late").status == 200
    for client in clients:
        assert client.reply().status == 200
    assert_clean_end(server, SLACK)
    assert sorted(mark["pid"] for mark in site.marks("shutdown")) == workers
    assert sorted(event["pid"] for event in site.events("worker_exit")) == workers
    assert sorted(event["pid"] for event in site.events("child_exit")) == workers


def test_term_when_nothing_is_to_do_is_quick(start: Start) -> None:
    server = start(workers=4, graceful_timeout=30, pidfile="gunicorn.pid")
    server.signal(signal.SIGTERM)
    assert_clean_end(server, SLACK)


def test_term_does_not_wait_beyond_the_limit(start: Start) -> None:
    server = start(workers=2, graceful_timeout=LIMIT, pidfile="gunicorn.pid")
    in_flight(server, ["/sleep?seconds=60", "/executor?seconds=60", "/stream?seconds=60"])
    begun = time.monotonic()
    server.signal(signal.SIGTERM)
    assert_clean_end(server, LIMIT + SLACK)
    assert time.monotonic() - begun > LIMIT - 0.5, "the requests had been given their time"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT], ids=lambda signum: signum.name)
@pytest.mark.parametrize("group", [False, True], ids=["master", "group"])
def test_int_and_quit_end_without_the_graceful_timeout(start: Start, signum: signal.Signals, group: bool) -> None:
    server = start(workers=2, graceful_timeout=30, pidfile="gunicorn.pid")
    in_flight(server, ["/sleep?seconds=60", "/executor?seconds=60"])
    (server.signal_group if group else server.signal)(signum)
    assert_clean_end(server, SLACK)


def test_int_makes_a_graceful_end_quick(start: Start) -> None:
    """The second Ctrl-C of someone who does not want to wait."""
    server = start(workers=2, graceful_timeout=30, pidfile="gunicorn.pid")
    in_flight(server, ["/executor?seconds=60"])
    server.signal(signal.SIGTERM)
    wait_for(lambda: not server.accepting(), BOOT_TIMEOUT_S, "the drain has begun")
    server.signal(signal.SIGINT)
    assert_clean_end(server, SLACK)


def test_kept_connections_are_served_to_the_end(start: Start) -> None:
    """Keep-alive connections lose nothing; the kernel refuses or resets what comes when nobody accepts any more."""
    server = start(workers=2, pidfile="gunicorn.pid")
    with Load(server.address, "kept", clients=12) as load:
        server.signal(signal.SIGTERM)
        assert_clean_end(server, 5 + SLACK)
        results = load.stop()
    assert [failure for failure in results.failures if not failure.fresh] == []
    assert {failure.how for failure in results.failures} <= {"refused", "reset", "pipe"}
