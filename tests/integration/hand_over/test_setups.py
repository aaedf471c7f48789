"""Connections move whatever the address, and from each worker class to each other one."""

from __future__ import annotations

import socket

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client, request
from tests.harness.processes import wait_for
from tests.harness.server import Start
from tests.harness.worker_classes import ASGI, GEVENT, THREAD, UVICORN, UVICORN_H11, WorkerClass, for_each

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
