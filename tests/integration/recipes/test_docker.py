"""The container recipe without Docker: what its Dockerfile says is done in namespaces of our own.

Its command is PID 1, its user is not root, its root is read-only, there is no HOME, and its health check tells.
The image itself is built and run in ``tests/containers``, outside CI.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gunicorn
import pytest
import yaml

from tests.harness.application_site import Site
from tests.harness.clients import Client, Load
from tests.harness.documents import ROOT
from tests.harness.processes import children, wait_for
from tests.harness.recipes import DEPLOY, EXAMPLE, path_with, run, versions
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start, script

ENTER = """\
set -e
mount -t tmpfs tmpfs /srv
mkdir /srv/app
mount --rbind "$0" /srv/app
mount --rbind /tmp /tmp
mount -o remount,bind,ro /srv/app
mount -o remount,bind,ro /
mount -t tmpfs tmpfs /run
cd /srv/app
exec setpriv --no-new-privs "$@"
"""
"""What a container's runtime does: the code at its place, a root that is read-only but for /tmp, a user with no rights.

Files are read from it: the interpreter of these tests may lie where only root may look."""


READ = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]


def nobody() -> list[str]:
    """Return what setpriv makes the image's user of."""
    user = Image().last("USER")
    return ["--reuid", user, "--regid", user, "--clear-groups", *READ]


def _allowed() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
        return False
    words = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "mount", "-t", "tmpfs", "tmpfs", "/srv"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


class Image:
    """What the Dockerfile says."""

    def __init__(self) -> None:
        text = (DEPLOY / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
        lines = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
        self.lines = [(line[0], line[1]) for line in lines]

    def last(self, instruction: str) -> str:
        return [rest for name, rest in self.lines if name == instruction][-1]

    @property
    def command(self) -> list[str]:
        return [str(word) for word in json.loads(self.last("CMD"))]

    @property
    def health_check(self) -> list[str]:
        return [str(word) for word in json.loads(self.last("HEALTHCHECK").partition(" CMD ")[2])]

    @property
    def environment(self) -> dict[str, str]:
        return dict(entry.split("=", 1) for entry in self.last("ENV").split())


@pytest.fixture
def image() -> Image:
    return Image()


def test_what_the_dockerfile_copies_is_there(image: Image) -> None:
    copied = [rest.split()[0] for name, rest in image.lines if name == "COPY"]
    assert all((EXAMPLE / name).exists() for name in copied), copied
    assert re.search(r"^zdworker", (EXAMPLE / "requirements.txt").read_text(), re.MULTILINE)
    assert image.last("WORKDIR") == image.environment["PWD"]
    assert image.last("EXPOSE") == image.environment["PORT"]
    assert image.last("USER").isdigit(), "by number: runAsNonRoot of Kubernetes understands no name"


def test_compose_gives_the_drain_its_time() -> None:
    service: dict[str, Any] = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())["services"]["web"]
    graceful: dict[str, Any] = {}
    exec((EXAMPLE / "gunicorn.conf.py").read_text(), graceful)  # noqa: S102  # our own file
    assert int(service["stop_grace_period"].removesuffix("s")) > graceful["graceful_timeout"]
    assert service["read_only"]
    assert service["tmpfs"] == ["/tmp"]  # noqa: S108  # as it is in the container


@pytest.fixture
def container(make_server: Start, site: Site, image: Image) -> Server:
    """The image's command as PID 1; its port is one that is free."""
    if not _allowed():
        pytest.skip("a namespace of its own takes root, unshare and setpriv")
    server: Server = make_server()
    for name in ("marks.jsonl", "events.jsonl"):
        (site.directory / name).chmod(0o666)
    own = "bind = '%s:%s'\nworkers = 2\n" % server.address
    site.write("gunicorn.conf.py", (EXAMPLE / "gunicorn.conf.py").read_text() + own)
    spaces = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child"]
    server.words = [*spaces, "bash", "-c", ENTER, str(site.directory), *nobody(), *image.command]
    clean = {"PATH": path_with(), "PYTHONPATH": str(ROOT), **image.environment}
    server.environment = clean
    server.launch_as_is()
    wait_for(lambda: children(server.master), BOOT_TIMEOUT_S, "unshare has forked")
    server.master = children(server.master)[0].pid
    wait_for(lambda: _accept(server), BOOT_TIMEOUT_S, "two workers accept")
    return server


def _accept(server: Server) -> bool:
    assert server.running, server.log
    return len(server.accepting()) == 2


def inside(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the container as ``docker exec`` does."""
    enter = ["nsenter", "--target", str(server.master), "--pid", "--mount", f"--wd=/proc/{server.master}/cwd"]
    return run([*enter, "setpriv", *nobody(), *words], Path("/"), {"XDG_RUNTIME_DIR": ""})


def health(server: Server) -> int:
    """Return the exit code of the image's health check."""
    port = f":{Image().environment['PORT']}/"
    words = [word.replace(port, f":{server.address[1]}/") for word in Image().health_check]
    return inside(server, sys.executable, *words[1:]).returncode


def test_a_container_from_start_to_end(container: Server, site: Site) -> None:
    status = Path(f"/proc/{container.master}/status").read_text()
    assert re.search(r"^NSpid:.*\t1$", status, re.MULTILINE)
    assert re.search(rf"^Uid:\t{Image().last('USER')}\t", status, re.MULTILINE)
    assert inside(container, "touch", "/srv/app/written").returncode != 0
    assert inside(container, "touch", "/usr/written").returncode != 0
    assert health(container) == 0
    with Load(container.address, "kept", clients=4, pause=0.01) as load:
        site.deploy("two")
        reloaded = inside(container, sys.executable, script("zdworker"), "reload")
        assert reloaded.returncode == 0, reloaded.stdout
        assert versions(container.address) == {"two"}
        assert load.stop().failures == []
    with Client(container.address) as slow:
        slow.send(b"GET /sleep?seconds=2 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the request has begun")
        container.signal(signal.SIGTERM)
        assert slow.reply().status == 200
    assert container.wait_exit(30) == 0
    assert re.findall(r".*\[(?:WARNING|ERROR|CRITICAL)\].*", container.log) == []
    if gunicorn.version_info >= (25, 1):  # the first one with a control socket; the container has no home directory
        assert "gunicornc will not reach this master" in container.log


def test_broken_code_ends_the_container_with_its_traceback(container: Server, site: Site) -> None:
    """At the first start; Docker's restart policy, and the one who looks, see exit code 3."""
    container.signal(signal.SIGTERM)
    assert container.wait_exit(30) == 0
    unique = site.break_("raise")
    container.launch_as_is()
    assert container.wait_exit(BOOT_TIMEOUT_S) == 3
    assert f"RuntimeError: broken {unique}" in container.log
