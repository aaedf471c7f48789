"""``zd_warmup`` on an event loop: each path is answered in the process, before the worker accepts.

Rules:

* The application is called as the server would call it, with the state of its lifespan; nothing goes through a socket.
* A status of 400 or above, an exception, an incomplete response and a timeout are each a failure that names the path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from zdworker.errors import WarmupFailed
from zdworker.workers.applications import AsgiApplication, Event
from zdworker.workers.bounded import done_within

CANCEL_S = 0.1
"""Seconds that an application has to notice that its answer is not waited for any more."""

PORTS = {"http": 80, "https": 443}


async def warm_up(ask: Callable[[str], Coroutine[Any, Any, None]], paths: Sequence[str], timeout_s: float) -> None:
    """Ask for each of ``paths``, one after the other.

    :param ask: has the application answer a path; raises if that fails.
    :param paths: ``"/health"``, asked of localhost, or URLs such as ``"https://example.org/health"``.
    :param timeout_s: seconds for all of them.
    :raises WarmupFailed: the first failure, naming the path; what the application raised is its cause.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    for path in paths:
        answer = loop.create_task(ask(path))
        if not await done_within(answer, end - loop.time()):
            answer.cancel()
            await done_within(answer, CANCEL_S)
            raise WarmupFailed(f"{path} was not answered within zd_boot_timeout") from _where_it_waited(answer)
        try:
            answer.result()
        except WarmupFailed:
            raise
        except Exception as error:
            raise WarmupFailed(f"{path} raised {type(error).__name__}: {error}") from error


def _where_it_waited(cancelled: asyncio.Task[None]) -> BaseException | None:
    """Return the exception that a cancelled task has ended with; its traceback shows where the application waited."""
    if not cancelled.done():
        return None
    try:
        cancelled.result()
    except BaseException as error:  # noqa: BLE001  # whatever the application made of the cancellation
        return error
    return None


def scope_of(path: str, basis: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ASGI scope (HTTP connection scope, specification 2.3) of a GET for ``path``, a path or a URL."""
    parts = urlsplit(path)
    scheme = parts.scheme or "http"
    target = parts.path or "/"
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": scheme,
        "path": unquote(target),
        "raw_path": target.encode("ascii"),
        "query_string": parts.query.encode("ascii"),
        "headers": [(b"host", (parts.netloc or "localhost").encode("ascii")), (b"user-agent", b"zdworker-warmup")],
        "client": ("127.0.0.1", 0),
        "server": (parts.hostname or "localhost", parts.port or PORTS[scheme]),
        **basis,
    }


async def ask(app: AsgiApplication, path: str, basis: Mapping[str, Any]) -> None:
    """Call ``app`` with a GET for ``path``, until it has returned.

    :param basis: the keys of a scope that depend on the server: ``asgi``, ``root_path``, ``state``, ``extensions``.
    :raises WarmupFailed: it answered with status 400 or above, or returned without a whole response.
    """
    request = _Request()
    state = {key: dict(value) if key == "state" else value for key, value in basis.items()}
    await app(scope_of(path, state), request.receive, request.send)
    if request.status is None or not request.complete.is_set():
        raise WarmupFailed(f"{path} was not answered: the application returned without a whole response")
    if request.status >= 400:
        raise WarmupFailed(f"{path} was answered with status {request.status}: zd_warmup wants a status below 400")


class _Request:
    def __init__(self) -> None:
        self.status: int | None = None
        self.complete = asyncio.Event()
        self._asked = False

    async def receive(self) -> Event:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.complete.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Event) -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete.set()
