"""What a reload loads is what lies on disk then; what a respawn forks is what was loaded, whatever became of it."""

from __future__ import annotations

import os
import signal

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Start
from tests.harness.virtual_environments import virtual_environment

PRELOAD = pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])


@PRELOAD
def test_stale_bytecode(start: Start, site: Site, preload: bool) -> None:
    """Same size, same second: Python itself would run the cached code of the version before."""
    source = site.directory / "app.py"
    server = start(workers=1, preload_app=preload, environment={"PYTHONDONTWRITEBYTECODE": ""})
    before = source.stat()
    assert list((site.directory / "__pycache__").glob("app.*.pyc"))
    site.deploy("two")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.stat().st_size == before.st_size
    server.signal(signal.SIGUSR2)
    server.wait_only("two")


@PRELOAD
def test_module_that_the_configuration_imports(start: Start, site: Site, preload: bool) -> None:
    """The configuration's modules are new with each generation too, though the master has the first ones."""
    site.write("common.py", "NAME = 'one'\n")
    server = start(workers=1, preload_app=preload, extra="\nimport common\nraw_env = ['COMMON=' + common.NAME]\n")
    assert server.get("/environment?name=COMMON")["value"] == "one"
    site.write("common.py", "NAME = 'second'\n")
    server.reload("two")
    assert server.get("/environment?name=COMMON")["value"] == "second"


@PRELOAD
def test_variable_that_a_reload_drops(start: Start, preload: bool) -> None:
    server = start(workers=1, preload_app=preload, raw_env=["ONLY_ONCE=yes"])
    assert server.get("/environment?name=ONLY_ONCE")["value"] == "yes"
    server.configure(raw_env=[])
    server.reload("two")
    assert server.get("/environment?name=ONLY_ONCE")["value"] is None


def test_respawn_when_the_virtual_environment_is_gone(make_server: Start, site: Site) -> None:
    """It is removed or rebuilt under a running server: what runs goes on, crashes included."""
    environment = site.directory / "environment"
    python = virtual_environment(environment)
    server = make_server(command=[str(python), "-m", "gunicorn"], preload_app=True, workers=2)
    server.start()
    environment.rename(site.directory / "moved")
    site.break_("import")
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_for(lambda: len(site.marks("startup")) == 3, BOOT_TIMEOUT_S, "the replacement has started")
    server.wait_full()
    server.settings["workers"] = 3
    server.signal(signal.SIGTTIN)
    server.wait_full()
    assert server.get()["version"] == "one"
    with Client(server.address) as client:
        assert client.ask("POST", "/echo", b"body").json()["length"] == 4
    assert server.stop() == 0
    assert "Traceback" not in server.log
