"""Counting answers: how many there were, how many of them failed, and how long each took until its head.

Rules:

* Nothing of this file runs for a request unless counting is asked for (``zd_max_error_rate``, ``zd_count_answers``, a
  statsd, ``zdworker reload --hold``).
* A failed answer is one with a status of 500 or above, or none at all because the application has raised. What a client
  does (it hangs up, it sends nonsense) and what a drain cuts is no failure of the code.
* The worker's own answers, to ``zd_health_path``, and those to warm-up requests are not counted.
* Reports are made at fixed times and not when something fails: the judgement (``zdworker/core/judgement.py``) needs
  that.
"""

from __future__ import annotations

import sys
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic
from typing import Any

from gunicorn.http import errors

from zdworker import texts
from zdworker.ipc.messages import FAILURE_TEXT_MAX, LATENCY_BOUNDS_S, NEWEST_FAILURES, Answers
from zdworker.workers.applications import AsgiApplication, Environ, Event, Receive, Scope, Send, WsgiApplication

REPORT_INTERVAL_S = 0.25
"""Seconds between two reports of what was answered."""

BAD_BODY = tuple(
    getattr(errors, name)
    for name in ("InvalidChunkSize", "InvalidChunkExtension", "ChunkMissingTerminator", "NoMoreData")
    if hasattr(errors, name)
)
"""What Gunicorn raises in the application that reads a body, because of what the client has sent, or has not."""

FIRST_BOUND_S = LATENCY_BOUNDS_S[0]

BEGAN = "zdworker.began"
"""The key of a WSGI environment that says when its request began, by ``time.monotonic()``."""


class AnswerCounter:
    """What one worker has answered since it began to count. Of threads that share it one at a time may call it."""

    def __init__(self) -> None:
        self.answers = self.errors = self.exceptions = 0
        self.seconds = 0.0
        self.latency = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.newest: deque[str] = deque(maxlen=NEWEST_FAILURES)

    def answered(self, status: int, seconds: float, method: str, path: str) -> None:
        """Count an answer.

        :param seconds: from the request to the answer's head, or to its end.
        """
        self.answers += 1
        self.seconds += seconds
        # Most answers are quick, and a call of bisect costs as much as all the rest.
        self.latency[0 if seconds <= FIRST_BOUND_S else bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
        if status >= 500:
            self.errors += 1
            self.newest.append(_line(method, path, str(status)))

    def raised(self, error: BaseException, seconds: float, method: str, path: str) -> None:
        """Count a request that the application has not answered, because it has raised."""
        self.answered(0, seconds, method, path)
        self.exceptions += 1
        self.newest.append(_line(method, path, texts.reason(error)))

    def report(self) -> Answers:
        """Return what was counted by now."""
        counts = self.answers, self.errors, self.exceptions
        return Answers(*counts, self.seconds, list(self.latency), list(self.newest))


def _line(method: str, path: str, what: str) -> str:
    return texts.lines(f"{method} {path}: {what}".replace("\n", " "), FAILURE_TEXT_MAX)


# -- ASGI ----------------------------------------------------------------------------------------------------------


def asgi_counted(application: AsgiApplication, counter: AnswerCounter) -> AsgiApplication:
    """Return ``application`` with its answers to HTTP requests counted (ASGI 3.0)."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        began, answered, gone = monotonic(), False, False

        async def received() -> Event:
            nonlocal gone
            message = await receive()
            if message["type"] == "http.disconnect":
                gone = True
            return message

        def sent(message: Event) -> Awaitable[None]:
            nonlocal answered
            if not answered and message["type"] == "http.response.start":
                answered = True
                counter.answered(message["status"], monotonic() - began, scope["method"], scope["path"])
            return send(message)

        try:
            await application(scope, received, sent)
        except Exception as error:
            if not answered and not gone:
                counter.raised(error, monotonic() - began, scope["method"], scope["path"])
            raise

    def counted(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return (answer if scope["type"] == "http" else application)(scope, receive, send)

    return counted


# -- WSGI ----------------------------------------------------------------------------------------------------------


def wsgi_timed(application: WsgiApplication) -> WsgiApplication:
    """Return ``application`` with the time at which a request begins in its environment, for :func:`post_request`."""

    def timed(environ: Environ, start_response: Any) -> Iterable[bytes]:
        environ[BEGAN] = monotonic()
        return application(environ, start_response)

    return timed


def post_request(
    counter: AnswerCounter, before: Callable[..., object], threads: bool
) -> Callable[[Any, Any, Any, Any], None]:
    """Return a hook ``post_request`` that counts the answer and then calls ``before``, the hook of the user.

    Gunicorn calls it behind each request, also while an exception is on its way, and knows the status that was sent.

    :param threads: Gunicorn calls it in the thread that has answered, and there are several.
    """
    # gevent's lock is slow, and needless: a greenlet that counts does not give way to another one.
    count = _one_at_a_time(_count_response) if threads else _count_response

    def counted(worker: Any, request: Any, environ: Any, response: Any) -> None:
        began = environ.get(BEGAN)
        if began is not None and response is not None:
            count(counter, response, environ, monotonic() - began)
        before(worker, request, environ, response)

    return counted


def _one_at_a_time(function: Callable[..., None]) -> Callable[..., None]:
    lock = threading.Lock()

    def locked(*arguments: Any) -> None:
        with lock:
            function(*arguments)

    return locked


def _count_response(counter: AnswerCounter, response: Any, environ: Environ, seconds: float) -> None:
    error, method, path = sys.exc_info()[1], environ["REQUEST_METHOD"], environ["PATH_INFO"]
    # StopIteration is how Gunicorn ends a connection.
    if error is None or isinstance(error, StopIteration) or response.headers_sent:
        counter.answered(response.status_code or 0, seconds, method, path)
    elif isinstance(error, Exception) and not _is_clients(error, response):
        counter.raised(error, seconds, method, path)


def _is_clients(error: Exception, response: Any) -> bool:
    """Return whether an error is the client's: it has gone, or has sent a body that Gunicorn cannot parse."""
    return isinstance(error, BAD_BODY) or (isinstance(error, OSError) and response.status is not None)
