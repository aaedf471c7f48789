"""``zd_warmup`` on ASGI: the application is asked as its server would ask it, and every failure names the path."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from zdworker.errors import WarmupFailed
from zdworker.workers.applications import AsgiApplication as Application
from zdworker.workers.applications import Receive, Scope, Send
from zdworker.workers.asgi.warmup import ask, scope_of, warm_up

BASIS: dict[str, Any] = {"asgi": {"version": "3.0"}, "root_path": "/app", "state": {"made": "at startup"}}


def run(app: Application, *paths: str, patience: float = 5.0) -> None:
    asyncio.run(warm_up(lambda path: ask(app, path, BASIS), paths, patience))


async def answer(send: Send, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"o", "more_body": True})
    await send({"type": "http.response.body", "body": b"k"})


def test_each_path_is_asked_in_its_order_with_the_server_s_part_of_the_scope() -> None:
    asked: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(dict(scope))
        scope["state"]["mine"] = True  # a copy: the next one does not see it
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        await answer(send)
        assert await receive() == {"type": "http.disconnect"}

    run(app, "/health", "https://example.org:8443/a%20b?c=d")
    assert [(scope["method"], scope["path"], scope["state"]) for scope in asked] == [
        ("GET", "/health", {"made": "at startup", "mine": True}),
        ("GET", "/a b", {"made": "at startup", "mine": True}),
    ]
    assert BASIS["state"] == {"made": "at startup"}
    assert all(scope["root_path"] == "/app" for scope in asked)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("/health", ("http", "/health", b"/health", b"", b"localhost", ("localhost", 80))),
        ("https://a.org/b?c=d", ("https", "/b", b"/b", b"c=d", b"a.org", ("a.org", 443))),
        ("http://a.org:81/%C3%A4", ("http", "/ä", b"/%C3%A4", b"", b"a.org:81", ("a.org", 81))),
        ("http://a.org/", ("http", "/", b"/", b"", b"a.org", ("a.org", 80))),
    ],
)
def test_what_a_path_or_a_url_gives(item: str, expected: tuple[Any, ...]) -> None:
    scope = scope_of(item, {})
    keys = ("scheme", "path", "raw_path", "query_string")
    assert (*(scope[key] for key in keys), dict(scope["headers"])[b"host"], scope["server"]) == expected


@pytest.mark.parametrize("status", [400, 404, 503])
def test_a_bad_status(status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, status)

    with pytest.raises(WarmupFailed, match=f"/health was answered with status {status}"):
        run(app, "/health")


@pytest.mark.parametrize("status", [200, 204, 302])
def test_a_good_status(status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, status)

    run(app, "/health")


def test_an_exception_is_the_cause() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("the application's own")

    with pytest.raises(WarmupFailed, match="/health raised ValueError: the application's own") as caught:
        run(app, "/health")
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("begun", [False, True])
def test_no_whole_response(begun: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})

    with pytest.raises(WarmupFailed, match="/health was not answered"):
        run(app, "/health")


def test_the_first_failure_is_the_last_request() -> None:
    asked: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["path"])
        await answer(send, 500 if scope["path"] == "/b" else 200)

    with pytest.raises(WarmupFailed, match="/b"):
        run(app, "/a", "/b", "/c")
    assert asked == ["/a", "/b"]


def test_there_is_one_time_for_all_and_the_error_shows_where_it_went() -> None:
    async def waits_for_something() -> None:
        await asyncio.sleep(60)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/b":
            await waits_for_something()
        await answer(send)

    with pytest.raises(WarmupFailed, match="/b was not answered within zd_boot_timeout") as caught:
        run(app, "/a", "/b", patience=0.05)
    assert waits_for_something.__name__ in _places(caught.value)


def _places(error: BaseException) -> set[str]:
    """Return the names of the functions in the tracebacks of ``error`` and of what led to it."""
    places: set[str] = set()
    ahead: list[BaseException | None] = [error]
    while ahead:
        this = ahead.pop()
        if this is not None:
            trace = this.__traceback__
            while trace is not None:
                places.add(trace.tb_frame.f_code.co_name)
                trace = trace.tb_next
            ahead += [this.__cause__, this.__context__]
    return places
