"""One request on a connection that leads to a canary, and what goes wrong with one."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zdworker.command import cli, client
from zdworker.command.probing import Answer, ask
from zdworker.errors import NoInstance


def asked(serve: Callable[[socket.socket, bytes], None], timeout_s: float = 5.0) -> Answer:
    """Ask a server that reads a request and then does ``serve``."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        with theirs:
            request = b""
            while not request.endswith(b"a=1"):  # head and body come in two pieces
                request += theirs.recv(65536)
            serve(theirs, request)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        return ask(ours, "POST", "/cart?id=1", {"X-Probe": "yes"}, "a=1", timeout_s)
    finally:
        thread.join()


def test_the_request_and_its_whole_answer() -> None:
    seen: list[bytes] = []

    def serve(connection: socket.socket, request: bytes) -> None:
        seen.append(request)
        connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello")

    answer = asked(serve)
    assert answer == Answer(201, "HTTP/1.1 201 Created\nContent-Type: text/plain\nContent-Length: 5\n", b"hello")
    assert seen[0].startswith(b"POST /cart?id=1 HTTP/1.1\r\n")
    assert b"\r\nX-Probe: yes\r\n" in seen[0]


@pytest.mark.parametrize(
    "framing",
    ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "\r\nhello"],
)
def test_the_end_of_an_answer_with_which_its_connection_ends(framing: str) -> None:
    """From Python 3.13 on the connection is closed with the last byte of the body."""
    reply = f"HTTP/1.1 200 OK\r\nConnection: close\r\n{framing}".encode()
    assert asked(lambda connection, _request: connection.sendall(reply)).body == b"hello"


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhal"])
def test_an_answer_that_is_none(reply: bytes) -> None:
    with pytest.raises(NoInstance, match="the canary has not answered"):
        asked(lambda connection, _request: connection.sendall(reply))


def test_an_answer_that_does_not_come() -> None:
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(TimeoutError, match=r"the canary has not answered /cart within 0.05 s"):
        ask(ours, "GET", "/cart", {}, None, 0.05)


def test_an_answer_without_end() -> None:
    """Each part of it comes long before the time is over."""

    def serve(connection: socket.socket, _request: bytes) -> None:
        end = time.monotonic() + 10
        with contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            while time.monotonic() < end:
                connection.sendall(b"data: 1\n\n")
                time.sleep(0.01)

    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"the canary has not answered /cart\?id=1 within 0.3 s"):
        asked(serve, 0.3)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", "/caf\u00e9", {}),
        ("GET", "/a b", {}),
        ("GE T\n", "/", {}),
        ("GET", "/", {"X": "\u20ac"}),
        ("GET", "/", {"X": "a\nb"}),
        ("GET", "/", {"": "a"}),
    ],
)
def test_what_is_no_request(method: str, target: str, headers: dict[str, str]) -> None:
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(ValueError, match=r"."):
        ask(ours, method, target, headers, None, 5.0)


def test_a_request_that_cannot_be_sent_is_misuse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(client.Connection, "__init__", lambda *_arguments: None)
    monkeypatch.setattr(client.Connection, "close", lambda _self: None)
    monkeypatch.setattr(client.Connection, "probe", lambda _self: (2, ours))
    with theirs, pytest.raises(SystemExit) as end:
        cli.main(["probe", "/caf\u00e9", "--socket", str(tmp_path / "control.sock")])
    assert end.value.code == cli.Exit.MISUSE
