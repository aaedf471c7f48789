"""Connections move whatever the address, and from each worker class to each other one."""

from __future__ import annotations

import resource
import signal
import socket
import time

import pytest

from tests.harness.application_site import Site
from tests.harness.certificates import make_certificate
from tests.harness.clients import Client, request
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Start
from tests.harness.worker_classes import (
    ASGI,
    GEVENT,
    HANDING_OVER,
    THREAD,
    UVICORN,
    UVICORN_H11,
    WSGI,
    WorkerClass,
    for_each,
)

LIMITED = """
import resource as _resource

_before = post_worker_init


def post_worker_init(worker):
    _before(worker)
    if _os.path.exists("limit"):
        _resource.setrlimit(_resource.RLIMIT_NOFILE, (80, _resource.getrlimit(_resource.RLIMIT_NOFILE)[1]))
"""
"""A worker that boots while the file ``limit`` is there may have 80 descriptors at first."""

ON_EVENT_LOOPS = tuple(known for known in (UVICORN, ASGI, UVICORN_H11, UVICORN) if known.hands_over)
KEEPALIVE_S = 300
CLIENTS = 10

PROXY_HEADER = b"PROXY TCP4 192.0.2.7 127.0.0.1 1234 80\r\n"
REFUSED = b"HTTP/1.1 400 "


def versions(clients: list[Client]) -> set[str]:
    replies = [client.ask("GET", "/") for client in clients]
    assert not any(reply.last for reply in replies)
    return {str(reply.json()["version"]) for reply in replies}


@pytest.mark.parametrize("setup", ["a Unix socket", "reuse_port"])
def test_connections_move_whatever_the_address(start: Start, site: Site, setup: str) -> None:
    path = str(site.directory / "gunicorn.sock")
    settings = {"bind": f"unix:{path}"} if setup == "a Unix socket" else {"reuse_port": True}
    server = start(keepalive=KEEPALIVE_S, preload_app=True, **settings)
    clients = [Client(path if "bind" in settings else server.address) for _ in range(CLIENTS)]
    assert versions(clients[::2]) == {"one"}
    server.reload("two")
    assert versions(clients) == {"two"}


@pytest.mark.parametrize("classes", [ON_EVENT_LOOPS, (THREAD, GEVENT, THREAD)], ids=["ASGI", "WSGI"])
def test_connections_move_to_another_worker_class(start_class: Start, classes: tuple[WorkerClass, ...]) -> None:
    server = start_class(classes[0], workers=1, keepalive=KEEPALIVE_S, preload_app=True)
    clients = [Client(server.address) for _ in range(CLIENTS)]
    assert versions(clients[::2]) == {"one"}
    for worker in classes[1:]:
        server.configure(worker_class=worker.path)
        server.reload(f"in {worker}")
        assert versions(clients) == {f"in {worker}"}


@for_each(tuple(known for known in (ASGI, GEVENT, THREAD) if known.hands_over))
def test_what_the_proxy_protocol_said_moves_along(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """A PROXY header counts at the beginning of a connection only, and for all of its requests.

    Gunicorn's own threads forget it behind the first request, reload or not.
    """
    log = site.directory / "access.log"
    settings = {"proxy_protocol": "v1", "accesslog": str(log), "access_log_format": "%(h)s %(s)s"}
    server = start_class(worker, workers=1, keepalive=KEEPALIVE_S, preload_app=True, **settings)
    used, silent = Client(server.address), Client(server.address)
    used.send(PROXY_HEADER)
    assert used.ask("GET", "/").status == 200
    server.reload("two")
    assert used.ask("GET", "/").json()["version"] == "two"
    wait_for(lambda: log.read_text().count(" 200") == 2, 30, "that answer is in the log, before the next one")
    silent.send(PROXY_HEADER)
    assert silent.ask("GET", "/").json()["version"] == "two"
    used.send(PROXY_HEADER + request("GET", "/"))
    # Not the whole answer: Gunicorn's has no empty line before its body since Python 3.14's textwrap.dedent().
    assert used.socket.recv(len(REFUSED), socket.MSG_WAITALL) == REFUSED
    wait_for(lambda: log.read_text().count(" 200") == 3, 30, "the answers are in the log")
    told = [line.split()[0] for line in log.read_text().splitlines() if line.endswith(" 200")]
    assert told == ["192.0.2.7", "127.0.0.1" if worker is THREAD else "192.0.2.7", "192.0.2.7"]


@for_each(HANDING_OVER)
def test_a_default_timeout_of_the_application_s(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """``socket.setdefaulttimeout()`` at a preloaded import: what looks into the queue is not to wait for so long."""
    site.deploy("one", extra="\nimport socket as _socket\n_socket.setdefaulttimeout(20)\n")
    server = start_class(worker, workers=1, preload_app=True, timeout=5)
    (before,) = server.workers()
    end = time.monotonic() + 8  # a worker that waits 20 seconds at each heartbeat is killed after five
    while time.monotonic() < end:
        assert server.get()["pid"] == before


@for_each((UVICORN, THREAD, WSGI))
def test_plain_connections_when_a_reload_brings_tls(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """They stay with the old worker, which answers them; the new one would take them for connections with TLS."""
    make_certificate(site.directory)
    server = start_class(worker, workers=1, keepalive=10, preload_app=True)
    silent = Client(server.address)
    server.wait_taken()
    old = server.workers()
    site.deploy("two")
    server.configure(certfile="certificate.pem", keyfile="key.pem")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: not set(old) & set(server.accepting()), BOOT_TIMEOUT_S, "the old worker accepts no more")
    assert silent.ask("GET", "/").json()["version"] == "one"
    server.wait_only("two")


@for_each((UVICORN, THREAD))
def test_a_successor_without_descriptors_loses_no_connection(start: Start, site: Site, worker: WorkerClass) -> None:
    """The kernel drops what does not fit: it is left in the queue until it does."""
    threads = worker.settings.get("threads", 1)
    server = start(
        worker_class=worker.path, workers=1, threads=threads, keepalive=KEEPALIVE_S, preload_app=True, extra=LIMITED
    )
    clients = [Client(server.address) for _ in range(100)]
    assert versions(clients) == {"one"}
    (site.directory / "limit").write_text("80")
    site.deploy("two")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: "connections that were handed over wait" in server.log, BOOT_TIMEOUT_S, "it has too few")
    (new,) = [pid for pid, version in server.versions().items() if version == "two"]
    _, hard = resource.prlimit(new, resource.RLIMIT_NOFILE)
    resource.prlimit(new, resource.RLIMIT_NOFILE, (min(1000, hard), hard))
    assert versions(clients) == {"two"}
