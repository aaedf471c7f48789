"""``zd_health_path``: a path that the worker answers itself, for balancers and readiness probes.

Rules:

* The answer is 200 while the site takes traffic and 503 once the master has to end. A worker that is merely
  replaced answers 200 to the last: a balancer that took its instance out for that would take the site down at each
  deploy.
* The application does not get these requests; without the setting no code of this file runs for a request.
* They are answered as other requests are, behind the same queue, so that a worker that hangs does not answer.
* All classes answer alike: whatever the method (HEAD has no body), however the path is written (percent-encoded, or as
  the whole URL that RFC 9112 3.2.2 has servers accept), and whatever prefix the application is mounted below.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any, Protocol
from urllib.parse import unquote

from zdworker.settings import Settings
from zdworker.workers.applications import AsgiApplication, Environ, Receive, Scope, Send, StartResponse, WsgiApplication

Verdict = tuple[int, str, bytes]

HEALTHY: Verdict = (200, "OK", b"ok\n")
STOPPING: Verdict = (503, "Service Unavailable", b"stopping\n")


class HealthWorker(Protocol):
    """What an answer depends on, of a :class:`zdworker.workers.base.ZeroDowntime`."""

    @property
    def zd_settings(self) -> Settings:
        """The settings of zdworker."""

    def zd_stopping(self) -> bool:
        """Return whether the site is about to end."""


def verdict(worker: HealthWorker) -> Verdict:
    """Return status, reason phrase and body of an answer at this moment."""
    return STOPPING if worker.zd_stopping() else HEALTHY


def headers(body: bytes) -> list[tuple[str, str]]:
    """Return an answer's header fields."""
    return [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]


def _is(asked: str, path: str) -> bool:
    """Return whether a decoded path, or a whole URL, is that of the health path."""
    if asked.startswith(("http://", "https://")):
        asked = "/" + asked.partition("://")[2].partition("/")[2]
    return asked == path


def is_health_path(asked: str, worker: HealthWorker) -> bool:
    """Return whether a decoded path, or a whole URL, is one that the worker answers itself."""
    path = worker.zd_settings.health_path
    return bool(path) and _is(asked, path)


def wsgi_with_health(application: WsgiApplication, worker: HealthWorker) -> WsgiApplication:
    """Return ``application`` with the health path before it, if there is one (PEP 3333)."""
    path = worker.zd_settings.health_path
    if not path:
        return application

    def with_health(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if not _is(environ["PATH_INFO"], path):
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
        # ``path`` contains the root path (ASGI 2.4), which a proxy in front has taken off and a balancer does not send.
        if scope["type"] == "http" and _is(scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")), path):
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
    from tornado.httputil import HTTPServerRequest
    from tornado.routing import Matcher, Rule
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

    class HealthMatcher(Matcher):
        """Matches the health path, which Tornado's own matchers compare as it was sent."""

        def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
            """Return the handler's arguments, or None for another path."""
            return {} if _is(unquote(request.path), path) else None

    class EveryMethod(tuple[str, ...]):
        """Contains every method, where a handler lists those that it knows."""

        __slots__ = ()

        def __contains__(self, method: object) -> bool:
            return True

    class HealthHandler(RequestHandler):
        """Answers the health path."""

        SUPPORTED_METHODS = EveryMethod()

        def prepare(self) -> None:
            """Answer with the present verdict, before a method of this class is looked for."""
            status, phrase, body = verdict(worker)
            self.set_status(status, phrase)
            for name, value in headers(body):
                self.set_header(name, value)
            self.finish(body)

        def data_received(self, chunk: bytes) -> None:
            """Do nothing; it is abstract in the base, and no body is streamed to this handler."""

    rule = Rule(HealthMatcher(), HealthHandler)
    application.default_router.process_rule(rule)
    application.default_router.rules.insert(0, rule)  # before the application's own, whatever hosts they are for
    return application
