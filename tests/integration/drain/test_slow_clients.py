"""Slow clients of the classes that have a thread, or a process, for each request: what they hold, and what not.

Only a request whose head has arrived takes a thread (ThreadWorker) or the worker (WSGIWorker): who sends its body
slowly, or never reads its answer, has that thread for as long. On the other classes it takes nothing
(test_deadline.py).
"""

from __future__ import annotations

import time

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Broken, Client, request
from tests.harness.processes import alive, wait_for
from tests.harness.server import Server, Start
from tests.harness.worker_classes import KEEPING, THREAD, WSGI, WorkerClass, for_each
from zdworker.workers.closing import LINGER_S

BODY = b"0123456789abcdef" * 200
ECHO = request("POST", "/echo", BODY, headers="Connection: close\r\n")
PLAIN = request("GET", "/", headers="Connection: close\r\n")
RUDE = 20
LIMIT = 3
"""Seconds of ``graceful_timeout``."""
SLACK = 6

HOLDING = (THREAD, WSGI)


def start_held(start_class: Start, worker: WorkerClass, **settings: int) -> tuple[Server, list[Client]]:
    """Start one worker, and hold all that it answers with by bodies that come in part."""
    threads = 2 if worker is THREAD else 1
    server = start_class(worker, workers=1, zd_hand_over=False, threads=threads, **settings)
    holders = [Client(server.address) for _ in range(threads)]
    for client in holders:
        client.send(ECHO[:-100])
    server.wait_taken()
    server.wait_read(*holders)
    return server, holders


def is_silent(client: Client, seconds: float) -> bool:
    """Whether nothing comes for ``seconds``."""
    client.socket.settimeout(seconds)
    try:
        return not client.socket.recv(1)
    except TimeoutError:
        return True
    finally:
        client.socket.settimeout(30)


@for_each(HOLDING)
def test_slow_bodies_hold_threads(start_class: Start, worker: WorkerClass) -> None:
    """As many as there are threads, and everybody else waits; once a body is there, all are answered."""
    server, holders = start_held(start_class, worker)
    other = Client(server.address)
    other.send(PLAIN)
    assert is_silent(other, 1.0)
    for client in holders:
        client.send(ECHO[-100:])
        assert client.reply().json()["length"] == len(BODY)
    assert other.reply().status == 200


@for_each(HOLDING)
def test_slow_bodies_that_hold_all_threads_of_a_retired_worker(start_class: Start, worker: WorkerClass) -> None:
    """New clients are answered by the new worker at once, those of the old one as soon as a body is there."""
    server, holders = start_held(start_class, worker, graceful_timeout=30)
    waiting = Client(server.address)
    if worker is THREAD:  # the one process of the other accepts nobody meanwhile
        server.wait_taken()
    waiting.send(PLAIN)
    old = server.begin_reload("two")
    assert server.get()["version"] == "two"
    assert not any(client.ended() for client in [*holders, waiting]), "it waited for none of them"
    for client in holders:
        client.send(ECHO[-100:])
        assert client.reply().json()["version"] == "one"
    assert waiting.reply().json()["version"] == ("one" if worker is THREAD else "two")
    wait_for(lambda: not any(alive(pid) for pid in old), 10, "nothing holds the old worker any more")


@for_each(HOLDING)
def test_slow_bodies_until_the_deadline(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """They are cut at the deadline, and on ThreadWorker with them a whole request that waits for a thread."""
    server, holders = start_held(start_class, worker, graceful_timeout=LIMIT)
    waiting = Client(server.address)
    if worker is THREAD:
        server.wait_taken()
    waiting.send(PLAIN)
    old = server.begin_reload("two")
    wait_for(lambda: not any(alive(pid) for pid in old), LIMIT + SLACK, "the old worker is gone")
    for client in holders:
        with pytest.raises(Broken):
            client.reply()
    if worker is THREAD:
        with pytest.raises(Broken):
            waiting.reply()
    else:
        assert waiting.reply().json()["version"] == "two"
    assert site.events("worker_abort") == []


@for_each(HOLDING)
def test_silent_and_half_read_clients_hold_nothing(start_class: Start, worker: WorkerClass) -> None:
    """More of them than threads: one that says nothing, or half a head, waits where it is in nobody's way."""
    threads = 2 if worker is THREAD else 1
    server = start_class(worker, workers=1, zd_hand_over=False, threads=threads, keepalive=60)
    idle = [Client(server.address) for _ in range(40)]
    for client in idle[:20]:
        client.send(PLAIN[:20])
    server.wait_taken()
    server.wait_read(*idle)
    for _ in range(20):
        assert server.get()["version"] == "one"
    assert not any(client.ended() for client in idle), "nobody has waited for their end"
    for client in idle[:20]:
        client.send(PLAIN[20:])
    for client in idle[20:]:
        client.send(PLAIN)
    for client in idle:
        assert client.reply().status == 200


@for_each(KEEPING)
def test_clients_that_never_hang_up(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """Twenty whose connection the drain closes, and who keep their end open: nobody waits for them."""
    server = start_class(
        worker, workers=1, zd_hand_over=False, timeout=5, keepalive=30, graceful_timeout=30, preload_app=True
    )
    with server.reload_at_the_end("two") as old:
        rude = [Client(server.address) for _ in range(RUDE)]
        for client in rude:
            assert not client.ask("GET", "/").last
    for client in rude:
        assert client.ask("GET", "/").last
    wait_for(lambda: not any(alive(pid) for pid in old), 20, "nothing holds the old worker any more")
    assert site.events("worker_abort") == []


def test_clients_that_never_hang_up_do_not_block_the_loop_of_threads(start_class: Start, site: Site) -> None:
    """Without a drain too: their last answer is given, and others are answered as fast as ever.

    ``timeout`` is short: a loop that stands still for so long is aborted.
    """
    server = start_class(THREAD, workers=1, zd_hand_over=False, timeout=3)
    rude = [Client(server.address) for _ in range(RUDE)]
    for client in rude:
        client.send(PLAIN)
    for client in rude:
        assert client.reply().last
    asked = time.monotonic()
    for _ in range(10):
        server.get()
    assert time.monotonic() - asked < LINGER_S, "none of them waits for the end of one that is closed"
    for client in rude:
        client.wait_end()
    assert site.events("worker_abort") == []
