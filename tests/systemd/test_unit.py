"""The unit of the recipe under a real systemd: start, reload, upgrade, watchdog, restart and stop, under load."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

import pytest

from tests.harness.clients import Client, Load
from tests.harness.processes import wait_for
from tests.harness.recipes import DEPLOY, versions
from tests.systemd.conftest import Service

NOTIFY_RELOAD_SINCE = 253
WATCHDOG_S = 3
WORKERS = 4
"""Those of the example's configuration."""


def check_ready(service: Service, version: str) -> None:
    """All workers are ready, and all of them are of this version."""
    status = json.loads(service.order("status --json"))
    assert [worker["state"] for worker in status["workers"]] == ["ready"] * WORKERS
    assert versions(service.address) == {version}


@pytest.fixture
def notify_reload(service: Service) -> None:
    version = int(service.machine.run("systemctl --version").split()[1])
    if version < NOTIFY_RELOAD_SINCE:
        pytest.skip(f"Type=notify-reload needs systemd {NOTIFY_RELOAD_SINCE}, this one is {version}")
    service.add_drop_in("notify-reload", (DEPLOY / "systemd" / "notify-reload.conf").read_text())


@contextlib.contextmanager
def unharmed(service: Service) -> Iterator[None]:
    """Under load no request fails, and to systemd it is the same process, which was active all the time."""
    before = service.main
    assert before["ActiveState"] == "active"
    with Load(service.address, "kept", clients=4, pause=0.02) as kept, Load(service.address, pause=0.02) as new:
        yield
        for load in (kept, new):
            assert load.stop().failures == []
    assert service.main == before


def test_deploys_and_an_upgrade(service: Service) -> None:
    service.install()
    check_ready(service, "one")
    with unharmed(service):
        service.deploy("two")
        service.machine.run("systemctl reload app")
        check_ready(service, "two")
        service.deploy("broken", broken=True)
        failed = service.machine.try_("systemctl reload app")
        assert failed.returncode == 1, failed.stdout
        assert "RuntimeError: broken" in service.machine.run("systemctl status --no-pager -n 100 app")
        check_ready(service, "two")
        text = service.show("StatusText")
        assert text["StatusText"].startswith("failed: 4 of 4 workers ready, generation 2; RuntimeError: broken")
        service.deploy("three")
        service.order("upgrade")
        assert service.show("StatusText") == text
        check_ready(service, "two")
        service.machine.run("systemctl reload app")
        check_ready(service, "three")
    assert service.show("StatusText")["StatusText"] == "steady: 4 of 4 workers ready, generation 4"


def test_a_reload_that_upgrades(service: Service) -> None:
    reload = "/srv/app/current/venv/bin/zdworker reload --upgrade --socket /run/app/control.sock"
    service.adapt(f"ExecReload=\nExecReload={reload}")
    service.install()
    with unharmed(service):
        for version in ("two", "three"):
            service.deploy(version)
            service.machine.run("systemctl reload app")
            check_ready(service, version)
            assert json.loads(service.order("history --json"))["history"][-1]["kind"] == "upgrade"


@pytest.mark.usefixtures("notify_reload")
def test_deploys_and_an_upgrade_with_notify_reload(service: Service) -> None:
    service.install()
    assert service.show("Type", "CanReload") == {"Type": "notify-reload", "CanReload": "yes"}
    with unharmed(service):
        service.deploy("two")
        service.machine.run("systemctl reload app")
        check_ready(service, "two")
        service.deploy("broken", broken=True)
        service.machine.run("systemctl reload app")  # systemd knows no reload that has failed
        assert service.show("StatusText")["StatusText"].startswith("failed: 4 of 4 workers ready")
        check_ready(service, "two")
        service.deploy("three")
        service.order("upgrade")
        check_ready(service, "two")
        service.machine.run("systemctl reload app")
        check_ready(service, "three")
        service.deploy("four")
        service.order("reload --upgrade")
        check_ready(service, "four")


def test_the_watchdog_goes_on_after_an_upgrade(service: Service) -> None:
    service.adapt(f"WatchdogSec={WATCHDOG_S}\nTimeoutAbortSec=1")
    service.install()
    with unharmed(service):
        service.order("upgrade")
        end = time.monotonic() + 3 * WATCHDOG_S
        wait_for(lambda: service.main["ActiveState"] != "active" or time.monotonic() > end, 60, "some watchdog times")
    assert service.show("WatchdogUSec")["WatchdogUSec"] == f"{WATCHDOG_S}s"
    before = service.main["MainPID"]
    service.machine.run(f"kill -STOP {before}")
    wait_for(lambda: service.main["NRestarts"] == "1", 60, "systemd has restarted the service")
    wait_for(lambda: service.main["ActiveState"] == "active", 60, "it is active")
    assert service.main["MainPID"] != before
    check_ready(service, "one")


def test_a_restart_and_a_stop(service: Service) -> None:
    service.install()
    with Load(service.address, "new", clients=4, pause=0.02) as load:
        service.deploy("two")
        service.order("upgrade")
        service.machine.run("systemctl restart app")
        check_ready(service, "two")
        assert load.stop().failures == []
    with Client(service.address) as slow:
        slow.send(b"GET /sleep?seconds=3 HTTP/1.1\r\nHost: x\r\n\r\n")
        marks = service.machine.root / "srv/app/current"
        marks = marks.parent / marks.readlink() / "marks.jsonl"
        wait_for(lambda: '"request"' in marks.read_text(), 10, "the request has begun")
        service.machine.run("systemctl stop app.socket app.service")
        assert slow.reply().status == 200
    assert service.show("ActiveState", "Result", "ExecMainStatus") == {
        "ActiveState": "inactive",
        "Result": "success",
        "ExecMainStatus": "0",
    }
    assert not (service.machine.root / "sys/fs/cgroup/system.slice/app.service").exists(), "processes are left"


def test_code_that_does_not_start(service: Service) -> None:
    service.deploy("broken", broken=True)
    service.adapt("Restart=no")
    with pytest.raises(AssertionError, match=r"Job for app\.service failed"):
        service.install()
    assert service.show("ActiveState", "Result") == {"ActiveState": "failed", "Result": "exit-code"}
    assert service.show("ExecMainStatus")["ExecMainStatus"] in ("3", "4")
