"""A site: a directory with an application, its configuration, and what both write down about themselves.

Rules:

* A deploy is atomic (``os.replace``) and its time differs from the one before by seconds, so that stale
  bytecode is never what a test sees by accident.
* Marks (by the application) and events (by the hooks of gunicorn.conf.py) are lines of JSON with the time of
  ``time.monotonic()``, which all processes share: order and distance hold across processes.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

Kind = Literal["asgi", "wsgi", "tornado"]
"""What an application is to its server."""
ENDPOINTS = "endpoints.py"
"""What all applications share; it is the same in all versions."""
LAST_LINE = 'endpoints.mark("import")\n'
"""Of every application: what a test appends is imported before."""
APPLICATIONS = Path(__file__).parents[1] / "applications"
BrokenKind = Literal["syntax", "import", "raise", "exit", "hang", "lifespan"]
BROKEN: tuple[BrokenKind, ...] = ("syntax", "import", "raise", "exit", "hang", "lifespan")

STARLETTE = """

import functools
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route


def plain(request):
    mark("request", path="/plain")
    time.sleep(float(request.query_params["seconds"]))
    return JSONResponse({"version": VERSION, "pid": os.getpid()})


_plain = Starlette(routes=[Route("/plain", plain)])


async def _forward(scope, receive, send, query):
    await _plain(scope, receive, send)


ENDPOINTS["/plain"] = _forward
"""
"""What a test appends that needs a plain ``def`` endpoint, which Starlette runs in a thread of anyio's."""

LIFESPAN_FAILS = """

async def lifespan(receive, send):
    await receive()
    await send({{"type": "lifespan.startup.failed", "message": "broken {unique}"}})
"""

HOOKS = """

import json as _json
import os as _os
import sys as _sys
import time as _time


def _note(event, **facts):
    facts.update(event=event, by=_os.getpid(), time=_time.monotonic(), application_here="app" in _sys.modules)
    descriptor = _os.open(EVENTS, _os.O_WRONLY | _os.O_APPEND | _os.O_CREAT, 0o666)
    try:
        _os.write(descriptor, _json.dumps(facts).encode() + b"\\n")
    finally:
        _os.close(descriptor)


def _call_application(name):
    getattr(_sys.modules.get("app"), name, lambda: None)()  # an application without lifespan


def pre_fork(server, worker):
    _note("pre_fork", age=worker.age)


def post_fork(server, worker):
    _note("post_fork", age=worker.age, pid=worker.pid)


def post_worker_init(worker):
    _note("post_worker_init", age=worker.age, pid=worker.pid)
    _call_application("started")


def worker_int(worker):
    _note("worker_int", age=worker.age, pid=worker.pid)


def worker_abort(worker):
    _note("worker_abort", age=worker.age, pid=worker.pid)


def worker_exit(server, worker):
    _note("worker_exit", age=worker.age, pid=worker.pid)
    _call_application("ended")


def child_exit(server, worker):
    _note("child_exit", age=worker.age, pid=worker.pid)


def on_reload(server):
    _note("on_reload", workers=server.cfg.workers)


def on_exit(server):
    _note("on_exit")


def nworkers_changed(server, new_value, old_value):
    _note("nworkers_changed", new=new_value, old=old_value)
"""
"""Each hook writes a line; ``application_here`` tells whether the process has the application's module."""

START_HOOKS = """

def on_starting(server):
    _note("on_starting", workers=server.num_workers)


def when_ready(server):
    _note("when_ready", workers=server.num_workers, listeners=len(server.LISTENERS), master=server.pid)
"""
"""For few tests only: with one of these the first generation is started later (``launch.start_early``)."""

FEW_DESCRIPTORS = """
import resource as _resource

_before = post_worker_init


def post_worker_init(worker):
    _before(worker)
    _resource.setrlimit(_resource.RLIMIT_NOFILE, (60, 60))
"""
"""What a test adds to gunicorn.conf.py: a booted worker may have 60 descriptors at most."""

LOOKS = """
import gunicorn.reloader as _reloader

if not hasattr(_reloader.Reloader, "looks"):
    _reloader.Reloader.looks = _reloader.Reloader.get_files


def _look(self):
    _note("look")
    return self.looks()


_reloader.Reloader.get_files = _look
"""
"""What a test adds: each time that Gunicorn's reloader looks at the files is an event, ``look``."""


class Site:
    """The directory of one test. It is short, because a path of a Unix socket has 108 bytes at most."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="zd-"))
        self.directory.chmod(0o755)
        self.marks_file = self.directory / "marks.jsonl"
        self.events_file = self.directory / "events.jsonl"
        for file in (self.marks_file, self.events_file):
            file.touch()
            file.chmod(0o666)
        self._times = itertools.count(int(time.time()) - 100_000, 10)
        self._unique = itertools.count(1)
        self.kind: Kind = "asgi"
        self._deployed: tuple[str, str] | None = None

    def serve(self, kind: Kind) -> None:
        """From now on the application is of this kind; what is deployed already is deployed again."""
        if kind != self.kind:
            self.kind = kind
            if self._deployed is not None:
                version, extra = self._deployed
                self.deploy(version, extra=extra)

    def template(self) -> Path:
        """Return the application, as the tests have it."""
        return APPLICATIONS / f"{self.kind}_app.py"

    def deploy(self, version: str, *, extra: str = "") -> None:
        """Put ``version`` in place; ``extra`` is code to append."""
        self._deployed = version, extra
        if not (self.directory / ENDPOINTS).exists():
            self.write(ENDPOINTS, (APPLICATIONS / ENDPOINTS).read_text())
        text = self.template().read_text()
        text = text.replace('VERSION = "VERSION"', f"VERSION = {version!r}")
        text = text.replace('MARKS = "MARKS"', f"MARKS = {str(self.marks_file)!r}")
        before, last, _ = text.rpartition(LAST_LINE)
        self.write("app.py", before + extra + f"\n\n{last}")

    def deploy_gated(self, version: str) -> Path:
        """Put ``version`` in place, which marks ``waits`` at its import, and waits there until the file that is
        returned is opened for writing.
        """
        gate = self.directory / "gate"
        os.mkfifo(gate)  # opened for reading it blocks, and not in Python, so that gevent has no part in it
        self.deploy(version, extra=f'\n\nmark("waits")\nos.close(os.open({str(gate)!r}, os.O_RDONLY))\n')
        return gate

    def release(self, version: str) -> None:
        """Put ``version`` into a release of its own and point ``current`` to it."""
        place = self.directory / "releases" / version
        place.mkdir(parents=True)
        self.deploy(version)
        shutil.move(self.directory / "app.py", place / "app.py")
        shutil.copy2(self.directory / ENDPOINTS, place)
        new = self.directory / ".current"
        new.symlink_to(Path("releases") / version)
        new.replace(self.directory / "current")

    @property
    def breakable(self) -> tuple[BrokenKind, ...]:
        """What the application can fail by: only one of ASGI has a lifespan."""
        return tuple(kind for kind in BROKEN if kind != "lifespan" or self.kind == "asgi")

    def break_(self, kind: BrokenKind) -> str:
        """Put a version in place that cannot start; return a text that is nowhere else than in its error."""
        assert kind in self.breakable, f"an application of {self.kind} cannot fail by its {kind}"
        unique = f"{kind}_{next(self._unique)}_{os.urandom(4).hex()}"
        if kind == "lifespan":
            self.deploy(unique, extra=LIFESPAN_FAILS.format(unique=unique))
            return unique
        mark = {"event": "hang", "version": unique}
        lines = {
            "syntax": f"def broken_{unique}(:",
            "import": f"import broken_{unique}",
            "raise": f"raise RuntimeError('broken {unique}')",
            "exit": "import os\nos._exit(1)",
            "hang": f"import time\nwith open({str(self.marks_file)!r}, 'a') as marks:\n"
            f"    marks.write({json.dumps(mark)!r} + '\\n')\ntime.sleep(600)",
        }
        self.write("app.py", f"{lines[kind]}\n")
        return unique

    def configure(self, extra: str = "", **settings: Any) -> None:
        """Write gunicorn.conf.py: ``settings`` as plain names, hooks that write events, then ``extra``."""
        settings.setdefault("control_socket", str(self.directory / "gunicorn.ctl"))
        lines = [f"{name} = {value!r}\n" for name, value in settings.items()]
        events = f"EVENTS = {str(self.events_file)!r}\n"
        self.write("gunicorn.conf.py", "".join(lines) + events + HOOKS + extra)

    def write(self, name: str, text: str) -> Path:
        """Write a file whole: nobody sees half of it, and its time is unlike that of the version before."""
        path, new = self.directory / name, self.directory / f".{name}.new"
        new.write_text(text)
        seconds = next(self._times)
        os.utime(new, (seconds, seconds))
        os.replace(new, path)
        return path

    def marks(self, event: str | None = None, version: str | None = None) -> list[dict[str, Any]]:
        found = [mark for mark in _lines(self.marks_file) if event in (None, mark["event"])]
        return [mark for mark in found if version in (None, mark["version"])]

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        return [found for found in _lines(self.events_file) if event in (None, found["event"])]

    def answer_held(self) -> None:
        """Let the application answer the requests that it holds (``/hold``)."""
        (self.directory / "release").touch()

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


def _lines(path: Path) -> list[dict[str, Any]]:
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
