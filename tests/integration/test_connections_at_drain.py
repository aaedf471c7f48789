"""Every state in which a connection can be when its worker is told to leave: its next request is answered.

Each test holds connections on the workers of version "one", reloads, and goes on once none of "one" accepts
any more: that is the moment at which every server we measured loses requests.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from .applications import Site
from .clients import Broken, Client, Reply, request
from .conftest import Start
from .processes import alive, wait_for
from .server import Server

CLASSES = ["zdworker.UvicornWorker", "zdworker.UvicornH11Worker"]
BODY = b"0123456789abcdef" * 200
HALF = len(BODY) // 2
MEGABYTE = b"x" * 1_000_000


@pytest.fixture(params=CLASSES)
def server(request: pytest.FixtureRequest, start: Start) -> Server:
    """Two workers that are replaced at once, so that all old ones drain at the same time."""
    return start(workers=2, worker_class=request.param, zd_max_surge=2, graceful_timeout=10)


def begin_drain(server: Server, version: str = "two") -> None:
    """Reload, and return as soon as none of the present workers accepts any more."""
    old = set(server.workers())
    server.site.deploy(version)
    server.signal(signal.SIGUSR2)
    wait_for(lambda: not old & set(server.accepting()), 30, "the old workers have stopped accepting")


def connections(server: Server, count: int, *, tls: bool = False) -> list[Client]:
    """Return connections that a worker has accepted: the kernel's queues are empty."""
    made = [Client(server.address, tls=tls) for _ in range(count)]
    wait_for(lambda: not waiting_in_queue(server), 5, "the workers have accepted every connection")
    return made


def waiting_in_queue(server: Server) -> int:
    """Return the connections that nobody has accepted yet: the receive queue of a listener (ss(8))."""
    out = subprocess.run(
        ["ss", "-Hltn", f"sport = :{server.address[1]}"], capture_output=True, text=True, check=True
    ).stdout
    return sum(int(line.split()[1]) for line in out.splitlines())


def assert_old_and_last(reply: Reply) -> None:
    """The old worker answered, and said that this was the connection's last answer."""
    assert reply.status == 200
    assert reply.headers.get("x-version") == "one"
    assert reply.last


@pytest.mark.parametrize("delay", [0.0, 0.2, 1.5])
def test_silent_connections(server: Server, delay: float) -> None:
    silent = connections(server, 20)
    begin_drain(server)
    time.sleep(delay)
    whole = request("POST", "/echo", BODY)
    for client in silent:
        client.send(whole[:-HALF])
    for client in silent:
        client.send(whole[-HALF:])
    for client in silent:
        reply = client.reply()
        assert_old_and_last(reply)
        assert reply.json()["length"] == len(BODY)
        client.wait_end()
    server.wait_only("two")


@pytest.mark.parametrize("sent", [10, 40, -HALF], ids=["half a line", "half a head", "half a body"])
def test_half_sent_request(server: Server, sent: int) -> None:
    whole = request("POST", "/echo", BODY)
    halves = connections(server, 10)
    for client in halves:
        client.send(whole[:sent])
    wait_for(lambda: not unread(server), 5, "the workers have read what was sent")
    begin_drain(server)
    for client in halves:
        client.send(whole[sent:])
    for client in halves:
        assert_old_and_last(client.reply())


def unread(server: Server) -> int:
    """Return the bytes that lie unread in the server's ends of connections."""
    out = subprocess.run(
        ["ss", "-Htn", f"sport = :{server.address[1]}"], capture_output=True, text=True, check=True
    ).stdout
    return sum(int(line.split()[1]) for line in out.splitlines())


def test_kept_idle_connections(server: Server) -> None:
    kept = connections(server, 10)
    for client in kept:
        assert not client.ask("POST", "/echo", BODY).last
    begin_drain(server)
    for client in kept:
        assert_old_and_last(client.ask("POST", "/echo", BODY))
        client.wait_end()


def test_idle_connections_end_with_their_keep_alive_time(server: Server) -> None:
    kept = connections(server, 10)
    for client in kept:
        client.ask("GET", "/")
    old = server.workers()
    begin_drain(server)
    wait_for(lambda: not any(alive(pid) for pid in old), 4, "idle connections do not hold the old workers")
    for client in kept:
        assert client.ended(), "an idle connection ends without a reset"


def in_flight(server: Server, path: str, count: int = 4) -> Iterator[Reply]:
    """Send requests, begin a drain once the application has them, and yield their answers."""
    clients = connections(server, count)
    for client in clients:
        client.send(request("GET", path))
    wait_for(lambda: len(server.site.marks("request", "one")) == count, 5, "the requests are in flight")
    begin_drain(server)
    for client in clients:
        yield client.reply()


def test_requests_in_flight(server: Server) -> None:
    for reply in in_flight(server, "/sleep?seconds=1.5"):
        assert_old_and_last(reply)


def test_streams(server: Server) -> None:
    for reply in in_flight(server, "/stream?seconds=2"):
        assert reply.status == 200
        assert reply.headers["x-version"] == "one"
        assert reply.body.splitlines()[-1] == b"whole"
        assert len(reply.body.splitlines()) == 21


def test_early_answer_to_an_upload(server: Server) -> None:
    """413 to a megabyte that nobody reads: a close on unread data would reset the connection."""
    uploads = connections(server, 4)
    begin_drain(server)
    for client in uploads:
        reply = client.ask("POST", "/refuse", MEGABYTE)
        assert reply.status == 413
        assert reply.headers["x-version"] == "one"


@pytest.mark.parametrize("worker_class", CLASSES)
def test_early_answer_to_an_upload_under_way(start: Start, worker_class: str) -> None:
    """The rest of a body nobody wants is read, though its answer was given before the drain."""
    server = start(workers=2, worker_class=worker_class, zd_max_surge=2, graceful_timeout=15, keepalive=15)
    uploads = connections(server, 4)
    whole = request("POST", "/refuse", MEGABYTE)
    for client in uploads:
        client.send(whole[:100_000])
    begin_drain(server)
    for client in uploads:
        client.send(whole[100_000:])
        assert client.reply().status == 413


def test_pipelined_requests(server: Server) -> None:
    """All requests that were sent together are answered; only the last answer announces the end."""
    clients = connections(server, 4)
    for client in clients:
        client.send(request("GET", "/sleep?seconds=1.5") + request("GET", "/") + request("POST", "/echo", BODY))
    wait_for(lambda: len(server.site.marks("request", "one")) == 4, 5, "the first requests are in flight")
    begin_drain(server)
    for client in clients:
        first, second, third = (client.reply() for _ in range(3))
        assert not first.last
        assert not second.last
        assert_old_and_last(third)


def test_burst_of_connections_at_the_moment_of_the_drain(server: Server) -> None:
    """Connections that arrive while the listener is being closed are answered by someone."""
    for _ in range(5):
        victim = server.wait_full()[0]
        with ThreadPoolExecutor(1) as pool:
            burst = pool.submit(lambda: [Client(server.address) for _ in range(300)])
            os.kill(victim, signal.SIGTERM)
            silent = burst.result()
        for client in silent:
            client.send(request("GET", "/", headers="Connection: close\r\n"))
        for client in silent:
            assert client.reply().status == 200
            client.close()


def test_hup_and_usr2_to_a_worker_change_nothing(server: Server) -> None:
    workers = server.workers()
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(server.get, "/sleep?seconds=1") for _ in range(8)]
        wait_for(lambda: len(server.site.marks("request")) == 8, 5, "the requests are in flight")
        for pid in workers:
            for signum in (signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU):
                os.kill(pid, signum)
        assert {request.result()["pid"] for request in asked} <= set(workers)
    assert server.accepting() == workers
    assert server.site.events("worker_exit") == []


def test_resetting_client_does_not_hold_the_drain(server: Server) -> None:
    clients = connections(server, 10)
    for client in clients:
        client.send(b"GET /sleep?seconds=0.5 HTTP/1.1\r\n")
    old = server.workers()
    begin_drain(server)
    for client in clients:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    wait_for(lambda: not any(alive(pid) for pid in old), 4, "the old workers have nothing to wait for")


# -- WebSockets ----------------------------------------------------------------------------------------------


def test_websockets_are_told_to_come_back(server: Server) -> None:
    url = "ws://%s:%s/" % server.address
    with connect(url, proxy=None) as websocket:
        websocket.send("before")
        assert websocket.recv(timeout=5) == "before"
        server.site.deploy("two")
        server.signal(signal.SIGUSR2)
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(timeout=30)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    wait_for(lambda: server.site.marks("disconnect"), 5, "the application has seen the end")
    assert server.site.marks("disconnect")[0]["code"] in (1012, 1000)
    server.wait_only("two")


def test_websocket_upgrade_during_the_drain(server: Server) -> None:
    (silent,) = connections(server, 1)
    begin_drain(server)
    with (
        connect("ws://%s:%s/" % server.address, sock=silent.socket, proxy=None) as websocket,
        pytest.raises(ConnectionClosed) as closed,
    ):
        websocket.recv(timeout=10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012


# -- TLS -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=CLASSES)
def tls_server(request: pytest.FixtureRequest, start: Start, site: Site) -> Server:
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=localhost",
            "-keyout",
            "key.pem",
            "-out",
            "certificate.pem",
        ],
        cwd=site.directory,
        check=True,
        capture_output=True,
    )
    files = {"certfile": "certificate.pem", "keyfile": "key.pem"}
    return start(workers=2, worker_class=request.param, zd_max_surge=2, graceful_timeout=10, **files)


def test_tls_connections(tls_server: Server) -> None:
    silent = connections(tls_server, 5, tls=True)
    kept = connections(tls_server, 5, tls=True)
    for client in kept:
        assert not client.ask("POST", "/echo", BODY).last
    half = connections(tls_server, 5, tls=True)
    whole = request("POST", "/echo", BODY)
    for client in half:
        client.send(whole[:-HALF])
    begin_drain(tls_server)
    for client in half:
        client.send(whole[-HALF:])
        assert_old_and_last(client.reply())
    for client in silent + kept:
        assert_old_and_last(client.ask("POST", "/echo", BODY))


def test_tls_handshakes_that_had_not_begun(tls_server: Server) -> None:
    plain = connections(tls_server, 10)
    begin_drain(tls_server)
    for client in plain:
        client.start_tls()
        assert_old_and_last(client.ask("POST", "/echo", BODY))


def test_tls_early_answer_to_an_upload(tls_server: Server) -> None:
    uploads = connections(tls_server, 4, tls=True)
    begin_drain(tls_server)
    for client in uploads:
        assert client.ask("POST", "/refuse", MEGABYTE).status == 413


def test_the_clients_of_these_tests_notice_a_lost_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as rude:
        client = Client(rude.getsockname())
        rude.accept()[0].close()
        with pytest.raises(Broken):
            client.ask("GET", "/")
