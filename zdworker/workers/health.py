"""``zd_health_path``: a path that the worker answers itself, for balancers and readiness probes.

Rules:

* It says 200 while the site takes traffic and 503 once the master was told to end. A worker that is merely replaced
  says 200 to the last: a balancer that looked away for that would take the site down at each deploy.
* The application does not hear of it; without the setting nothing here is in a request's way.
* It is answered as any request is, behind the same queue: a worker that hangs does not answer, and shall not.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterable
from typing import Any, Protocol

from zdworker.settings import Settings
from zdworker.workers.applications import AsgiApplication, Environ, Receive, Scope, Send, StartResponse, WsgiApplication

Verdict = tuple[int, str, bytes]

TAKES_TRAFFIC: Verdict = (200, "OK", b"ok\n")
STOPS: Verdict = (503, "Service Unavailable", b"stopping\n")


class HealthWorker(Protocol):
    """What an answer depends on, of a :class:`zdworker.workers.base.ZeroDowntime`."""

    @property
    def zd_settings(self) -> Settings:
        """The settings of zdworker."""

    def zd_stopping(self) -> bool:
        """Return whether the site is about to end."""


def verdict(worker: HealthWorker) -> Verdict:
    """Return status, reason phrase and body of an answer now."""
    return STOPS if worker.zd_stopping() else TAKES_TRAFFIC


def headers(body: bytes) -> list[tuple[str, str]]:
    """Return an answer's header fields."""
    return [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]


def wsgi_with_health(application: WsgiApplication, worker: HealthWorker) -> WsgiApplication:
    """Return ``application`` with the health path before it, if there is one (PEP 3333)."""
    path = worker.zd_settings.health_path
    if not path:
        return application

    def with_health(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != path:
            return application(environ, start_response)
        status, phrase, body = verdict(worker)
        start_response(f"{status} {phrase}", headers(body))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return with_health


def asgi_with_health(application: AsgiApplication, worker: HealthWorker) -> AsgiApplication:
    """Return ``application`` with the health path before it, if there is one (ASGI 3.0)."""
    path = worker.zd_settings.health_path
    if not path:
        return application

    def with_health(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # The root path is part of it (ASGI 2.4), but a proxy in front has taken it off: a balancer does not say it.
        if scope["type"] == "http" and scope["path"].removeprefix(scope.get("root_path", "")) == path:
            return _answer(send, scope["method"], worker)
        return application(scope, receive, send)

    return with_health


async def _answer(send: Send, method: str, worker: HealthWorker) -> None:
    status, _phrase, body = verdict(worker)
    fields = [(name.lower().encode(), value.encode()) for name, value in headers(body)]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


def tornado_with_health(application: Any, worker: HealthWorker) -> Any:
    """Return ``application``, a Tornado or a WSGI one, with the health path before it, if there is one."""
    from tornado.routing import PathMatches, Rule
    from tornado.web import Application, RequestHandler
    from tornado.wsgi import WSGIContainer

    path = worker.zd_settings.health_path
    if not path:
        return application
    if isinstance(application, WSGIContainer):
        application.wsgi_application = wsgi_with_health(application.wsgi_application, worker)
        return application
    if not isinstance(application, Application):
        return wsgi_with_health(application, worker)

    class HealthHandler(RequestHandler):
        """Answers GET and HEAD."""

        def get(self) -> None:
            """Answer with the verdict."""
            status, phrase, body = verdict(worker)
            self.set_status(status, phrase)
            for name, value in headers(body):
                self.set_header(name, value)
            self.finish(body)

        head = get

        def data_received(self, chunk: bytes) -> None:
            """Not called: no body is streamed to this handler."""

    rule = Rule(PathMatches(re.escape(path) + "$"), HealthHandler)
    application.default_router.process_rule(rule)
    application.default_router.rules.insert(0, rule)  # before the application's own, whatever hosts they are for
    return application
