"""``zdworker`` orders the master that is meant, and believes only those whom it can trust."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.processes import stand_still, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from zdworker.command import client, finder

DONE, FAILED, MISUSE, NO_INSTANCE, TIMED_OUT = range(5)
STRANGER, USER = 65533, 65534

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@pytest.fixture
def environment(site: Site, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Directories in which no other master of this machine has its socket."""
    made = site.directory / "run"
    made.mkdir()
    named = {"XDG_RUNTIME_DIR": str(made), "TMPDIR": str(made)}
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ZD_CONTROL_SOCKET", raising=False)
    return named


def command(directory: Path, *words: str, code: int = DONE) -> subprocess.CompletedProcess[str]:
    """Run the command in a directory, where the environment has the ``PWD`` of another one."""
    done = subprocess.run(
        [sys.executable, "-m", "zdworker", *words],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * BOOT_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def other(environment: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Server]:
    """A second master, started through a link to its directory, whose configuration names its control socket."""
    site = Site()
    site.deploy("one")
    link = site.directory.with_name(f"{site.directory.name}-current")
    link.symlink_to(site.directory)
    try:
        with Server(
            site, environment={"PWD": str(link)}, workers=1, zd_control_socket=str(site.directory / "own.sock")
        ) as server:
            yield server.start()
    finally:
        link.unlink()
        site.remove()


def test_the_master_of_the_present_directory_is_found(
    make_server: Start, site: Site, environment: dict[str, str], other: Server, tmp_path: Path
) -> None:
    server = make_server(workers=1).start()
    site.deploy("two")
    other.site.deploy("two")
    below = other.site.directory / "below" / "it"
    below.mkdir(parents=True)
    wait_steady(server, other)

    shown = json.loads(command(tmp_path, "list", "--json").stdout)["masters"]
    by_pid: dict[int, dict[str, Any]] = {facts["pid"]: facts for facts in shown}
    assert set(by_pid) == {server.master, other.master}
    assert by_pid[server.master]["directory"] == str(site.directory)
    assert by_pid[other.master]["directory"] == f"{other.site.directory}-current"
    assert by_pid[other.master]["socket"] == str(other.site.directory / "own.sock")
    for one in (server, other):
        facts = by_pid[one.master]
        assert (facts["application"], facts["bind"]) == ("app:app", ["http://%s:%s" % one.address])
        assert (facts["state"], facts["generation"], facts["error"]) == ("steady", 1, None)
        assert 0 < facts["age_s"] < 1000
    assert str(server.master) in command(tmp_path, "list").stdout

    assert "no master was started in" not in command(site.directory, "reload").stderr
    assert (set(server.versions().values()), set(other.versions().values())) == ({"two"}, {"one"})
    announced = command(below, "reload").stderr.splitlines()[0]
    assert f"no master was started in {below}; this is the one of pid {other.master}" in announced
    assert set(other.versions().values()) == {"two"}

    several = command(tmp_path, "reload", code=MISUSE).stderr
    for one in (server, other):
        listed = by_pid[one.master]
        label = f" ({listed['label']})" if listed["label"] else ""
        assert f"pid {one.master} (in {listed['directory']}, app:app{label}, at http://127.0.0.1:" in several
    assert " s)" in several

    # One that does not answer counts, and does not hold up the other one.
    stand_still(server.master)
    stopped = json.loads(command(tmp_path, "list", "--json").stdout)["masters"][0]
    assert (stopped["pid"], stopped["state"]) == (server.master, None)
    assert "does not answer" in stopped["error"]
    began = time.monotonic()
    command(other.site.directory, "status")
    assert time.monotonic() - began < client.ANSWER_TIMEOUT_S, "that is what the stopped one is asked for"
    assert command(other.site.directory, "reload", "--json").stderr == ""
    os.kill(server.master, signal.SIGCONT)


def test_the_only_master_of_another_directory_is_named_first(
    make_server: Start, site: Site, environment: dict[str, str], tmp_path: Path
) -> None:
    server = make_server(workers=1).start()
    site.deploy("two")
    reloaded = command(tmp_path, "reload")
    first = reloaded.stderr.splitlines()[0]
    for fact in (str(tmp_path), str(site.directory), str(server.master), "http://%s:%s" % server.address, "app:app"):
        assert fact in first
    assert reloaded.stdout.startswith("reload done: generation 2")
    assert json.loads(command(tmp_path, "reload", "--json").stdout)["result"] == "done"
    assert str(site.directory) in command(tmp_path, "status").stdout.replace("\n", "")

    contradiction = command(tmp_path, "reload", "--pid", str(os.getpid()), "--socket", str(own_socket(server)), code=2)
    assert str(os.getpid()) in contradiction.stderr
    assert str(server.master) in contradiction.stderr
    (tmp_path / "pid").write_text(str(server.master))
    words = ["--pidfile", str(tmp_path / "pid"), "--socket", str(own_socket(server)), "--pid"]
    assert "--pidfile" in command(tmp_path, "status", *words, "1", code=MISUSE).stderr
    command(tmp_path, "status", *words, str(server.master))
    assert server.version_of(server.workers()[0]) == "two"

    server.stop()
    assert command(tmp_path, "list").stdout == "no master of this user runs\n"
    assert json.loads(command(tmp_path, "list", "--json").stdout) == {"masters": []}


def wait_steady(*servers: Server) -> None:
    """Wait until each master knows that its worker is ready."""
    for one in servers:
        path = finder.find(pid=one.master).path
        wait_for(lambda path=path: client.status(path)["state"] == "steady", BOOT_TIMEOUT_S, "steady")  # type: ignore[misc]


def own_socket(server: Server) -> Path:
    return Path(os.environ["XDG_RUNTIME_DIR"]) / "zdworker" / f"{server.master}.sock"


# -- trust ---------------------------------------------------------------------------------------------------------

IMPOSTOR = """
import json, os, socket, sys

path, user = sys.argv[1], int(sys.argv[2])
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
os.chown(path, user, user)
os.chmod(path, 0o666)
os.setgid(user)
os.setuid(user)
listener.listen()
print("listens", flush=True)
report = {"type": "report", "status": {"pid": os.getpid(), "state": "steady", "generation": 1}}
outcome = {"type": "outcome", "result": "done", "generation": 2, "duration_s": 1.0, "serving": 2}
while True:
    connection, _ = listener.accept()
    for line in connection.makefile():
        answer = outcome if json.loads(line)["command"] == "reload" else report
        connection.sendall(json.dumps(answer).encode() + b"\\n")
"""

AS_ANOTHER_USER = """
import os, sys
from zdworker.command.cli import main
os.setgid(65534)
os.setuid(65534)
main(sys.argv[1:])
"""


@contextmanager
def impostor(path: Path, user: int) -> Iterator[int]:
    """A process of a user that answers every reload with "done"."""
    words = [sys.executable, "-c", IMPOSTOR, str(path), str(user)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "listens\n"
            yield process.pid
        finally:
            process.kill()


def as_another_user(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", AS_ANOTHER_USER, *words],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * BOOT_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def shared(site: Site, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory as ``/tmp`` is one, and no runtime directory."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("ZD_CONTROL_SOCKET", raising=False)
    made = site.directory / "tmp"
    made.mkdir()
    made.chmod(0o1777)
    site.directory.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(made))
    return made


@only_root
@pytest.mark.parametrize(("owner", "mode"), [(STRANGER, 0o755), (USER, 0o777)])
def test_a_directory_of_another_user_is_not_looked_into(shared: Path, owner: int, mode: int) -> None:
    directory = shared / f"zdworker-{USER}"
    directory.mkdir()
    with impostor(directory / "1.sock", STRANGER):
        os.chown(directory, owner, owner)
        directory.chmod(mode)
        refused = as_another_user("reload")
    assert (refused.returncode, refused.stdout) == (NO_INSTANCE, "")
    assert f"{directory} is not looked into" in refused.stderr


@only_root
def test_a_process_of_another_user_is_not_believed(shared: Path) -> None:
    directory = shared / f"zdworker-{USER}"
    directory.mkdir(mode=0o700)
    path = directory / "1.sock"
    with impostor(path, STRANGER) as pid:
        os.chown(directory, USER, USER)
        for words in (["reload"], ["reload", "--socket", str(path)], ["status", "--pid", str(pid)]):
            refused = as_another_user(*words)
            assert (refused.returncode, refused.stdout) == (NO_INSTANCE, ""), refused.stderr
        assert "another user" in as_another_user("reload").stderr


@only_root
def test_root_orders_another_users_master_that_it_names(shared: Path) -> None:
    """And not one that sits in the place of it."""
    directory = shared / f"zdworker-{USER}"
    directory.mkdir(mode=0o700)
    named = shared / "named.sock"
    with impostor(directory / "1.sock", USER) as pid, impostor(named, STRANGER):
        os.chown(directory, USER, USER)
        assert command(shared, "reload", "--pid", str(pid)).stdout.startswith("reload done")
        assert command(shared, "reload", "--socket", str(directory / "1.sock")).stdout.startswith("reload done")
        os.chown(named, USER, USER)
        assert "not trusted" in command(shared, "reload", "--socket", str(named), code=NO_INSTANCE).stderr


@only_root
def test_root_makes_no_directory_in_another_users_runtime_directory(
    start: Start, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``sudo -E`` leaves the variable in the environment."""
    runtime = site.directory / "run"
    runtime.mkdir()
    os.chown(runtime, USER, USER)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    server = start(workers=1)
    assert list(runtime.iterdir()) == []
    shown = json.loads(command(tmp_path, "status", "--pid", str(server.master), "--json").stdout)
    assert shown["directory"] == str(site.directory)
    assert server.stop() == 0
    wait_for(lambda: not server.left(), BOOT_TIMEOUT_S, "nothing is left")
