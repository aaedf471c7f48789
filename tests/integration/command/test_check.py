"""``zdworker check`` through the real command: what people and programs read, and that nothing is touched."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import documents, processes, worker_classes
from tests.harness.application_site import START_HOOKS, Site
from tests.harness.clients import Client, request
from tests.harness.control_client import status
from tests.harness.processes import wait_for
from tests.harness.recipes import DEPLOY
from tests.harness.server import BOOT_TIMEOUT_S, DEFAULT_CLASS, NO_SESSION, Server, Start, reserve_port, script
from tests.harness.worker_classes import WorkerClass

DONE, FAILED, MISUSE = range(3)
LEVELS = ("ok", "warning", "error", "skipped")
WIDTH = 80
SCREEN_LINES = 24
BOOT_S = "15"
"""``zd_boot_timeout`` where something hangs: an interpreter has to be up by then."""

HANG_LIMIT_S = 90.0
"""Seconds within which such a check has to end, on a machine with other work to do."""

(LAUNCHER,) = [block.text for block in documents.blocks("docs/embedding.md") if block.title == "serve.py"]

HOOKS_OF_THE_MASTER = ("on_starting", "when_ready", "nworkers_changed", "pre_fork", "child_exit", "on_exit")

WITHOUT = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None


sys.meta_path.insert(0, Blocker())
"""
"""A ``sitecustomize.py`` with which a library is not installed."""

HANGS = """

def waits_for_ever():
    time.sleep(600)

waits_for_ever()
"""

LIFESPAN_HANGS = """

def blocks_in_startup():
    time.sleep(600)

async def lifespan(receive, send):
    await receive()
    blocks_in_startup()
"""


class Check:
    """Runs the command in the directory of a site, with a runtime directory of its own."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.runtime = site.directory / "run"
        self.runtime.mkdir(mode=0o700)
        self.environment = {
            **os.environ,
            "PWD": str(site.directory),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_CONFIG_HOME": str(site.directory / "config"),
        }

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [script("zdworker"), "check", *words],
            cwd=self.site.directory,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, code: int = DONE, **environment: str) -> subprocess.CompletedProcess[str]:
        before = set(processes.belonging(self.site.directory, NO_SESSION))
        with self.start(*words, **environment) as process:
            try:
                out, error = process.communicate(timeout=180)
            finally:
                process.kill()
        assert process.returncode == code, f"{process.returncode}\n{out}\n{error}"

        def left() -> set[int]:
            return set(processes.belonging(self.site.directory, process.pid)) - before

        wait_for(lambda: not left(), 15, "no process of the check is left")
        return subprocess.CompletedProcess(words, code, out, error)

    def __call__(self, *words: str, code: int = DONE, **environment: str) -> str:
        """Return what a person reads, each finding in one line."""
        out = self.run(*words, code=code, **environment).stdout
        joined: list[str] = []
        for line in out.splitlines():
            if line.startswith(" " * 9):
                joined[-1] += f" {line.strip()}"
            else:
                joined.append(line)
                assert line.startswith(LEVELS) or line == out.splitlines()[-1], out
        return "\n".join(joined)

    def json(self, *words: str, code: int = DONE, **environment: str) -> dict[str, Any]:
        plain = json.loads(self.run("--json", *words, code=code, **environment).stdout)
        assert isinstance(plain, dict)
        return plain

    def found(self, *words: str, code: int = DONE, **environment: str) -> list[tuple[str, str, str]]:
        """Return level, subject and text of each finding."""
        plain = self.json(*words, code=code, **environment)
        return [(one["level"], one["about"], one["text"]) for one in plain["findings"]]

    def error(self, *words: str, **environment: str) -> dict[str, str]:
        """Return the one finding that is an error."""
        plain = self.json(*words, code=FAILED, **environment)
        (error,) = [one for one in plain["findings"] if one["level"] == "error"]
        assert isinstance(error, dict)
        return error


@pytest.fixture
def check(site: Site) -> Check:
    return Check(site)


# -- all is well ---------------------------------------------------------------------------------------------------


@worker_classes.for_each(worker_classes.ALL)
def test_a_site_that_would_start(check: Check, site: Site, worker: WorkerClass) -> None:
    site.serve(worker.kind)
    plain = check.json("-k", worker.path, "app:app", ZD_WARMUP="/")
    assert (plain["result"], plain["errors"], plain["warnings"]) == ("done", 0, 0)
    assert [one["about"] for one in plain["findings"]] == [
        *("versions", "configuration", "worker class", "settings", "application", "hooks", "systemd", "control socket"),
    ]
    assert all(one["details"] == "" for one in plain["findings"])
    assert site.marks("startup" if worker.kind == "asgi" else "import"), "the application was loaded"
    if worker.kind == "asgi":
        assert site.marks("shutdown"), "it was ended in order"


def test_what_a_person_reads(check: Check) -> None:
    text = check("-k", DEFAULT_CLASS, "app:app")
    assert f"\nok       worker class: {DEFAULT_CLASS}\n" in text
    assert "\nok       application: loaded" in text
    assert "\nskipped  systemd: no unit starts Gunicorn in this directory" in text
    assert text.endswith("\nall well")
    lines = check.run("-k", DEFAULT_CLASS, "app:app").stdout.splitlines()
    assert len(lines) <= SCREEN_LINES
    assert all(len(line) <= WIDTH or " " not in line.strip() for line in lines)
    assert "\x1b" not in text


def test_arguments_in_the_environment_count(check: Check) -> None:
    check("app:app", GUNICORN_CMD_ARGS=f"-k {DEFAULT_CLASS}")
    assert "sync" in check.error("app:app")["text"]


def test_the_configuration_file_counts_and_no_application_is_named_twice(check: Check, site: Site) -> None:
    site.write("gunicorn.conf.py", f'worker_class = "{DEFAULT_CLASS}"\nwsgi_app = "app:app"\n')
    assert "ok       configuration: " in check()


def test_the_environment_of_the_application_is_that_of_a_start(check: Check, site: Site) -> None:
    """What the check has set for itself, or takes out, is not in it."""
    variables = "{name: value for name, value in os.environ.items() if name.startswith(('PYTHON', 'ZD_', 'GUNICORN'))}"
    site.deploy("one", extra=f'\n\nmark("environment", path=__import__("sys").path[:2], variables={variables})\n')
    check("-k", DEFAULT_CLASS, "app:app", NOTIFY_SOCKET="/nowhere", ZD_GENERATION="7")
    (mark,) = site.marks("environment")
    own = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    assert mark["variables"] == {**own, "ZD_GENERATION": "1", "ZD_VERSION": mark["variables"]["ZD_VERSION"]}
    assert mark["path"] == [os.path.realpath(site.directory), os.path.realpath(Path(sys.executable).parent)]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no safe path")
def test_modules_of_the_site_do_not_take_the_place_of_pythons(check: Check, site: Site) -> None:
    site.write("types.py", "raise RuntimeError('not for the check')\n")
    check("-k", DEFAULT_CLASS, "app:app")


# -- the worker class ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("zdworker.UvicornWroker", "there is no class zdworker.UvicornWroker: did you mean zdworker.UvicornWorker?"),
        ("zdwroker.ThreadWorker", "there is no class zdwroker.ThreadWorker: did you mean zdworker.ThreadWorker?"),
        ("UvicornWorker", "there is no class UvicornWorker: did you mean zdworker.UvicornWorker?"),
        ("no_such_module.Worker", "no_such_module.Worker cannot be imported: ModuleNotFoundError: No module named"),
        ("sync", "sync is not a class of zdworker's, so nothing of it is at work: set worker_class (-k) to "),
        ("gthread", "(-k) to zdworker.ThreadWorker"),
        ("gunicorn.workers.gthread.ThreadWorker", "(-k) to zdworker.ThreadWorker"),
    ],
)
def test_a_class_that_will_not_do(check: Check, name: str, said: str) -> None:
    plain = check.json("-k", name, "app:app", code=FAILED)
    (error,) = [one for one in plain["findings"] if one["level"] == "error"]
    assert error["about"] == "worker class"
    assert said in error["text"]
    assert ["skipped", "application"] in [[one["level"], one["about"]] for one in plain["findings"]]


@pytest.mark.parametrize(
    ("worker", "module", "extra"),
    [(worker_classes.TORNADO, "tornado", "tornado"), (worker_classes.GEVENT, "gevent", "gevent")],
    ids=str,
)
def test_a_missing_extra_is_named(check: Check, site: Site, worker: WorkerClass, module: str, extra: str) -> None:
    site.serve("wsgi")  # which imports neither by itself
    (site.directory / "hidden").mkdir()
    (site.directory / "hidden" / "sitecustomize.py").write_text(WITHOUT.format(module=module))
    error = check.error("-k", worker.path, "app:app", PYTHONPATH=str(site.directory / "hidden"))
    assert error["about"] == "application"
    assert f"pip install 'zdworker[{extra}]'" in error["text"]


@pytest.mark.parametrize("preload", ["auto", "never"])
@pytest.mark.parametrize(
    ("worker", "kind", "instead"),
    [
        (worker_classes.UVICORN, "wsgi", "zdworker.ThreadWorker"),
        (worker_classes.ASGI, "wsgi", "zdworker.ThreadWorker"),
        (worker_classes.WSGI, "asgi", "zdworker.UvicornWorker"),
        (worker_classes.THREAD, "asgi", "zdworker.UvicornWorker"),
        (worker_classes.GEVENT, "asgi", "zdworker.UvicornWorker"),
    ],
    ids=str,
)
def test_an_application_of_the_other_kind(
    check: Check, site: Site, worker: WorkerClass, kind: Any, instead: str, preload: str
) -> None:
    site.serve(kind)
    error = check.error("-k", worker.path, "app:app", ZD_PRELOAD=preload)
    assert f"this is {'a WSGI' if kind == 'wsgi' else 'an ASGI'} application" in error["text"]
    assert f"{worker.path} serves {'ASGI' if kind == 'wsgi' else 'WSGI'} applications" in error["text"]
    assert instead in error["text"]


# -- settings ------------------------------------------------------------------------------------------------------


def test_all_bad_settings_are_told_at_once(check: Check, site: Site) -> None:
    site.write("conf.py", "zd_max_surg = 2\nzd_warmup = 5\ntimeuot = 30\ndef on_startin(server): pass\n")
    words = ("-c", "conf.py", "-k", DEFAULT_CLASS, "app:app")
    found = check.found(*words, code=FAILED, ZD_MAX_SURGE="many", ZD_MIN_READY_SECOND="1")
    errors = [text for level, about, text in found if (level, about) == ("error", "settings")]
    assert [text.partition(" (")[0] for text in errors] == [
        "zd_max_surg is not a setting of zdworker",
        'zd_warmup = 5 is not valid: it must be paths such as ["/"], or URLs such as ["http://example.org/"]',
        "ZD_MAX_SURGE",
    ]
    assert "did you mean zd_max_surge?" in errors[0]
    warnings = [text for level, _, text in found if level == "warning"]
    assert [text.rpartition(": ")[2] for text in warnings] == [
        "did you mean ZD_MIN_READY_SECONDS?",
        "did you mean on_starting?",
        "did you mean timeout?",
    ]
    assert ("skipped", "application", "not tried, because of the error above") in found


def test_what_a_start_refuses_is_refused(check: Check, site: Site) -> None:
    words = ("-k", DEFAULT_CLASS, "app:app")
    twice = check.error("-b", "127.0.0.1:8000", "-b", "127.0.0.1:8000", *words)
    assert (twice["about"], twice["text"].partition(":")[0]) == ("start", "bind names the same socket twice")
    nowhere = check.error("-b", f"unix:{site.directory}/no/app.sock", *words)
    assert (nowhere["about"], f"there is no directory {site.directory}/no" in nowhere["text"]) == ("bind", True)
    assert "zd_preload" in check.error("--preload", *words, ZD_PRELOAD="never")["text"]
    port = check.error("-b", "127.0.0.1:80000", *words)
    assert (port["about"], port["text"]) == ("start", "bind names 127.0.0.1:80000: a port is a number from 0 to 65535")


def test_a_unix_socket_that_cannot_be_made_is_refused(check: Check, site: Site) -> None:
    words = ("-k", DEFAULT_CLASS, "app:app")
    site.write("file", "")
    assert "that is a file and no socket" in check.error("-b", f"unix:{site.directory}/file", *words)["text"]
    assert "such a path may have 107 bytes" in check.error("-b", f"unix:{'x' * 108}", *words)["text"]


def test_a_long_path_of_temporary_files_is_none_of_the_sites(check: Check, site: Site) -> None:
    long = site.directory / ("x" * 100)
    long.mkdir()
    check("-k", DEFAULT_CLASS, "app:app", TMPDIR=str(long))


def test_a_directory_that_is_too_long_for_the_control_socket_is_refused(check: Check, site: Site) -> None:
    long = site.directory / ("x" * 100)
    long.mkdir(mode=0o700)
    error = check.error("-k", DEFAULT_CLASS, "app:app", XDG_RUNTIME_DIR=str(long))
    assert (error["about"], "too long" in error["text"]) == ("control socket", True)


@pytest.mark.parametrize("option", ["--pid", "--error-logfile", "--access-logfile"])
def test_a_file_that_a_start_cannot_write_is_refused(check: Check, site: Site, option: str) -> None:
    error = check.error(option, "no/such", "-k", DEFAULT_CLASS, "app:app")
    assert error["about"] == "files"
    assert error["text"].endswith(f"is no/such, and there is no directory {site.directory}/no: make it")


def test_a_log_file_that_is_a_directory_is_refused(check: Check, site: Site) -> None:
    error = check.error("--error-logfile", str(site.directory), "-k", DEFAULT_CLASS, "app:app")
    assert (error["about"], error["text"].endswith("that is a directory: name a file")) == ("files", True)


def test_no_workers_are_a_warning(check: Check) -> None:
    (warning,) = [
        text for level, _, text in check.found("-w", "0", "-k", DEFAULT_CLASS, "app:app") if level == "warning"
    ]
    assert warning.startswith("workers is 0")


def test_what_the_master_warns_of_is_a_warning(check: Check) -> None:
    """Each of it once, and what the check says by itself not a second time in the master's words."""
    check.environment.pop("PWD")
    found = check.found("-k", DEFAULT_CLASS, "app:app", ZD_COLOUR="red")
    warnings = [text for level, _, text in found if level == "warning"]
    assert len(warnings) == 2
    assert "ZD_COLOUR" in warnings[0]
    assert warnings[1].startswith("PWD is not in the environment, so it is unknown whether")


def test_a_log_configuration_that_cannot_be_used(check: Check) -> None:
    error = check.error("--log-config", "missing.ini", "-k", DEFAULT_CLASS, "app:app")
    assert error["about"] == "start"
    assert "missing.ini" in error["text"]


def test_hooks_that_do_not_reach_workers_are_named_and_not_called(check: Check, site: Site) -> None:
    site.configure(START_HOOKS, worker_class=DEFAULT_CLASS)
    found = check.found("app:app")
    (warning,) = [text for level, about, text in found if (level, about) == ("warning", "hooks")]
    assert warning.startswith("on_starting, when_ready, pre_fork: called in the master")
    assert {event["event"] for event in site.events()} == {"post_fork", "post_worker_init", "worker_exit"}


# -- the configuration ---------------------------------------------------------------------------------------------


def test_a_slip_in_the_configuration_is_told_with_its_line(check: Check, site: Site) -> None:
    site.write("conf.py", "workers = 2\nbind = = 8000\n")
    error = check.error("-c", "conf.py", "-k", DEFAULT_CLASS, "app:app")
    assert error["about"] == "configuration"
    assert error["text"].endswith("SyntaxError: invalid syntax")
    assert "conf.py" in error["details"]
    assert "line 2" in error["details"]


def test_a_configuration_that_is_not_there(check: Check) -> None:
    assert "'missing.py' doesn't exist" in check.error("-c", "missing.py", "-k", DEFAULT_CLASS, "app:app")["text"]
    assert "No application module" in check.error("-k", DEFAULT_CLASS)["text"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("os._exit(7)", "the check was ended by the site's code, with exit code 7"),
        ("os.kill(os.getpid(), 11)", "the check was killed by SIGSEGV"),
    ],
)
def test_a_configuration_that_ends_the_process(check: Check, site: Site, line: str, said: str) -> None:
    site.write("conf.py", f"import os\n{line}\n")
    error = check.error("-c", "conf.py", "-k", DEFAULT_CLASS, "app:app")
    assert (error["about"], error["text"]) == ("configuration", said)


def test_a_configuration_that_hangs_is_told_with_its_stack(check: Check, site: Site) -> None:
    site.write("conf.py", f"import time\n{HANGS}")
    began = time.monotonic()
    error = check.error("-c", "conf.py", "-k", DEFAULT_CLASS, "app:app", ZD_BOOT_TIMEOUT=BOOT_S)
    assert time.monotonic() - began < HANG_LIMIT_S
    assert error["text"] == f"not done within {BOOT_S} s (zd_boot_timeout): this is where it hangs"
    assert "in waits_for_ever" in error["details"]


def test_what_only_prints_is_no_start(check: Check) -> None:
    assert "--check-config" in check.error("--check-config", "-k", DEFAULT_CLASS, "app:app")["text"]


# -- the application -----------------------------------------------------------------------------------------------


def test_an_import_that_raises_is_told_with_the_applications_frames(check: Check, site: Site) -> None:
    unique = site.break_("raise")
    text = check.run("-k", DEFAULT_CLASS, "app:app", code=FAILED).stdout
    assert f"RuntimeError: broken {unique}" in text
    assert f'File "{site.directory}/app.py", line 1' in text
    assert "importlib" not in text
    assert "gunicorn/" not in text
    assert len(text.splitlines()) <= SCREEN_LINES
    assert text.endswith("1 error, 0 warnings\n")


@pytest.mark.parametrize("preload", ["auto", "never"])
@pytest.mark.parametrize("extra", [HANGS, LIFESPAN_HANGS], ids=["import", "lifespan"])
def test_a_boot_that_hangs_is_told_with_its_stack(check: Check, site: Site, preload: str, extra: str) -> None:
    site.deploy("one", extra=extra)
    began = time.monotonic()
    error = check.error("-k", DEFAULT_CLASS, "app:app", ZD_PRELOAD=preload, ZD_BOOT_TIMEOUT=BOOT_S)
    assert time.monotonic() - began < HANG_LIMIT_S
    assert f"within {BOOT_S} s (zd_boot_timeout)" in error["text"]
    assert "in waits_for_ever" in error["details"] or "in blocks_in_startup" in error["details"]


@pytest.mark.parametrize("kind", ["syntax", "import", "exit", "lifespan"])
def test_an_application_that_does_not_start(check: Check, site: Site, kind: Any) -> None:
    unique = site.break_(kind)
    error = check.error("-k", DEFAULT_CLASS, "app:app")
    assert error["about"] == "application"
    if kind != "exit":
        assert unique in error["text"] + error["details"]
    else:
        assert "exited with code 1" in error["text"]


def test_a_warm_up_that_fails(check: Check) -> None:
    error = check.error("-k", DEFAULT_CLASS, "app:app", ZD_WARMUP="/no-such-path")
    assert "warm-up failed: /no-such-path was answered with status 404" in error["text"]


def test_what_the_import_leaves_open_is_a_warning_with_preload(check: Check, site: Site) -> None:
    site.deploy(
        "one", extra="\nimport threading\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    words = ("-k", DEFAULT_CLASS, "app:app")
    (warning,) = [text for level, _, text in check.found("--preload", *words) if level == "warning"]
    assert "the application started threads at import" in warning
    (loaded,) = [text for _, about, text in check.found(*words) if about == "application"]
    assert "imported by each worker: the application started threads at import" in loaded


# -- a running site ------------------------------------------------------------------------------------------------


def contents(directory: Path) -> dict[str, bytes]:
    files = [path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path): path.read_bytes() for path in files}


def test_a_running_site_is_not_touched(check: Check, make_server: Start, site: Site) -> None:
    environment = {"XDG_RUNTIME_DIR": str(check.runtime)}
    own = {"pidfile": "gunicorn.pid", "errorlog": "error.log", "accesslog": "access.log", "loglevel": "debug"}
    server: Server = make_server(environment=environment, **own).start()
    server.settings["zd_control_socket"] = str(next(iter((check.runtime / "zdworker").glob("*.sock"))))
    wait_for(lambda: status(server)["state"] == "steady", BOOT_TIMEOUT_S, "the start is over")
    before, state = contents(site.directory), status(server)
    with Client(server.address) as client:
        client.send(request("GET", "/hold"))
        wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the request is being answered")
        kept = {name: data for name, data in before.items() if not name.endswith((".jsonl", ".log"))}
        plain = check.json("-c", "gunicorn.conf.py", "app:app")
        assert plain["errors"] == 0
        site.answer_held()
        assert client.reply().status == 200
    wait_for((site.directory / "access.log").read_bytes, BOOT_TIMEOUT_S, "the request is in the log")
    after = contents(site.directory)
    assert {name: after.get(name) for name in kept} == kept
    assert after.keys() - before.keys() == {str(site.directory / "release")}
    assert after[f"{site.directory}/error.log"].count(b"Booting worker") == server.expected
    assert after[f"{site.directory}/access.log"].count(b"\n") == 1, "the one request of this test"
    now = status(server)
    assert [worker["pid"] for worker in now["workers"]] == [worker["pid"] for worker in state["workers"]]
    assert (now["reloads"], now["crashes"]) == (state["reloads"], state["crashes"])
    masters = {event["by"] for event in site.events() if event["event"] in HOOKS_OF_THE_MASTER}
    assert masters == {server.master}


def test_no_log_of_a_logging_configuration_is_written(check: Check, site: Site) -> None:
    handlers = {"file": {"class": "logging.handlers.WatchedFileHandler", "filename": "site.log"}}
    loggers = {"gunicorn.error": {"handlers": ["file"], "level": "DEBUG"}}
    plain = {"version": 1, "handlers": handlers, "loggers": loggers, "root": {"handlers": ["file"]}}
    site.write("log.json", json.dumps(plain))
    words = ("--log-config-json", "log.json", "-k", DEFAULT_CLASS, "app:app")
    check(*words)
    assert not (site.directory / "site.log").exists()
    handlers["file"]["filename"] = "no/site.log"
    site.write("log.json", json.dumps(plain))
    assert "Unable to configure handler 'file'" in check.error(*words)["text"]


def test_no_address_is_opened(check: Check) -> None:
    """Somebody else has it, so that an attempt would fail."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        check("-b", f"127.0.0.1:{taken.getsockname()[1]}", "-k", DEFAULT_CLASS, "app:app")


def test_an_interrupted_check_leaves_nothing(check: Check, site: Site) -> None:
    site.deploy("one", extra=f'\n\nmark("waits")\n{HANGS}')
    with check.start("-k", DEFAULT_CLASS, "app:app") as process:
        try:
            wait_for(lambda: site.marks("waits"), BOOT_TIMEOUT_S, "the application is being imported")
            os.kill(process.pid, signal.SIGINT)
            process.communicate(timeout=BOOT_TIMEOUT_S)
        finally:
            process.kill()
    assert process.returncode == 130
    wait_for(lambda: not processes.belonging(site.directory, process.pid), BOOT_TIMEOUT_S, "no process is left")


# -- launchers -----------------------------------------------------------------------------------------------------


@pytest.fixture
def launcher(site: Site) -> Iterator[Callable[[str], None]]:
    """Write the launcher of the documentation, with ports of its own."""
    with contextlib.ExitStack() as ports:
        numbers = [str(ports.enter_context(reserve_port()).getsockname()[1]) for _ in range(2)]

        def write(text: str) -> None:
            site.write("serve.py", text.replace("8000", numbers[0]).replace("9000", numbers[1]))

        yield write


def test_a_launchers_second_run(check: Check, launcher: Callable[[str], None]) -> None:
    launcher(LAUNCHER)
    check("--launcher", "serve.py")
    launcher(LAUNCHER.replace("    if is_first_run():\n        admin", "    if True:\n        admin"))
    error = check.error("--launcher", "serve.py")
    assert "Address already in use" in error["text"]
    assert "serve.py was run once more" in error["text"]
    assert "ZD_GENERATION" in error["text"]


def test_a_launcher_that_starts_nothing(check: Check, site: Site) -> None:
    site.write("serve.py", "print('nothing to do')\n")
    assert "serve.py has ended without starting Gunicorn" in check.error("--launcher", "serve.py")["text"]
    assert "--launcher needs the program" in check.run("--launcher", code=MISUSE).stderr


SUBCLASS = """
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.arbiter import Arbiter


class Mine(Arbiter):
    def spawn_workers(self):
        pass


class Site(WSGIApplication):
    def run(self):
        Mine(self).run()


Site().run()
"""


def test_a_launcher_with_an_arbiter_of_its_own(check: Check, site: Site) -> None:
    site.write("serve.py", SUBCLASS)
    error = check.error("--launcher", "serve.py", "-k", DEFAULT_CLASS, "app:app")
    assert "__main__.Mine is a subclass of Gunicorn's Arbiter" in error["text"]
    assert "spawn_workers would have no effect" in error["text"]


def test_processes_of_the_configuration_do_not_keep_the_check(check: Check, site: Site) -> None:
    """They have copies of what the check talks to the command with."""
    site.write("conf.py", "import os, time\nif os.fork() == 0:\n    time.sleep(600)\n    os._exit(0)\n")
    began = time.monotonic()
    check("-c", "conf.py", "-k", DEFAULT_CLASS, "app:app")
    assert time.monotonic() - began < HANG_LIMIT_S


# -- systemd and the control socket --------------------------------------------------------------------------------


def unit(site: Site, *lines: str) -> str:
    """Write a unit that starts the site, and return its file."""
    own = f"[Service]\nWorkingDirectory={site.directory}\nExecStart=/usr/bin/gunicorn app:app\n"
    return str(site.write("app.service", own + "".join(f"{line}\n" for line in lines)))


@pytest.mark.parametrize(
    ("lines", "level", "said"),
    [
        (["Type=notify", "KillMode=mixed"], "ok", "app.service: Type=notify, KillMode=mixed"),
        (["Type=notify"], "warning", "KillMode=control-group sends TERM to the application's own processes"),
        (["Type=notify", "KillMode=none"], "error", "KillMode=none has a stop end nothing: set KillMode=mixed"),
        (["KillMode=mixed"], "warning", "with Type=simple a start is over before a worker accepts"),
        (
            ["Type=exec", "KillMode=mixed", "TimeoutStopSec=10"],
            "error",
            "systemd kills the site 10 s after a stop, and requests may take 31 s",
        ),
        (["Type=notify", "KillMode=mixed", "TimeoutStopSec=10"], "ok", "TimeoutStopSec=10"),
        (
            ["Type=notify", "KillMode=mixed", "ExecStart=/bin/sh -c 'gunicorn app:app'"],
            "error",
            "ExecStart is a shell, from whose children systemd takes no notification",
        ),
        (["Type=notify", "KillMode=mixed", "ExecStart=/bin/sh -c 'exec gunicorn app:app'"], "ok", "Type=notify"),
        (["Type=notify", "KillMode=mixed", "Environment=PWD=/"], "error", "Environment=PWD=/ is not the Working"),
        (
            ["Type=notify", "KillMode=mixed", "WorkingDirectory=/"],
            "warning",
            "it starts in /, and this check has run in",
        ),
    ],
)
def test_what_a_unit_says(check: Check, site: Site, lines: list[str], level: str, said: str) -> None:
    code = FAILED if level == "error" else DONE
    found = check.found("--unit", unit(site, *lines), "-k", DEFAULT_CLASS, "app:app", code=code)
    assert any(said in text for found_level, about, text in found if (found_level, about) == (level, "systemd")), found


def test_a_link_that_a_reload_would_not_follow(check: Check, site: Site) -> None:
    site.release("one")
    file = unit(site, "Type=notify", "KillMode=mixed", f"WorkingDirectory={site.directory}/current")
    found = check.found("--unit", file, "--chdir", f"{site.directory}/current", "-k", DEFAULT_CLASS, "app:app")
    (told,) = [text for level, _, text in found if level == "warning" and "PWD" in text]
    assert f"add Environment=PWD={site.directory}/current" in told


def test_the_unit_of_the_directory_is_found_and_systemd_is_asked(check: Check, site: Site) -> None:
    """In the place of systemd's own program there is one that answers as it does, in its own words."""
    units = site.directory / "config" / "systemd" / "user"
    units.mkdir(parents=True)
    Path(unit(site, "Type=notify")).rename(units / "app.service")
    words = ("-k", DEFAULT_CLASS, "app:app")
    found = check.found(*words)
    assert any("app.service: KillMode=control-group" in text for _, _, text in found)
    (site.directory / "bin").mkdir()
    answer = "LoadState=loaded\nType=exec\nNotifyAccess=none\nKillMode=mixed\nTimeoutStopUSec=1min 30s\n"
    program = site.directory / "bin" / "systemctl"
    program.write_text(f"#!/bin/sh\ncat <<'end'\n{answer}WorkingDirectory={site.directory}\nend\n")
    program.chmod(0o755)
    path = f"{site.directory}/bin:{os.environ['PATH']}"
    (told,) = [text for _, about, text in check.found(*words, PATH=path) if about == "systemd"]
    assert told.startswith("app.service: with Type=exec a start is over")


def test_the_recipes_unit_is_well(check: Check, site: Site) -> None:
    text = (DEPLOY / "systemd" / "app.service").read_text().replace("/srv/app/current", str(site.directory))
    file = site.write("app.service", text)
    found = check.found("--unit", str(file), "-k", DEFAULT_CLASS, "app:app")
    assert [level for level, about, _ in found if about == "systemd"] == ["ok"]


def test_a_unit_that_is_not_there(check: Check) -> None:
    assert (
        "there is no unit nothing.service" in check.error("--unit", "nothing", "-k", DEFAULT_CLASS, "app:app")["text"]
    )


def test_the_directory_of_the_control_socket(check: Check, site: Site) -> None:
    words = ("-k", DEFAULT_CLASS, "app:app")
    directory = check.runtime / "zdworker"
    directory.mkdir(mode=0o755)
    error = check.error(*words)
    assert error["about"] == "control socket"
    assert f"chmod 700 {directory}" in error["text"]
    elsewhere = check.error(*words, ZD_CONTROL_SOCKET=f"{site.directory}/no/app.sock")
    assert f"{site.directory}/no cannot be looked at" in elsewhere["text"]
    found = check.found(*words, ZD_CONTROL_SOCKET="none")
    assert any(about == "control socket" and text.startswith("none") for _, about, text in found)


# -- for programs --------------------------------------------------------------------------------------------------


def test_arguments_that_gunicorn_does_not_know_are_misuse(check: Check) -> None:
    assert "unrecognized arguments: --nonsense" in check.run("--nonsense", "app:app", code=MISUSE).stderr
    plain = check.json("--nonsense", "app:app", code=MISUSE)
    assert plain["result"] == "misuse"
    assert "--nonsense" in plain["error"]


def test_options_of_the_check_may_stand_anywhere(check: Check) -> None:
    plain = json.loads(check.run("-k", DEFAULT_CLASS, "app:app", "--json").stdout)
    assert plain["result"] == "done"


def test_what_the_application_prints_is_not_in_the_output(check: Check, site: Site) -> None:
    site.deploy("one", extra='\nprint("{" * 100_000, flush=True)\nos.write(2, b"noise" * 100_000)\n')
    assert check.json("-k", DEFAULT_CLASS, "app:app")["result"] == "done"
