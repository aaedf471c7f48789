"""A real gunicorn, started as users start it, and the facts about it.

Rules:

* It gets a session of its own, so that whatever it leaves can be found and signals to its group reach no one
  else.
* Its TCP port is reserved by a bound socket that never listens: gunicorn can bind beside it
  (``SO_REUSEADDR``), nobody else is given the port, and "nobody listens any more" can be asked after its end.
* Waiting is always for a fact with a deadline (:func:`wait_for`), never for time or for log
  prose.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import Any

import gunicorn

from tests.harness import processes, worker_classes
from tests.harness.application_site import Site
from tests.harness.clients import Address, Client
from tests.harness.processes import Process, wait_for

DEFAULT_CLASS = "zdworker.UvicornWorker"
NO_SESSION = -1
BOOT_TIMEOUT_S = 60.0
"""Seconds that a fleet may take to get ready on a machine with other work to do."""


def reserve_port() -> socket.socket:
    """Return a bound socket, not listening: its port is free for gunicorn and for no one else."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


class Server:
    """One gunicorn in the directory of ``site``.

    :param settings: names for gunicorn.conf.py; ``bind`` defaults to a reserved port.
    :param arguments: words of the command line after ``-c gunicorn.conf.py``, before the application.
    :param extra: code for the end of gunicorn.conf.py.
    :param command: the words before the arguments; the default is ``python -m gunicorn``.
    """

    def __init__(
        self,
        site: Site,
        *arguments: str,
        extra: str = "",
        command: Sequence[str] = (sys.executable, "-m", "gunicorn"),
        application: Sequence[str] = ("app:app",),
        environment: dict[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        **settings: Any,
    ) -> None:
        self.site = site
        self.reserved = reserve_port()
        self.address: Address = self.reserved.getsockname()
        self.log_file = site.directory / "log.txt"
        self.settings: dict[str, Any] = {
            "bind": "%s:%s" % self.address,
            "worker_class": DEFAULT_CLASS,
            "workers": 2,
            "keepalive": 1,
            "graceful_timeout": 5,
            **settings,
        }
        path = str(self.settings["worker_class"])
        known = worker_classes.of_path(path)
        self.polls = known is None or known.polls
        # With a stock worker class USR2 would start a second master.
        self.reload_signal = signal.SIGHUP if known is not None and path == known.stock else signal.SIGUSR2
        if known is not None:
            site.serve(known.kind)
        self.extra = extra
        self.words = [*command, "-c", "gunicorn.conf.py", *arguments, *application]
        self.environment = {**os.environ, "PWD": str(site.directory), **(environment or {})}
        self.pass_fds = tuple(pass_fds)
        self.master = 0
        self.session = NO_SESSION
        self._process: subprocess.Popen[bytes] | None = None

    # -- doing -----------------------------------------------------------------------------------------------

    def configure(self, **settings: Any) -> None:
        """Write gunicorn.conf.py with what changed; it counts from the next start or reload."""
        self.settings.update(settings)
        self.site.configure(self.extra, **self.settings)

    def launch(self) -> Server:
        """Start it and wait for nothing."""
        self.configure()
        return self.launch_as_is()

    def launch_as_is(self) -> Server:
        """Start it without writing gunicorn.conf.py."""
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self.words,
                cwd=self.site.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=self.pass_fds,
            )
        self.master = self.session = self._process.pid
        return self

    def start(self) -> Server:
        """Start it and wait until all workers accept."""
        self.launch()
        self.wait_full()
        return self

    def signal(self, signum: Signals) -> None:
        assert self.master > 0, "not launched: pid 0 would be the process group of these tests"
        os.kill(self.master, signum)

    def signal_group(self, signum: Signals) -> None:
        assert self.session > 0, "not launched: group 0 would be that of these tests"
        os.killpg(self.session, signum)

    def reload(self, version: str, deadline: float = BOOT_TIMEOUT_S) -> None:
        """Deploy ``version``, tell the master, and wait until nothing else is left."""
        self.site.deploy(version)
        self.signal(self.reload_signal)
        self.wait_only(version, deadline)

    def begin_reload(self, version: str) -> list[int]:
        """Reload, and return the present workers as soon as none of them accepts any more.

        The new code may take long to load. What has to last until the drain begins waits for it, as ``/hold`` does, or
        is begun within :meth:`reload_at_the_end`.

        The surge must be as large as the fleet, or they would drain one after the other.
        """
        old = self.workers()
        self.site.deploy(version)
        self.signal(self.reload_signal)
        self.wait_retired(old)
        return old

    def wait_retired(self, old: list[int]) -> None:
        """Wait until none of the workers ``old`` accepts any more."""
        wait_for(lambda: not set(old) & set(self.accepting()), BOOT_TIMEOUT_S, "the old workers have stopped accepting")

    @contextlib.contextmanager
    def reload_at_the_end(self, version: str) -> Iterator[list[int]]:
        """Reload, and have the new code's import wait until the end of the ``with`` block: then the drain begins,
        without the time that a boot takes. Yield the present workers; none of them accepts when it has ended.

        Only with ``preload_app``, where there is one import; a stock class, which drains at once, begins at the end.
        """
        old = self.workers()
        if self.reload_signal == signal.SIGHUP:
            yield old
            self.begin_reload(version)
            return
        gate = self.site.deploy_gated(version)
        self.signal(self.reload_signal)
        wait_for(lambda: self.site.marks("waits", version), BOOT_TIMEOUT_S, "the new code is being imported")
        yield old
        with gate.open("wb"):
            self.wait_retired(old)

    def wait_exit(self, deadline: float) -> int:
        """Return the exit status of the master (negative: the signal).

        :raises AssertionError: it has not ended after ``deadline`` seconds.
        """
        assert self._process is not None
        try:
            return self._process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the master has not ended within {deadline} s") from None

    def stop(self) -> int:
        """End it with TERM, however long the drain takes."""
        self.signal(signal.SIGTERM)
        return self.wait_exit(float(self.settings["graceful_timeout"]) + 20)

    # -- facts -----------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return processes.alive(self.master) if self._process is None else self._process.poll() is None

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def expected(self) -> int:
        return int(self.settings["workers"])

    def children(self) -> list[Process]:
        return [child for child in processes.children(self.master) if child.alive]

    def workers(self) -> list[int]:
        """Return the pids of the living workers, booting and draining ones too, oldest first."""
        own = processes.command(self.master)
        # A fork server is the master's likeness for the moment between vfork and exec. So is, without setproctitle, a
        # worker that was forked from the master itself: such a one counts from its lifespan startup on.
        started = {mark["pid"] for mark in self.site.marks("startup")}
        forked = [child.pid for child in self.children() if child.forked]
        found = [pid for pid in forked if pid in started or processes.command(pid) not in (own, "")]
        still_forked = {child.pid for child in self.children() if child.forked}  # and not executed in between
        return [pid for pid in found if pid in still_forked]

    def fork_servers(self) -> list[int]:
        """Return the pids of the fork servers; what the master has adopted, with another program, is none."""
        others = [child.pid for child in self.children() if not child.forked]
        titles = ("zdworker.forkserver", "fork server")  # the second with setproctitle
        return [pid for pid in others if any(title in processes.command(pid) for title in titles)]

    def zombies(self) -> list[int]:
        return [child.pid for child in processes.children(self.master) if not child.alive]

    def descriptors(self) -> dict[int, str]:
        """Return what the master has open, but for its history's file, which a thread has open for a moment."""
        found = processes.descriptors(self.master)
        return {number: target for number, target in found.items() if "/history-" not in target}

    def wait_control_server(self, deadline: float = BOOT_TIMEOUT_S) -> None:
        """Wait until Gunicorn's own control socket is there, for who counts descriptors: a thread opens it.

        With a new program it comes when an upgrade is done already.
        """
        path = f" {self.site.directory / 'gunicorn.ctl'}"
        if gunicorn.version_info >= (25, 1):
            wait_for(lambda: path in processes.unix_sockets(), deadline, f"{path} is bound")

    def listeners(self) -> set[int]:
        """Return the inodes of the master's listening sockets; with ``reuse_port`` each worker has its own."""
        holders = self.workers() if self.settings.get("reuse_port") else [self.master]
        return set().union(*(processes.listeners(pid) for pid in holders))

    def accepting(self) -> list[int]:
        """Return the pids of the workers that wait for connections, oldest first."""
        inodes = self.listeners()
        return [pid for pid in self.workers() if self.accepts(pid, inodes) is not None]

    def accepts(self, pid: int, inodes: set[int]) -> int | None:
        """Return the descriptor by which ``pid`` accepts on the sockets ``inodes``, or None.

        A worker with epoll waits there for them. One without has booted, and has not closed them, which is how such a
        worker stops accepting.
        """
        if self.polls:
            return processes.accepts(pid, inodes)
        booted = any(event["pid"] == pid for event in self.site.events("post_worker_init"))
        return processes.holds(pid, inodes) if booted else None

    def still_accepts(self, pid: int, descriptor: int, inodes: set[int]) -> bool:
        """Whether ``pid`` still accepts by the ``descriptor`` that :meth:`accepts` returned; a quick look."""
        if self.polls:
            return bool(processes.watched(pid, descriptor) & inodes)
        return processes.leads_to(pid, descriptor) in inodes

    def version_of(self, pid: int) -> str | None:
        """Return the version that ``pid`` serves, by the mark of its lifespan startup."""
        marks = [mark for mark in self.site.marks("startup") if mark["pid"] == pid]
        return str(marks[-1]["version"]) if marks else None

    def versions(self) -> dict[int, str | None]:
        return {pid: self.version_of(pid) for pid in self.workers()}

    def wait_full(self, deadline: float = BOOT_TIMEOUT_S) -> list[int]:
        """Wait until the configured number of workers accept and no other one lives; return their pids."""

        def full() -> list[int]:
            assert self.running, f"the master has ended\n{self.log}"
            accepting = self.accepting()
            return accepting if len(accepting) == self.expected and accepting == self.workers() else []

        return wait_for(full, deadline, f"{self.expected} workers accept, no other lives")

    def wait_only(self, version: str, deadline: float = BOOT_TIMEOUT_S) -> list[int]:
        """Wait until the fleet is full, all of it is ``version``, and one fork server at most is left."""

        def settled() -> bool:
            if set(self.versions().values()) != {version}:
                return False
            return len(self.fork_servers()) <= 1 and self.accepting() == self.workers()

        wait_for(settled, deadline, f"only {version} is left")
        return self.wait_full(deadline)

    def wait_started(self, version: str, count: int = 1, deadline: float = BOOT_TIMEOUT_S) -> None:
        """Wait until ``count`` workers of ``version`` have gone through lifespan startup."""
        wait_for(
            lambda: len(self.site.marks("startup", version)) >= count,
            deadline,
            f"{count} × {version} started",
        )

    def left(self) -> list[int]:
        """Return the processes of this server that are alive, itself included."""
        return processes.belonging(self.site.directory, self.session)

    def wait_nothing_left(self, deadline: float) -> None:
        """Wait until no process of this server is alive.

        The second look finds what was forked while the first one went through the list, by a process that had ended
        when the first one came to it.
        """
        nothing = "no process is left, but there are"
        wait_for(lambda: not self.left() and not self.left(), deadline, f"{nothing} {self.left()}")

    def wait_taken(self) -> None:
        """Wait until the workers have taken all connections out of the kernel's queue."""
        wait_for(lambda: not self._received({None}), BOOT_TIMEOUT_S, "all connections are accepted")

    def wait_read(self, *clients: Client) -> None:
        """Wait until the workers have read all that ``clients`` have sent."""
        ports = {client.socket.getsockname()[1] for client in clients}
        wait_for(lambda: not self._received(ports), BOOT_TIMEOUT_S, "the workers have read what was sent")

    def _received(self, peers: Container[int | None]) -> int:
        return sum(length for peer, length in processes.receive_queues(int(self.address[1])) if peer in peers)

    def port_free(self) -> bool:
        """Whether a new server could listen on the reserved port."""
        with contextlib.closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(self.reserved.getsockname())
                probe.listen()
            except OSError:
                return False
        return True

    def get(self, path: str = "/", **kwargs: Any) -> dict[str, Any]:
        """Return the answer to one request on a new connection, as the object that its body is."""
        with Client(self.address, **kwargs) as client:
            return client.ask("GET", path).json()

    def adopt(self, pid: int) -> None:
        """Go on with ``pid``, started by someone else or as a daemon, as the master.

        Its session may be the one of these tests, so what it leaves is found by its directory alone.
        """
        self.master, self.session, self._process = pid, NO_SESSION, None

    def report(self) -> str:
        """Return what a failed test needs: log, process tree, descriptors, marks and events."""
        parts = {
            "log": self.log if self.log_file.exists() else "",
            "processes": "\n".join(processes.tree(self.master)),
            "left": "\n".join(f"{pid} {processes.command(pid)[:120]}" for pid in self.left()),
            "descriptors": "\n".join(f"{n} {to}" for n, to in sorted(processes.descriptors(self.master).items())),
            "marks": self.site.marks_file.read_text(),
            "events": self.site.events_file.read_text(),
        }
        return "\n".join(f"---- {name} ----\n{text[-20000:]}" for name, text in parts.items())

    # -- end -------------------------------------------------------------------------------------------------

    def end(self) -> list[int]:
        """Kill what is left of it; return the pids that could not be killed."""
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(10)
        end = time.monotonic() + 5
        while self.left() and time.monotonic() < end:
            time.sleep(0.01)
        self.reserved.close()
        return self.left()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = self.end()
        assert not left, f"could not be killed: {left}"


Start = Callable[..., Server]
"""Makes a server, as :class:`Server` does, and starts it: what the fixtures of that kind are."""


def run_once(
    site: Site, *words: str, deadline: float = 30, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself in the directory of ``site``."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=site.directory,
        env={**os.environ, "PWD": str(site.directory), **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=deadline,
        check=False,
    )


def script(name: str) -> str:
    """Return the path of a console script beside the running interpreter."""
    return str(Path(sys.executable).with_name(name))


def each_second(seconds: float) -> Iterator[int]:
    """Yield 0, 1, … once a second until ``seconds`` are over: the pace of repeated signals."""
    start = time.monotonic()
    for number in range(int(seconds) + 1):
        yield number
        time.sleep(max(0.0, start + number + 1 - time.monotonic()))
