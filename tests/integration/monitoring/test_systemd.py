"""What systemd hears of a start, reloads good and bad, and the end: on a socket of the test in its place."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client, request
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start


class Ear:
    """A datagram socket that hears what the master says."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.setblocking(False)
        self.heard: list[dict[str, str]] = []

    def listen(self) -> list[dict[str, str]]:
        while True:
            try:
                text = self.socket.recv(65536).decode()
            except BlockingIOError:
                return self.heard
            self.heard.append(dict(line.split("=", 1) for line in text.splitlines()))

    def stages(self) -> list[str]:
        """Return the announcements in their order, repeated ones once."""
        said = [name for message in self.listen() for name in message if name in ("READY", "RELOADING", "STOPPING")]
        return [name for number, name in enumerate(said) if number == 0 or said[number - 1] != name]

    def status(self) -> str:
        return [message["STATUS"] for message in self.listen() if "STATUS" in message][-1]

    def wait(self, *stages: str) -> None:
        wait_for(lambda: self.stages() == list(stages), BOOT_TIMEOUT_S, f"{stages}, but it was {self.stages()}")

    def wait_status(self, status: str) -> None:
        wait_for(lambda: self.status() == status, BOOT_TIMEOUT_S, f"{status!r}, but it was {self.status()!r}")


SECOND_IS_SLOW = """
try:
    os.close(os.open("first", os.O_CREAT | os.O_EXCL))
except FileExistsError:
    time.sleep(1)
"""
"""Makes the second of two workers ready a second after the first."""


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    made = Ear(tmp_path / "notify")
    yield made
    made.socket.close()


@pytest.fixture
def server(make_server: Start, ear: Ear) -> Server:
    return make_server(environment={"NOTIFY_SOCKET": ear.path, "WATCHDOG_USEC": "400000"})


def test_ready_when_the_first_generation_is_and_not_before(make_server: Start, site: Site, ear: Ear) -> None:
    site.deploy("one", extra=SECOND_IS_SLOW)
    server = make_server(environment={"NOTIFY_SOCKET": ear.path}, zd_preload="never").launch()
    ear.wait("READY")
    assert len(server.accepting()) == 2, "READY=1 came before the workers accepted"
    ear.wait_status("steady: 2 of 2 workers ready, generation 1")
    assert ear.stages() == ["READY"]


def test_a_reload_is_announced_with_its_moment_and_ends_ready(server: Server, site: Site, ear: Ear) -> None:
    server.start()
    ear.wait("READY")
    asked = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    site.deploy("two")
    server.signal(signal.SIGUSR2)
    ear.wait("READY", "RELOADING", "READY")  # not behind a wait for the workers: what is not read for long is dropped
    announced = next(message for message in ear.heard if "RELOADING" in message)
    assert int(announced["MONOTONIC_USEC"]) >= asked
    ear.wait_status("steady: 2 of 2 workers ready, generation 2")


def test_a_reload_s_status_tells_what_it_waits_for(server: Server, site: Site, ear: Ear) -> None:
    server.settings["graceful_timeout"] = 30
    server.start()
    ear.wait("READY")
    with Client(server.address) as client:
        client.send(request("GET", "/hold"))
        wait_for(lambda: ear.listen() and site.marks("request"), BOOT_TIMEOUT_S, "the request is being answered")
        site.deploy("two")
        server.signal(signal.SIGUSR2)
        pid = site.marks("request")[0]["pid"]
        replaced, serving = r"rolling: generation 2, [12] of 2 replaced", r"[12] of 2 workers ready"
        waiting = rf"waiting for worker {pid} \(slot [01]\): 1 request, at most \d+ s more"
        told = f"{replaced}, {serving}; {waiting}"
        wait_for(lambda: re.fullmatch(told, ear.status()), BOOT_TIMEOUT_S, "it tells which worker it waits for")
        site.answer_held()
        assert client.reply().status == 200
    ear.wait_status("steady: 2 of 2 workers ready, generation 2")
    assert not [m for m in ear.heard if "0 of 2 workers ready, generation 2" in m.get("STATUS", "")]


def test_a_failed_reload_ends_ready_too_and_says_why(server: Server, site: Site, ear: Ear) -> None:
    server.start()
    ear.wait("READY")
    site.break_("raise")
    server.signal(signal.SIGHUP)
    ear.wait("READY", "RELOADING", "READY")
    # Ready it is before the worker that failed has been reaped.
    wait_for(lambda: ear.status().startswith("failed: 2 of 2 workers ready, generation 1; "), 30, "it says why")


def test_the_end_is_announced_and_asks_for_the_time_it_needs(server: Server, ear: Ear) -> None:
    server.start()
    ear.wait("READY")
    with Client(server.address) as slow:
        slow.send(b"GET /sleep?seconds=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: ear.listen() and server.site.marks("request"), BOOT_TIMEOUT_S, "the request has begun")
        server.signal(signal.SIGTERM)
        ear.wait("READY", "STOPPING")  # what finds no room in the socket is lost when the master ends
        assert slow.reply().status == 200
    assert server.wait_exit(30) == 0
    assert ear.stages() == ["READY", "STOPPING"]


def test_systemd_s_watchdog_is_fed(server: Server, ear: Ear) -> None:
    server.start()
    before = len([message for message in ear.listen() if "WATCHDOG" in message])
    wait_for(
        lambda: len([m for m in ear.listen() if "WATCHDOG" in m]) >= before + 5,
        10,
        "five beats at 0.2 s, less than 10 s",
    )


def test_a_notify_socket_without_a_reader_changes_nothing(make_server: Start, tmp_path: Path) -> None:
    server = make_server(environment={"NOTIFY_SOCKET": str(tmp_path / "nobody")}).start()
    server.reload("two")
    assert server.stop() == 0
