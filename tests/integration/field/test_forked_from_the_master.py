"""Where workers are forked from the master, "done" is said only when they run what is on disk."""

from __future__ import annotations

import os
import sys

import gunicorn
import pytest

from tests.harness.application_site import Site
from tests.harness.control_client import reload
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

PROGRAM = """
import multiprocessing
import os

from gunicorn.app.base import BaseApplication


class Embedded(BaseApplication):
    def __init__(self, application, options):
        self.application, self.options = application, options
        super().__init__()

    def load_config(self):
        for name, value in self.options.items():
            self.cfg.set(name, value)

    def load(self):
        if self.application is not None:
            return self.application
        from app import app

        return app


def serve():
    with open("pid.new", "w") as file:
        file.write(str(os.getpid()))
    os.rename("pid.new", "pid")
    application = None
    if {hands_over!r}:
        from app import app as application
    Embedded(application, {options!r}).run()


def fork():
    pid = os.fork()
    if pid == 0:
        serve()
        os._exit(0)
    os.waitpid(pid, 0)


def start_child():
    child = multiprocessing.get_context({way!r}).Process(target=serve)
    child.start()
    child.join()


if __name__ == "__main__":
    with open("launches", "a") as file:
        file.write("launched\\n")
    fork() if {way!r} == "os.fork" else start_child()
"""
"""An embedding program, which serves in a child."""

WAYS = ("fork", "spawn", "os.fork")


def program(server: Server, way: str, *, hands_over: bool) -> str:
    """Return the program's text."""
    own = {"control_socket": str(server.site.directory / "gunicorn.ctl")} if gunicorn.version_info >= (25, 1) else {}
    return PROGRAM.format(options={**server.settings, **own}, way=way, hands_over=hands_over)


def embedded(server: Server, site: Site, way: str, *, hands_over: bool) -> Server:
    """Start the program, and go on with its child as the master."""
    site.write("program.py", program(server, way, hands_over=hands_over))
    server.words = [sys.executable, "program.py"]
    server.launch_as_is()
    pid = site.directory / "pid"
    wait_for(pid.exists, BOOT_TIMEOUT_S, "the child has begun")
    server.master = int(pid.read_text())
    server.wait_full()
    return server


@pytest.mark.parametrize("way", WAYS)
def test_an_application_that_was_handed_over(make_server: Start, site: Site, way: str) -> None:
    server = embedded(make_server(workers=2), site, way, hands_over=True)
    workers = server.workers()
    assert reload(server)["result"] == "done"  # nothing has changed
    wait_for(lambda: not any(alive(pid) for pid in workers), BOOT_TIMEOUT_S, "no worker of before is left")
    site.deploy("two")
    workers = server.workers()
    last = reload(server)
    assert last["result"] == "failed"
    assert f"changed on disk: app ({site.directory / 'app.py'}); restart the program" in last["error"]
    assert server.workers() == workers
    assert server.get()["version"] == "one"
    assert (site.directory / "launches").read_text() == "launched\n"


@pytest.mark.parametrize("way", ["fork", "os.fork"])
def test_an_application_that_each_worker_imports(make_server: Start, site: Site, way: str) -> None:
    server = embedded(make_server(workers=2), site, way, hands_over=False)
    site.deploy("two")
    assert reload(server)["result"] == "done"
    assert server.get()["version"] == "two"
    file = site.directory / "program.py"
    site.write("program.py", file.read_text() + "\n# another program\n")
    last = reload(server)
    assert last["result"] == "failed"
    assert str(file) in last["error"]
    assert (site.directory / "launches").read_text() == "launched\n"


def test_a_link_that_leads_elsewhere_by_now(make_server: Start, site: Site) -> None:
    """What was imported by the directory's own name is unchanged there, and a start would find another release."""
    site.release("one")
    current, physical = site.directory / "current", site.directory / "releases" / "one"
    server = make_server(workers=2)
    (physical / "program.py").write_text(program(server, "os.fork", hands_over=True))
    server.environment["PWD"] = str(current)
    server.words = ["sh", "-c", 'cd "$0" && exec "$@"', str(current), sys.executable, str(physical / "program.py")]
    server.launch_as_is()
    wait_for((physical / "pid").exists, BOOT_TIMEOUT_S, "the child has begun")
    server.master = int((physical / "pid").read_text())
    server.wait_full()
    site.release("two")
    last = reload(server)
    assert last["result"] == "failed"
    assert f"imports from {os.path.realpath(physical)}" in last["error"]
    assert server.get()["version"] == "one"
