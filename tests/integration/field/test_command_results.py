"""The exit code of ``zdworker``, and what it says, are those of the reload, whatever comes in between."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from tests.harness.application_site import Site
from tests.harness.control_client import status
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

DONE, FAILED = 0, 1


@pytest.fixture
def path(site: Site) -> Path:
    return site.directory / "control.sock"


@pytest.fixture
def server(start: Start, path: Path) -> Server:
    return start(workers=1, preload_app=True, zd_control_socket=str(path))


def started(
    path: Path, *words: str, stdout: int | IO[bytes] = subprocess.PIPE, stderr: int | IO[bytes] = subprocess.PIPE
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "zdworker", *words, "--socket", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        text=True,
    )


def run(path: Path, *words: str, **streams: Any) -> tuple[int, str]:
    """Return the exit code and all that was printed into pipes."""
    with started(path, *words, **streams) as process:
        out, error = process.communicate(timeout=2 * BOOT_TIMEOUT_S)
    return process.returncode, f"{out or ''}{error or ''}"


def superseded(
    server: Server, site: Site, path: Path, deploy: Callable[[], object], *words: str
) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    """Order a reload, deploy while its generation loads, and order another one; return what came of both."""
    gate = site.deploy_gated("two")
    with started(path, "reload", *words) as first:
        wait_for(lambda: site.marks("waits", "two"), BOOT_TIMEOUT_S, "the first one's generation loads")
        deploy()
        with started(path, "reload") as second:
            assert second.stderr is not None
            assert "generation 2" in second.stderr.readline(), "the master has the order"
            with gate.open("wb"):
                return completed(first), completed(second)


def completed(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, error = process.communicate(timeout=2 * BOOT_TIMEOUT_S)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


@pytest.mark.parametrize("as_json", [False, True], ids=["for people", "for programs"])
def test_a_superseded_reload_is_not_called_done(server: Server, site: Site, path: Path, as_json: bool) -> None:
    first, second = superseded(server, site, path, lambda: site.deploy("three"), *(["--json"] if as_json else []))
    assert (second.returncode, "reload done: generation 3 serves" in second.stdout) == (DONE, True), second.stderr
    assert first.returncode == DONE, first.stderr
    if as_json:
        outcome = json.loads(first.stdout)
        assert (outcome["result"], outcome["generation"], outcome["serving"]) == ("superseded", 2, 3)
    else:
        assert first.stdout == "reload superseded: a newer reload took its place: its generation 3 serves\n"


def test_a_superseded_reload_fails_with_the_newer_one(server: Server, site: Site, path: Path) -> None:
    for one in superseded(server, site, path, lambda: site.break_("raise")):
        assert one.returncode == FAILED
        assert "RuntimeError: broken" in one.stderr
        assert one.stderr.endswith("generation 1 is still serving\n")


def test_what_cannot_be_printed_changes_no_result(server: Server, site: Site, path: Path) -> None:
    with open("/dev/full", "wb") as full:
        site.deploy("two")
        assert run(path, "reload", stdout=full)[0] == DONE
        site.deploy("three")
        assert run(path, "reload", stdout=full, stderr=full) == (DONE, "")
        reader, writer = os.pipe()
        os.close(reader)
        assert run(path, "reload", stdout=writer, stderr=writer) == (DONE, "")
        os.close(writer)
        assert run(path, "reload", "--json", stdout=full)[0] == DONE
        for words in (["status"], ["status", "--json"], ["metrics"]):
            code, text = run(path, *words, stdout=full)
            assert (code, text) == (FAILED, "Error: the output cannot be written: No space left on device\n")
            closed = [
                "sh",
                "-c",
                'exec "$@" >&-',
                "sh",
                sys.executable,
                "-m",
                "zdworker",
                *words,
                "--socket",
                str(path),
            ]
            nowhere = subprocess.run(closed, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
            expected = (FAILED, "Error: the output cannot be written: Bad file descriptor\n")
            assert (nowhere.returncode, nowhere.stderr) == expected
        site.break_("raise")
        assert run(path, "reload", stdout=full, stderr=full) == (FAILED, "")
        assert run(path, "reload", "--json", stdout=full)[0] == FAILED


class Operator:
    """A connection to the control socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(2 * BOOT_TIMEOUT_S)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")

    def send(self, **order: Any) -> None:
        self._socket.sendall(json.dumps({"type": "order", **order}).encode() + b"\n")

    def answer(self) -> dict[str, Any]:
        """Return the next answer that is no progress."""
        while True:
            found = json.loads(self._lines.readline())
            assert isinstance(found, dict)
            if found["type"] != "progress":
                return found

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture
def operator(server: Server, path: Path) -> Iterator[Operator]:
    made = Operator(path)
    yield made
    made.close()


def test_each_order_gets_an_answer(server: Server, site: Site, operator: Operator) -> None:
    wait_for(lambda: status(server)["state"] == "steady", BOOT_TIMEOUT_S, "the master knows that its worker is ready")
    operator.send(command="status", wait=True)
    assert operator.answer()["status"]["state"] == "steady"
    gate = site.deploy_gated("two")
    operator.send(command="reload", wait=True)
    for _ in range(3):
        operator.send(command="reload", wait=True)
        operator.send(command="status")
    assert [operator.answer()["type"] for _ in range(6)] == ["refused", "report"] * 3
    gate.open("wb").close()
    assert operator.answer()["result"] == "done"
    operator.send(command="status", wait=True)
    assert operator.answer()["status"]["reloads"] == 1
