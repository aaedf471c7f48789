"""Whatever is wrong with the next program, the one that runs goes on, and says why.

The releases lie behind a link, each with its interpreter, its packages and its configuration.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import gunicorn
import pytest

import zdworker
from tests.harness import control_client, processes
from tests.harness.clients import Load
from tests.harness.processes import wait_for
from tests.harness.releases import TIMEOUT_S, Releases
from tests.harness.server import BOOT_TIMEOUT_S
from tests.harness.virtual_environments import add_interpreter

IN_THE_REHEARSAL = "import os, sys\nif 'zdworker.upgraded' in sys.orig_argv and os.getpid() != {master}:\n    {code}\n"
BEHIND_EXECVE = "import os, sys\nif 'zdworker.upgraded' in sys.orig_argv and os.getpid() == {master}:\n    {code}\n"


def remove_interpreter(releases: Releases) -> None:
    shutil.rmtree(releases.add("two") / "venv" / "bin")


def remove_zdworker(releases: Releases) -> None:
    shutil.rmtree(releases.add("two") / "venv")
    add_interpreter_to(releases.path("two") / "venv")


def add_interpreter_to(directory: Path) -> None:
    directory.mkdir()
    add_interpreter(directory)


def break_zdworker(releases: Releases) -> None:
    releases.add("two")
    package = releases.own_package("two", Path(zdworker.__file__).parent)
    (package / "core" / "plan.py").write_text("def broken(:\n")


def break_the_beginning_of_zdworker(releases: Releases) -> None:
    releases.add("two")
    package = releases.own_package("two", Path(zdworker.__file__).parent)
    (package / "boot.py").write_text("def broken(:\n")


def have_another_format(releases: Releases) -> None:
    releases.add("two")
    package = releases.own_package("two", Path(zdworker.__file__).parent)
    text = (package / "boot.py").read_text()
    (package / "boot.py").write_text(text.replace("READ = (NUMBER,)", "READ = (NUMBER + 2, NUMBER + 1)"))


def have_a_strange_gunicorn(releases: Releases) -> None:
    releases.add("two")
    package = releases.own_package("two", Path(gunicorn.__file__).parent)
    shutil.copytree(Path(zdworker.__file__).parent, package.parent / "zdworker")
    text = (package / "arbiter.py").read_text()
    (package / "arbiter.py").write_text(text.replace("murder_workers", "end_workers"))


def break_the_configuration(releases: Releases) -> None:
    releases.add("two", "\ndef broken(:\n".replace("{", "{{"))


def crash(releases: Releases) -> None:
    releases.add("two", IN_THE_REHEARSAL.replace("{code}", "os.kill(os.getpid(), 11)"))


def exit_early(releases: Releases) -> None:
    releases.add("two", IN_THE_REHEARSAL.replace("{code}", "os._exit(0)"))


def hang(releases: Releases) -> None:
    """What it has started meanwhile has to end, too."""
    code = "import subprocess, time; subprocess.Popen(['sleep', '600']); time.sleep(600)"
    releases.add("two", IN_THE_REHEARSAL.replace("{code}", code))


def answer_strangely(releases: Releases) -> None:
    code = "from zdworker import boot; os.write(boot.current._answer, b'[]'); os._exit(0)"
    releases.add("two", IN_THE_REHEARSAL.replace("{code}", code))


def lose_the_interpreter(releases: Releases) -> None:
    """After the rehearsal has begun, so that there is none for the replacement."""
    releases.add("two", IN_THE_REHEARSAL.replace("{code}", "os.rename('venv/bin', 'venv/gone')"))


BROKEN: dict[Callable[[Releases], None], str] = {
    remove_interpreter: "cannot be started",
    remove_zdworker: "No module named",
    break_zdworker: "SyntaxError",
    break_the_beginning_of_zdworker: "SyntaxError",
    have_another_format: "format 1",
    have_a_strange_gunicorn: "murder_workers",
    break_the_configuration: "exited with 1",
    crash: "signal 11",
    exit_early: "exited with code 0",
    answer_strangely: "exited with code 0",
    hang: f"has not answered within {TIMEOUT_S} s",
    lose_the_interpreter: "which does not exist, now: order it again",
}


def assert_unchanged(releases: Releases, workers: list[int]) -> None:
    server = releases.server
    assert "zdworker.upgraded" not in processes.command(server.master)
    assert server.workers() == workers
    assert server.get()["pid"] in workers
    assert control_client.status(server)["upgrades"] == 0


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda way: way.__name__)
def test_the_old_program_goes_on_where_the_new_one_is_broken(
    releases: Releases, break_it: Callable[[Releases], None]
) -> None:
    server = releases.server
    workers = server.workers()
    break_it(releases)
    with Load(server.address, "new", clients=4, pause=0.05) as load:
        outcome = control_client.upgrade(server)
    assert load.stop().failures == []
    assert outcome.result == "failed"
    assert BROKEN[break_it] in f"{outcome.error}\n{outcome.traceback}", outcome
    assert outcome.after == outcome.before
    assert_unchanged(releases, workers)
    wait_for(lambda: len(server.children()) == 3, 30, "the rehearsal is gone")
    releases.add("three")
    assert control_client.upgrade(server).result == "done"
    assert server.workers() == workers


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise ValueError('no such thing')", "no such thing"),
        ("sys.exit(3)", "exited with 3"),
        ("import time; time.sleep(600)", f"within {TIMEOUT_S} s"),
    ],
)
@pytest.mark.parametrize("is_in_place", [False, True], ids=["in the new release", "in the only one"])
def test_behind_execve_the_way_leads_back(releases: Releases, code: str, expected: str, is_in_place: bool) -> None:
    server = releases.server
    workers = server.workers()
    configuration = BEHIND_EXECVE.replace("{code}", code)
    if is_in_place:
        releases.configure("one", configuration)
    else:
        releases.add("two", configuration)
    with Load(server.address, "new", clients=4, pause=0.05) as load:
        outcome = control_client.upgrade(server)
    assert load.stop().failures == []
    assert (outcome.result, outcome.after) == ("failed", outcome.before)
    assert expected in outcome.error
    assert server.workers() == workers
    assert control_client.status(server)["upgrades"] == 0
    if not is_in_place:  # else the configuration cannot be evaluated any more, and there are no hooks
        wait_for(lambda: len(releases.site.events("when_ready")) == 2, 30, "the hook is called again")
    interpreter = os.readlink(f"/proc/{server.master}/exe")
    assert interpreter == str((releases.path("one") / "venv" / "bin" / "python").resolve())
    releases.add("three")
    server.signal(signal.SIGUSR2)
    server.wait_only("three", BOOT_TIMEOUT_S)
    assert control_client.upgrade(server).result == "done"
    assert server.stop() == 0


def test_hooks_start_again_what_they_have_ended_if_the_program_stays(releases: Releases) -> None:
    """The interpreter is lost behind the last look at it, when ``pre_exec`` has been called."""
    server, interpreters = releases.server, releases.path("two") / "venv" / "bin"
    rename = f"os.rename({str(interpreters)!r}, {str(interpreters)!r} + ' gone')"
    releases.configure("one", f"\nimport os\n\ndef pre_exec(server):\n    {rename}\n")
    control_client.order_and_wait(server, "reload")
    workers = server.workers()
    releases.add("two")
    outcome = control_client.upgrade(server)
    assert (outcome.result, outcome.after) == ("failed", outcome.before)
    wait_for(lambda: len(releases.site.events("when_ready")) == 2, 30, "the hook is called again")
    assert_unchanged(releases, workers)


def test_without_a_way_back_the_new_program_goes_on_without_hooks(releases: Releases) -> None:
    server = releases.server
    workers = server.workers()
    releases.add("two")
    server.signal(signal.SIGUSR2)
    server.wait_only("two")
    shutil.rmtree(releases.path("one"))
    workers = server.workers()
    releases.configure("two", BEHIND_EXECVE.replace("{code}", "raise ValueError('no such thing')"))
    outcome = control_client.upgrade(server)
    assert outcome.result == "failed"
    assert "no such thing" in outcome.error
    assert server.workers() == workers
    releases.configure("two", "")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: control_client.status(server)["generation"] == 3, BOOT_TIMEOUT_S, "the reload is done")
    assert control_client.upgrade(server).result == "done"
    assert server.stop() == 0
