"""The servers that are measured, seen from outside only.

Rules:

* Stock and ours get the same command but for the worker class, the same application and environment.
* What is asked is public: HTTP answers that name their process, and ``/proc``. Nothing looks into zdworker.
* Every wait has a deadline; every server is stopped where it was started.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.benchmarks.trees import descendants

STOCK = "uvicorn_worker.UvicornWorker"
OURS = "zdworker.UvicornWorker"

# One answer in three manners. /busy blocks its worker, so that simultaneous requests go to different ones: that is how
# all are counted. /objects says how many objects the worker holds. In the program of a class of applications, {version}
# and {work} are filled in.
HEAD = """\
import gc, json, os, time
VERSION = "{version}"
{work}

def answer(path):
    if path == "/busy":
        time.sleep(0.05)
    if path == "/objects":
        gc.collect()
        return json.dumps({{"objects": len(gc.get_objects()), "pid": os.getpid()}}).encode()
    return json.dumps({{"version": VERSION, "pid": os.getpid()}}).encode()

"""

APPLICATIONS = {
    "asgi": HEAD
    + """\
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = answer(scope["path"])
    headers = [(b"content-length", b"%d" % len(body))]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})
""",
    "wsgi": HEAD
    + """\
def app(environ, start_response):
    body = answer(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
""",
    "tornado": HEAD
    + """\
import tornado.web

class Handler(tornado.web.RequestHandler):
    def get(self):
        self.write(answer(self.request.path))

app = tornado.web.Application([(".*", Handler)])
""",
}

# A second of processor time, as a real import is work and not sleep.
HEAVY = "until = time.process_time() + 1.0\nwhile time.process_time() < until:\n    sum(range(1000))"

# Starlette and some 60 MB of objects that the garbage collector knows: forks can share them.
LARGE = "import starlette.applications\nheld = [[number] for number in range(500_000)]"


def ask(port: int, path: str, timeout: float) -> tuple[str, int]:
    """Version and pid of who answers, by a connection of its own.

    :raises OSError: there is no answer.
    :raises http.client.HTTPException: it is none.
    :raises ValueError: it is no JSON.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"connection": "close"})
        answer = json.loads(connection.getresponse().read())
        return str(answer["version"]), int(answer["pid"])
    finally:
        connection.close()


def free_port() -> int:
    """A port of the loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A running Gunicorn; ``directory`` holds ``application.py``, of ``kind``, and the log."""

    process: subprocess.Popen[bytes]
    directory: Path
    port: int
    kind: str

    def get(self, path: str = "/", timeout: float = 30.0) -> tuple[str, int]:
        """Version and pid of the worker that answers; raises as :func:`ask` does."""
        return ask(self.port, path, timeout)

    def workers(self, number: int) -> set[int]:
        """The pids of all workers, found by keeping each one busy for a moment."""
        found: set[int] = set()

        def all_seen() -> bool:
            with ThreadPoolExecutor(4 * number) as pool:
                found.update(pid for _, pid in pool.map(lambda _: self.get("/busy"), range(4 * number)))
            return len(found) >= number

        until(all_seen, 30, f"{number} workers answer")
        if len(found) != number:
            raise RuntimeError(f"{len(found)} workers answered, not {number}")
        return found

    def tree(self) -> list[int]:
        """The pids of the master and all that descends from it."""
        return [self.process.pid, *descendants(self.process.pid)]

    def deploy(self, version: str, work: str = "") -> None:
        """Change the code on disk, in one moment."""
        fresh = self.directory / "application.py.new"
        fresh.write_text(APPLICATIONS[self.kind].format(version=version, work=work), encoding="utf-8")
        fresh.replace(self.directory / "application.py")

    def log(self) -> str:
        """What the server has said."""
        return (self.directory / "log").read_text(errors="replace")


@contextmanager
def serve(
    worker_class: str,
    workers: int,
    work: str = "",
    *options: str,
    kind: str = "asgi",
    under: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A server that answers, for as long as the block lasts.

    :param under: a command that runs it, such as valgrind.
    :param environment: further variables.
    """
    with tempfile.TemporaryDirectory(prefix="zdworker-bench-") as name:
        directory = Path(name)
        (directory / "application.py").write_text(APPLICATIONS[kind].format(version="1", work=work), encoding="utf-8")
        port = free_port()
        process = _start(directory, port, worker_class, workers, options, under, environment or {})
        server = Server(process, directory, port, kind)
        try:
            until(lambda: _answers(server), 300 if under else 60, "the server answers", 0.005)
            yield server
        except BaseException:
            print(server.log()[-3000:], file=sys.stderr)
            raise
        finally:
            _stop(server.process)


def until(condition: Callable[[], bool], seconds: float, what: str, pause: float = 0.02) -> None:
    """Wait for the condition; raises ``TimeoutError``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s in vain: {what}")
        time.sleep(pause)


def _start(
    directory: Path,
    port: int,
    worker_class: str,
    workers: int,
    options: tuple[str, ...],
    under: tuple[str, ...],
    further: Mapping[str, str],
) -> subprocess.Popen[bytes]:
    command = [*under, sys.executable, "-m", "gunicorn", "-k", worker_class, "-w", str(workers), *options]
    command += ["--bind", f"127.0.0.1:{port}", "application:app"]
    # The control socket must not stand in the place of a real server's.
    environment = os.environ | {"XDG_RUNTIME_DIR": str(directory), "PWD": str(directory), **further}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled
    if under:
        environment["PYTHONHASHSEED"] = "0"
    if "--preload" not in options:
        environment.setdefault("ZD_PRELOAD", "never")  # with and without it are measured
    with (directory / "log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """TERM; after 10 s KILL for the whole tree."""
    try:
        tree = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        tree = []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in tree:
        if child.is_running():
            child.kill()


def _answers(server: Server) -> bool:
    if server.process.poll() is not None:
        raise RuntimeError(f"the server has ended with {server.process.returncode}")
    try:
        server.get()
    except (OSError, http.client.HTTPException):
        return False
    return True
