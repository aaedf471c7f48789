"""A log whose reader is stopped: it holds up whatever writes there, and the master is not among that.

Rules:

* The log leads to a pipe or to a socket that this test has, and reads or does not read.
* A hook of the master fills it: what it logs is more than a pipe or a socket takes, and less than the master keeps.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.control_client import status
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

LINES = 2500

FILLS_THE_LOG = f"""

def nworkers_changed(server, new_value, old_value):
    if old_value is not None and new_value > old_value:
        for number in range({LINES}):
            server.log.info("filler %d %s", number, "x" * 200)
"""


class Reader:
    """The other end of the log: it reads when a test has it read, and keeps what came."""

    def __init__(self) -> None:
        self.text = b""
        self._sources: list[Callable[[], bytes]] = []
        self._paused, self._ended = threading.Event(), threading.Event()
        self._reading = threading.Lock()
        self.closes = contextlib.ExitStack()

    def add(self, receive: Callable[[], bytes]) -> None:
        """Read one more source, in a thread of its own; ``receive`` returns nothing where nothing has come."""
        thread = threading.Thread(target=self._run, args=(receive,), daemon=True)
        thread.start()
        self.closes.callback(thread.join, 10)

    def _run(self, receive: Callable[[], bytes]) -> None:
        while not self._ended.is_set():
            with self._reading:
                data = b"" if self._paused.is_set() else receive()
                self.text += data
            if not data:
                time.sleep(0.01)

    def pause(self) -> None:
        with self._reading:  # not in the middle of a read
            self._paused.set()

    def go_on(self) -> None:
        self._paused.clear()

    def close(self) -> None:
        self._ended.set()
        self.closes.close()

    def fillers(self) -> list[int]:
        return [int(number) for number in re.findall(rb"filler (\d+) x", self.text)]


def without_waiting(receive: Callable[[], bytes]) -> Callable[[], bytes]:
    def receive_what_is_there() -> bytes:
        try:
            return receive()
        except BlockingIOError:
            return b""

    return receive_what_is_there


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.close()


def fifo(reader: Reader, path: Path) -> None:
    os.mkfifo(path)
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    reader.closes.callback(os.close, number)
    reader.add(without_waiting(lambda: os.read(number, 65536)))


def syslog(reader: Reader, path: Path, kind: socket.SocketKind) -> None:
    listener = socket.socket(socket.AF_UNIX, kind)
    reader.closes.callback(listener.close)
    listener.bind(str(path))
    path.chmod(0o666)
    listener.setblocking(False)
    if kind == socket.SOCK_DGRAM:
        reader.add(without_waiting(lambda: listener.recv(65536)))
        return
    listener.listen(100)
    connections: list[socket.socket] = []

    def receive() -> bytes:
        with contextlib.suppress(BlockingIOError):
            connections.append(listener.accept()[0])
            connections[-1].setblocking(False)
            reader.closes.callback(connections[-1].close)
        return b"".join(without_waiting(lambda one=one: one.recv(65536))() for one in connections)  # type: ignore[misc]

    reader.add(receive)


Launch = Callable[[str], Server]


@pytest.fixture
def launch(make_server: Start, site: Site, reader: Reader) -> Launch:
    def launched(kind: str) -> Server:
        path = site.directory / "log"
        settings: dict[str, object] = {}
        if kind in ("stderr", "errorlog"):
            fifo(reader, path)
        if kind == "errorlog":
            settings = {"errorlog": str(path)}
        elif kind != "stderr":
            syslog(reader, path, socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM)
            # Gunicorn knows "#dgram"; without it Python's handler tries both kinds.
            address = f"unix://{path}" + ("#dgram" if kind == "dgram" else "")
            # What workers log of requests would hold them up, too.
            settings = {"syslog": True, "syslog_addr": address, "disable_redirect_access_to_syslog": True}
        server = make_server(
            workers=1, extra=FILLS_THE_LOG, zd_control_socket=str(site.directory / "control.sock"), **settings
        )
        if kind == "stderr":
            server.words = ["sh", "-c", f'exec "$@" 2>"{path}"', "sh", *server.words]
        return server.start()

    return launched


def answers(server: Server) -> None:
    """Have the master answer, which one that waits for its log does not.

    :raises TimeoutError: it does not.
    """
    status(server)


each_kind = pytest.mark.parametrize("kind", ["stderr", "errorlog", "stream", "dgram"])


@each_kind
def test_the_master_goes_on_and_its_lines_come_when_they_are_read(
    launch: Launch, site: Site, reader: Reader, kind: str
) -> None:
    server = launch(kind)
    wait_for(lambda: b"Listening at" in reader.text, BOOT_TIMEOUT_S, "the log is read")
    reader.pause()
    server.signal(signal.SIGTTIN)
    answers(server)
    server.signal(signal.SIGUSR1)
    site.deploy("two")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: len(status(server)["fork_servers"]) == 2, BOOT_TIMEOUT_S, "the new code is loaded")
    answers(server)
    assert server.get()["version"] == "one"
    server.settings["workers"] = 1  # as in the new configuration
    reader.go_on()
    server.wait_only("two")
    wait_for(lambda: b"all workers are new" in reader.text, BOOT_TIMEOUT_S, "the end of the reload is in the log")
    assert reader.fillers() == list(range(LINES))
    assert server.stop() == 0
    wait_for(lambda: b"Shutting down: Master" in reader.text, BOOT_TIMEOUT_S, "the end is in the log")
    order = [reader.text.find(words) for words in (b"Listening at", b"filler 0", b"Reload: loading", b"Shutting down")]
    assert order == sorted(order)


@each_kind
def test_the_master_ends_although_its_log_is_not_read(launch: Launch, reader: Reader, kind: str) -> None:
    server = launch(kind)
    reader.pause()
    server.signal(signal.SIGTTIN)
    answers(server)
    server.signal(signal.SIGTERM)
    assert server.wait_exit(float(server.settings["graceful_timeout"]) + BOOT_TIMEOUT_S) == 0
    server.wait_nothing_left(BOOT_TIMEOUT_S)
    assert server.port_free()


RAISES = """

from gunicorn.glogging import Logger


class Raises(Logger):
    def info(self, message, *arguments, **names):
        super().info(message, *arguments, **names)
        if _os.path.exists("raise"):
            raise ValueError("of the logger's own")

    def debug(self, message, *arguments, **names):
        if _os.path.exists("raise"):
            raise ValueError("of the logger's own")


logger_class = Raises
"""


def test_a_logger_class_that_raises_ends_nothing(start: Start, site: Site) -> None:
    """It sends what is logged somewhere else, say, and there nothing listens for a while."""
    server = start(workers=1, extra=RAISES)
    server.settings["workers"] = 2
    (site.directory / "raise").touch()
    server.signal(signal.SIGUSR1)
    server.signal(signal.SIGTTIN)
    wait_for(lambda: "Handling signal: ttin" in server.log, BOOT_TIMEOUT_S, "the master goes on")
    (site.directory / "raise").unlink()
    server.wait_full()
    assert server.stop() == 0
