"""The health path, in front of applications of each kind."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from tornado.wsgi import WSGIContainer

from zdworker.ipc.messages import Leave, Stopping, encode
from zdworker.ipc.report import Reporter
from zdworker.settings import Settings
from zdworker.workers.base import ZeroDowntime
from zdworker.workers.health import (
    HEALTHY,
    STOPPING,
    asgi_with_health,
    tornado_with_health,
    verdict,
    wsgi_with_health,
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The master's end of a report channel, and the worker's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def worker(ends: tuple[socket.socket, socket.socket]) -> ZeroDowntime:
    made = ZeroDowntime()
    made.zd_settings = Settings(health_path="/health")
    made.zd_reporter = Reporter(ends[1])
    made.zd_master_pid = 1
    made.zd_parent_lost = lambda: False  # type: ignore[method-assign]
    return made


def test_stopping_is_what_the_master_says(worker: ZeroDowntime, ends: tuple[socket.socket, socket.socket]) -> None:
    assert verdict(worker) == HEALTHY
    worker.zd_deadline = 5.0  # it is replaced: no news for a balancer
    assert verdict(worker) == HEALTHY
    ends[0].send(encode(Stopping()))
    assert [verdict(worker), verdict(worker)] == [STOPPING, STOPPING]


def test_to_be_replaced_is_not_stopping(worker: ZeroDowntime, ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].send(encode(Leave()))
    assert verdict(worker) == HEALTHY
    ends[0].send(encode(Stopping()))
    assert verdict(worker) == STOPPING
    assert worker.zd_reporter.was_announced(Leave)


def test_a_master_that_is_gone_has_stopped(worker: ZeroDowntime) -> None:
    worker.zd_parent_lost = lambda: True  # type: ignore[method-assign]
    assert verdict(worker) == STOPPING


def test_without_our_arbiter_leaving_is_all_one_knows(worker: ZeroDowntime) -> None:
    worker.zd_master_pid = 0
    assert verdict(worker) == HEALTHY
    worker.zd_deadline = 5.0
    assert verdict(worker) == STOPPING


def by_wsgi(application: Any, method: str, path: str) -> tuple[str, bytes]:
    said: list[str] = []
    pieces = application({"PATH_INFO": path, "REQUEST_METHOD": method}, lambda status, headers: said.append(status))
    return said[0], b"".join(pieces)


def test_wsgi(worker: ZeroDowntime) -> None:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"the application"]

    wrapped = wsgi_with_health(application, worker)
    assert by_wsgi(wrapped, "GET", "/health") == ("200 OK", b"ok\n")
    assert by_wsgi(wrapped, "HEAD", "/health") == ("200 OK", b"")
    assert by_wsgi(wrapped, "GET", "/healthy") == ("200 OK", b"the application")
    worker.zd_settings = Settings()
    assert wsgi_with_health(application, worker) is application


def test_tornado_s_container_of_a_wsgi_application(worker: ZeroDowntime) -> None:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"the application"]

    container = tornado_with_health(WSGIContainer(application), worker)
    assert by_wsgi(container.wsgi_application, "GET", "/health") == ("200 OK", b"ok\n")
    assert by_wsgi(container.wsgi_application, "GET", "/") == ("200 OK", b"the application")


def by_asgi(application: Any, **scope: Any) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message.get("status", message.get("body", message)))

    asyncio.run(application({"type": "http", "method": "GET", **scope}, None, send))
    return sent


def test_asgi(worker: ZeroDowntime) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"the application": scope["type"]})

    wrapped = asgi_with_health(application, worker)
    assert by_asgi(wrapped, path="/health") == [200, b"ok\n"]
    assert by_asgi(wrapped, path="/app/health", root_path="/app") == [200, b"ok\n"]
    assert by_asgi(wrapped, path="/health", root_path="/") == [200, b"ok\n"]
    assert by_asgi(wrapped, path="/health", method="HEAD") == [200, b""]
    assert by_asgi(wrapped, path="/") == [{"the application": "http"}]
    assert by_asgi(wrapped, type="lifespan") == [{"the application": "lifespan"}]
    worker.zd_settings = Settings()
    assert asgi_with_health(application, worker) is application
