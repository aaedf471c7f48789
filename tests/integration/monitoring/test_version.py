"""The version of the application stands in the log, the command's output, the status, and its own environment."""

from __future__ import annotations

import subprocess
import sys

from tests.harness.application_site import Site
from tests.harness.control_client import status
from tests.harness.processes import wait_for
from tests.harness.server import Start

LABELS = """

import os


def zd_version():
    with open("VERSION") as file:
        return file.read()


def zd_reload_finished(server, report):
    with open("finished", "a") as file:
        file.write(report["label"] + chr(10))


def post_worker_init(worker):
    with open("workers", "a") as file:
        file.write(os.environ["ZD_VERSION"] + chr(10))
"""


def test_each_generation_has_its_label(start: Start, site: Site) -> None:
    site.write("VERSION", "v1")
    path = str(site.directory / "control.sock")
    server = start(workers=1, preload_app=True, zd_control_socket=path, extra=LABELS)
    assert status(server)["label"] == "v1"
    site.write("VERSION", "v2 (blue)")
    site.deploy("two")
    done = subprocess.run(
        [sys.executable, "-m", "zdworker", "reload", "--socket", path],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.startswith("reload done: generation 2 (v2 (blue)) serves, after ")
    shown = status(server)
    assert (shown["label"], shown["last_reload"]["label"]) == ("v2 (blue)", "v2 (blue)")
    assert [generation["label"] for generation in shown["generations"]] == ["v2 (blue)"]
    finished = site.directory / "finished"
    wait_for(lambda: finished.exists() and finished.read_text(), 30, "the hook was called")
    assert finished.read_text() == "v2 (blue)\n"
    assert (site.directory / "workers").read_text() == "v1\nv2 (blue)\n"
