"""A configuration that imports: the hooks in the master are those of the last deploy, whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import control_client
from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from zdworker.command import client
from zdworker.ipc.messages import Order, Outcome

HOOKS = """
import os
import sys

import values

VERSION = {version!r}


def say(hook):
    import late

    same = values is sys.modules.get("values") and vars(sys.modules.get(__name__)) is globals()
    descriptor = os.open({said!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, " ".join([hook, VERSION, values.VALUE, late.VALUE, str(same), __file__]).encode() + b"\\n")
    os.close(descriptor)


def on_reload(server):
    say("on_reload")


def child_exit(server, worker):
    say("child_exit")
"""
"""A module with hooks, which imports another one at once, and a third when a hook is called."""

IMPORTS = "\nfrom hooks import child_exit, on_reload\n"


class Deployed:
    """The modules of a configuration, and what the hooks in the master have said of them.

    :param place: the directory that they are in.
    """

    def __init__(self, site: Site, place: Path | None = None) -> None:
        self.said = site.directory / "said.txt"
        self.place = place or site.directory
        self._site = site

    def write(self, version: str) -> None:
        """Deploy the modules in a version whose name has as many letters as the others: same size, same times."""
        self.put("hooks.py", HOOKS.format(version=version, said=str(self.said)))
        self.put("values.py", f"VALUE = {version!r}\n")
        self.put("late.py", f"VALUE = {version!r}\n")

    def put(self, name: str, text: str) -> None:
        path, new = self.place / name, self.place / f".{name}.new"
        new.write_text(text)
        os.utime(new, (1_700_000_000, 1_700_000_000))
        os.replace(new, path)

    def lines(self, hook: str) -> list[list[str]]:
        words = [line.split() for line in self.said.read_text().splitlines()] if self.said.exists() else []
        return [found for found in words if found[0] == hook]

    def next_line(self, hook: str, after: int) -> list[str]:
        """Wait for the next line of a hook, after those that there were."""
        return wait_for(lambda: self.lines(hook)[after:], BOOT_TIMEOUT_S, f"{hook} is called")[0]

    def crash(self, server: Server) -> list[str]:
        """Kill a worker; return what child_exit has said of it."""
        server.wait_full()
        said = len(self.lines("child_exit"))
        os.kill(server.workers()[0], signal.SIGKILL)
        return self.next_line("child_exit", said)


def outcome(server: Server, command: str, meanwhile: Callable[[], None] = lambda: None) -> Outcome:
    """Order something of the master, and return how that has ended.

    :param meanwhile: is called when it has begun.
    """
    with client.Connection(control_client.control_socket(server)) as connection:
        connection.order(Order(command, wait=True))
        meanwhile()
        while not isinstance(message := connection.receive(time.monotonic() + 2 * BOOT_TIMEOUT_S), Outcome):
            pass
        return message


def controlled(site: Site) -> dict[str, str]:
    """Return the setting with which :func:`outcome` finds the master."""
    return {"zd_control_socket": str(site.directory / "control.sock")}


@pytest.mark.parametrize("way", ["file", "module"])
def test_hooks_and_values_are_new_together(make_server: Start, site: Site, way: str) -> None:
    """Every module of the configuration is as deployed, though Python's cache has the one before of the same size."""
    deployed = Deployed(site)
    deployed.write("aaa")
    server = make_server(extra=IMPORTS, environment={"PYTHONDONTWRITEBYTECODE": ""})
    if way == "module":
        server.words[server.words.index("gunicorn.conf.py")] = "python:deployment"
        server.configure()
        shutil.copy(site.directory / "gunicorn.conf.py", site.directory / "deployment.py")
    server.start()
    assert deployed.crash(server)[1:5] == ["aaa", "aaa", "aaa", "True"]
    for number, version in enumerate(("bbb", "ccc")):
        deployed.write(version)
        # A name that the module did not have before: with the one from the cache the configuration cannot be evaluated.
        deployed.put("values.py", f"VALUE = {version!r}\nNEW_{version} = 1\n")
        server.extra = IMPORTS + f"from values import NEW_{version}\n"
        server.configure()
        if way == "module":
            shutil.copy(site.directory / "gunicorn.conf.py", site.directory / "deployment.py")
        server.reload(version)
        assert deployed.next_line("on_reload", number)[1:5] == [version, version, version, "True"]
        assert deployed.crash(server)[1:5] == [version, version, version, "True"]
    assert server.stop() == 0


def test_hooks_come_from_the_release_that_is_current(make_server: Start, site: Site) -> None:
    """The interpreter has put the first release into ``sys.path``: the directory of the script, without links."""

    def release(version: str) -> Path:
        site.release(version)
        place = (site.directory / "current").resolve()
        (place / "serve.py").write_text("from gunicorn.app.wsgiapp import run\n\nrun()\n")
        Deployed(site, place).write(version)
        return place

    deployed, first = Deployed(site), release("one")
    server = make_server(command=[sys.executable, "current/serve.py"], extra=IMPORTS)
    server.start()
    assert deployed.crash(server)[5] == str(first / "hooks.py")
    second = release("two")
    server.signal(signal.SIGUSR2)
    server.wait_only("two")
    shutil.rmtree(first)
    assert deployed.next_line("on_reload", 0)[1:] == ["two", "two", "two", "True", str(second / "hooks.py")]
    assert deployed.crash(server)[1:] == ["two", "two", "two", "True", str(second / "hooks.py")]
    assert server.stop() == 0


ONLY_IN_THE_MASTER = """
import os, time

if os.path.exists("trouble"):
    with open("trouble") as file:
        pid, trouble = file.read().split()
    if int(pid) == os.getpid():
        open(trouble, "w").close()
        {"raise": lambda: 1 / 0, "hang": lambda: time.sleep(3600)}[trouble]()
"""
"""A module that raises or hangs in the process that a file names; the generation has no trouble with it."""


def test_an_evaluation_that_fails_changes_nothing(start: Start, site: Site) -> None:
    deployed = Deployed(site)
    deployed.write("aaa")
    deployed.put("troubled.py", ONLY_IN_THE_MASTER)
    server = start(extra=IMPORTS + "import troubled\n", zd_boot_timeout=30, **controlled(site))
    assert deployed.crash(server)[1:5] == ["aaa", "aaa", "aaa", "True"]
    trouble = site.directory / "trouble"
    deployed.write("bbb")
    site.deploy("two")

    def crash_meanwhile() -> None:
        wait_for((site.directory / "hang").exists, BOOT_TIMEOUT_S, "the evaluation hangs in the master")
        assert deployed.crash(server)[1:5] == ["aaa", "aaa", "aaa", "True"]

    for kind, reason in (("raise", "cannot be evaluated"), ("hang", "zd_boot_timeout")):
        trouble.write_text(f"{server.master} {kind}")
        failed = outcome(server, "reload", crash_meanwhile if kind == "hang" else lambda: None)
        assert failed.result == "failed"
        assert reason in failed.error
        assert deployed.crash(server)[1:5] == ["aaa", "aaa", "aaa", "True"]
    trouble.unlink()
    server.wait_full()
    server.reload("two")
    assert deployed.next_line("on_reload", 0)[1:5] == ["bbb", "bbb", "bbb", "True"]
    assert deployed.crash(server)[1:5] == ["bbb", "bbb", "bbb", "True"]
    assert server.stop() == 0


def test_a_rollback_brings_the_modules_back(start: Start, site: Site) -> None:
    deployed = Deployed(site)
    deployed.write("aaa")
    server = start(extra=IMPORTS, preload_app=True, zd_rollback_window=600, **controlled(site))
    assert deployed.crash(server)[1:5] == ["aaa", "aaa", "aaa", "True"]
    deployed.write("bbb")
    site.deploy("two")
    assert outcome(server, "reload").result == "done"
    assert deployed.crash(server)[1:5] == ["bbb", "bbb", "bbb", "True"]
    assert outcome(server, "rollback").result == "done"
    assert deployed.next_line("on_reload", 1)[1:5] == ["aaa", "aaa", "aaa", "True"]
    assert deployed.crash(server)[1:5] == ["aaa", "aaa", "aaa", "True"]
    assert server.stop() == 0
