"""What a preloaded application does with signals at import is not what its fork server forks by."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest

from tests.harness.application_site import Site
from tests.harness.control_client import status
from tests.harness.processes import alive, read_process, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Start

IGNORES = "\nimport signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"

REAPS = """
import signal

def reap(signum, frame):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

signal.signal(signal.SIGCHLD, reap)
"""

RAISES = """
import signal

def end(signum, frame):
    raise SystemExit(signum)

for signum in (signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGWINCH):
    signal.signal(signum, end)
"""

REAPS_IN_A_THREAD = """
import threading

def reap():
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.0005)

threading.Thread(target=reap, daemon=True).start()
"""


def gone(pid: int) -> bool:
    return not alive(pid)


HABITS = {"ignores": IGNORES, "reaps": REAPS, "raises": RAISES, "reaps in a thread": REAPS_IN_A_THREAD}


@pytest.mark.parametrize("code", HABITS.values(), ids=HABITS)
def test_an_application_with_handlers_of_its_own_is_forked_from(start: Start, site: Site, code: str) -> None:
    """Stock starts with each of them."""
    site.deploy("one", extra=code)
    server = start(preload_app=True, workers=4, zd_control_socket=str(site.directory / "control.sock"))
    before = server.fork_servers()
    for _ in range(5):
        victim = server.workers()[0]
        os.kill(victim, signal.SIGKILL)
        wait_for(partial(gone, victim), BOOT_TIMEOUT_S, "it is gone")
        server.wait_full()
    for quiet in (signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH):
        os.kill(before[0], quiet)
    victim = server.workers()[0]
    os.kill(victim, signal.SIGKILL)
    wait_for(partial(gone, victim), BOOT_TIMEOUT_S, "it is gone")
    server.wait_full()
    assert server.fork_servers() == before
    wait_for(lambda: status(server)["state"] == "steady", BOOT_TIMEOUT_S, "the fleet is steady")
    assert "was not expected" not in server.log
    wait_for(lambda: not server.zombies(), BOOT_TIMEOUT_S, "no zombie is left")
    assert server.stop() == 0


FAILS_LATER = """
import os as _os
from zdworker import syscalls as _syscalls

_failing = _syscalls.plain_fork


def _fork_or_fail():
    if _os.path.exists("failing"):
        _os.remove("failing")
        raise RuntimeError("this fork server has had enough")
    return _failing()


_syscalls.plain_fork = _fork_or_fail
"""


def test_a_fork_server_that_fails_after_it_has_loaded_is_an_ordinary_loss(start: Start, site: Site) -> None:
    server = start(workers=2, extra=FAILS_LATER, zd_control_socket=str(site.directory / "control.sock"))
    (before,) = server.fork_servers()
    (site.directory / "failing").touch()
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_for(lambda: read_process(before) is None, BOOT_TIMEOUT_S, "it has failed, and is reaped")
    server.wait_full()
    wait_for(lambda: "this fork server has had enough" in server.log, BOOT_TIMEOUT_S, "the log has the reason")
    assert "was not expected" not in server.log
    assert [server["generation"] for server in status(server)["fork_servers"]] == [2]


DIES_BEFORE_FORKED = """
import os as _os
import signal as _signal
from zdworker.forkserver import server as _fork_server, worker_boot as _worker_boot

_waiting = _fork_server._waitpid


def _die_instead(*arguments):
    result = _waiting(*arguments)
    if _os.path.exists("armed"):
        while not _os.path.exists("greeted"):
            pass
        _os.remove("armed")
        _os.kill(_os.getpid(), _signal.SIGKILL)
    return result


class _Stopping(_worker_boot.Channel):
    def receive(self):
        if _os.path.exists("armed") and not _os.path.exists("greeted"):
            with open("pid", "w") as file:
                file.write(str(_os.getpid()))
            _os.rename("pid", "greeted")
            _os.kill(_os.getpid(), _signal.SIGSTOP)
        return super().receive()


_fork_server._waitpid = _die_instead
_worker_boot.Channel = _Stopping
"""


@pytest.mark.load
def test_a_stopped_worker_whose_fork_server_died_before_it_reported_the_fork_is_killed(
    start: Start, site: Site
) -> None:
    """It reads nothing, so that it does not learn that it is called off."""
    armed, greeted = site.directory / "armed", site.directory / "greeted"
    server = start(workers=2, extra=DIES_BEFORE_FORKED)
    armed.touch()
    os.kill(server.workers()[0], signal.SIGKILL)
    stopped = int(wait_for(lambda: greeted.exists() and greeted.read_text(), BOOT_TIMEOUT_S, "the worker has greeted"))
    wait_for(lambda: not alive(stopped), BOOT_TIMEOUT_S, "the stopped worker is killed")
    server.wait_full()
    assert stopped not in server.workers()
    wait_for(lambda: not server.zombies(), BOOT_TIMEOUT_S, "no zombie is left")
