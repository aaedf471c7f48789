"""Behind nginx and HAProxy, with kept upstream connections and no second try: the clients do not see a deploy."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.harness.application_site import Site
from tests.harness.clients import Address, Client, Load, request
from tests.harness.processes import wait_for
from tests.harness.proxies import BEHIND, MIXED_REQUESTS, HAProxy, Nginx, Proxy, program
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ALL, WEBSOCKETS, WorkerClass, for_each

GATEWAY_FAILURES = {502, 503, 504}
RELOAD_TIMEOUT_S = 60.0
ENOUGH = 50_000
BODY = b"0123456789abcdef" * 20_000

pytestmark = pytest.mark.skipif(
    not (program("nginx") and program("haproxy") and shutil.which("wrk")),
    reason="nginx, haproxy or wrk is not installed",
)
for_each_proxy = pytest.mark.parametrize("kind", [Nginx, HAProxy], ids=lambda kind: str(kind.name))


class Mixed:
    """``wrk`` with 64 connections, GETs and POSTs with bodies (``mixed.lua``), from entering to leaving.

    ``seen`` is then what it saw: the number of requests that were answered, and of those that were not, by kind.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        url = "http://%s:%s/" % address
        self._words = ["wrk", "-t", "2", "-c", "64", "-d", "600", "--timeout", "20", "-s", str(MIXED_REQUESTS), url]
        self.seen: dict[str, int] = {}

    def __enter__(self) -> Mixed:
        self._process = subprocess.Popen(self._words, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *problem: object) -> None:
        self._process.send_signal(signal.SIGINT)  # it ends and reports, as if its time were over
        try:
            output, _ = self._process.communicate(timeout=30)
        finally:
            self._process.kill()
        self.seen = json.loads(output.splitlines()[-1])


@contextlib.contextmanager
def mixed_load(proxy: Proxy) -> Iterator[None]:
    """Hold ``proxy`` under load: wrk, and clients that look at every answer; none of them may have anything to say."""
    with Mixed(proxy.address) as many, Load(proxy.address, "kept", clients=4, pause=0.05) as careful:
        yield
    failed = {kind: number for kind, number in many.seen.items() if kind != "requests" and number}
    assert not failed, failed
    assert careful.stop().failures == []
    assert not GATEWAY_FAILURES & set(proxy.statuses()), proxy.statuses()


def unix(site: Site) -> str:
    return str(site.directory / "gunicorn.sock")


@for_each_proxy
def test_fifty_thousand_requests_through_ten_reloads(start: Start, kind: type[Proxy]) -> None:
    server = start(workers=2, **BEHIND)
    reloads = 0
    with kind(server.address) as proxy:
        with mixed_load(proxy):
            while reloads < 10 or proxy.statuses()[200] < ENOUGH:
                server.reload(f"v{reloads}", RELOAD_TIMEOUT_S)
                reloads += 1
        assert proxy.statuses()[200] >= ENOUGH


@for_each(ALL)
@for_each_proxy
def test_three_reloads_of_each_class(start_class: Start, worker: WorkerClass, kind: type[Proxy], site: Site) -> None:
    """Over a Unix socket with nginx, over TCP with HAProxy."""
    bind = {"bind": f"unix:{unix(site)}"} if kind is Nginx else {}
    server: Server = start_class(worker, workers=2, zd_max_surge="50%", **BEHIND, **bind)
    upstream: Address = unix(site) if bind else server.address
    with kind(upstream) as proxy, mixed_load(proxy):
        for version in ("two", "three", "four"):
            server.reload(version, RELOAD_TIMEOUT_S)


@for_each(WEBSOCKETS)
@for_each_proxy
def test_websockets_hear_of_the_restart(start_class: Start, worker: WorkerClass, kind: type[Proxy]) -> None:
    """The close code passes through: a browser knows that it is to come back."""
    server: Server = start_class(worker, workers=2, zd_websocket_drain=1)
    with kind(server.address) as proxy, contextlib.ExitStack() as stack:
        url = "ws://%s:%s/websocket" % proxy.address
        sockets = [stack.enter_context(connect(url, proxy=None)) for _ in range(10)]
        for number, websocket in enumerate(sockets):
            websocket.send(str(number))
            assert websocket.recv() == str(number)
        server.reload("two")
        for websocket in sockets:
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv(timeout=30)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012


@pytest.mark.parametrize("kind", [lambda upstream: Nginx(upstream, buffering=False), HAProxy], ids=["nginx", "haproxy"])
def test_a_body_that_still_arrives_when_the_drain_begins(start: Start, kind: type[Proxy]) -> None:
    """Passed on as it comes (nginx with ``proxy_request_buffering off``): the old worker waits for the rest."""
    server = start(workers=1, **BEHIND)
    with kind(server.address) as proxy, Client(proxy.address) as client:
        old = set(server.workers())
        whole = request("POST", "/echo", BODY)
        client.send(whole[:-1000])
        server.site.deploy("two")
        server.signal(signal.SIGUSR2)
        wait_for(lambda: not old & set(server.accepting()), BOOT_TIMEOUT_S, "the old worker has stopped accepting")
        client.send(whole[-1000:])
        reply = client.reply()
        assert (reply.status, reply.headers["x-version"]) == (200, "one")
        assert reply.json()["length"] == len(BODY)
        server.wait_only("two")
        assert client.ask("POST", "/echo", BODY).headers["x-version"] == "two"
