"""Which requests a reload has cut at ``graceful_timeout``: the log, the command and its JSON name them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.certificates import make_certificate
from tests.harness.clients import Client, request
from tests.harness.http2_client import Http2Client
from tests.harness.processes import wait_for
from tests.harness.screens import Screen, environment, typed
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ALL, ASGI, GEVENT, THREAD, TORNADO, for_each, uvicorn_has
from tests.harness.worker_classes import WorkerClass as Class

SECRET = "secret"  # noqa: S105  # it is one of a client
HOLD, SLEEP = f"/hold?token={SECRET}", f"/sleep?seconds=600&token={SECRET}"
"""Requests that are never answered."""

IN_CONTAINER = """

from concurrent.futures import ThreadPoolExecutor
from tornado.wsgi import WSGIContainer


def in_container(environ, start_response):
    mark("request", path=environ["PATH_INFO"])
    time.sleep(600)


app = WSGIContainer(in_container, ThreadPoolExecutor(2))
"""

UVICORN_HTTP2 = """
from zdworker import UvicornWorker


class Http2Worker(UvicornWorker):
    CONFIG_KWARGS = {"http": "zttp", "http2": True}
"""


def wait_begun(server: Server, number: int) -> None:
    wait_for(lambda: len(server.site.marks("request")) == number, BOOT_TIMEOUT_S, "the application has the requests")


@contextlib.contextmanager
def held(server: Server, *targets: str) -> Iterator[None]:
    """Have a request for each of ``targets`` under way, on a connection of its own."""
    before = len(server.site.marks("request"))
    with contextlib.ExitStack() as clients:
        for target in targets:
            clients.enter_context(Client(server.address)).send(request("GET", target))
        wait_begun(server, before + len(targets))
        yield


def reloaded(server: Server, *options: str) -> Screen:
    screen = typed(server, "reload", *options)
    assert screen.code == 0, screen
    assert SECRET not in screen.text
    return screen


def outcome(server: Server) -> dict[str, Any]:
    plain = json.loads(reloaded(server, "--json").lines[-1])
    assert isinstance(plain, dict)
    return plain


@for_each(ALL)
def test_a_reload_names_the_request_that_it_has_cut(start_class: Start, site: Site, worker: Class) -> None:
    """As text, in JSON, in the history, and in the lines of the worker and the master in the log."""
    server = start_class(worker, workers=1, graceful_timeout=1, environment=environment(site.directory))
    site.deploy("two")
    with held(server, HOLD):
        screen = reloaded(server)
    assert "1 request cut at graceful_timeout (GET /hold)" in screen.text, screen
    with held(server, SLEEP):
        plain = outcome(server)
    assert (plain["cut_requests"], plain["cut_paths"]) == (1, ["GET /sleep"])
    entries = json.loads(typed(server, "history", "--json").text)["history"]
    assert [entry["cut_paths"] for entry in entries] == [["GET /hold"], ["GET /sleep"]]
    lines = [line for line in server.log.splitlines() if "GET /hold" in line and " cut" in line]
    by_worker, has_left, done = lines
    assert "graceful_timeout is over" in by_worker
    assert "1 request (GET /hold)" in by_worker or "1 request cut (GET /hold)" in by_worker
    assert has_left.endswith("1 request cut (GET /hold)")
    assert "all workers are new" in done
    assert done.endswith("1 request cut (GET /hold)")


@for_each(tuple(known for known in ALL if known.settings.get("workers") is None))
def test_of_several_requests_each_is_named(start_class: Start, site: Site, worker: Class) -> None:
    server = start_class(worker, workers=1, graceful_timeout=1, environment=environment(site.directory))
    with held(server, HOLD, SLEEP, HOLD):
        plain = outcome(server)
    assert (plain["cut_requests"], sorted(plain["cut_paths"])) == (3, ["GET /hold", "GET /sleep"])


def test_a_request_in_tornados_container_of_wsgi_is_named(start_class: Start, site: Site) -> None:
    site.serve("tornado")
    site.deploy("one", extra=IN_CONTAINER)
    server = start_class(TORNADO, workers=1, graceful_timeout=1, environment=environment(site.directory))
    with held(server, HOLD):
        assert outcome(server)["cut_paths"] == ["GET /hold"]


@pytest.mark.parametrize("kind", [THREAD.path, GEVENT.path, ASGI.path, "uvicorn_http2.Http2Worker"])
def test_a_stream_of_http2_is_named(start: Start, site: Site, kind: str) -> None:
    make_certificate(site.directory)
    settings = {"certfile": "certificate.pem", "keyfile": "key.pem"}
    if kind.startswith("uvicorn"):
        if not uvicorn_has("zttp_h2_impl"):
            pytest.skip("this uvicorn has no HTTP/2")
        (site.directory / "uvicorn_http2.py").write_text(UVICORN_HTTP2)
    else:
        settings["http_protocols"] = "h2,h1"
    server = start(
        worker_class=kind, workers=1, graceful_timeout=1, environment=environment(site.directory), **settings
    )
    client = Http2Client(server.address)
    client.request("GET", HOLD)
    wait_begun(server, 1)
    plain = outcome(server)
    assert (plain["cut_requests"], plain["cut_paths"]) == (1, ["GET /hold"])
