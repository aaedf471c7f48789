"""The command is run again where, and with the interpreter with which, a start at this moment would be."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config

from zdworker import syscalls
from zdworker.errors import GenerationError
from zdworker.ipc.messages import Place
from zdworker.master import launch
from zdworker.master.children import ForkServer


@pytest.fixture
def current(tmp_path: Path) -> Path:
    """A link to a release."""
    (tmp_path / "releases" / "one").mkdir(parents=True)
    link = tmp_path / "current"
    link.symlink_to("releases/one")
    return link


def point_to(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


def capture(monkeypatch: pytest.MonkeyPatch, directory: Path, *words: str, **environment: str) -> launch.Command:
    monkeypatch.setattr(sys, "orig_argv", list(words))
    return launch.capture(environment, str(directory), daemon=False)


def command(directory: Path, *target: str) -> launch.Command:
    return launch.Command(sys.executable, [], [*target], {}, str(directory), safe_path=False, started=0)


def server(places: dict[str, dict[str, str]], interpreter: str = sys.executable) -> ForkServer:
    channel: Any = None
    made = ForkServer(2, 0, channel, -1, logging.getLogger(), print)
    made.places, made.interpreter = places, interpreter
    return made


# -- the command ---------------------------------------------------------------------------------------------


def test_a_script_is_called_as_it_was(monkeypatch: pytest.MonkeyPatch, current: Path) -> None:
    """``..`` of a link leads to what is above its target, so that no part of a path may be taken out."""
    found = capture(monkeypatch, current, sys.executable, "../tools/start.py", "-w", "2")
    assert found.target == ["../tools/start.py", "-w", "2"]
    assert found.script == f"{current}/../tools/start.py"


def test_a_script_that_has_left_its_start_directory(monkeypatch: pytest.MonkeyPatch, current: Path) -> None:
    place = (current / "site").resolve()
    place.mkdir()
    main = SimpleNamespace(__file__=f"{current.resolve()}/site/start.py")
    monkeypatch.setitem(sys.modules, "__main__", main)
    words = (sys.executable, "site/start.py")
    for logical, expected in ((str(current), str(current)), ("/", f"{current.resolve()}/")):
        assert capture(monkeypatch, place, *words, PWD=logical).directory == expected
    assert capture(monkeypatch, current, *words).directory == str(current)


@pytest.mark.parametrize("called", ["venv/bin/python", "python"])
def test_an_interpreter_that_was_called_by_a_relative_path(
    monkeypatch: pytest.MonkeyPatch, current: Path, called: str
) -> None:
    """Or that was found by a relative entry of ``PATH``."""
    python = current / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    found = capture(monkeypatch, current, called, "-m", "gunicorn", PATH="/nowhere:venv/bin")
    assert found.interpreter == str(python)


def test_an_interpreter_that_a_script_names_by_a_relative_path(current: Path) -> None:
    script, python = current / "start.py", current / "venv" / "bin" / "python"
    script.write_text("#!venv/bin/python -u\n")
    assert launch.interpreter(command(current, "start.py")) == [sys.executable]
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert launch.interpreter(command(current, "start.py")) == [str(python), "-u"]


@pytest.mark.parametrize(
    ("words", "options", "target"),
    [
        (["-m", "gunicorn"], [], ["-m", "gunicorn"]),
        (["-Im", "gunicorn", "app"], ["-I"], ["-m", "gunicorn", "app"]),
        (["-mgunicorn"], [], ["-m", "gunicorn"]),
        (["-cimport os; m()", "x"], [], ["-c", "import os; m()", "x"]),
        (["-uX", "dev", "-m", "gunicorn"], ["-uX", "dev"], ["-m", "gunicorn"]),
        (["-X", "dev", "-Wd", "-OO", "-c", "1"], ["-X", "dev", "-Wd", "-OO"], ["-c", "1"]),
        (
            ["-Xutf8", "--check-hash-based-pycs", "never", "-m", "a"],
            ["-Xutf8", "--check-hash-based-pycs", "never"],
            ["-m", "a"],
        ),
    ],
    ids=" ".join,
)
def test_options_of_the_interpreter(
    monkeypatch: pytest.MonkeyPatch, current: Path, words: list[str], options: list[str], target: list[str]
) -> None:
    found = capture(monkeypatch, current, sys.executable, *words)
    assert (found.options, found.target) == (options, target)


def test_a_line_that_has_not_given_the_master_its_interpreter(monkeypatch: pytest.MonkeyPatch, current: Path) -> None:
    """``venv/bin/python manage.py``, which says ``#!/usr/bin/env python3``."""
    other, script = current / "bin" / "python3", current / "manage.py"
    other.parent.mkdir()
    other.symlink_to(sys.executable)
    script.write_text("#!/usr/bin/env python3\n")
    found = capture(monkeypatch, current, sys.executable, "manage.py", PATH=str(other.parent))
    assert not found.follows_line
    assert launch.interpreter(found) == [sys.executable]
    script.write_text(f"#!{sys.executable} -u\n")
    found = capture(monkeypatch, current, sys.executable, "manage.py")
    assert found.follows_line
    assert launch.interpreter(found) == [sys.executable, "-u"]


@pytest.mark.parametrize(
    "start",
    [
        """'''exec' "$(dirname -- "$(realpath -- "$0")")"/'python3' "$0" "$@"\n' '''""",
        """'''exec' /a/long/path/with/python "$0" "$@"\n' '''""",
    ],
    ids=["relocatable", "long"],
)
def test_a_script_that_a_shell_runs(monkeypatch: pytest.MonkeyPatch, current: Path, start: str) -> None:
    """It starts the interpreter that lies beside it."""
    for number, names in (("one", ["python3.x", "python3"]), ("two", ["python3", "python"]), ("three", [])):
        directory = current.parent / "releases" / number / "bin"
        directory.mkdir(parents=True)
        (directory / "gunicorn").write_text(f"#!/bin/sh\n{start}\n")
        for name in names:
            (directory / name).symlink_to(sys.executable)
    first = current.parent / "releases" / "one" / "bin" / "python3.x"
    monkeypatch.setattr(sys, "executable", str(first))
    found = capture(monkeypatch, current, str(first), "-u", f"{current}/bin/gunicorn", "app:app")
    assert found.follows_line
    assert launch.interpreter(found) == [str(first), "-u"]
    point_to(current, "releases/two")
    assert launch.interpreter(found) == [f"{current.resolve()}/bin/python3", "-u"]
    point_to(current, "releases/three")
    assert launch.interpreter(found) == [f"{current.resolve()}/bin/python3.x", "-u"], "an error will name it"


def test_a_wrapper_that_has_given_the_interpreter_its_own_name(monkeypatch: pytest.MonkeyPatch, current: Path) -> None:
    """``exec -a "$0" python ...``: Python takes the wrapper's path for its own, and it would start another master."""
    wrapper = current / "shop"
    wrapper.write_text("#!/bin/sh\n")
    wrapper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(wrapper))
    for called in (str(wrapper), "shop"):
        found = capture(monkeypatch, current, called, "-m", "gunicorn", PATH=str(current))
        assert found.interpreter == os.readlink("/proc/self/exe")
    (current / "python3").symlink_to(sys.executable)
    assert capture(monkeypatch, current, "shop", "-m", "gunicorn", PATH=str(current)).interpreter == os.readlink(
        "/proc/self/exe"
    ), "another interpreter"
    (current / "python").symlink_to(os.readlink("/proc/self/exe"))
    found = capture(monkeypatch, current, "shop", "-m", "gunicorn", PATH=str(current))
    assert found.interpreter == str(current / "python")


# -- where it is started -------------------------------------------------------------------------------------


def started_in(directory: str) -> str:
    """Start an interpreter in a directory and return where it says it is."""
    before = os.getcwd()
    reader, writer = os.pipe()
    words = [sys.executable, "-c", "import os; print(os.getcwd())"]
    pid = launch.start_interpreter(directory, words, {}, [(os.POSIX_SPAWN_DUP2, writer, 1)])
    os.close(writer)
    with open(reader) as output:
        found = output.read()
    assert os.waitpid(pid, 0)[1] == 0
    assert os.getcwd() == before
    return found.strip()


def test_it_is_started_in_the_present_meaning_of_the_directory(current: Path) -> None:
    assert started_in(str(current)) == str(current.resolve())
    point_to(current, "releases")
    assert started_in(str(current)) == str(current.parent.resolve() / "releases")


def test_without_the_directory_it_is_started_where_no_code_is(current: Path) -> None:
    point_to(current, "nowhere")
    assert started_in(str(current)) == "/"


def test_the_directory_is_left_again_if_nothing_can_be_started(current: Path) -> None:
    before = os.getcwd()
    with pytest.raises(FileNotFoundError):
        launch.start_interpreter(str(current), ["./nothing"], {}, [])
    assert os.getcwd() == before


# -- the first generation's interpreter, which is started early -----------------------------------------------


StartEarly = Callable[[Config], "launch.Interpreter | None"]


@pytest.fixture
def start_early(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StartEarly:
    """Return a function that starts an interpreter early with a configuration of Gunicorn's."""
    monkeypatch.setattr(launch, "early", None)
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", "gunicorn"])
    monkeypatch.setattr(syscalls, "become_subreaper", lambda: True)

    def start(cfg: Config) -> launch.Interpreter | None:
        launch.start_early(cfg, str(tmp_path))
        return launch.early

    return start


def start_generation(number: int, command: launch.Command) -> ForkServer:
    return launch.start_generation(number, command, "", {}, logging.getLogger(), print)


def close(server: ForkServer) -> None:
    """Close what a fork server has, and wait for its end."""
    server.kill()
    os.waitpid(server.pid, 0)
    server.channel.close()
    server.close_stderr()


def test_the_interpreter_that_was_started_early_is_the_first_generations(start_early: StartEarly) -> None:
    early = start_early(Config())
    assert early is not None
    server = start_generation(1, early.command)
    assert (server.pid, server.interpreter, launch.early) == (early.pid, sys.executable, None)
    close(server)


@pytest.mark.parametrize("reaped", [False, True], ids=["", "reaped"])
def test_one_that_has_ended_meanwhile_is_started_again(start_early: StartEarly, reaped: bool) -> None:
    early = start_early(Config())
    assert early is not None
    os.kill(early.pid, signal.SIGKILL)
    os.waitid(os.P_PID, early.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
    server = start_generation(1, early.command)
    assert server.pid != early.pid
    with pytest.raises(ChildProcessError):
        os.waitpid(early.pid, 0)
    close(server)


@pytest.mark.parametrize("number", [1, 2])
def test_one_that_is_not_wanted_ends_by_itself(start_early: StartEarly, tmp_path: Path, number: int) -> None:
    early = start_early(Config())
    assert early is not None
    server = start_generation(number, early.command if number == 2 else command(tmp_path, "-m", "gunicorn"))
    assert server.pid != early.pid
    assert os.waitpid(early.pid, 0)[1] == 0, "its channel is closed, so no message can come"
    close(server)


def changed(name: str, value: Any) -> Config:
    cfg = Config()
    cfg.set(name, value)
    return cfg


def test_none_is_started_before_what_it_would_have_to_inherit(
    start_early: StartEarly, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hook(server: object) -> None: ...

    for cfg in (changed("on_starting", hook), changed("when_ready", hook), changed("dirty_workers", 1)):
        assert start_early(cfg) is None
    assert start_early(changed("bind", ["127.0.0.1:8000", "fd://3"])) is None
    for handing_over in (
        {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())},
        {"GUNICORN_FD": "3", "GUNICORN_PID": str(os.getppid())},
    ):
        with monkeypatch.context() as patch:
            for name, value in handing_over.items():
                patch.setenv(name, value)
            assert start_early(Config()) is None
    monkeypatch.setattr(syscalls, "become_subreaper", lambda: False)
    assert start_early(Config()) is None, "workers are forked from the master"


def test_what_cannot_be_started_early_is_reported_later(
    start_early: StartEarly, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-"])
    assert start_early(Config()) is None


# -- what is compared at the end of a load -------------------------------------------------------------------


def test_places_that_are_the_same(current: Path) -> None:
    one = str(current.resolve())
    launch.refuse_moved(
        command(current, "-m", "gunicorn"),
        server(
            {Place.DIRECTORY: {str(current): one}, Place.PATH: {one: one, "/no/where": "/no/where", "mark": "mark"}}
        ),
    )


def test_a_place_that_has_moved(current: Path) -> None:
    known = server({Place.PATH: {"/": "/", f"{current}/lib": f"{current.resolve()}/lib"}})
    (current.parent / "two" / "lib").mkdir(parents=True)
    point_to(current, "two")
    with pytest.raises(GenerationError) as raised:
        launch.refuse_moved(command(current, "-m", "gunicorn"), known)
    one, two = current.parent / "releases/one/lib", current.parent / "two/lib"
    expected = f"{current}/lib pointed to {one} when the generation started and points to {two} now: reload again"
    assert str(raised.value) == expected
    point_to(current, "three")
    with pytest.raises(GenerationError, match=r"three/lib, which does not exist, now"):
        launch.refuse_moved(command(current, "-m", "gunicorn"), known)


def test_another_interpreter(current: Path) -> None:
    """A script whose first line has changed, or that is gone."""
    with pytest.raises(GenerationError, match=f"was /old/python when the generation started and is {sys.executable} "):
        launch.refuse_moved(command(current, "-m", "gunicorn"), server({}, "/old/python"))
    with pytest.raises(GenerationError, match="the command cannot be run again"):
        launch.refuse_moved(command(current, "start.py"), server({}))
