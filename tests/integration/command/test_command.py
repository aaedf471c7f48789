"""The ``zdworker`` command as users run it: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client, request
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from zdworker.command import client

DONE, FAILED, MISUSE, NO_INSTANCE, TIMED_OUT = range(5)


class Command:
    """Runs the command, with a runtime directory of its own: other masters of this machine are not seen."""

    def __init__(self, site: Site) -> None:
        self.runtime = site.directory / "run"
        self.runtime.mkdir()
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(self.runtime), "TMPDIR": str(self.runtime)}
        self.directory = site.directory

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "zdworker", *words],
            env=self.environment,
            cwd=self.directory,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __call__(self, *words: str, code: int = DONE) -> subprocess.CompletedProcess[str]:
        with self.start(*words) as process:
            out, error = process.communicate(timeout=120)
        assert process.returncode == code, f"{process.returncode}\n{out}\n{error}"
        return subprocess.CompletedProcess(words, code, out, error)

    def json(self, *words: str, code: int = DONE) -> dict[str, Any]:
        plain = json.loads(self(*words, "--json", code=code).stdout)
        assert isinstance(plain, dict)
        return plain


@pytest.fixture
def command(site: Site) -> Command:
    return Command(site)


@pytest.fixture
def server(make_server: Start, command: Command) -> Server:
    environment = {"XDG_RUNTIME_DIR": str(command.runtime)}
    settings = {"preload_app": True, "pidfile": "gunicorn.pid", "graceful_timeout": 20}
    made: Server = make_server(environment=environment, **settings).start()
    path = str(command.runtime / "zdworker" / f"{made.master}.sock")
    wait_for(lambda: client.status(path)["state"] == "steady", BOOT_TIMEOUT_S, "the start is over")
    return made


def test_a_reload_is_waited_for(server: Server, site: Site, command: Command) -> None:
    site.deploy("two")
    done = command("reload")
    assert set(server.versions().values()) == {"two"}
    assert done.stdout.startswith("reload done: generation 2 serves")
    assert "rolling: generation 2, 1 of 2 replaced" in done.stderr


def test_the_command_prints_a_reload_as_json(server: Server, site: Site, command: Command) -> None:
    site.deploy("two")
    outcome = command.json("reload")
    cost = "handed_over", "told_to_close", "cut_requests", "closed_websockets", "cut_paths"
    assert list(outcome) == [
        "result",
        "generation",
        "duration_s",
        "serving",
        "error",
        "traceback",
        *cost,
        "label",
        "judgement",
        "note",
    ]
    assert (outcome["result"], outcome["generation"], outcome["serving"]) == ("done", 2, 2)


def test_a_failed_reload_prints_the_applications_own_traceback(server: Server, site: Site, command: Command) -> None:
    unique = site.break_("raise")
    failed = command("reload", code=FAILED)
    assert f"RuntimeError: broken {unique}" in failed.stderr
    assert "app.py" in failed.stderr
    assert failed.stderr.rstrip().endswith("generation 1 is still serving")
    assert command.json("reload", code=FAILED)["result"] == "failed"
    assert set(server.versions().values()) == {"one"}


def test_not_waiting_returns_at_once(server: Server, site: Site, command: Command) -> None:
    gate = site.deploy_gated("two")
    assert command("reload", "--no-wait").stdout == "reload ordered\n"
    assert command.json("status")["state"] == "rolling"
    gate.open("wb").close()
    server.wait_only("two")


def test_waiting_for_a_reload_has_an_end(server: Server, site: Site, command: Command) -> None:
    gate = site.deploy_gated("two")
    timed_out = command("reload", "--timeout", "0.5", code=TIMED_OUT)
    assert "the master still carries the order out" in timed_out.stderr
    gate.open("wb").close()
    server.wait_only("two")


def test_status_for_people_and_for_programs(server: Server, command: Command) -> None:
    text = command("status").stdout
    assert f"master {server.master}: steady, generation 1" in text
    assert all(str(pid) in text for pid in server.workers())
    assert command.json("status")["pid"] == server.master


def test_a_reload_says_what_it_waits_for(server: Server, site: Site, command: Command) -> None:
    with Client(server.address) as asking:
        asking.send(request("GET", "/hold"))
        wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the request is being answered")
        site.deploy("two")
        with command.start("reload") as reload:
            assert reload.stdout is not None
            assert reload.stderr is not None
            lines = iter(reload.stderr.readline, "")
            line = next(line for line in lines if "waiting for worker" in line)
            pid = site.marks("request")[0]["pid"]
            assert re.search(rf"waiting for worker {pid} \(slot [01]\): 1 request, at most \d+ s more", line)
            site.answer_held()
            assert asking.reply().status == 200
            assert reload.stdout.read().startswith("reload done")
            assert reload.wait(BOOT_TIMEOUT_S) == DONE


def test_until_all_workers_are_ready_the_master_starts(make_server: Start, site: Site, command: Command) -> None:
    (site.directory / "gate").write_text("")
    site.deploy("one", extra="\nwhile os.path.exists('gate'):\n    time.sleep(0.01)\n")
    server = make_server(zd_preload="never", environment={"XDG_RUNTIME_DIR": str(command.runtime)}).launch()
    runtime = command.runtime / "zdworker" / f"{server.master}.sock"
    wait_for(runtime.exists, BOOT_TIMEOUT_S, "it has a control socket")
    told = command("status", "--check", code=FAILED).stdout
    assert told == "starting, 0 of 2 workers ready\n"
    assert command.json("status")["state"] == command.json("list")["masters"][0]["state"] == "starting"
    (site.directory / "gate").unlink()
    server.wait_full()
    wait_for(lambda: command.json("status")["state"] == "steady", BOOT_TIMEOUT_S, "the start is over")


def test_a_monitor_asks_whether_all_is_well(server: Server, site: Site, command: Command) -> None:
    assert command("status", "--check").stdout == "steady, 2 of 2 workers ready\n"
    site.break_("raise")
    command("reload", "--quiet", code=FAILED)
    told = command("status", "--check", code=FAILED).stdout
    assert told.startswith("failed, 2 of 2 workers ready: ")
    assert command.json("status")["reason"] in told
    assert command("status", "--check", "--watch", code=MISUSE).stdout == ""


def test_the_number_of_workers(server: Server, command: Command) -> None:
    assert command("scale", "3").stdout == "scale ordered: 3 workers\n"
    server.settings["workers"] = 3
    server.wait_full()
    assert command.json("status")["workers_wanted"] == 3
    assert command.json("scale", "1") == {"workers_wanted": 1}
    server.settings["workers"] = 1
    server.wait_full()
    assert "0<=x<=10000" in command("scale", "10001", code=MISUSE).stderr


def test_a_reload_can_be_quiet(server: Server, site: Site, command: Command) -> None:
    site.deploy("two")
    done = command("reload", "--quiet")
    assert done.stdout.startswith("reload done: generation 2 serves")
    assert done.stderr == ""


def test_status_can_be_watched(server: Server, command: Command) -> None:
    with command.start("status", "--watch", "--json") as process:
        assert process.stdout is not None
        states = [json.loads(process.stdout.readline())["state"] for _ in range(2)]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=BOOT_TIMEOUT_S)
    assert states == ["steady", "steady"]
    assert process.returncode == 130


def test_a_rollback_without_anything_kept_is_refused(server: Server, command: Command) -> None:
    assert "zd_rollback_window is 0" in command("rollback", code=FAILED).stderr


def test_the_command_rolls_back(server: Server, site: Site, command: Command) -> None:
    server.configure(zd_rollback_window=60)
    site.deploy("two")
    command("reload")
    site.deploy("three")
    command("reload")
    assert command.json("rollback")["result"] == "done"
    assert set(server.versions().values()) == {"two"}


def test_a_reload_that_is_called_off_is_a_rollback_done_and_a_reload_failed(
    server: Server, site: Site, command: Command
) -> None:
    site.deploy("two", extra="\ntime.sleep(200)\n")
    with command.start("reload") as waiting:
        wait_for(lambda: len(server.fork_servers()) == 2, BOOT_TIMEOUT_S, "the new generation loads")
        assert command.json("rollback")["result"] == "done"
        _out, error = waiting.communicate(timeout=BOOT_TIMEOUT_S)
    assert waiting.returncode == FAILED
    assert "called off: a rollback was asked for" in error
    server.wait_only("one")


def test_a_reload_that_was_to_come_next_is_called_off_too(server: Server, site: Site, command: Command) -> None:
    site.deploy("two", extra="\ntime.sleep(200)\n")
    command("reload", "--no-wait")
    wait_for(lambda: len(server.fork_servers()) == 2, BOOT_TIMEOUT_S, "the new generation loads")
    with command.start("reload") as waiting:
        assert waiting.stderr is not None
        assert "rolling" in waiting.stderr.readline(), "it is told how far the first one is"
        assert command.json("rollback")["result"] == "done"
        _out, error = waiting.communicate(timeout=BOOT_TIMEOUT_S)
    assert waiting.returncode == FAILED
    assert "called off: a rollback was asked for" in error


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_users_pid_is_refused_in_a_line(server: Server) -> None:
    words = [sys.executable, "-c", SOMEBODY_ELSE, str(server.master)]
    refused = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == NO_INSTANCE
    assert "is another user's" in refused.stderr
    assert "Traceback" not in refused.stderr


SOMEBODY_ELSE = """
import os, sys
from zdworker.command.cli import main
os.setgid(65534)
os.setuid(65534)
main(["status", "--pid", sys.argv[1]])
"""


@pytest.mark.parametrize("naming", ["--pid", "--pidfile", "--socket"])
def test_a_master_can_be_named(server: Server, site: Site, command: Command, naming: str) -> None:
    names = {
        "--pid": str(server.master),
        "--pidfile": str(site.directory / "gunicorn.pid"),
        "--socket": str(command.runtime / "zdworker" / f"{server.master}.sock"),
    }
    assert command.json("status", naming, names[naming])["pid"] == server.master


def test_a_pid_finds_its_socket_wherever_that_is(start: Start, site: Site, command: Command) -> None:
    server = start(zd_control_socket=str(site.directory / "elsewhere.sock"))
    command.directory = Path("/")
    assert command.json("status", "--pid", str(server.master))["pid"] == server.master


def test_of_several_masters_none_is_guessed(server: Server, command: Command) -> None:
    other = Site()
    other.deploy("one")
    try:
        with Server(other, environment={"XDG_RUNTIME_DIR": str(command.runtime)}) as second:
            second.start()
            command.directory = Path("/")
            several = command("status", code=MISUSE)
            assert all(f"pid {pid} (in " in several.stderr for pid in (server.master, second.master))
            assert command.json("status", code=MISUSE)["result"] == "misuse"
    finally:
        other.remove()


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("status", "--pid", "1"),
        ("status", "--pidfile", "/no/such/file"),
        ("status", "--socket", "/no/such/socket"),
        ("reload", "--pid", "999999999"),
    ],
    ids=" ".join,
)
def test_the_command_finds_no_master(command: Command, words: tuple[str, ...]) -> None:
    none = command(*words, code=NO_INSTANCE)
    assert none.stderr.startswith("Error: ")
    assert len(none.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("relaod",),
        ("reload", "--timeout", "soon"),
        ("reload", "--timeout", "nan"),
        ("reload", "--timeout", "inf"),
        ("probe", "/", "--timeout", "1e300"),
        ("check", "--launcher", "-m"),
        ("reload", "--hold", "nan"),
        ("reload", "--pid", "x"),
        ("reload", "--upgrade", "--no-wait"),
        ("reload", "--upgrade", "--hold"),
        ("status", "now"),
    ],
    ids=" ".join,
)
def test_a_misused_command_prints_its_usage(command: Command, words: tuple[str, ...]) -> None:
    assert "Usage: zdworker" in command(*words, code=MISUSE).stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_users_master_is_out_of_reach(server: Server, site: Site, command: Command) -> None:
    path = command.runtime / "zdworker" / f"{server.master}.sock"
    for directory in (site.directory, command.runtime, path.parent):
        directory.chmod(0o755)
    path.chmod(0o666)  # by mode it could be reached; the kernel says who asks
    code = (
        "import os, sys; from zdworker.command import client; os.setgid(65534); os.setuid(65534)\n"
        "try:\n    client.status(sys.argv[1])\nexcept client.NoInstance as error:\n    print(error)"
    )
    words = [sys.executable, "-c", code, str(path)]
    refused = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert "has closed the connection" in refused.stdout, refused.stderr


def test_when_the_master_ends_so_does_the_wait(server: Server, site: Site, command: Command) -> None:
    site.deploy("two", extra="\ntime.sleep(200)\n")
    with command.start("reload") as waiting:
        wait_for(lambda: len(server.fork_servers()) == 2, BOOT_TIMEOUT_S, "the new generation loads")
        assert server.stop() == 0
        _out, error = waiting.communicate(timeout=BOOT_TIMEOUT_S)
    assert waiting.returncode == NO_INSTANCE
    assert "it has ended" in error


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_the_command(command: Command, shell: str) -> None:
    assert "_ZDWORKER_COMPLETE" in command("completion", shell).stdout
