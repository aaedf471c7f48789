"""Tools that run Gunicorn (``coverage run -m gunicorn``, a debugger, a profiler) are run once more for generations."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from tests.harness.application_site import Site
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start, run_once

SAVES = """
import os
import runpy
import sys

sys.argv[:] = sys.argv[sys.argv.index("gunicorn"):]
try:
    runpy.run_module("gunicorn", run_name="__main__", alter_sys=True)
finally:
    with open(f"found.{os.getpid()}", "w"):
        pass
"""
"""Stands for profilers: it saves for each process what it has found, when Gunicorn has ended there."""

STARTS_AGAIN = """
import contextlib
import os
import runpy
import sys

sys.argv[:] = sys.argv[sys.argv.index("gunicorn"):]
with contextlib.suppress(SystemExit):
    runpy.run_module("gunicorn", run_name="__main__", alter_sys=True)
if os.environ["ZD_GENERATION"] != "0":
    runpy.run_module("gunicorn", run_name="__main__", alter_sys=True)
"""
"""Passes over the exit of Gunicorn, in the processes of workers too."""

FOLLOWS_FORKS = """
import os
import runpy
import sys

fork = os.fork


def traced():
    pid = fork()
    if pid == 0:
        with open("traced.txt", "a") as file:
            print(os.getpid(), os.getppid(), file=file)
    return pid


os.fork, os._exit = traced, sys.exit  # the latter is scalene's
sys.argv[:] = sys.argv[sys.argv.index("gunicorn"):]
runpy.run_module("gunicorn", run_name="__main__", alter_sys=True)
"""
"""Stands for debuggers (pydevd): each forked process gets a debugger of its own, which waits for its client."""

KEEPS_ONE_FILE = """
import runpy
import sys

try:
    open("profile.bin", "x").close()
except FileExistsError:
    sys.exit("profile.bin exists")
sys.argv[:] = sys.argv[sys.argv.index("gunicorn"):]
runpy.run_module("gunicorn", run_name="__main__", alter_sys=True)
"""
"""Stands for ``memray run -o profile.bin``."""

KEEPS_A_FILE_OF_EACH_PROCESS = KEEPS_ONE_FILE.replace('"profile.bin"', "f\"profile.{__import__('os').getpid()}.bin\"")
"""Stands for ``memray run``: a fork server that starts once more has the pid that it had."""

THREAD = """

import threading

threading.Thread(target=threading.Event().wait, daemon=True).start()
"""

ONCE = """
import os

os.environ.pop("PYTHONPATH")  # so that processes which the application starts are not instrumented
os.environ["INSTRUMENTED"] = str(os.getpid())
"""
"""Stands for agents that a wrapper has put into PYTHONPATH (``opentelemetry-instrument``), and that leave it again."""

WITH_THREADS = """
import _thread
import os
import threading


def of_a_library():
    threading.current_thread()  # from now on Python knows it
    threading.Event().wait()


def begin():
    threading.Thread(target=threading.Event().wait, name="exporter", daemon=True).start()
    _thread.start_new_thread(of_a_library, ())


begin()
os.register_at_fork(after_in_child=begin)
"""
"""Stands for agents that export what they have found in threads of their own, in each process (``ddtrace-run``)."""

INSTRUMENTED = """

mark("instrumented", by=os.environ.get("INSTRUMENTED", ""), parent=os.getppid())
"""


@pytest.fixture
def start_with_tool(make_server: Start, site: Site) -> Start:
    """Start a server whose command has a tool in front of Gunicorn."""

    def start(tool: str) -> Server:
        site.write("tool.py", tool)
        return make_server(command=(sys.executable, "-m", "tool", "-m", "gunicorn")).start()

    return start


def test_tools_save_what_they_have_found_in_each_worker(start_with_tool: Start, site: Site) -> None:
    server = start_with_tool(SAVES)
    first = server.workers()
    server.reload("two")
    second = server.workers()
    assert server.stop() == 0
    saved = {int(path.suffix[1:]) for path in site.directory.glob("found.*")}
    assert saved == {server.master, *first, *second}


def test_a_tool_that_passes_over_the_exit_of_a_worker(start_with_tool: Start) -> None:
    server = start_with_tool(STARTS_AGAIN)
    server.reload("two")
    assert "ERROR" not in server.log
    assert server.stop() == 0
    server.wait_nothing_left(BOOT_TIMEOUT_S)


def test_coverage_of_what_workers_run(make_server: Start, site: Site) -> None:
    site.write("where.ini", "[run]\nparallel = true\nsource = .\n")
    server = make_server(command=(sys.executable, "-m", "coverage", "run", "--rcfile", "where.ini", "-m", "gunicorn"))
    server.start()
    assert server.get("/")["version"] == "one"
    workers = server.workers()
    assert server.stop() == 0
    named = {path.name.partition("pid")[2].partition(".")[0] for path in site.directory.glob(".coverage.*")}
    assert named >= {str(pid) for pid in workers}
    assert run_once(site, "coverage", "combine", "--rcfile", "where.ini", deadline=BOOT_TIMEOUT_S).returncode == 0
    report = run_once(
        site, "coverage", "report", "--rcfile", "where.ini", "--include", "app.py", deadline=BOOT_TIMEOUT_S
    ).stdout
    assert "app.py" in report


def test_debuggers_follow_workers_and_nothing_else(start_with_tool: Start, site: Site) -> None:
    """The process between the fork server and the worker would have its debugger wait as well, for a client; and the
    client is asked to take the worker by what it knows of its parent.
    """
    server = start_with_tool(FOLLOWS_FORKS)
    workers = server.workers()
    traced = [tuple(map(int, line.split())) for line in (site.directory / "traced.txt").read_text().splitlines()]
    assert sorted(traced) == [(pid, server.master) for pid in sorted(workers)]
    assert server.stop() == 0


def test_a_tool_that_cannot_run_twice_is_named(make_server: Start, site: Site) -> None:
    site.write("tool.py", KEEPS_ONE_FILE)
    server = make_server(command=(sys.executable, "-m", "tool", "-m", "gunicorn")).launch()
    assert server.wait_exit(BOOT_TIMEOUT_S) == 1
    assert "tool is a part of the command, which was run once more to load generation 1" in server.log
    assert f"(exit 1, at {site.directory}/tool.py, line 8): profile.bin exists" in server.log


def test_a_tool_that_runs_once_in_each_process(make_server: Start, site: Site) -> None:
    """Where the import finds a thread, the fork server would start once more."""
    site.write("tool.py", KEEPS_A_FILE_OF_EACH_PROCESS)
    site.deploy("one", extra=THREAD)
    server = make_server(command=(sys.executable, "-m", "tool", "-m", "gunicorn"))
    bind = "%s:%s" % server.address
    own = f"bind = {bind!r}\nworker_class = 'zdworker.UvicornWorker'\nworkers = 2\n"
    site.write("gunicorn.conf.py", f"{own}control_socket = {str(site.directory / 'gunicorn.ctl')!r}\n")
    server.launch_as_is().wait_full()
    assert server.stop() == 0


def test_agents_that_take_themselves_out_of_pythonpath(make_server: Start, site: Site) -> None:
    agent = site.directory / "agent"
    agent.mkdir()
    (agent / "sitecustomize.py").write_text(ONCE)
    site.deploy("one", extra=INSTRUMENTED)
    server = make_server(environment={"PYTHONPATH": os.pathsep.join([str(agent), str(Path.cwd())])}).start()
    site.deploy("two", extra=INSTRUMENTED)
    server.signal(server.reload_signal)
    server.wait_only("two")
    marks = [*site.marks("instrumented", "one"), *site.marks("instrumented", "two")]
    assert marks
    assert "" not in {mark["by"] for mark in marks}
    assert str(server.master) not in {mark["by"] for mark in marks}
    assert server.stop() == 0


def test_threads_of_agents_are_not_the_application_s(make_server: Start, site: Site) -> None:
    agent = site.directory / "agent"
    agent.mkdir()
    (agent / "sitecustomize.py").write_text(WITH_THREADS)
    server = make_server(environment={"PYTHONPATH": os.pathsep.join([str(agent), str(Path.cwd())])}).start()
    server.reload("two")
    assert "started threads" not in server.log
    threads = [psutil.Process(pid).num_threads() for pid in server.workers()]
    assert min(threads) > 2
    assert server.stop() == 0
