"""Which master the command takes, and what it refuses to guess."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zdworker.command import client, finder
from zdworker.errors import ContradictoryNames, NoInstance, SeveralInstances
from zdworker.ipc.messages import Report, encode
from zdworker.syscalls import Peer


class Masters:
    """Masters of this user, in its runtime directory: each answers every order with its status."""

    def __init__(self, runtime: Path) -> None:
        self.directory = runtime / "zdworker"
        self.directory.mkdir(mode=0o700)
        self._listeners: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def listen(self, path: Path | str) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(self.directory / path))
        made.listen()
        self._listeners.append(made)
        return made

    def serve(self, listener: socket.socket, handle: Callable[[socket.socket], None]) -> None:
        """Handle each connection, in a thread, and close it."""

        def run() -> None:
            with contextlib.suppress(OSError):  # shut down at the end
                while True:
                    connection, _address = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        handle(connection)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def start(self, pid: int, directory: Path | None, path: Path | None = None, **facts: Any) -> str:
        """Start one, and return the path of its socket."""
        place = path or self.directory / f"{pid}.sock"
        status = {"pid": pid, "directory": str(directory) if directory else None, **facts}

        def answer(connection: socket.socket) -> None:
            if connection.recv(4096):
                connection.sendall(encode(Report(status)))

        self.serve(self.listen(place), answer)
        return str(place)

    def close(self) -> None:
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # which ends the accept() in its thread
        for thread in self._threads:
            thread.join(10)
        for listener in self._listeners:
            listener.close()


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("ZD_CONTROL_SOCKET", raising=False)
    monkeypatch.delenv("PWD", raising=False)
    return tmp_path


@pytest.fixture
def masters(runtime: Path) -> Iterator[Masters]:
    with contextlib.closing(Masters(runtime)) as made:
        yield made


@pytest.fixture
def present(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "srv" / "shop" / "current"
    made.mkdir(parents=True)
    monkeypatch.chdir(made)
    return made


def test_none(runtime: Path) -> None:
    with pytest.raises(NoInstance, match="no running master was found"):
        finder.find()


def test_the_one_of_the_present_directory(masters: Masters, present: Path) -> None:
    masters.start(1, present.parent)
    path = masters.start(2, present)
    masters.start(3, present.parents[2] / "blog")
    found = finder.find()
    assert (found.path, found.announcement) == (path, "")


@pytest.mark.linux
def test_one_whose_name_the_kernel_has_cut(masters: Masters) -> None:
    """It keeps 15 bytes of a program's name, which may end in the middle of a character."""
    path, comm = masters.start(os.getpid(), None), Path("/proc/self/comm")
    before = comm.read_bytes()
    comm.write_bytes("gunicorn-shop-ö".encode())
    try:
        assert finder.find(pid=os.getpid()).path == path
    finally:
        comm.write_bytes(before)


def test_the_nearest_one_above_is_announced(masters: Masters, present: Path) -> None:
    masters.start(1, present.parents[2])
    path = masters.start(2, present.parent, application="app:app", bind=["http://a:1", "unix:/b"], age_s=7300.0)
    found = finder.find()
    assert found.path == path
    assert found.announcement == (
        f"no master was started in {present}; this is the one of pid 2 "
        f"(in {present.parent}, app:app, at http://a:1, unix:/b, for 2 h)"
    )


def test_a_link_is_the_directory_that_it_leads_to(masters: Masters, present: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(present)
    path = masters.start(1, link)
    masters.start(2, tmp_path)
    assert finder.find().path == path


def test_the_shell_s_path_counts_as_long_as_it_leads_here(
    masters: Masters, present: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(present.parent)
    path = masters.start(1, tmp_path / "link")
    masters.start(2, tmp_path / "elsewhere")
    monkeypatch.setenv("PWD", str(tmp_path / "link" / present.name))
    present.parent.rename(tmp_path / "srv" / "old")
    with pytest.raises(SeveralInstances):
        finder.find()
    (tmp_path / "srv" / "old").rename(present.parent)
    assert finder.find().path == path


def test_the_root_is_above_everything_and_says_nothing(masters: Masters, present: Path) -> None:
    masters.start(1, Path("/"))
    masters.start(2, present.parents[2] / "blog")
    with pytest.raises(SeveralInstances):
        finder.find()


def test_the_only_one_is_announced(masters: Masters, present: Path) -> None:
    path = masters.start(1, None)
    found = finder.find()
    assert found.path == path
    assert "pid 1 (in an unknown directory)" in found.announcement


def test_one_that_has_died_does_not_count(masters: Masters, present: Path) -> None:
    masters.listen("1.sock").close()
    path = masters.start(2, present)
    assert finder.find().path == path


def test_several_are_listed(masters: Masters, present: Path) -> None:
    masters.start(1, Path("/srv/shop"), bind=["http://a:1"], age_s=61.0)
    masters.start(2, Path("/srv/blog"), bind=["http://b:2"], age_s=200000.0)
    with pytest.raises(SeveralInstances) as several:
        finder.find()
    assert "pid 1 (in /srv/shop, at http://a:1, for 61 s); pid 2 (in /srv/blog, at http://b:2, for 2 d)" in str(
        several.value
    )


def test_two_of_the_present_directory_are_several(masters: Masters, present: Path) -> None:
    for pid in (1, 2):
        masters.start(pid, present)
    masters.start(3, present.parent)
    with pytest.raises(SeveralInstances) as several:
        finder.find()
    assert "pid 3" not in str(several.value)


def test_one_that_does_not_answer_may_be_the_nearer_one(
    masters: Masters, present: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ANSWER_TIMEOUT_S", 0.2)
    masters.start(1, present.parent)
    masters.listen("2.sock")
    with pytest.raises(SeveralInstances, match=r"pid 2 \(does not answer\)"):
        finder.find()
    path = masters.start(3, present)
    assert finder.find().path == path


def test_the_only_one_does_not_answer(masters: Masters, present: Path) -> None:
    masters.listen("1.sock")
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"1.sock does not answer"):
        finder.find(deadline=began)
    assert time.monotonic() - began < 5


def test_one_that_has_too_many_clients_counts(masters: Masters, present: Path) -> None:
    masters.start(1, present.parent)
    masters.serve(masters.listen("2.sock"), lambda _connection: None)
    with pytest.raises(SeveralInstances, match=r"pid 2 \(does not answer\)"):
        finder.find()


def test_a_link_and_what_it_leads_to_are_one(masters: Masters, present: Path, tmp_path: Path) -> None:
    masters.start(1, present, tmp_path / "own.sock")
    for name in ("1.sock", "alias.sock"):
        (masters.directory / name).symlink_to(tmp_path / "own.sock")
    assert [master.listed()["socket"] for master in finder.running()] == [str(tmp_path / "own.sock")]


def test_a_directory_that_others_can_enter_is_not_looked_into(masters: Masters, present: Path) -> None:
    masters.start(1, present)
    masters.directory.chmod(0o755)
    with pytest.raises(NoInstance, match=f"{masters.directory} is not looked into"):
        finder.find()


def test_the_temporary_directory_is_looked_into_too(masters: Masters, present: Path, tmp_path: Path) -> None:
    """The master may have been started when the user had no session."""
    temporary = tmp_path / f"zdworker-{os.geteuid()}"
    temporary.mkdir(mode=0o700)
    path = masters.start(1, present, temporary / "1.sock")
    assert finder.find().path == path
    temporary.chmod(0o777)
    path = masters.start(2, present)
    assert finder.find().path == path, "a directory that is not trusted is no obstacle"


def test_the_environment_names_one(
    masters: Masters, present: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masters.start(1, present)
    monkeypatch.setenv("ZD_CONTROL_SOCKET", str(tmp_path / "own.sock"))
    assert finder.find().path == str(tmp_path / "own.sock")
    assert finder.find(path="/some/where").path == "/some/where"
    monkeypatch.setenv("ZD_CONTROL_SOCKET", "none")
    assert finder.find().path == str(masters.directory / "1.sock")


def test_a_name_is_taken_as_it_is(runtime: Path) -> None:
    assert finder.find(path="/some/where").path == "/some/where"


@pytest.mark.parametrize("text", ["", "no number", "1 2", "é"])
def test_a_pidfile_without_a_pid(tmp_path: Path, text: str) -> None:
    (tmp_path / "pid").write_text(text)
    with pytest.raises(NoInstance, match="has no pid in it"):
        finder.find(pidfile=str(tmp_path / "pid"))


def test_a_pidfile_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pid")
    with pytest.raises(NoInstance, match="has no pid in it"):
        finder.find(pidfile=str(tmp_path / "pid"))


def test_a_master_of_another_container_is_not_one_of_the_present_directory(
    masters: Masters, present: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its directory has the same name there, and its pid is that of another process here."""
    path = masters.start(os.getpid(), present)
    assert finder.find(pid=os.getpid()).path == path
    monkeypatch.setattr("zdworker.syscalls.peer", lambda _connection: Peer(0, os.geteuid()))
    assert f"this is the one of pid {os.getpid()}" in finder.find().announcement
    assert finder.find(path=path).path == path
    monkeypatch.setattr(client, "ANSWER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(finder, "_listening_paths", lambda _pid: [])
    with pytest.raises(NoInstance, match="has no control socket that can be reached"):
        finder.find(pid=os.getpid())


def test_a_process_that_is_no_master(runtime: Path) -> None:
    with pytest.raises(NoInstance, match="has no control socket that can be reached"):
        finder.find(pid=os.getpid())


@pytest.mark.linux
def test_a_process_whose_name_is_no_text(runtime: Path) -> None:
    """A program may name itself with any bytes (prctl(2))."""
    name = Path("/proc/self/comm")
    before = name.read_bytes()
    try:
        name.write_bytes(b"\xff")
        with pytest.raises(NoInstance, match="has no control socket"):
            finder.find(pid=os.getpid())
    finally:
        name.write_bytes(before)


def test_names_that_contradict_each_other(masters: Masters, tmp_path: Path) -> None:
    path = masters.start(1, tmp_path)  # this process listens there
    (tmp_path / "pid").write_text(str(os.getpid()))
    assert finder.find(os.getpid(), str(tmp_path / "pid"), path).path == path
    with pytest.raises(ContradictoryNames, match=f"--pid 1 is not the pid in --pidfile .*, {os.getpid()}"):
        finder.find(1, str(tmp_path / "pid"))
    with pytest.raises(ContradictoryNames, match="another process than 1 listens on --socket"):
        finder.find(1, None, path)


def test_another_user_is_not_believed(masters: Masters, tmp_path: Path) -> None:
    path = masters.start(1, tmp_path)
    with pytest.raises(NoInstance, match=f"another user .uid {os.geteuid()}. listens on {path}, and is not trusted"):
        client.status(path, users=frozenset({os.geteuid() + 1}))


@pytest.mark.parametrize(("user", "trusted"), [(0, {0, 33}), (1000, {0, 1000})])
def test_root_alone_trusts_the_user_that_is_named(
    user: int, trusted: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    assert client.trusted_users(33) == trusted
    assert client.trusted_users() == {0, user}


def test_a_span() -> None:
    assert [finder.span(seconds) for seconds in (0.4, 119, 121, 7199, 7200, 172799, 172800)] == [
        "0 s",
        "119 s",
        "2 min",
        "119 min",
        "2 h",
        "47 h",
        "2 d",
    ]
