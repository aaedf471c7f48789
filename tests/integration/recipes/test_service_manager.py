"""The systemd unit under systemd itself: a user's instance, in namespaces of its own, so that nothing else notices.

It differs from the machine's own in what it cannot have: another user, and a /tmp of its own, for the tests are there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.processes import children, command, wait_for
from tests.harness.recipes import DEPLOY, EXAMPLE, adapted, changed, commands, path_with, run, versions
from tests.harness.server import BOOT_TIMEOUT_S, script

PAGE = "systemd.md"
SYSTEMD = "/lib/systemd/systemd"
NOTIFY_RELOAD_SINCE = 253
"""The version of systemd that has it (systemd.service(5), Type=)."""
OUTER = """\
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/cgroup
mount -t cgroup2 none /run/cgroup
mkdir /run/cgroup/zdworker-$$
trap 'until find /run/cgroup/zdworker-$$ -depth -type d -exec rmdir {} + 2>/dev/null; do sleep 0.1; done' EXIT
unshare --mount --pid --fork --kill-child sh -ec "$0" $$ "$@"
"""
"""The first process: it makes a control group, and takes it away when all that was in there has ended."""
INNER = """\
echo $$ > /run/cgroup/zdworker-$0/cgroup.procs
exec unshare --cgroup --mount --mount-proc sh -ec 'mount -t cgroup2 none /sys/fs/cgroup; "$0" "$@"; exit' "$@"
"""
"""The second, PID 1 for systemd, which as PID 1 would be the machine's: the group is the root of what they see."""


class Manager:
    """A systemd of our own, with the recipe's units; ``/srv/app/current`` is the directory of a site."""

    def __init__(self, site: Site) -> None:
        self.place = site.directory
        self.units = self.place / "units"
        self.runtime = self.place / "runtime"
        self.socket = str(self.place / "app.sock")
        self.log = self.place / "service.log"
        for directory in (self.units, self.runtime):
            directory.mkdir(mode=0o700)
        service = {
            "User=app\n": "",
            "PrivateTmp=yes\n": "",
            "/srv/app/current/venv/bin/": f"{Path(sys.executable).parent}/",
            "/srv/app/current": str(self.place),
            "/run/app/": f"{self.runtime}/app/",
            "KillMode=": f"StandardOutput=append:{self.log}\nStandardError=append:{self.log}\nKillMode=",
        }
        (self.units / "app.service").write_text(adapted("systemd/app.service", service))
        (self.units / "basic.target").write_text("[Unit]\nDescription=Nothing of the machine's own units\n")
        (self.units / "app.socket").write_text(adapted("systemd/app.socket", {"/run/app.sock": self.socket}))
        self._process: subprocess.Popen[bytes] | None = None

    def change(self, changes: dict[str, str]) -> None:
        """Change the service; before it is started for the first time."""
        file = self.units / "app.service"
        file.write_text(changed(file.read_text(), changes))
        self.must("daemon-reload")

    def start(self) -> None:
        environment = {
            "PATH": path_with(),
            "HOME": str(self.place),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "SYSTEMD_UNIT_PATH": f"{self.units}:",
            "SYSTEMD_LOG_TARGET": "console",
            "WEB_CONCURRENCY": "2",
        }
        with (self.place / "systemd.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-ec", OUTER, INNER, SYSTEMD, "--user", "--unit=basic.target"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def answers(self) -> bool:
        """Whether it can be talked to."""
        assert self._process is not None
        return self._process.poll() is not None or self.runs()

    def runs(self) -> bool:
        return self.pid() > 0 and self("is-system-running").stdout.strip() == "running"

    def pid(self) -> int:
        """Return the pid of systemd, 0 before it is there."""
        assert self._process is not None
        pids = [self._process.pid]
        while pids:
            pid = pids.pop()
            if command(pid).startswith(SYSTEMD):
                return pid
            pids += [child.pid for child in children(pid)]
        return 0

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--target={self.pid()}", "--pid", "--mount", "--wd=/"]
        return run([*enter, "systemctl", "--user", *words], self.place, {"XDG_RUNTIME_DIR": str(self.runtime)})

    def must(self, *words: str) -> str:
        done = self(*words)
        assert done.returncode == 0, f"{done.stdout}\n{self.report()}"
        return done.stdout.strip()

    def fact(self, name: str) -> str:
        return self.must("show", "app.service", "--value", f"--property={name}")

    def wait_status(self, beginning: str) -> None:
        """Wait for the status that the master notifies systemd of."""
        wait_for(
            lambda: self.fact("StatusText").startswith(beginning), 30, f"{beginning!r}, not {self.fact('StatusText')!r}"
        )

    def report(self) -> str:
        files = (self.place / "systemd.log", self.log)
        return "\n".join(file.read_text(errors="replace")[-10000:] for file in files if file.exists())

    def end(self) -> None:
        """End it, and with it everything in its namespace."""
        assert self._process is not None
        for child in children(self._process.pid):
            if command(child.pid).startswith("unshare"):
                os.kill(child.pid, signal.SIGKILL)
        self._process.wait(10)


@pytest.fixture
def manager(site: Site) -> Iterator[Manager]:
    if os.geteuid() != 0 or shutil.which("unshare") is None or not os.path.exists(SYSTEMD):
        pytest.skip("a systemd of our own takes root, unshare and systemd")
    own = f"\ncontrol_socket = {str(site.directory / 'gunicorn.ctl')!r}\n"
    site.write("gunicorn.conf.py", (EXAMPLE / "gunicorn.conf.py").read_text() + own)
    made = Manager(site)
    made.start()
    try:
        wait_for(made.answers, 60, "systemd runs")
        if not made.runs():
            pytest.skip(f"this machine lets no systemd run: {made.report()}")
        yield made
    finally:
        made.end()


def test_a_service_under_systemd(manager: Manager, site: Site) -> None:
    manager.must("start", "app.socket", "app.service")
    assert versions(manager.socket) == {"one"}
    manager.wait_status("steady: 2 of 2 workers ready, generation 1")
    assert manager.fact("StatusText") == "steady: 2 of 2 workers ready, generation 1"
    master = manager.fact("MainPID")
    reload = commands(PAGE, "systemctl reload").split()[1:]
    with Load(manager.socket, "kept", clients=4, pause=0.01) as load:
        site.deploy("two")
        manager.must(*reload)
        assert versions(manager.socket) == {"two"}

        unique = site.break_("raise")
        assert manager(*reload).returncode != 0, "code that does not start fails the reload"
        assert (manager.fact("ActiveState"), manager.fact("SubState")) == ("active", "running")
        manager.wait_status("failed: 2 of 2 workers ready, generation 2; ")
        assert f"RuntimeError: broken {unique}" in manager.log.read_text()
        assert versions(manager.socket) == {"two"}
        assert manager.fact("MainPID") == master

        site.deploy("three")
        manager.must("restart", "app.service")
        assert manager.fact("MainPID") != master
        assert versions(manager.socket) == {"three"}
        assert load.stop().failures == []
    manager.must("stop", "app.service", "app.socket")
    assert (manager.fact("Result"), manager.fact("ExecMainStatus")) == ("success", "0")


def test_the_master_is_replaced_in_its_service(manager: Manager, site: Site) -> None:
    """The process that systemd sees stays the same: it neither ends the service nor starts another."""
    manager.must("start", "app.socket", "app.service")
    master, since = manager.fact("MainPID"), manager.fact("ExecMainStartTimestampMonotonic")
    socket = manager.runtime / "app" / "control.sock"
    upgrade = ["nsenter", f"--target={manager.pid()}", "--pid", "--mount", "--wd=/", script("zdworker"), "upgrade"]
    with Load(manager.socket, "kept", clients=4, pause=0.01) as load:
        for version in ("two", "three"):
            done = run([*upgrade, "--socket", str(socket)], manager.place)
            assert done.returncode == 0, f"{done.stdout}\n{manager.report()}"
            assert manager.fact("MainPID") == master
            assert manager.fact("ExecMainStartTimestampMonotonic") == since
            assert manager.fact("NRestarts") == "0"
            assert (manager.fact("ActiveState"), manager.fact("SubState")) == ("active", "running")
            manager.wait_status("steady: 2 of 2 workers ready")
            site.deploy(version)
            manager.must("reload", "app.service")
            assert versions(manager.socket) == {version}
        assert load.stop().failures == []
    manager.must("stop", "app.service", "app.socket")
    assert (manager.fact("Result"), manager.fact("ExecMainStatus")) == ("success", "0")


def test_the_watchdog_watches_the_program_in_the_master_s_place(manager: Manager) -> None:
    manager.change({"WatchdogSec=30": "WatchdogSec=3"})
    manager.must("start", "app.socket", "app.service")
    master = manager.fact("MainPID")
    socket = manager.runtime / "app" / "control.sock"
    enter = ["nsenter", f"--target={manager.pid()}", "--pid", "--mount", "--wd=/"]
    done = run([*enter, script("zdworker"), "upgrade", "--socket", str(socket)], manager.place)
    assert done.returncode == 0, f"{done.stdout}\n{manager.report()}"
    fed = manager.fact("WatchdogTimestampMonotonic")
    wait_for(lambda: manager.fact("WatchdogTimestampMonotonic") != fed, 30, "the new program notifies the watchdog")
    assert manager.fact("MainPID") == master
    manager.must("kill", "--kill-who=main", "--signal=STOP", "app.service")
    wait_for(lambda: manager.fact("MainPID") not in ("0", master), BOOT_TIMEOUT_S, "systemd has started another")
    assert versions(manager.socket) == {"one"}


def test_a_reload_may_take_longer_than_systemd_waits(manager: Manager, site: Site) -> None:
    """As long as the master says that something with a deadline of its own goes on."""
    manager.change({"TimeoutStartSec=90": "TimeoutStartSec=10"})
    manager.must("start", "app.socket", "app.service")
    site.deploy("two", extra="\ntime.sleep(12)\n")
    manager.must("reload", "app.service")
    assert versions(manager.socket) == {"two"}


def test_a_master_that_hangs_is_replaced(manager: Manager) -> None:
    manager.change({"WatchdogSec=30": "WatchdogSec=3"})
    manager.must("start", "app.socket", "app.service")
    master = manager.fact("MainPID")
    manager.must("kill", "--kill-who=main", "--signal=STOP", "app.service")
    wait_for(lambda: manager.fact("MainPID") not in ("0", master), BOOT_TIMEOUT_S, "systemd has started another")
    assert versions(manager.socket) == {"one"}


def test_the_notify_reload_variant(manager: Manager, site: Site) -> None:
    """What is waited for is the end of a reload, whatever that is."""
    if int(manager.must("--version").split()[1]) < NOTIFY_RELOAD_SINCE:
        pytest.skip(f"systemd {NOTIFY_RELOAD_SINCE} is not installed")
    drop_in = manager.units / "app.service.d" / "notify-reload.conf"
    drop_in.parent.mkdir()
    drop_in.write_text((DEPLOY / "systemd" / "notify-reload.conf").read_text())
    manager.must("daemon-reload")
    manager.must("start", "app.socket", "app.service")
    site.deploy("two")
    manager.must("reload", "app.service")
    assert versions(manager.socket) == {"two"}
    site.break_("raise")
    manager.must("reload", "app.service")
    manager.wait_status("failed: 2 of 2 workers ready, generation 2; ")
    assert versions(manager.socket) == {"two"}


def test_broken_code_at_the_start_of_a_service(manager: Manager, site: Site) -> None:
    unique = site.break_("raise")
    assert manager("start", "app.service").returncode != 0
    assert f"RuntimeError: broken {unique}" in manager.log.read_text()
    assert manager.fact("ExecMainStatus") == "3"
