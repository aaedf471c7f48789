"""What must not go wrong unseen: refused in one line where it cannot work, said in the log where it can."""

from __future__ import annotations

import signal
import socket
import sys

import pytest

from tests.harness import control_client, processes
from tests.harness.application_site import LOOKS, Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

PRELOAD = pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])


# -- refused at the start ------------------------------------------------------------------------------------


def refusals(server: Server, name: str) -> list[str]:
    """Return the lines that name the cause; it ends with 1, and without a traceback."""
    server.launch()
    assert server.wait_exit(BOOT_TIMEOUT_S) == 1
    assert "Traceback" not in server.log
    server.wait_nothing_left(10)
    return [line for line in server.log.splitlines() if name in line]


def assert_refused(server: Server, name: str) -> None:
    """It ends with 1 and one line that names the cause."""
    assert len(refusals(server, name)) == 1, server.log


PATCHED = """
import sys as _sys
import types as _types

_monkey = _types.ModuleType("gevent.monkey")
_monkey.is_module_patched = lambda name: True
_sys.modules["gevent.monkey"] = _monkey
"""


def test_master_that_gevent_has_patched(make_server: Start) -> None:
    assert_refused(make_server(extra=PATCHED), "gevent")


@pytest.mark.parametrize(
    "name", ["Arbiter.murder_workers", "Arbiter.wakeup", "Arbiter.kill_workers", "sock._sock_type"]
)
def test_gunicorn_that_lacks_something(make_server: Start, name: str) -> None:
    """Missing is missing, also where zdworker has an attribute of that name itself."""
    lacking = f"\nfrom gunicorn import sock\nfrom gunicorn.arbiter import Arbiter\n\ndel {name}\n"
    assert_refused(make_server(extra=lacking), name.partition(".")[2])


def test_worker_class_with_a_typing_mistake(make_server: Start) -> None:
    assert_refused(make_server(worker_class="zdworker.UvicornWorkr"), "UvicornWorkr")


def test_uvicorn_that_is_too_old(make_server: Start) -> None:
    server = make_server(extra="\nimport uvicorn\n\ndel uvicorn.Config.get_loop_factory\n")
    assert refusals(server, "pip install 'uvicorn>=0.36'"), server.log


PYWSGI = """
from zdworker import GeventWorker


class Worker(GeventWorker):
    server_class = object
"""


def test_gevent_with_a_server_of_its_own(make_server: Start, site: Site) -> None:
    site.serve("wsgi")
    site.write("pywsgi.py", PYWSGI)
    server = make_server(worker_class="pywsgi.Worker")
    assert refusals(server, "pywsgi.Worker.server_class"), server.log


SUBCLASS = """
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.arbiter import Arbiter


class Own(Arbiter):
    def manage_workers(self):
        super().manage_workers()


class Launcher(WSGIApplication):
    def run(self):
        Own(self).run()


Launcher("%(prog)s").run()
"""


def test_launcher_with_a_subclass_of_the_arbiter(make_server: Start, site: Site) -> None:
    """What it overrides would have no effect."""
    site.write("launch.py", SUBCLASS)
    assert_refused(make_server(command=[sys.executable, "launch.py"]), "manage_workers")


# -- refused at a reload -------------------------------------------------------------------------------------

OTHER_PROTOCOL = """
import zdworker.forkserver.server as _forkserver

if _os.path.exists("other_protocol"):
    _forkserver.PROTOCOL += 1
"""


def test_reload_to_a_class_with_a_typing_mistake(start: Start, site: Site) -> None:
    control = str(site.directory / "control.sock")
    server = start(zd_control_socket=control)
    server.configure(worker_class="app.NoSuchWorker")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: control_client.status(server)["state"] == "failed", BOOT_TIMEOUT_S, "the reload has failed")
    assert "'app.NoSuchWorker': there is no such class" in control_client.status(server)["last_reload"]["error"]


def test_generation_of_another_protocol(start: Start, site: Site) -> None:
    """A deploy has upgraded zdworker to one that this master cannot speak to."""
    server = start(extra=OTHER_PROTOCOL)
    workers, before = server.workers(), server.fork_servers()
    upgraded = site.write("other_protocol", "")
    site.deploy("refused")
    assert control_client.reload(server)["result"] == "failed"
    wait_for(lambda: server.fork_servers() == before, BOOT_TIMEOUT_S, "the new generation has been given up")
    assert server.wait_full() == workers
    assert site.marks("import", "refused") == []
    upgraded.unlink()
    server.reload("two")


# -- what a fork server has, and what its children share -----------------------------------------------------


@PRELOAD
@pytest.mark.parametrize("way", ["bind", "descriptor"])
def test_fork_server_has_no_listening_socket(make_server: Start, preload: bool, way: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        handed_over = {"bind": f"fd://{number}", "pass_fds": [number]} if way == "descriptor" else {}
        server = make_server(preload_app=preload, **handed_over)
        server.start()
        for version in ("two", "three"):
            (pid,) = server.fork_servers()
            assert processes.listeners(pid) == set()
            server.reload(version)


RANDOM = """

import random

_startup = lifespan


async def lifespan(receive, send):
    mark("random", number=random.random())
    await _startup(receive, send)
"""


@PRELOAD
def test_workers_draw_different_random_numbers(start: Start, site: Site, preload: bool) -> None:
    site.deploy("one", extra=RANDOM)
    start(workers=3, preload_app=preload)
    assert len({mark["number"] for mark in site.marks("random")}) == 3


THREAD = """

import threading

threading.Thread(target=time.sleep, args=(600,), name="thread_of_the_import", daemon=True).start()
"""


def test_thread_that_a_preloaded_import_has_started(start: Start, site: Site) -> None:
    site.deploy("one", extra=THREAD)
    server = start(preload_app=True)
    wait_for(lambda: "thread_of_the_import" in server.log, BOOT_TIMEOUT_S, "the thread is named in the log")
    assert server.get()["version"] == "one"
    server.reload("two")
    assert server.stop() == 0


NOT_PLAIN = """

def pre_fork(server, worker):
    server.lock_of_the_server = object()
    server.keys_are_numbers = {1: 2}
    worker.lock_of_the_worker = object()
    worker.contains_itself = []
    worker.contains_itself.append(worker.contains_itself)


def post_fork(server, worker):
    names = ("lock_of_the_server", "keys_are_numbers", "lock_of_the_worker", "contains_itself")
    _note("seen", names=[name for name in names if hasattr(server, name) or hasattr(worker, name)])
"""


def test_attribute_of_a_hook_that_is_not_plain_data(start: Start, site: Site) -> None:
    server = start(extra=NOT_PLAIN)
    for name in ("lock_of_the_server", "keys_are_numbers", "lock_of_the_worker", "contains_itself"):
        wait_for(lambda: name in server.log, BOOT_TIMEOUT_S, f"{name} is in the log")  # noqa: B023  # at once
    assert [event["names"] for event in site.events("seen")] == [[], []]
    assert server.get()["pid"] in server.workers()


# -- places --------------------------------------------------------------------------------------------------


def test_a_server_without_pwd_says_so_and_works(make_server: Start) -> None:
    """Without PWD nobody knows by which link a directory was entered: it is said, and the rest works."""
    server = make_server()
    del server.environment["PWD"]
    server.start()
    wait_for(lambda: "PWD" in server.log, BOOT_TIMEOUT_S, "it is in the log")
    server.reload("two")
    assert server.stop() == 0


def test_absolute_chdir_without_pwd(make_server: Start, site: Site) -> None:
    site.release("one")
    server = make_server()
    conf, current = str(site.directory / "gunicorn.conf.py"), str(site.directory / "current")
    server.words = [sys.executable, "-m", "gunicorn", "-c", conf, "--chdir", current, "app:app"]
    del server.environment["PWD"]
    server.start()
    site.release("two")
    server.signal(signal.SIGUSR2)
    server.wait_only("two")
    assert server.get("/identity")["directory"] == str((site.directory / "releases" / "two").resolve())


# -- ways of working -----------------------------------------------------------------------------------------


def test_winch_to_a_daemon(make_server: Start, site: Site) -> None:
    """No workers until the next reload, the master stays: as in stock Gunicorn."""
    server = make_server("--daemon", pidfile="gunicorn.pid", errorlog=str(site.directory / "error.txt"))
    server.launch()
    assert server.wait_exit(BOOT_TIMEOUT_S) == 0
    pidfile = site.directory / "gunicorn.pid"
    wait_for(lambda: pidfile.exists() and pidfile.read_text().strip(), BOOT_TIMEOUT_S, "the pidfile is written")
    server.adopt(int(pidfile.read_text()))
    server.wait_full()
    server.signal(signal.SIGWINCH)
    wait_for(lambda: not server.workers(), 8, "no worker is left")
    assert server.running
    server.reload("two")
    assert server.get()["version"] == "two"
    server.signal(signal.SIGTERM)
    server.wait_nothing_left(BOOT_TIMEOUT_S)


def test_quick_edits_in_development(start: Start, site: Site) -> None:
    """``--reload``: edits some seconds apart, each of them served soon (Gunicorn rules out ``--preload`` with it)."""
    server = start("--reload", workers=1, reload_engine="poll", extra=LOOKS)
    for version in ("two", "three", "four"):
        # Gunicorn's reloader looks at the files once a second, and takes a file's time when it first sees it: an edit
        # within its first two looks is passed over, in stock too.
        (pid,) = server.workers()
        wait_for(lambda: looks(site, pid) > 2, BOOT_TIMEOUT_S, "it has looked twice")  # noqa: B023  # at once
        site.deploy(version)
        server.wait_only(version)
        assert server.get()["version"] == version


def looks(site: Site, pid: int) -> int:
    """Return how many looks at the files the reloader of a worker has begun."""
    return sum(event["by"] == pid for event in site.events("look"))
