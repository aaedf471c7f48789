"""What goes along besides the workers: sockets, WebSockets, files, what systemd knows, what hooks have set."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import gunicorn
import pytest
from websockets.asyncio.client import connect

from tests.harness import control_client, processes
from tests.harness.application_site import Site
from tests.harness.clients import Client, request
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from zdworker import boot
from zdworker.errors import OrderRefused

HOOKS = """
import os

def on_starting(server):
    os.environ["SET_BY_A_HOOK"] = "yes"
    server.set_by_a_hook = {"number": 7}

def pre_fork(server, worker):
    worker.hooked = len(server.WORKERS)

def pre_exec(server):
    _note("pre_exec")

def when_ready(server):
    _note("when_ready", kept=server.set_by_a_hook["number"], variable=os.environ["SET_BY_A_HOOK"])

def nworkers_changed(server, new, old):
    _note("nworkers_changed", new=new, old=old)
"""


TIMER = """
import signal, sys

def when_ready(server):
    if "zdworker.upgraded" not in sys.orig_argv:
        signal.signal(signal.SIGVTALRM, lambda signum, frame: None)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.001, 0.001)
"""


def blocked(pid: int, thread: int) -> int:
    """Return the signals that a thread blocks, a bit each (proc_pid_status(5)).

    :raises ProcessLookupError: it has ended, or ends: it has no mask any more then, which the kernel shows as 0.
    """
    status = Path(f"/proc/{pid}/task/{thread}/status").read_text()
    if re.search(r"^State:\s+[XZ]", status, re.MULTILINE):
        raise ProcessLookupError
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:"))
    return int(mask, 16)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.setblocking(False)
        yield made


def heard(systemd: socket.socket) -> list[str]:
    """Return the lines that systemd has got since the last call, but for what is only for a reader."""
    lines: list[str] = []
    while True:
        try:
            lines += systemd.recv(65536).decode().splitlines()
        except BlockingIOError:
            return [line for line in lines if not line.startswith("STATUS=")]


def usec(lines: list[str]) -> list[str]:
    return [line for line in lines if "USEC" in line]


def test_systemd_is_told_of_nothing_but_its_watchdog(start: Start, systemd: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": str(systemd.getsockname()), "WATCHDOG_USEC": "2000000"}
    server = start(environment=environment)
    wait_for(lambda: "READY=1" in heard(systemd), BOOT_TIMEOUT_S, "it is ready")
    control_client.upgrade(server)
    lines: list[str] = []

    def changes() -> list[str]:
        lines.extend(heard(systemd))
        return usec(lines)

    wait_for(lambda: len(changes()) >= 2, 30, "the watchdog is as it was")
    assert set(lines) <= {"WATCHDOG=1", "WATCHDOG_USEC=180000000", "WATCHDOG_USEC=2000000"}
    assert usec(lines) == ["WATCHDOG_USEC=180000000", "WATCHDOG_USEC=2000000"]
    server.reload("two")
    wait_for(lambda: "READY=1" in heard(systemd), 30, "the reload has ended")
    server.stop()
    assert "STOPPING=1" in heard(systemd)


@pytest.mark.parametrize("reuse_port", [False, True])
def test_listening_sockets_of_all_kinds(make_server: Start, site: Site, reuse_port: bool) -> None:
    path = str(site.directory / "app.sock")
    server = make_server(reuse_port=reuse_port)
    server.settings["bind"] = ["%s:%s" % server.address, *([] if reuse_port else [f"unix:{path}"])]
    server.start()
    addresses = [server.address, *([] if reuse_port else [path])]
    bind = control_client.status(server)["bind"]
    control_client.upgrade(server)
    assert control_client.status(server)["bind"] == bind
    site.deploy("two")
    server.signal(signal.SIGUSR2)
    server.wait_only("two")
    for address in addresses:
        with Client(address) as client:
            assert client.ask("GET", "/").json()["version"] == "two"
    server.stop()
    assert not os.path.exists(path)


def test_a_websocket_goes_on(start: Start) -> None:
    server = start()

    async def talk() -> None:
        async with connect("ws://%s:%s/websocket" % server.address, proxy=None) as websocket:
            await websocket.send("before")
            assert await websocket.recv() == "before"
            outcome = await asyncio.to_thread(control_client.upgrade, server)
            assert outcome.result == "done"
            await websocket.send("after")
            assert await websocket.recv() == "after"

    asyncio.run(talk())


OLD_MASTER = 'GUNICORN_PID=$$ "$@" & read -r end <"$0"'
"""What a stock master is to the one that it starts by ``USR2``: the parent, until it ends."""


def test_an_old_master_that_has_handed_its_sockets_over(make_server: Start, site: Site) -> None:
    """The pid file has its own name until the old master has ended; from then on the master is like any other."""
    path, end = str(site.directory / "old.sock"), site.directory / "end"
    pidfiles = [site.directory / "gunicorn.pid", site.directory / "gunicorn.pid.2"]
    os.mkfifo(end)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(path)
        old.listen()
        environment = {"GUNICORN_FD": str(old.fileno())}
        server = make_server(
            workers=1, pidfile="gunicorn.pid", environment=environment, pass_fds=[old.fileno()], graceful_timeout=5
        )
        server.words = ["sh", "-c", OLD_MASTER, str(end), *server.words]
        server.launch()
        wait_for(lambda: processes.children(server.master), 30, "the old master has started the new one")
        server.master = processes.children(server.master)[0].pid
        server.wait_full()
    assert [pidfile.exists() for pidfile in pidfiles] == [False, True]
    control_client.upgrade(server)
    assert [pidfile.exists() for pidfile in pidfiles] == [False, True]
    end.write_text("now\n")
    wait_for(lambda: [pidfile.exists() for pidfile in pidfiles] == [True, False], 30, "the master is promoted")
    assert pidfiles[0].read_text().strip() == str(server.master)
    control_client.upgrade(server)
    site.deploy("two")
    assert control_client.reload_error(server) is None
    server.signal(signal.SIGTERM)
    wait_for(lambda: not pidfiles[0].exists(), 30, "the master has ended")
    wait_for(lambda: not os.path.exists(path), 30, "its socket is gone, too")


def test_the_socket_of_an_old_master_stays(make_server: Start, site: Site) -> None:
    path = str(site.directory / "old.sock")
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(path)
        old.listen()
        environment = {"GUNICORN_PID": str(os.getpid()), "GUNICORN_FD": str(old.fileno())}
        server = make_server(workers=1, environment=environment, pass_fds=[old.fileno()])
        server.start()
        control_client.upgrade(server)
        assert server.stop() == 0
    assert os.path.exists(path), "the old master still listens there"


def test_the_pidfile_stays_and_goes_with_the_master(start: Start, site: Site) -> None:
    server = start(pidfile="gunicorn.pid")
    pidfile = site.directory / "gunicorn.pid"
    before = pidfile.stat()
    control_client.upgrade(server)
    assert pidfile.stat() == before
    server.stop()
    assert not pidfile.exists()


def test_what_hooks_have_set_and_which_of_them_are_called(start: Start, site: Site) -> None:
    server = start(extra=HOOKS)
    counted = len(site.events("nworkers_changed"))
    control_client.upgrade(server)
    assert [event["by"] for event in site.events("pre_exec")] == [server.master]
    wait_for(lambda: len(site.events("when_ready")) >= 2, 30, "the hook is called again")
    assert [event["kept"] for event in site.events("when_ready")] == [7, 7]
    assert [event["variable"] for event in site.events("when_ready")] == ["yes", "yes"]
    assert len(site.events("nworkers_changed")) == counted
    server.reload("two")
    assert server.get("/environment?name=SET_BY_A_HOOK")["value"] == "yes"


def test_a_timer_that_a_hook_has_started_ends(start: Start) -> None:
    """It outlives execve(2), its handler does not, and its signal would end the next program (setitimer(2))."""
    server = start(extra=TIMER)
    assert control_client.upgrade(server).result == "done"
    assert server.stop() == 0


def test_no_other_thread_takes_the_masters_signals(start: Start) -> None:
    """One that it took while the program is replaced would be lost."""
    server = start()
    server.reload("two")
    threads = [int(name) for name in os.listdir(f"/proc/{server.master}/task") if int(name) != server.master]
    held = sum(1 << (signum - 1) for signum in boot.HELD)
    masks = []
    for thread in threads:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            masks.append(blocked(server.master, thread) & held)
    assert masks
    assert set(masks) == {held}


def test_a_reload_that_is_waited_for_by_a_client_before_and_after(start: Start, site: Site) -> None:
    server = start()
    control_client.upgrade(server)
    site.deploy("two")
    assert control_client.reload_error(server) is None
    control_client.upgrade(server)
    assert control_client.status(server)["last_reload"]["result"] == "done"
    assert control_client.status(server)["upgrades"] == 2


def test_the_kernels_name_of_the_process_stays(start: Start) -> None:
    server = start()
    name = Path(f"/proc/{server.master}/comm")
    before = name.read_text()
    control_client.upgrade(server)
    assert name.read_text() == before


def test_a_configuration_that_was_changed_on_disk_has_no_effect_yet(start: Start) -> None:
    server = start()
    server.configure(workers=3, graceful_timeout=7)
    control_client.upgrade(server)
    found = control_client.status(server)
    assert (len(found["workers"]), found["workers_wanted"]) == (2, 2)
    server.signal(signal.SIGUSR2)
    server.wait_full()


def test_a_daemon(make_server: Start, site: Site) -> None:
    server = make_server("--daemon", pidfile="gunicorn.pid", errorlog="log.txt").launch()
    server.wait_exit(BOOT_TIMEOUT_S)
    pidfile = site.directory / "gunicorn.pid"
    wait_for(lambda: pidfile.exists() and pidfile.read_text(), BOOT_TIMEOUT_S, "the daemon has written its pidfile")
    server.adopt(int(pidfile.read_text()))
    server.wait_full()
    assert control_client.upgrade(server).result == "done"
    server.reload("two")
    server.signal(signal.SIGTERM)
    server.wait_nothing_left(30)


@pytest.mark.skipif(gunicorn.version_info < (25, 0, 3), reason="this Gunicorn has no dirty arbiter")
def test_the_dirty_arbiter_stays(make_server: Start, site: Site) -> None:
    site.write(
        "dirty_app.py",
        "import os\nfrom gunicorn.dirty.app import DirtyApp\n\nclass Own(DirtyApp):\n"
        "    def who(self):\n        return {'arbiter': os.getppid()}\n",
    )
    extra = '\ndef on_dirty_starting(arbiter):\n    _note("on_dirty_starting")\n'
    server = make_server(
        dirty_apps=["dirty_app:Own"],
        dirty_workers=1,
        dirty_graceful_timeout=3,
        extra=extra,
        environment={"TMPDIR": str(site.directory)},
    ).launch()
    wait_for(lambda: site.events("on_dirty_starting"), BOOT_TIMEOUT_S, "the dirty arbiter has started")
    (dirty,) = [event["by"] for event in site.events("on_dirty_starting")]
    wait_for(lambda: len(server.site.marks("startup")) == 2, BOOT_TIMEOUT_S, "the workers have started")
    wait_for(lambda: control_client.ready(server, 1) == 2, BOOT_TIMEOUT_S, "and are ready")
    assert control_client.upgrade(server).result == "done"
    assert processes.alive(dirty)
    assert len(site.events("on_dirty_starting")) == 1
    os.kill(dirty, signal.SIGTERM)
    wait_for(lambda: len(site.events("on_dirty_starting")) == 2, BOOT_TIMEOUT_S, "there is another one")
    server.stop()
    server.wait_nothing_left(30)


def test_a_worker_that_is_draining_meanwhile(start: Start, site: Site) -> None:
    server: Server = start(graceful_timeout=240)
    with Client(server.address) as client:
        client.send(request("GET", "/hold"))
        wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the request has begun")
        held = site.marks("request")[0]["pid"]
        os.kill(held, signal.SIGTERM)
        wait_for(lambda: held not in server.accepting(), BOOT_TIMEOUT_S, "it drains")
        wait_for(lambda: len(server.accepting()) == 2, BOOT_TIMEOUT_S, "it has a successor")
        assert control_client.upgrade(server).result == "done"
        assert processes.alive(held)
        site.answer_held()
        assert client.reply().status == 200
    wait_for(lambda: held not in server.workers(), 30, "it has ended")
    server.wait_full()


def test_another_logger_class_comes_with_an_upgrade(start: Start, site: Site) -> None:
    server = start()
    site.write("own_log.py", "from gunicorn.glogging import Logger\n\nclass Own(Logger):\n    pass\n")
    server.configure(logger_class="own_log.Own")
    assert "zdworker upgrade" in str(control_client.reload_error(server))
    assert control_client.upgrade(server).result == "done"
    assert control_client.reload_error(server) is None


def test_a_logger_that_is_not_read_refuses_the_upgrade_and_holds_up_nothing(start: Start, site: Site) -> None:
    reader, writer = os.pipe()
    server = start(errorlog=f"/proc/{os.getpid()}/fd/{writer}")
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    outcome = control_client.upgrade(server)
    assert outcome.result == "failed"
    assert "log" in outcome.error
    os.set_blocking(reader, False)
    with contextlib.suppress(BlockingIOError):
        while os.read(reader, 65536):
            pass
    assert control_client.upgrade(server).result == "done"
    os.close(reader)
    os.close(writer)


def test_a_rollback_to_a_generation_from_before(start: Start, site: Site) -> None:
    server = start(preload_app=True, zd_rollback_window=600, graceful_timeout=5)
    site.deploy("two")
    server.configure(graceful_timeout=7)
    assert control_client.order_and_wait(server, "reload").result == "done"
    assert control_client.upgrade(server).result == "done"
    assert control_client.order_and_wait(server, "rollback").result == "done"
    assert set(server.versions().values()) == {"one"}
    assert control_client.upgrade(server).result == "done"
    site.deploy("three")
    assert control_client.order_and_wait(server, "reload").result == "done"
    assert set(server.versions().values()) == {"three"}


ACTIVATE = """
import os, sys

number = int(sys.argv[1])
if number != 3:
    os.dup2(number, 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""What systemd does between fork and exec."""


def test_a_socket_of_systemd_is_taken_once(make_server: Start, site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        words = [sys.executable, "-c", ACTIVATE, str(number), sys.executable, "-m", "gunicorn"]
        server = make_server(command=words, pass_fds=[number], workers=1)
        server.address = listener.getsockname()
        server.start()
        assert control_client.upgrade(server).result == "done"
        assert control_client.upgrade(server).result == "done"
        assert set(processes.ports(server.master)) == {server.address[1]}
        server.reload("two")
        assert server.get()["version"] == "two"
        assert set(processes.ports(server.master)) == {server.address[1]}


def test_a_master_that_forks_its_workers_itself_needs_a_restart(make_server: Start, site: Site) -> None:
    site.write("launch.py", "from gunicorn.app.wsgiapp import run\nrun()\n")
    server = make_server(command=["sh", "-c", 'exec "$0" - "$@" < launch.py', sys.executable]).start()
    with pytest.raises(OrderRefused) as refused:
        control_client.begin_upgrade(server)
    assert "that needs a restart" in str(refused.value)
    server.signal(signal.SIGTERM)
    server.wait_nothing_left(30)
