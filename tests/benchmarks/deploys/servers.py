"""A contender that runs, seen from outside only.

Rules:

* What is asked is public: HTTP answers that name their process, and ``/proc``. Nothing looks into any server.
* While a deploy is measured nothing is asked that holds up a worker.
* Every wait has a deadline. Only what descends from the own keeper is ended.
"""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.deploys import applications, keeper
from tests.benchmarks.servers import ask, free_port
from tests.benchmarks.trees import descendants

if TYPE_CHECKING:
    from tests.benchmarks.deploys.contenders import Contender

PROGRAMS = Path(sys.executable).parent
KEEPALIVE_S = 75
"""Seconds that an idle connection is kept under the load "crowd", by each server that keeps any."""

JUDGED = {"ZD_MAX_ERROR_RATE": "5", "ZD_CANARY_SECONDS": "10"}
"""With which zdworker judges new code by its answers; the others have no such thing, and do not read it."""

SEARCH = 3.0
"""Seconds in which all new workers should have answered a request that holds up nobody."""


class Lost(Exception):
    """A contender did not do what was waited for; the text says what."""


@dataclass
class Server:
    """A running contender; ``main`` is the process that signals go to, ``directory`` holds the application."""

    contender: Contender
    directory: Path
    port: int
    workers: int
    environment: dict[str, str]
    keeper: int = 0
    main: int = 0
    said: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def tree(self) -> list[int]:
        """The pids of all its processes."""
        return descendants(self.keeper)

    def get(self, path: str = "/", timeout: float = 5.0) -> tuple[str, int]:
        """Version and pid of the worker that answers; raises as :func:`ask` does."""
        return ask(self.port, path, timeout)

    def try_get(self, path: str = "/") -> tuple[str, int] | None:
        """Likewise; None when there is no answer."""
        try:
            return self.get(path)
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return None

    def look(self, number: int, path: str = "/busy") -> list[tuple[str, int] | None]:
        """Who answers ``number`` requests at once; ``/busy`` holds up its worker, so that others have to answer too."""
        with ThreadPoolExecutor(number) as pool:
            return list(pool.map(lambda _: self.try_get(path), range(number)))

    def pids(self, version: str, seconds: float = 60.0) -> set[int]:
        """The pids of the version's workers, once as many as there should be have answered."""
        found: set[int] = set()

        def all_seen() -> bool:
            found.update(answer[1] for answer in self.look(3 * self.workers) if answer and answer[0] == version)
            return len(found) >= self.workers

        until(all_seen, seconds, f"{self.workers} workers of {version} answer")
        return found

    def write(self, version: str, work: applications.Work) -> None:
        """Put new code on disk."""
        applications.write(self.directory, self.contender.kind, version, work)

    def deploy(self, version: str) -> None:
        """Tell the server, as its documentation says."""
        self.contender.deploy(self, version)

    def arrived(self, version: str, seconds: float) -> None:
        """Wait until all workers of ``version`` have answered, as far as requests that hold up nobody can find them.

        :raises Lost: none has, in time.
        """
        found: set[int] = set()
        first = time.monotonic()

        def enough() -> bool:
            nonlocal first
            found.update(answer[1] for answer in self.look(2 * self.workers, "/") if answer and answer[0] == version)
            if not found:
                first = time.monotonic()
            return len(found) >= self.workers or time.monotonic() > first + SEARCH

        until(enough, seconds, f"{version} answers")

    def settled(self, version: str, old: set[int], seconds: float) -> float:
        """Wait until only ``version`` answers and the ``old`` processes have gone; return when that was.

        All the new workers are waited for too, as far as a few seconds of requests that hold up nobody can find them.

        :raises Lost: not in time.
        """
        until(lambda: not any(alive(pid) for pid in old), seconds, f"the workers before {version} end", 0.05)
        gone = moment = time.monotonic()
        found: set[int] = set()

        def all_new() -> bool:
            nonlocal moment, gone
            answers = self.look(2 * self.workers, "/")
            if not all(answer and answer[0] == version for answer in answers):
                gone = moment = time.monotonic()
                return False
            if fresh := {answer[1] for answer in answers if answer} - found:
                found.update(fresh)
                moment = time.monotonic()
            return len(found) >= self.workers or time.monotonic() > gone + SEARCH

        until(all_new, seconds, f"only {version} answers")
        return moment

    def say(self, *command: str) -> None:
        """Start a command of the contender's, in its directory and environment; it is ended with the server."""
        self.said.append(
            subprocess.Popen(
                command,
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def log(self) -> str:
        """What the server has said."""
        return (self.directory / "log").read_text(errors="replace")


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def until(condition: Callable[[], bool], seconds: float, what: str, pause: float = 0.1) -> None:
    """Wait for the condition.

    :raises Lost: it did not come about.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Lost(f"not within {seconds:.0f} s: {what}")
        time.sleep(pause)


@contextmanager
def serve(
    contender: Contender, workers: int, work: applications.Work, keeping: bool = False, judged: bool = False
) -> Iterator[Server]:
    """A contender that answers with version "1" from all its workers, for as long as the block lasts.

    :param keeping: it keeps idle connections for long; see :meth:`Contender.keeping`.
    :param judged: it gives up code that fails, if it knows how to.
    """
    with tempfile.TemporaryDirectory(prefix="zdworker-deploys-") as name:
        directory = Path(name)
        path = os.pathsep.join([str(PROGRAMS), os.environ.get("PATH", os.defpath)])
        environment = os.environ | {"PATH": path, "HOME": name, "PWD": name, "XDG_RUNTIME_DIR": name}
        server = Server(contender, directory, free_port(), workers, environment)
        environment |= {"PORT": str(server.port), "PM2_HOME": str(directory / "pm2"), "WORKERS": str(workers)}
        if keeping:
            environment["KEEPALIVE"] = str(KEEPALIVE_S)
        if judged:
            environment |= JUDGED
        if "--preload" not in contender.command:
            environment["ZD_PRELOAD"] = "never"  # with and without it are measured
        server.write("1", work)
        for file, text in contender.files.items():
            (directory / file).write_text(_filled(text, server), encoding="utf-8")
        process = _start(server)
        try:
            server.pids("1")
            yield server
        except BaseException:
            print(server.log()[-2000:], file=sys.stderr)
            raise
        finally:
            _stop(server, process)


def _filled(text: str, server: Server) -> str:
    return text.replace("@PORT@", str(server.port)).replace("@WORKERS@", str(server.workers))


def _start(server: Server) -> subprocess.Popen[bytes]:
    command = [_filled(word, server) for word in server.contender.command]
    with (server.directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, keeper.__file__, *command],
            cwd=server.directory,
            env=server.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    server.keeper, server.main = process.pid, int(process.stdout.readline())
    return process


def _stop(server: Server, process: subprocess.Popen[bytes]) -> None:
    """TERM to the main process; what is left after 5 s is killed. The keeper ends when nothing is left."""
    for command in server.said:
        command.kill()
        command.wait()
    with suppress(ProcessLookupError):
        if server.main in server.tree():
            os.kill(server.main, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    while process.poll() is None:
        for pid in server.tree():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
