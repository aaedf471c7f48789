"""Where the control socket is, and what may stand in its place."""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zdworker.command import client
from zdworker.errors import ControlError, NoInstance, SeveralInstances
from zdworker.ipc.control_directory import directory_of
from zdworker.master import control
from zdworker.master.control import Control, default_path
from zdworker.master.reactor import Reactor


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("ZD_CONTROL_SOCKET", raising=False)
    return tmp_path


@pytest.fixture
def server() -> Iterator[Control]:
    reactor = Reactor()
    orders: Any = None  # no client orders anything here
    made = Control(orders, reactor, logging.getLogger())
    yield made
    made.close()
    reactor.close_in_child()


def test_the_directory_is_this_users_own(runtime: Path) -> None:
    path = Path(default_path(4711))
    assert path == runtime / "zdworker" / "4711.sock"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_directory_that_others_can_enter_is_not_trusted(runtime: Path) -> None:
    (runtime / "zdworker").mkdir(mode=0o755)
    (runtime / "zdworker").chmod(0o755)
    with pytest.raises(ControlError, match="only this user can enter"):
        default_path(4711)


def test_a_link_is_not_followed(runtime: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (runtime / "zdworker").symlink_to(elsewhere)
    with pytest.raises(ControlError, match="only this user can enter"):
        default_path(4711)


def test_where_nothing_can_be_made_there_is_none(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "directory_of", lambda _uid: Path("/proc/zdworker"))
    with pytest.raises(ControlError, match="/proc/zdworker cannot be made"):
        default_path(4711)


def test_without_a_runtime_directory_it_is_a_temporary_one(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("os.path.isdir", lambda _path: False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert directory_of(1234) == tmp_path / "zdworker-1234"
    monkeypatch.delenv("TMPDIR")
    assert directory_of(1234) == Path("/tmp/zdworker-1234")  # noqa: S108  # where everybody may write


def test_sockets_that_nobody_listens_on_are_swept(runtime: Path) -> None:
    left = Path(default_path(1))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left))
    default_path(2)
    assert not left.exists()


def test_it_is_for_this_user_alone(server: Control, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    server.open(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    server.open("")
    assert not path.exists()


def test_a_file_is_never_removed_for_it(server: Control, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("precious")
    with pytest.raises(ControlError, match="no socket"):
        server.open(str(path))
    assert path.read_text() == "precious"


def test_another_masters_is_not_taken(server: Control, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ControlError, match="another master listens there"):
            server.open(str(path))


def test_another_masters_is_not_removed_at_the_end(server: Control, tmp_path: Path) -> None:
    """Somebody has removed the first master's socket, so that a second one could bind its own to the same path."""
    path = tmp_path / "control.sock"
    server.open(str(path))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        server.close()
        assert path.is_socket()


def test_a_new_path_that_cannot_be_leaves_the_old_one(server: Control, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    server.open(str(path))
    with pytest.raises(ControlError):
        server.open(str(tmp_path / "no" / "such" / "directory.sock"))
    assert server.path == str(path)
    assert path.exists()


class TestFind:
    """The command's way to a master."""

    def listen(self, runtime: Path, name: str) -> socket.socket:
        (runtime / "zdworker").mkdir(mode=0o700, exist_ok=True)
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(runtime / "zdworker" / name))
        made.listen()
        return made

    def test_none(self, runtime: Path) -> None:
        with pytest.raises(NoInstance, match="no running master was found"):
            client.find()

    def test_the_only_one(self, runtime: Path) -> None:
        with self.listen(runtime, "1.sock"):
            assert client.find() == str(runtime / "zdworker" / "1.sock")

    def test_one_that_has_died_does_not_count(self, runtime: Path) -> None:
        self.listen(runtime, "1.sock").close()
        with self.listen(runtime, "2.sock"):
            assert client.find() == str(runtime / "zdworker" / "2.sock")

    def test_several(self, runtime: Path) -> None:
        with self.listen(runtime, "1.sock"), self.listen(runtime, "2.sock"):
            with pytest.raises(SeveralInstances) as several:
                client.find()
            assert "1.sock" in str(several.value)
            assert "2.sock" in str(several.value)

    def test_the_environment_names_one(self, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ZD_CONTROL_SOCKET", str(tmp_path / "own.sock"))
        with socket.socket(socket.AF_UNIX) as own:
            own.bind(str(tmp_path / "own.sock"))
            own.listen()
            assert client.find() == str(tmp_path / "own.sock")

    def test_one_that_is_named_and_found_is_one(self, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with self.listen(runtime, "1.sock"):
            monkeypatch.setenv("ZD_CONTROL_SOCKET", str(runtime / "zdworker" / "1.sock"))
            assert client.find() == str(runtime / "zdworker" / "1.sock")

    def test_a_name_is_taken_as_it_is(self, runtime: Path) -> None:
        assert client.find(path="/some/where") == "/some/where"

    @pytest.mark.parametrize("text", ["", "no number", "1 2"])
    def test_a_pidfile_without_a_pid(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "pid").write_text(text)
        with pytest.raises(NoInstance, match="has no pid in it"):
            client.find(pidfile=str(tmp_path / "pid"))

    def test_a_process_that_is_no_master(self, runtime: Path) -> None:
        with pytest.raises(NoInstance, match="has no control socket that can be reached"):
            client.find(pid=os.getpid())
