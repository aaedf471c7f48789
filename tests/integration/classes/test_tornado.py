"""What is special to TornadoWorker: handlers that go on behind their answer, WSGI applications, HTTP/1.0, warm-up."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.harness.application_site import Site
from tests.harness.clients import MEGABYTE, Client, request
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import TORNADO

BEHIND = """

class Behind(Endpoint):
    async def get(self) -> None:
        self.answer()
        mark("answered")
        try:
            await asyncio.sleep(float(self.get_argument("seconds")))
            mark("done")
        finally:
            mark("left")


app.add_handlers(".*", [("/behind", Behind)])
"""

WSGI = """

def wsgi(environ, start_response):
    mark("request", path=environ["PATH_INFO"])
    if environ["PATH_INFO"] == "/hold":
        endpoints.wait_for_release()
    body = json.dumps(dict(version=VERSION, length=len(environ["wsgi.input"].read()))).encode()
    start_response("200 OK", [("Content-Length", str(len(body))), ("X-Version", VERSION)])
    return [body]


app = wsgi
"""

SCHEDULED = """

from tornado.ioloop import IOLoop

IOLoop.current().call_later(0.01, mark, "scheduled")
"""

STREAM_GET = """

@stream_request_body
class Hasty(Endpoint):
    def prepare(self) -> None:
        self.answer()

    def data_received(self, chunk: bytes) -> None:
        pass


app.add_handlers(".*", [("/hasty", Hasty)])
"""


def serve(start: Start, site: Site, extra: str = "", **settings: Any) -> Server:
    site.deploy("one", extra=extra)
    settings = {"workers": 1, "zd_max_surge": 1, "keepalive": 5, "graceful_timeout": 12, **settings}
    return start(worker_class=TORNADO.path, **{"zd_hand_over": False, **settings})


def tell_to_leave(server: Server) -> int:
    """Tell the only worker to leave, and return its pid when it accepts no more."""
    (pid,) = server.workers()
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: pid not in server.accepting(), BOOT_TIMEOUT_S, "the worker does not accept any more")
    return pid


def test_tornado_is_not_in_the_master(start: Start, site: Site) -> None:
    server = serve(start, site)
    (worker,) = server.workers()
    assert "/tornado/" in Path(f"/proc/{worker}/maps").read_text()
    assert "/tornado/" not in Path(f"/proc/{server.master}/maps").read_text()


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_the_loop_of_the_import_is_the_one_that_runs(start: Start, site: Site, preload: bool) -> None:
    """Without preloading; a loop does not survive the fork, so with it what was scheduled is lost, as ever."""
    server = serve(start, site, SCHEDULED, preload_app=preload)
    assert server.get("/")["version"] == "one"
    if not preload:
        wait_for(lambda: site.marks("scheduled"), BOOT_TIMEOUT_S, "what was scheduled at import runs")


def test_a_handler_goes_on_behind_its_answer(start: Start, site: Site) -> None:
    server = serve(start, site, BEHIND, graceful_timeout=40)
    with Client(server.address) as client:
        assert client.ask("GET", "/behind?seconds=3", headers="Connection: close\r\n").status == 200
    pid = tell_to_leave(server)
    wait_for(lambda: site.marks("done"), BOOT_TIMEOUT_S, "the handler has ended")
    wait_for(lambda: not alive(pid), 15, "nothing holds the worker")


def test_a_handler_is_cancelled_at_the_deadline(start: Start, site: Site) -> None:
    server = serve(start, site, BEHIND, graceful_timeout=1)
    with Client(server.address) as client:
        assert client.ask("GET", "/behind?seconds=60", headers="Connection: close\r\n").status == 200
    pid = tell_to_leave(server)
    wait_for(lambda: not alive(pid), BOOT_TIMEOUT_S, "the worker has ended")
    assert site.marks("left")
    assert not site.marks("done")
    assert [event["pid"] for event in site.events("worker_exit")] == [pid]


def test_idle_connections_are_kept_for_keepalive_from_the_drain_on(start: Start, site: Site) -> None:
    """Tornado keeps them for an hour; in service that stays."""
    server = serve(start, site, keepalive=4, graceful_timeout=40)
    with Client(server.address) as used, Client(server.address) as idle:
        for client in (used, idle):
            assert not client.ask("GET", "/").last
        time.sleep(4.5)  # longer than keepalive
        told = time.monotonic()
        pid = tell_to_leave(server)
        reply = used.ask("POST", "/echo", b"x")
        assert reply.last
        assert reply.json()["pid"] == pid
        idle.wait_end()
        assert time.monotonic() - told >= 4
    wait_for(lambda: not alive(pid), 15, "nothing holds the worker")


def test_http10_clients_are_not_told_to_keep_a_connection_that_ends(start: Start, site: Site) -> None:
    """Tornado says Keep-Alive to each client that asked for it, and closes: `ab -k` lost its next request by that."""
    server = serve(start, site)
    asked = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    with Client(server.address) as client:
        client.send(asked)
        assert client.reply().headers["connection"] == "Keep-Alive"
        tell_to_leave(server)
        client.send(asked)
        assert client.reply().headers["connection"] == "close"
        client.wait_end()


@pytest.mark.parametrize("headers", ["", "Connection: close\r\n"], ids=["kept", "closed"])
def test_an_early_answer_is_not_lost(start: Start, site: Site, headers: str) -> None:
    """413 to a megabyte that nobody reads, in service too: Tornado closes at once, and the kernel resets."""
    server = serve(start, site)
    with Client(server.address) as client:
        whole = request("POST", "/refuse", bytes(MEGABYTE), headers=headers)
        client.send(whole[:1000])
        assert client.reply().status == 413
        client.send(whole[1000:])
        if headers:
            client.wait_end()
        else:
            assert client.ask("GET", "/").status == 200


def test_an_answer_before_the_end_of_a_request_without_body_keeps_the_connection(start: Start, site: Site) -> None:
    server = serve(start, site, STREAM_GET)
    with Client(server.address) as client:
        for _ in range(3):
            assert client.ask("GET", "/hasty").status == 200
        tell_to_leave(server)
        assert client.ask("GET", "/hasty").last
        client.wait_end()


def test_wsgi_applications_drain_too(start: Start, site: Site) -> None:
    server = serve(start, site, WSGI, graceful_timeout=40)
    with Client(server.address) as kept, Client(server.address) as busy, Client(server.address) as silent:
        assert kept.ask("GET", "/").json()["version"] == "one"
        busy.send(request("GET", "/hold"))
        wait_for(
            lambda: site.marks("request")[-1]["path"] == "/hold", BOOT_TIMEOUT_S, "the application has the request"
        )
        (pid,) = server.workers()
        os.kill(pid, signal.SIGTERM)
        site.answer_held()  # until then the application has the loop, and nothing can close the listener
        server.wait_retired([pid])
        for reply in (busy.reply(), kept.ask("POST", "/", b"abc"), silent.ask("POST", "/", b"abc")):
            assert reply.status == 200
            assert reply.last
    wait_for(lambda: not alive(pid), 15, "nothing holds the worker")


def test_a_wsgi_application_cannot_be_cut(start: Start, site: Site) -> None:
    """It runs on the loop's own thread: at the deadline nobody is there to cut it, and the master kills the worker."""
    server = serve(start, site, WSGI, graceful_timeout=1)
    (pid,) = server.workers()
    with Client(server.address) as client:
        client.send(request("GET", "/hold"))
        wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the application has the request")
        server.site.deploy("two", extra=WSGI)
        server.signal(signal.SIGUSR2)
        wait_for(lambda: not alive(pid), BOOT_TIMEOUT_S, "the worker has ended")
    assert pid not in [event["pid"] for event in site.events("worker_exit")]


def test_without_tornado_the_start_says_what_to_install(make_server: Start, site: Site) -> None:
    site.write("tornado.py", "raise ImportError('as if it were not there')")
    server = make_server(worker_class=TORNADO.path).launch()
    assert server.wait_exit(BOOT_TIMEOUT_S) != 0
    assert "pip install 'zdworker[tornado]'" in server.log


def test_tornado_worker_warms_up(start: Start, site: Site) -> None:
    """Answered in the worker, before it accepts: by then there is no connection."""
    server = serve(start, site, zd_warmup=["/sleep?seconds=0.1", "https://example.org/"], workers=2)
    assert len(site.marks("request", "one")) == 2
    assert server.get("/")["version"] == "one"


def test_tornado_worker_whose_warm_up_fails(make_server: Start, site: Site) -> None:
    site.deploy("one")
    server = make_server(worker_class=TORNADO.path, zd_warmup=["/nowhere"]).launch()
    assert server.wait_exit(BOOT_TIMEOUT_S) == 3
    assert "/nowhere was answered with 404" in server.log


LATE_WEBSOCKET = """

from tornado.websocket import WebSocketHandler


class Late(WebSocketHandler):
    async def prepare(self) -> None:
        mark("request", path="/late")
        while not os.path.exists("release"):
            await asyncio.sleep(0.01)

    async def on_message(self, message) -> None:
        await self.write_message("echo " + message)


app.add_handlers(".*", [("/late", Late)])
"""


def test_a_websocket_that_opens_in_a_drain_stays(start: Start, site: Site) -> None:
    """It has had its answer, as an idle connection has, but it speaks HTTP no more."""
    server = serve(start, site, LATE_WEBSOCKET, zd_hand_over=True, graceful_timeout=30)
    address = "ws://%s:%s/late" % server.address
    with ThreadPoolExecutor() as pool:
        opening = pool.submit(connect, address)
        wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the handshake has begun")
        server.begin_reload("two")
        site.answer_held()
        with opening.result(BOOT_TIMEOUT_S) as client:
            client.send("hello")
            assert client.recv(BOOT_TIMEOUT_S) == "echo hello"
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(BOOT_TIMEOUT_S)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
