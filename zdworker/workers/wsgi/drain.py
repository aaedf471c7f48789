"""What the worker classes for WSGI applications have in common.

Rules:

* Whether a connection ends with a response is decided when the head is sent, not when the request begins, nor when the
  application calls ``start_response``. So a drain that begins in between counts, and what the head says is done.
* A response does not end the connection while further requests have arrived already (HTTP/1.1 pipelining), because they
  would be lost. The response to the last of them does.
* A warm-up request calls the application as the server does (PEP 3333), but without a connection.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

from gunicorn.http.parser import Parser, RequestParser
from gunicorn.http.wsgi import Response, create

from zdworker.errors import WarmupFailed
from zdworker.syscalls import unread
from zdworker.workers.answers import AnswerCounter, post_request, wsgi_timed
from zdworker.workers.applications import Environ, WsgiApplication
from zdworker.workers.base import ZeroDowntime
from zdworker.workers.drain import Drain
from zdworker.workers.health import wsgi_with_health
from zdworker.workers.requirements import refuse_missing, require_parser
from zdworker.workers.wsgi.request_heads import body_is_read, has_read_ahead, unread_body_bytes

HEARTBEAT_INTERVAL_S = 0.1
"""Seconds between two heartbeats, at least."""

WARMUP_CLIENT = ("127.0.0.1", 0)
"""The client's address and port in a warm-up request."""

OUT_OF_DESCRIPTORS = "Out of file descriptors: no more than %s until some are free (ulimit -n)"
"""A line for the log, once in a worker's life."""

_default_headers = Response.default_headers


class WsgiDrain(ZeroDowntime):
    """Mixin for workers on Gunicorn's own WSGI responses (``gunicorn.http.wsgi.Response``)."""

    zd_answers_health: ClassVar[bool] = True
    zd_serves: ClassVar[frozenset[str]] = frozenset({"wsgi"})
    zd_counts_answers: ClassVar[bool] = True
    zd_has_threads: ClassVar[bool] = False
    """Whether several threads answer requests."""

    cfg: Any
    wsgi: WsgiApplication

    _zd_next_heartbeat = 0.0
    _application: WsgiApplication

    _drain: Drain

    @classmethod
    def zd_preload(cls, cfg: Any) -> None:
        """Import the parsers, which Gunicorn would import with the first connection that needs them.

        :raises GenerationError: one that the configuration asks for is missing.
        """
        require_parser(cfg)
        with contextlib.suppress(ImportError):
            importlib.import_module("gunicorn_h1c")
        if "h2" in cfg.http_protocols:
            try:
                for name in ("config", "connection", "events", "exceptions", "settings"):
                    importlib.import_module(f"h2.{name}")
            except ImportError as error:
                refuse_missing(error, "http_protocols with 'h2'")
                raise
            importlib.import_module("gunicorn.http2.connection")
        if cfg.protocol == "uwsgi":
            importlib.import_module("gunicorn.uwsgi.parser")

    def load_wsgi(self) -> None:
        """Load the application, put ``zd_health_path`` before it, and have its responses end connections in a drain."""
        super().load_wsgi()
        self._application = self.wsgi
        self.wsgi = wsgi_with_health(self._application, self)
        self.zd_count_if_wanted()
        _end_connections_in_drain(self)

    def zd_install_counter(self, counter: AnswerCounter) -> None:
        """Have Gunicorn's hook ``post_request`` count, in this process, beside the user's own."""
        self.wsgi = wsgi_with_health(wsgi_timed(self._application), self)
        self.cfg.set("post_request", post_request(counter, self.cfg.post_request, self.zd_has_threads))

    def notify(self) -> None:
        """Send the heartbeat, at most ten times a second: Gunicorn's loops call this with each request."""
        now = time.monotonic()
        if now >= self._zd_next_heartbeat:
            self._zd_next_heartbeat = now + HEARTBEAT_INTERVAL_S
            super().notify()

    def is_parent_alive(self) -> bool:
        """Tell whether Gunicorn's loop may go on; under zdworker's master always, because ``notify()`` checks that."""
        return bool(self.zd_master_pid) or super().is_parent_alive()  # type: ignore[misc]

    def zd_warm_up(self, paths: Sequence[str]) -> None:
        """Answer each of ``paths`` once, to the end of the response.

        :param paths: paths, or URLs that give scheme and host too.
        :raises WarmupFailed: a status is 400 or above, or the application started no response.
        """
        for path in paths:
            status = answer(self.wsgi, path, self.cfg)
            if not status[:3].isdigit() or int(status[:3]) >= 400:
                raise WarmupFailed(f"{path} was answered with {status}: zd_warmup wants a status below 400")

    def zd_under_way(self) -> tuple[int, int]:
        """Return the requests that are being answered; there are no WebSockets."""
        return self._drain.in_flight().requests, 0

    def zd_ends(self) -> bool:
        """Return whether a response is to end its connection: in a drain, unless the connection goes to a successor."""
        if self.zd_deadline == math.inf or self.cfg.is_ssl:
            return self.zd_deadline != math.inf
        return not (self._drain.gives if self._drain.has_begun else self.zd_gives)

    def zd_note_end(self) -> None:
        """Count a connection that a response has told to close."""
        self._drain.told_to_close += 1


def _end_connections_in_drain(worker: WsgiDrain) -> None:
    """Have responses end their connections once ``worker`` has the order to leave.

    This changes Gunicorn's class, in the worker's own process only. A wrapper around the application could mark a
    response only when it begins, or would have to change an object with each request.
    """

    def default_headers(response: Response) -> list[str]:
        if worker.zd_deadline != math.inf and worker.zd_ends() and not _has_further_request(response):
            response.force_close()
            worker.zd_note_end()
        return _default_headers(response)  # type: ignore[no-any-return]

    Response.default_headers = default_headers


def _has_further_request(response: Response) -> bool:
    """Tell whether bytes have arrived that belong to a request behind the one that is being answered."""
    request = response.req
    if body_is_read(request):
        return has_read_ahead(request.unreader, response.sock) or unread(response.sock) > 0
    # What the application has left of the body is read and dropped behind the response, since Gunicorn 27.
    body = unread_body_bytes(request) if hasattr(Parser, "finish_body") else None
    arrived = len(request.unreader.buf.getvalue()) + unread(response.sock)
    return body is not None and arrived > body


def answer(application: WsgiApplication, url: str, cfg: Any) -> str:
    """Have ``application`` answer a GET request, and return the status with its reason phrase.

    :param url: a path, or a whole URL, which gives scheme and host too.
    :param cfg: Gunicorn's configuration.
    :raises WarmupFailed: the application did not call ``start_response``.
    """
    statuses: list[str] = []

    def start_response(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], object]:
        statuses.append(status)
        return lambda data: None

    connection, client = socket.socketpair()
    with connection, client:
        body = application(_environ(url, cfg, connection), start_response)
        try:
            for _piece in body:
                pass
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()
    if not statuses:
        raise WarmupFailed(f"{url} was not answered: the application did not call start_response")
    return statuses[-1]


def _environ(url: str, cfg: Any, connection: socket.socket) -> Environ:
    """Return the environment of a GET request, made by Gunicorn's parser and functions from the bytes of one.

    So it has all that Gunicorn gives to an application, in every version, which an application may read.

    :param connection: what the application gets as the request's socket.
    """
    parts = urlsplit(url)
    scheme = parts.scheme or "http"
    prefix = os.environ.get("SCRIPT_NAME", "")
    path = parts.path or "/"
    target = (path if path.startswith(prefix) else prefix + path) + (f"?{parts.query}" if parts.query else "")
    head = f"GET {target} HTTP/1.1\r\nHost: {parts.netloc or 'localhost'}\r\nUser-Agent: zdworker-warmup\r\n\r\n"
    request = next(RequestParser(_WithoutProxy(cfg), iter([head.encode("latin-1")]), WARMUP_CLIENT))
    server = (parts.hostname or "localhost", parts.port or (443 if scheme == "https" else 80))
    _response, environ = create(request, connection, WARMUP_CLIENT, server, cfg)
    environ["wsgi.url_scheme"] = scheme
    return environ  # type: ignore[no-any-return]


class _WithoutProxy:
    """Gunicorn's configuration for a request that no proxy has sent on."""

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg
        self.proxy_protocol = "off" if isinstance(cfg.proxy_protocol, str) else False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, name)
