"""What a worker counts as an answer, and as a failed one: ASGI, Gunicorn's WSGI, and Tornado's two kinds."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.http.errors import InvalidChunkSize

from zdworker.ipc.messages import FAILURE_TEXT_MAX, LATENCY_BOUNDS_S, WORKER_REPORT_BYTES, Answers, encode
from zdworker.settings import Settings
from zdworker.workers.answers import BEGAN, AnswerCounter, asgi_counted, post_request, wsgi_timed


@pytest.fixture
def counter() -> AnswerCounter:
    return AnswerCounter()


def counts(counter: AnswerCounter) -> tuple[int, int, int]:
    report = counter.report()
    assert sum(report.latency) == report.answers
    return report.answers, report.errors, report.exceptions


@pytest.mark.parametrize(("status", "errors"), [(200, 0), (302, 0), (404, 0), (499, 0), (500, 1), (503, 1)])
def test_a_status_of_500_and_above_is_a_failure(counter: AnswerCounter, status: int, errors: int) -> None:
    counter.answered(status, 0.01, "GET", "/cart")
    assert counts(counter) == (1, errors, 0)
    assert counter.report().newest == ([f"GET /cart: {status}"] if errors else [])


def test_the_newest_three_failures_are_named(counter: AnswerCounter) -> None:
    for number in range(5):
        counter.answered(500, 0.0, "GET", f"/{number}")
    counter.raised(KeyError("total"), 0.0, "POST", "/a\nb")
    assert counter.report().newest == ["GET /3: 500", "GET /4: 500", "POST /a b: KeyError: 'total'"]


def test_whatever_a_client_asks_for_the_report_is_short_enough(counter: AnswerCounter) -> None:
    for path in ("/" + "\x00" * 5000, "/" + "\udcff" * 5000, "/" + "😀" * 5000):
        counter.answered(500, 0.0, "GET", path)
    report = counter.report()
    assert all(len(text) <= FAILURE_TEXT_MAX for text in report.newest)
    assert len(encode(report)) <= WORKER_REPORT_BYTES[Answers]


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (0.005, 0), (0.0051, 1), (10.0, len(LATENCY_BOUNDS_S) - 1), (11.0, -1)]
)
def test_each_answer_is_in_one_bucket(counter: AnswerCounter, seconds: float, bucket: int) -> None:
    counter.answered(200, seconds, "GET", "/")
    report = counter.report()
    assert report.latency[bucket] == 1
    assert sum(report.latency) == 1
    assert report.seconds == seconds


def test_threads_lose_no_count(counter: AnswerCounter) -> None:
    hook = post_request(counter, lambda *_: None, threads=True)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", BEGAN: 0.0}
    made = response(500)

    def count() -> None:
        for _ in range(2000):
            hook(None, None, environ, made)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts(counter) == (8000, 8000, 0)


# -- ASGI ----------------------------------------------------------------------------------------------------------


def call(app: Any, kind: str = "http") -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": kind, "method": "GET", "path": "/x"}
    asyncio.run(app(scope, None, send))
    return sent


def test_asgi_answers_are_counted_with_their_status(counter: AnswerCounter) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 503})
        await send({"type": "http.response.body"})

    assert len(call(asgi_counted(app, counter))) == 2
    assert counts(counter) == (1, 1, 0)


def test_an_asgi_application_that_raises_has_not_answered(counter: AnswerCounter) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        call(asgi_counted(app, counter))
    assert counts(counter) == (1, 0, 1)
    assert counter.report().newest == ["GET /x: ValueError: no"]


def test_one_that_raises_behind_its_answer_is_counted_once(counter: AnswerCounter) -> None:
    """As frameworks do, which send a 500 and raise again for the server's log."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500})
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        call(asgi_counted(app, counter))
    assert counts(counter) == (1, 1, 0)


def test_what_a_drain_cancels_is_no_failure(counter: AnswerCounter) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        call(asgi_counted(app, counter))
    assert counts(counter) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_only_http_is_counted(counter: AnswerCounter, kind: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": f"{kind}.accept"})

    assert len(call(asgi_counted(app, counter), kind)) == 1
    assert counts(counter) == (0, 0, 0)


# -- WSGI ----------------------------------------------------------------------------------------------------------


def gunicorn(counter: AnswerCounter, response: Any, error: BaseException | None = None, timed: bool = True) -> None:
    """Call the hook as Gunicorn does: behind a request, perhaps while an exception is on its way."""
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/x"}
    if timed:
        start_response: Any = None
        wsgi_timed(lambda environ, start_response: [])(environ, start_response)
        assert BEGAN in environ
    called: list[Any] = []
    hook = post_request(counter, lambda *arguments: called.append(arguments), threads=False)
    with contextlib.suppress(BaseException):
        try:
            if error is not None:
                raise error
        finally:
            hook("worker", "request", environ, response)
    assert called == [("worker", "request", environ, response)], "the user's hook is called once"


def response(status: int | None, sent: bool = True) -> Any:
    return SimpleNamespace(status=None if status is None else f"{status} x", status_code=status, headers_sent=sent)


@pytest.mark.parametrize(
    ("made", "error", "expected"),
    [
        (response(200), None, (1, 0, 0)),
        (response(500), None, (1, 1, 0)),
        (response(200), StopIteration(), (1, 0, 0)),
        (response(None, sent=False), ValueError("no"), (1, 0, 1)),
        (response(200, sent=False), ValueError("no"), (1, 0, 1)),
        (response(200), ValueError("in the middle"), (1, 0, 0)),
        (response(None, sent=False), ConnectionRefusedError("its database"), (1, 0, 1)),
        (response(200, sent=False), BrokenPipeError("the client"), (0, 0, 0)),
        (response(None, sent=False), InvalidChunkSize(b"the client"), (0, 0, 0)),
        (response(None, sent=False), SystemExit(1), (0, 0, 0)),
        (None, ValueError("in a hook of the user"), (0, 0, 0)),
    ],
)
def test_wsgi_answers_are_counted_as_they_were_sent(
    counter: AnswerCounter, made: Any, error: BaseException | None, expected: tuple[int, int, int]
) -> None:
    gunicorn(counter, made, error)
    assert counts(counter) == expected


def test_what_the_worker_answers_itself_is_not_counted(counter: AnswerCounter) -> None:
    gunicorn(counter, response(503), timed=False)
    assert counts(counter) == (0, 0, 0)


# -- Tornado -------------------------------------------------------------------------------------------------------


def tornado(health: str = "") -> Any:
    return SimpleNamespace(zd_settings=Settings(health_path=health), zd_stopping=lambda: False)


def request(path: str = "/x") -> Any:
    return SimpleNamespace(path=path, method="GET", request_time=lambda: 0.02)


@pytest.mark.parametrize(("status", "expected"), [(200, (1, 0, 0)), (500, (1, 1, 0)), (101, (0, 0, 0))])
def test_tornado_counts_what_it_logs(counter: AnswerCounter, status: int, expected: tuple[int, int, int]) -> None:
    pytest.importorskip("tornado")
    from zdworker.workers.tornado.server import count_logged

    logged: list[Any] = []
    application: Any = SimpleNamespace(log_request=logged.append)
    count_logged(application, counter, tornado())
    handler = SimpleNamespace(get_status=lambda: status, request=request())
    application.log_request(handler)
    assert logged == [handler]
    assert counts(counter) == expected


def test_tornado_does_not_count_the_health_path(counter: AnswerCounter) -> None:
    pytest.importorskip("tornado")
    from zdworker.workers.tornado.server import count_logged

    application: Any = SimpleNamespace(log_request=lambda handler: None)
    count_logged(application, counter, tornado("/health"))
    for path in ("/health", "/%68ealth", "/other"):
        application.log_request(SimpleNamespace(get_status=lambda: 503, request=request(path)))
    assert counts(counter) == (1, 1, 0)


@pytest.mark.parametrize("late", [False, True])
def test_wsgi_applications_on_tornado_are_counted(counter: AnswerCounter, late: bool) -> None:
    wsgi = pytest.importorskip("tornado.wsgi")
    from zdworker.workers.tornado.server import count_logged

    def body() -> Any:
        yield from dict[str, list[bytes]]()["no"]

    def app(environ: Any, start_response: Any) -> Any:
        return body() if late else next(body())

    container = wsgi.WSGIContainer(app)
    container._log = lambda status, request: None  # noqa: SLF001  # what is replaced
    container.environ = lambda request: {}
    count_logged(container, counter, tornado())
    container._log(500, request())  # noqa: SLF001
    with pytest.raises(KeyError, match="no"):
        asyncio.run(container.handle_request(request()))
    assert counts(counter) == (2, 1, 1)


def test_a_client_that_hangs_up_is_no_failure(counter: AnswerCounter) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.disconnect"
        raise ValueError("the client has gone")  # as Starlette's ClientDisconnect

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        """Nothing."""

    async def upload() -> None:
        await asgi_counted(app, counter)({"type": "http", "method": "POST", "path": "/"}, receive, send)

    with pytest.raises(ValueError, match="gone"):
        asyncio.run(upload())
    assert counts(counter) == (0, 0, 0)
