"""What a person reads of a reload that has failed: the cause, once, and what to do, on one screen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.screens import Screen, environment, typed
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ASGI, THREAD, TORNADO, UVICORN, WorkerClass, for_each

FAILED = 1

preload_or_not = pytest.mark.parametrize("preload", [True, False], ids=["preload", "no preload"])


@pytest.fixture
def server(make_server: Start, site: Site, preload: bool) -> Server:
    return started(make_server, site, preload)


def started(make_server: Start, site: Site, preload: bool, **settings: object) -> Server:
    mode = {"preload_app": True} if preload else {"zd_preload": "never"}
    log = str(site.directory / "error.log")
    return make_server(environment=environment(site.directory), workers=1, errorlog=log, **mode, **settings).start()


def error_log(server: Server) -> str:
    """Return the error log: a file of its own, or standard error."""
    log = server.site.directory / "error.log"
    return log.read_text() if log.exists() else server.log


def failed(server: Server) -> Screen:
    """Order a reload that fails; return what a person reads, when the log has it, too."""
    screen = typed(server, "reload")
    wait_for(lambda: re.search(r"Reload to generation \d+ failed, .*\n", error_log(server)), 30, "the log is written")
    assert screen.code == FAILED, screen
    assert screen.lines[-1] == "generation 1 is still serving"
    assert screen.lines[-2].startswith("fix that, and reload again")
    return screen


def files(text: str) -> list[str]:
    """Return the files of a traceback's frames, in their order."""
    return re.findall(r'^ +File "([^"]+)"', text, re.MULTILINE)


NESTED = """\
import importlib
import inner
"""
INNER = """\
import json


def read():
    return json.loads("{")


settings = read()
"""


@preload_or_not
def test_the_applications_frames_come_first_and_once(server: Server, site: Site) -> None:
    site.write("inner.py", INNER)
    site.write("app.py", NESTED)
    screen = failed(server)
    application = [str(site.directory / name) for name in ("app.py", "inner.py")]
    assert files(screen.text)[:3] == [*application, application[1]], str(screen)
    assert not any("zdworker" in file or "gunicorn" in file or "importlib" in file for file in files(screen.text))
    assert screen.text.count("Traceback (most recent call last)") == 1
    assert "reload failed: " in screen.text
    assert "JSONDecodeError: Expecting property name" in screen.text
    log = error_log(server)
    assert log.count("Traceback (most recent call last)") == 1
    assert any("gunicorn" in file for file in files(log)), "the log has all frames"
    assert any("importlib" in file for file in files(log))


CHAIN = """

def first():
    try:
        {}["database"]
    except KeyError as error:
        raise LookupError("no database is named") from error


try:
    first()
except LookupError as error:
    raise RuntimeError("cannot start") from error
"""


@preload_or_not
def test_what_has_led_to_an_exception_is_shown_too(server: Server, site: Site) -> None:
    site.deploy("two", extra=CHAIN)
    screen = failed(server)
    assert "KeyError: 'database'" in error_log(server)
    assert "RuntimeError: cannot start" in screen.text
    assert "LookupError: no database is named" in screen.text


@preload_or_not
def test_a_deep_stack_fits_on_the_screen(server: Server, site: Site) -> None:
    site.deploy("two", extra="\n\ndef down(n):\n    return down(n - 1) if n else 1 / 0\n\n\ndown(100)\n")
    screen = failed(server)
    assert "ZeroDivisionError: division by zero" in screen.text
    assert files(screen.text)[0] == str(site.directory / "app.py")
    assert "down(100)" in screen.text, "where the application has begun it"


HUGE = "raise RuntimeError('begin ' + 'x' * 3_000_000 + ' end')\n"


@preload_or_not
def test_a_text_of_any_size_is_cut_and_not_lost(server: Server, site: Site) -> None:
    site.write("app.py", HUGE)
    screen = failed(server)
    for text in (screen.text, error_log(server)):
        assert "RuntimeError: begin xxx" in text
        assert "characters are left out" in text
        assert "xxx end" in text
    assert error_log(server).count("x") > 30_000, "the log has far more of it"


@preload_or_not
def test_many_lines_are_cut_in_their_middle(server: Server, site: Site) -> None:
    site.write("app.py", "raise RuntimeError('\\n'.join(f'line {number}' for number in range(1000)))\n")
    screen = failed(server)
    assert "RuntimeError: line 0" in screen.text
    assert "line 999" in screen.text
    assert "left out: see the log" in screen.text
    assert "\nline 500\n" in error_log(server)


# -- exits ---------------------------------------------------------------------------------------------------------


EXITS = {
    "text": "sys.exit('DATABASE_URL is not set')",
    "print": "print('DATABASE_URL is not set'); sys.exit(1)",
    "standard error": "print('DATABASE_URL is not set', file=sys.stderr); sys.exit(1)",
    "descriptor": "import os; os.write(2, b'DATABASE_URL is not set\\n'); sys.exit(1)",
}


@preload_or_not
@pytest.mark.parametrize("kind", list(EXITS))
def test_an_exit_at_import_shows_its_words(server: Server, site: Site, preload: bool, kind: str) -> None:
    """Standard output is a file here, so that Python keeps what is printed until the process ends."""
    site.write("app.py", f"import sys\n{EXITS[kind]}\n")
    screen = failed(server)
    assert f"{site.directory}/app.py, line 2)" in screen.text, "where it has exited"
    if kind != "descriptor" or preload:  # what a worker writes past Python goes to standard error, and nowhere else
        assert screen.text.count("DATABASE_URL is not set") <= 2, screen
        assert "): DATABASE_URL is not set\n" in screen.text
        assert "): DATABASE_URL is not set" in error_log(server)


def test_words_reach_the_screen_from_a_pipe_too(make_server: Start, site: Site) -> None:
    place = site.directory / "piped"
    words = ["sh", "-c", f'exec "$@" > >(cat >{place})', "sh"]
    server = make_server(
        environment=environment(site.directory),
        workers=1,
        preload_app=True,
        command=["bash", *words[1:], *make_server().words[:3]],
    ).start()
    site.write("app.py", f"import sys\n{EXITS['print']}\n")
    assert "): DATABASE_URL is not set\n" in failed(server).text
    wait_for(lambda: "DATABASE_URL is not set\n" in place.read_text(), 30, "it went where it goes, too")


@preload_or_not
def test_what_is_printed_once_a_worker_serves_is_not_kept(server: Server, site: Site) -> None:
    site.deploy("two", extra="\n\nimport sys\nprint('loading')\n\n\ndef started():\n    pass\n")
    assert typed(server, "reload").code == 0
    site.deploy("three")
    assert typed(server, "reload").code == 0


def test_an_exit_at_the_first_start_shows_its_words(make_server: Start, site: Site) -> None:
    site.write("app.py", f"import sys\n{EXITS['text']}\n")
    server = make_server(workers=1, preload_app=True).launch()
    assert server.wait_exit(BOOT_TIMEOUT_S) != 0
    assert "DATABASE_URL is not set" in server.log


# -- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("def broken(:\n", "SyntaxError: invalid syntax (gunicorn.conf.py, line {line})"),
        ("raise RuntimeError('no such host')\n", "RuntimeError: no such host ({file}, line {line})"),
        ("workers = 'many'\n", "Invalid value for workers: many"),
        ("import sys; sys.exit('no HOST')\n", "exit 1, at {file}, line {line}): no HOST"),
    ],
    ids=["syntax", "exception", "value", "exit"],
)
def test_a_broken_configuration_is_told_with_file_and_line(
    make_server: Start, site: Site, extra: str, words: str
) -> None:
    server = started(make_server, site, preload=True)
    server.extra = f"\n{extra}"
    server.configure()
    file = site.directory / "gunicorn.conf.py"
    line = len(file.read_text().splitlines())
    screen = failed(server)
    wanted = words.format(file=file, line=line)
    assert wanted in screen.text.replace("\n", ""), screen
    assert wanted in error_log(server)
    assert "zdworker" not in "".join(files(screen.text))


# -- warm-ups ------------------------------------------------------------------------------------------------------


WARM = """

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Route


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)


def cached(request):
    try:
        return {}["page"]
    except KeyError as error:
        raise RuntimeError("the cache is empty") from error


_starlette = Starlette(routes=[Route("/warm", cached)], middleware=[Middleware(Passing)] * 3)


async def _warm(scope, receive, send, query):
    await _starlette(scope, receive, send)


ENDPOINTS["/warm"] = _warm
"""


@for_each((UVICORN, ASGI))
def test_a_warm_up_that_raises_is_told_once(make_server: Start, site: Site, worker: WorkerClass) -> None:
    """Frameworks raise one exception again in each of their layers."""
    server = started(make_server, site, preload=True, worker_class=worker.path)
    server.configure(zd_warmup=["/warm"])
    site.deploy("two", extra=WARM)
    screen = failed(server)
    assert "warm-up failed: /warm raised RuntimeError: the cache is empty" in screen.text
    assert "in cached" in screen.text
    log = error_log(server)
    assert "WarmupFailed" not in log
    assert len(log.splitlines()) < 163, "so many there were once"
    assert log.count("RuntimeError: the cache is empty\n") <= 3


LIFESPAN = """

import contextlib
from starlette.applications import Starlette


@contextlib.asynccontextmanager
async def connected(app):
    raise RuntimeError("no database")
    yield


_starlette = Starlette(lifespan=connected)


async def app(scope, receive, send):
    await _starlette(scope, receive, send)
"""


@for_each((UVICORN, ASGI))
def test_a_lifespan_that_fails_is_told_once(make_server: Start, site: Site, worker: WorkerClass) -> None:
    """The framework sends the traceback as a text, which both servers log."""
    server = started(make_server, site, preload=True, worker_class=worker.path)
    site.deploy("two", extra=LIFESPAN)
    screen = failed(server)
    assert "application startup failed: RuntimeError: no database" in screen.text
    assert "in connected" in screen.text
    assert screen.text.count("Traceback") == error_log(server).count("Traceback") == 1


@for_each((UVICORN, ASGI, THREAD, TORNADO))
def test_a_warm_up_that_is_refused_needs_no_traceback(make_server: Start, site: Site, worker: WorkerClass) -> None:
    server = started(make_server, site, preload=True, worker_class=worker.path)
    server.configure(zd_warmup=["/no-such-path"])
    site.deploy("two")
    screen = failed(server)
    assert "warm-up failed: /no-such-path" in screen.text
    assert "Traceback" not in screen.text
    assert "Traceback" not in error_log(server)


def test_the_screen_is_measured() -> None:
    """The harness itself: what is too long for a terminal is noticed."""
    assert Screen("x" * 81 + "\n\n" + "y", 0).rows == 4


def test_the_log_is_where_the_settings_say(make_server: Start, site: Site) -> None:
    server = started(make_server, site, preload=True)
    assert Path(site.directory / "error.log").exists()
    assert "Booting worker" in error_log(server)
