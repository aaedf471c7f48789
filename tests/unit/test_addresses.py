"""Which addresses of ``bind`` mean the same socket, and which cannot be meant."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

from zdworker.errors import GenerationError
from zdworker.master.addresses import Place, keys, places, refuse_unusable, refuse_unusable_at_start


def bound(*bind: str, directory: str = "/") -> list[Place]:
    cfg: Any = Config()
    cfg.set("bind", list(bind))
    return places(cfg, directory)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("localhost:80", "127.0.0.1:80"),
        ("LOCALHOST:80", "tcp://127.0.0.1:80"),
        (":80", "0.0.0.0:80"),
        ("[::1]:80", "[0:0:0:0:0:0:0:1]:80"),
        ("unix:/tmp/socket", "unix:///tmp/../tmp/socket"),
        ("unix:/socket", "unix:socket"),
    ],
)
def test_the_same_socket_by_another_name(one: str, other: str) -> None:
    assert keys(bound(one)) == keys(bound(other))
    with pytest.raises(GenerationError, match="twice"):
        refuse_unusable(bound(one, other))


@pytest.mark.parametrize(
    ("one", "other"),
    [("127.0.0.1:80", "127.0.0.1:81"), ("0.0.0.0:80", "[::]:80"), ("fd://5", "127.0.0.1:5"), ("unix:a", "unix:b")],
)
def test_different_sockets(one: str, other: str) -> None:
    assert keys(bound(one)) != keys(bound(other))
    refuse_unusable(bound(one, other))


def test_a_port_that_the_kernel_chooses_may_be_wanted_twice() -> None:
    refuse_unusable(bound("127.0.0.1:0", "127.0.0.1:0"))


def test_a_port_that_there_is_not_is_refused() -> None:
    with pytest.raises(GenerationError, match=r"bind names 127\.0\.0\.1:80000: a port is a number from 0 to 65535"):
        refuse_unusable(bound("127.0.0.1:80000"))


def test_a_path_is_that_of_the_physical_directory(tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "current").symlink_to("release")
    physical = {os.path.realpath(tmp_path / "release" / "socket")}
    assert keys(bound("unix:socket", directory=str(tmp_path / "current"))) == physical
    assert keys(bound(f"unix:{tmp_path}/current/socket")) == physical


def test_a_host_that_cannot_be_resolved_is_its_own_name() -> None:
    (place,) = bound("host.invalid:80")
    assert place.error
    assert place.key == ("host.invalid", 80)


@pytest.mark.parametrize("text", ["127.0.0.1:80", "[::1]:80", "unix:/tmp/socket", "fd://5", ":80"])
def test_an_address_is_shown_as_bind_has_it(text: str) -> None:
    assert str(*bound(text)) == text


def test_what_is_no_address_is_named() -> None:
    with pytest.raises(GenerationError, match="'x'"):
        bound("127.0.0.1:x")


def test_no_address_at_all() -> None:
    with pytest.raises(GenerationError, match="bind"):
        refuse_unusable([])


def test_descriptors_at_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, open(os.devnull) as file:
        number = listener.fileno()
        refuse_unusable_at_start(bound(f"fd://{number}", "127.0.0.1:80"), [])
        refuse_unusable_at_start([], [number])
        for bind, handed_over in ((f"fd://{file.fileno()}", []), ("fd://9999", []), (f"fd://{number}", [number])):
            with pytest.raises(GenerationError, match=bind):
                refuse_unusable_at_start(bound(bind), handed_over)
        with pytest.raises(GenerationError, match="twice"):
            refuse_unusable_at_start(bound(f"fd://{number}", f"fd://{number}"), [])
