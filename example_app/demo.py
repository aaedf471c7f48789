"""The main job, seen from outside: deploys under a stream of requests, and not one request is lost.

Rules:

* Real things only: the Procfile's own command in a copy of this directory, real sockets, real signals.
* The clients are honest: no request is tried twice, and every answer must be whole and right. A
  keep-alive connection obeys ``Connection: close`` and looks for end of file before it sends, as clients do.
* Verdicts come from the answers alone. The one line looked for in the log is our own broken code's.
* Everything has a deadline, and everything started here is stopped here. Standard library only.

``python example_app/demo.py`` runs it; with ``--command`` and ``--signal`` it happens to another server.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType
from urllib.request import urlopen

HERE = Path(__file__).resolve().parent
WORKERS = 4
PAUSE = 0.02  # seconds between two requests of a client: a stream, not a flood
TIMEOUT = 10.0  # seconds a client waits for an answer
QUIET = 1.5  # seconds without an answer of older code after which a deploy counts as done
SLOW = "slow, 1 s"
BROKEN = "3.0"  # cannot be imported
FAILING = "4.0"  # starts, and answers a fifth of the requests with 500
COMPLAINT = "this deploy is broken"
RAISES = f'raise RuntimeError("{COMPLAINT}")'
FAILS = """
sound = app


async def app(scope, receive, send):
    fails = scope["type"] == "http" and os.urandom(1)[0] < 51
    await (Response(status_code=500, headers=HEADERS) if fails else sound)(scope, receive, send)
"""
JUDGED = """
# Code that fails more than 5 % of the requests, and more than the code before, is given up.
zd_canary_seconds = 2
zd_max_error_rate = 5
"""


# -- what the clients see --------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """One request's fate; times are monotonic seconds, ``error`` is empty when it was answered well.

    ``version`` is that of the code that answered, empty when none did.
    """

    kind: str
    started: float
    ended: float
    version: str
    error: str

    @property
    def meant(self) -> bool:
        """Whether this is the failing code's own answer, which a client gets until that code is given up."""
        return self.version == FAILING and self.error == "status 500"


class BadStatus(Exception):
    """An answer with another status than 200."""

    def __init__(self, version: str, status: int) -> None:
        super().__init__(f"status {status}")
        self.version = version


@dataclass
class Board:
    """All answers so far; written by the clients' threads, read by the main one."""

    answers: list[Answer] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, answer: Answer) -> None:
        with self.lock:
            self.answers.append(answer)

    def taken(self) -> list[Answer]:
        """A copy to look at in peace."""
        with self.lock:
            return list(self.answers)


class Client(threading.Thread):
    """Sends one kind of request again and again until told to stop."""

    def __init__(self, port: int, kind: str, board: Board, stopped: threading.Event) -> None:
        super().__init__(daemon=True)
        self.port, self.kind, self.board, self.stopped = port, kind, board, stopped
        self.connection = self.new_connection()

    def new_connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)

    def run(self) -> None:
        while not self.stopped.wait(PAUSE):
            started = time.monotonic()
            version, error = "", ""
            try:
                version = self.exchange()
            except BadStatus as failure:
                version, error = failure.version, str(failure)
            except (OSError, http.client.HTTPException, ValueError) as failure:
                error = f"{type(failure).__name__}: {failure}"
                self.connection.close()
            self.board.add(Answer(self.kind, started, time.monotonic(), version, error))
        self.connection.close()

    def exchange(self) -> str:
        """One request; returns the version that answered, raises on anything but a right answer."""
        if self.kind == "post, keep-alive connection":
            self.drop_if_closed()
            return self.answer("POST", "/echo", body=os.urandom(512))
        self.connection.close()
        return self.answer("GET", "/slow?s=1" if self.kind == SLOW else "/version")

    def drop_if_closed(self) -> None:
        """An idle connection that has something to read has ended: what a client checks before it sends."""
        if self.connection.sock is not None and select.select([self.connection.sock], [], [], 0)[0]:
            self.connection.close()

    def answer(self, method: str, path: str, body: bytes | None = None) -> str:
        self.connection.request(method, path, body=body)
        response = self.connection.getresponse()
        content = response.read()
        version = response.headers["x-version"] or ""
        if response.status != http.client.OK:
            raise BadStatus(version, response.status)
        if (content != body) if body else (json.loads(content)["version"] != version):
            raise ValueError("the answer is not the right one")
        return version


KINDS = ["get, new connection"] * 4 + ["post, keep-alive connection"] * 4 + [SLOW] * 2


@contextmanager
def clients(port: int, board: Board) -> Iterator[None]:
    """The stream of requests, while the block lasts; those under way at its end are waited for."""
    stopped = threading.Event()
    threads = [Client(port, kind, board, stopped) for kind in KINDS]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join(TIMEOUT + 2)


# -- the server ------------------------------------------------------------------------------------


class Server:
    """Gunicorn in a copy of the example; ``directory`` holds the copy, the log and the pidfile."""

    def __init__(self, directory: Path, command: str) -> None:
        self.app = directory / "app"
        self.log = directory / "log"
        self.pidfile = directory / "pid"
        self.port = free_port()
        shutil.copytree(HERE, self.app, ignore=shutil.ignore_patterns("__pycache__"))
        self.write("1.0")
        with (self.app / "gunicorn.conf.py").open("a", encoding="utf-8") as configuration:
            configuration.write(JUDGED)
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PWD": str(self.app),
            "XDG_RUNTIME_DIR": str(directory),  # Gunicorn's control socket: not in a real server's place
            "WEB_CONCURRENCY": str(WORKERS),
            "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{self.port} --pid {self.pidfile}",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                shlex.split(command),
                cwd=self.app,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that whatever is left at the end can be ended as a group
            )

    def write(self, version: str, extra: str = "") -> None:
        """What a deploy does: the new code is on disk, whole, in one moment."""
        text = (HERE / "app.py").read_text(encoding="utf-8")
        changed = re.sub(r"^VERSION = .*$", f'VERSION = "{version}"', text, count=1, flags=re.MULTILINE)
        fresh = self.app / "app.py.new"
        fresh.write_text(f"{changed}\n{extra}\n", encoding="utf-8")
        fresh.replace(self.app / "app.py")

    def check(self) -> None:
        """Raise ``DemoError`` when the server has ended."""
        if self.process.poll() is not None:
            raise DemoError(f"the server has ended, exit code {self.process.returncode}")

    def answers(self) -> bool:
        """Whether the server answers a request yet."""
        self.check()
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/version", timeout=TIMEOUT) as response:
                return bool(response.status == http.client.OK)
        except OSError:
            return False

    def master(self) -> int:
        """The PID in the pidfile, 0 when there is none."""
        try:
            return int(self.pidfile.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def said(self, text: str) -> bool:
        return text.encode() in self.log.read_bytes()

    def stop(self) -> None:
        """TERM; after its end, or 10 s, KILL for whatever is left of the group."""
        if self.process.poll() is None:
            self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM when only zombies are left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


# -- what is shown ---------------------------------------------------------------------------------


class View:
    """One live line on a terminal, a plain line a second elsewhere; steps are printed as lines on both."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.begun = time.monotonic()
        self.shown = 0.0

    def step(self, text: str) -> None:
        clear = "\r\x1b[2K" if self.live else ""
        print(f"{clear}{time.monotonic() - self.begun:5.1f} s  {text}", flush=True)

    def refresh(self) -> None:
        now = time.monotonic()
        if now - self.shown < (0.1 if self.live else 1.0):
            return
        self.shown = now
        answers = self.board.taken()
        if not answers:
            return
        recent = sum(1 for answer in reversed(answers[-2000:]) if answer.ended > now - 1)
        line = f"{now - self.begun:5.1f} s    {counts(answers)}   {recent}/s"
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[2K{line[:width]}", end="", flush=True)
        else:
            print(line, flush=True)

    def wait(self, condition: Callable[[], bool], seconds: float, otherwise: str = "") -> None:
        """Refresh until the condition holds; past the deadline return, or raise ``otherwise``."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                if otherwise:
                    raise DemoError(otherwise)
                return
            self.refresh()
            time.sleep(0.05)


def counts(answers: list[Answer]) -> str:
    """Answers per version, and failures."""
    versions = Counter(answer.version for answer in answers if not answer.error or answer.meant)
    parts = [f"version {version}: {number:<5}" for version, number in sorted(versions.items())]
    return "  ".join([*parts, f"failed: {len(failures(answers))}"])


def failures(answers: list[Answer]) -> list[Answer]:
    """The requests that failed, without those that the failing code itself has answered so."""
    return [answer for answer in answers if answer.error and not answer.meant]


# -- the story -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Period:
    """Each request begun from ``start`` to ``end`` (monotonic seconds) must be answered by ``version``."""

    version: str
    start: float
    end: float


def only(board: Board, version: str) -> bool:
    """Whether for ``QUIET`` seconds all requests that began were answered by this version, and some were."""
    since = time.monotonic() - QUIET
    recent = {answer.version for answer in board.taken()[-3000:] if answer.started > since and answer.version}
    return recent == {version}


def story(server: Server, board: Board, view: View, signum: signal.Signals) -> list[Period]:
    """Four deploys: changed, broken, failing and fixed code. Returns which version had to answer when."""
    periods = []

    def serve(version: str, seconds: float, enough: Callable[[], bool] = lambda: False) -> None:
        """All is to stay with ``version`` for so long, or until it is enough."""
        start = time.monotonic()
        view.wait(enough, seconds)
        server.check()
        periods.append(Period(version, start, time.monotonic()))

    def deploy(version: str, extra: str = "", what: str = "") -> None:
        server.write(version, extra)
        view.step(f"{version}{what} is on disk: {signum.name} to the master")
        server.process.send_signal(signum)

    def arrive(version: str) -> None:
        def arrived() -> bool:
            server.check()
            return only(board, version)

        view.wait(arrived, 25, f"{version} did not take over within 25 s")
        view.step(f"only {version} answers")

    arrive("1.0")
    serve("1.0", 1)
    deploy("2.0")
    arrive("2.0")
    deploy(BROKEN, RAISES, ", which cannot start,")
    serve("2.0", 15, lambda: server.said(COMPLAINT))
    if not server.said(COMPLAINT):
        raise DemoError("the broken code was not tried within 15 s")
    view.step("the broken code was tried and has failed")
    serve("2.0", 2)
    view.step("2.0 still serves")
    deploy(FAILING, FAILS, ", which fails a fifth of the requests,")
    tried = f"{FAILING} did not answer within 15 s"
    view.wait(lambda: any(answer.version == FAILING for answer in board.taken()[-3000:]), 15, tried)
    view.step(f"{FAILING} answers its share")
    view.wait(lambda: only(board, "2.0"), 15, f"{FAILING} was not given up within 15 s")
    view.step(f"{FAILING} was given up: only 2.0 answers")
    serve("2.0", 1)
    deploy("4.1")
    arrive("4.1")
    serve("4.1", 1)
    return periods


def wrong(answers: list[Answer], periods: list[Period]) -> list[str]:
    """What answered that should not have: broken code at any time, or another version than the period's."""
    found = ["an answer from the broken version" for answer in answers if answer.version == BROKEN]
    for period in periods:
        during = [a for a in answers if period.start < a.started < period.end and a.version]
        others = [answer.version for answer in during if answer.version != period.version]
        found += [f"an answer from {other} while {period.version} had to serve alone" for other in others]
    return found


def longest_gap(answers: list[Answer]) -> float:
    """Seconds in which not one request was answered, at most; slow ones end alone when the stream stops."""
    times = sorted(answer.ended for answer in answers if not answer.error and answer.kind != SLOW)
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


def summary(answers: list[Answer], periods: list[Period], masters: set[int], trouble: str) -> bool:
    """Print what happened; returns whether all was well."""
    failed, meant = failures(answers), sum(answer.meant for answer in answers)
    mistakes = wrong(answers, periods)
    print(f"\nrequests     {len(answers)} in {len(KINDS)} streams")
    for kind, number in sorted(Counter(answer.kind for answer in answers).items()):
        print(f"             {number:5}  {kind}")
    print(f"answered by  {counts(answers)}")
    if meant:
        print(f"failed       {meant} requests, answered by {FAILING} before it was given up")
    print(f"longest gap  {longest_gap(answers) * 1000:.0f} ms without an answer")
    print(f"master PID   {'unchanged' if len(masters) == 1 and 0 not in masters else f'changed: {masters}'}")
    for answer in failed[:5]:
        print(f"failed       {answer.kind}: {answer.error}")
    for mistake, number in Counter(mistakes).items():
        print(f"wrong        {mistake} ({number} times)")
    if trouble:
        print(f"trouble      {trouble}")
    good = bool(answers) and not failed and not mistakes and not trouble and len(masters) == 1 and 0 not in masters
    print("\nNo other request failed." if good else "\nSomething failed.", flush=True)
    return good


def perform(server: Server, signum: signal.Signals) -> bool:
    """Start the stream, tell the story, judge it; returns whether all was well."""
    board = Board()
    view = View(board)
    periods: list[Period] = []
    masters: set[int] = set()
    trouble = ""
    try:
        view.wait(server.answers, 20, "the server did not start within 20 s")
        view.step(f"gunicorn serves with {WORKERS} workers, master PID {server.process.pid}")
        masters |= {server.master(), server.process.pid}
        with clients(server.port, board):
            periods = story(server, board, view, signum)
        masters.add(server.master())
        server.check()
    except DemoError as error:
        trouble = str(error)
    good = summary(board.taken(), periods, masters, trouble)
    if not good:
        print(
            f"\nthe end of the server's log:\n{server.log.read_text(errors='replace')[-4000:]}",
            file=sys.stderr,
        )
    return good


def interrupted(signum: int, frame: FrameType | None) -> None:
    """TERM ends the demo as Ctrl-C does: through the cleaning up."""
    raise KeyboardInterrupt


def main() -> int:
    procfile = (HERE / "Procfile").read_text(encoding="utf-8")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--command", default=procfile.split(":", 1)[1].strip(), help="default: the Procfile's")
    parser.add_argument("--signal", default="USR2", choices=["USR2", "HUP"], help="what tells the master of a deploy")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupted)
    print(f"$ {options.command}", flush=True)
    with tempfile.TemporaryDirectory(prefix="zdworker-demo-") as directory:
        server = Server(Path(directory), options.command)
        try:
            return 0 if perform(server, signal.Signals[f"SIG{options.signal}"]) else 1
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
