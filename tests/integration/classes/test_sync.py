"""What is special to WSGIWorker: it refuses threads, and it has one hand only."""

from __future__ import annotations

import signal
import time

import pytest

from tests.harness import control_client
from tests.harness.application_site import FEW_DESCRIPTORS, Site
from tests.harness.certificates import make_certificate
from tests.harness.clients import Client, request
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import WSGI

PLAIN = request("GET", "/")


def test_threads_are_refused_at_the_start(make_server: Start) -> None:
    """Gunicorn would take its own threaded class in the place of one whose name ends in SyncWorker, and not say so."""
    server = make_server(worker_class=WSGI.path, threads=4)
    server.launch()
    assert server.wait_exit(BOOT_TIMEOUT_S) == 1
    naming = [line for line in server.log.splitlines() if "zdworker.ThreadWorker" in line]
    assert len(naming) == 1, server.log
    assert "threads is 4" in naming[0]
    assert "Traceback" not in server.log
    server.wait_nothing_left(10)


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_threads_are_refused_at_a_reload(start: Start, site: Site, preload: bool) -> None:
    server = start(worker_class=WSGI.path, workers=2, preload_app=preload)
    workers, before = server.workers(), server.fork_servers()
    server.configure(threads=4)
    assert control_client.reload(server)["result"] == "failed"
    wait_for(lambda: server.fork_servers() == before, BOOT_TIMEOUT_S, "the new generation has been given up")
    assert server.wait_full() == workers
    wait_for(lambda: "zdworker.ThreadWorker" in server.log, BOOT_TIMEOUT_S, "the reason is in the log")
    server.configure(threads=1)
    server.reload("two")


def start_one(start: Start, **settings: object) -> Server:
    return start(worker_class=WSGI.path, workers=1, zd_hand_over=False, **settings)


SLOW_TO_ANSWER = """
answered = app


def app(environ, start_response):
    mark("warming")
    time.sleep(2)
    return answered(environ, start_response)
"""


def test_told_to_leave_while_it_warms_up(start: Start, site: Site) -> None:
    """It ends as ordered, and no error is made of it."""
    server = start_one(start, zd_warmup=["/"])
    site.deploy("two", extra=SLOW_TO_ANSWER)
    server.signal(signal.SIGUSR2)
    wait_for(lambda: site.marks("warming", "two"), BOOT_TIMEOUT_S, "a new worker warms up")
    server.signal(signal.SIGTERM)
    assert server.wait_exit(BOOT_TIMEOUT_S) == 0
    assert len(site.events("worker_exit")) == 2
    assert "Traceback" not in server.log


def test_a_quick_end_does_not_wait_for_silent_connections(start: Start, site: Site) -> None:
    """Nor where the exit is caught on its way, as Gunicorn does around the application."""
    server = start_one(start)
    silent, busy = Client(server.address), Client(server.address)
    busy.send(request("GET", "/sleep?seconds=60"))
    wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "a request is in flight")
    server.signal(signal.SIGINT)
    assert server.wait_exit(30) == 0
    assert len(site.events("worker_exit")) == 1
    silent.close()


@pytest.mark.parametrize("extra", ["", "\nimport socket\nsocket.setdefaulttimeout(30)\n"], ids=["", "default timeout"])
def test_silent_connections_take_nothing_from_the_others(start: Start, extra: str) -> None:
    """Gunicorn's class would wait for the first of them, until its master kills it; with a timeout, for each."""
    server = start_one(start, timeout=20, keepalive=60, extra=extra)
    workers = server.workers()
    silent = [Client(server.address) for _ in range(50)]
    server.wait_taken()
    asked = time.monotonic()
    assert [server.get()["pid"] for _ in range(20)] == workers * 20
    assert time.monotonic() - asked < 15, "they were waited for"
    for client in silent:
        assert client.ask("GET", "/").status == 200
    server.reload("two")


def test_sync_worker_ends_a_silent_connection_when_its_time_is_over(start: Start) -> None:
    """After ``keepalive`` and 5 seconds, drain or not, and without a reset."""
    server = start_one(start, keepalive=1)
    opened = time.monotonic()
    Client(server.address).wait_end()
    assert 5 < time.monotonic() - opened < 25


def test_sync_worker_ends_half_a_head_when_nothing_follows(start: Start) -> None:
    """After ``timeout`` seconds without a byte: it holds up nobody, but it is not kept forever."""
    server = start_one(start, timeout=6)
    client = Client(server.address)
    client.send(PLAIN[:10])
    time.sleep(3)  # not yet over
    sent = time.monotonic()
    client.send(PLAIN[10:15])
    client.wait_end()
    assert 5.5 < time.monotonic() - sent < 25
    assert server.get()["version"] == "one"


def test_more_connections_than_it_takes_wait_in_the_queue(start: Start) -> None:
    """``worker_connections`` bounds those that it holds; when one of them leaves, the next is accepted."""
    server = start_one(start, worker_connections=10, keepalive=60)
    silent = [Client(server.address) for _ in range(10)]
    server.wait_taken()
    client = Client(server.address)
    client.send(PLAIN)
    client.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        client.socket.recv(1)
    client.socket.settimeout(30)
    silent.pop().close()
    assert client.reply().status == 200


def test_sync_worker_is_out_of_descriptors(start: Start) -> None:
    """It goes on with the connections that it has; Gunicorn's class ends with an error."""
    server = start_one(start, keepalive=60, extra=FEW_DESCRIPTORS)
    [worker] = server.workers()
    crowd = [Client(server.address) for _ in range(100)]
    wait_for(lambda: "Out of file descriptors" in server.log, BOOT_TIMEOUT_S, "it has run out of descriptors")
    for client in crowd:
        client.send(PLAIN)
    assert {client.reply().json()["pid"] for client in crowd} == {worker}


TOLD_WHILE_IT_BEGINS = """

import signal as _signal
from zdworker.workers.wsgi import poller as _poller

_register = _poller.Poller.register


def _told(self, fileobj, events, data=None):
    if hasattr(fileobj, "cfg_addr") and not os.path.exists("told"):
        open("told", "w").close()
        os.kill(os.getpid(), _signal.SIGTERM)
        time.sleep(0.01)
    _register(self, fileobj, events, data)


_poller.Poller.register = _told
"""


def test_an_order_to_leave_while_it_begins_to_listen(make_server: Start, site: Site) -> None:
    """In the very moment in which a listener is put into the poll: the handler closes it."""
    site.deploy("one", extra=TOLD_WHILE_IT_BEGINS)
    server = make_server(worker_class=WSGI.path, workers=1, zd_hand_over=False).start()
    wait_for((site.directory / "told").exists, BOOT_TIMEOUT_S, "the first worker was told to leave")
    server.wait_full()
    assert "Exception in worker process" not in server.log
    assert server.stop() == 0


def test_body_on_its_way_when_told_to_leave(start: Start, site: Site) -> None:
    """The listener is closed at once: who connects from now on is the next worker's, or refused."""
    server = start_one(start, graceful_timeout=120)
    body = b"x" * 10_000
    client = Client(server.address)
    whole = request("POST", "/echo", body)
    client.send(whole[:-5000])
    server.wait_read(client)
    [old] = server.begin_reload("two")
    assert server.get()["version"] == "two"
    client.send(whole[-5000:])
    assert client.reply().json()["length"] == len(body)
    wait_for(lambda: not alive(old), BOOT_TIMEOUT_S, "the old worker is gone")


def test_silent_tls_connection_holds_the_worker(start: Start, site: Site) -> None:
    """With TLS the end of a head cannot be seen from outside: from the handshake's first byte on a connection has the
    one hand there is, and who says nothing then keeps it until Gunicorn's ``timeout`` ends the worker.
    """
    make_certificate(site.directory)
    server = start_one(start, certfile="certificate.pem", keyfile="key.pem", timeout=3)
    silent = Client(server.address)
    silent.begin_tls()  # its first message, and no more
    server.wait_read(silent)
    [held] = server.workers()
    assert server.get(tls=True, timeout=BOOT_TIMEOUT_S)["pid"] != held
