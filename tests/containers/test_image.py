"""The recipe's image, run as its runtime would: PID 1, not root, its root read-only but for /tmp.

crun and runc need a hierarchy of cgroups that not every machine gives away; the namespaces that they make need not.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.containers.conftest import BuiltImage
from tests.harness.application_site import Site
from tests.harness.clients import Client, Load
from tests.harness.processes import children, wait_for
from tests.harness.recipes import DEPLOY, EXAMPLE, versions
from tests.harness.server import Server, Start

ENTER = """\
set -e
root=$0; volume=$1; shift
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /tmp "$root/tmp"
if [ -n "$volume" ]; then mount -o bind,ro "$volume" "$root/srv/app"; fi
exec chroot "$root" setpriv "$@"
"""
"""What a runtime does. ``/tmp`` is the machine's, where the application under test writes what it does."""

Run = Callable[..., Server]


def _nobody(image: BuiltImage) -> list[str]:
    rights = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    return ["--reuid", image.user, "--regid", image.user, "--clear-groups", *rights]


def _clean(image: BuiltImage, **further: str) -> list[str]:
    return [
        "env",
        "-i",
        f"--chdir={image.directory}",
        *(f"{k}={v}" for k, v in {**image.environment, **further}.items()),
    ]


@pytest.fixture
def run(make_server: Start, image: BuiltImage) -> Run:
    """Return a function that runs the image's command on a free port, with its own code or that of a volume."""

    def started(volume: str = "") -> Server:
        server: Server = make_server()
        bind = "127.0.0.1:%s" % server.address[1]
        spaces = ["unshare", "--pid", "--fork", "--mount", "--kill-child"]
        enter = ["bash", "-c", ENTER, str(image.root), volume]
        own = _clean(image, GUNICORN_CMD_ARGS=f"--bind {bind} --workers 2")
        server.words = [*spaces, *enter, *_nobody(image), *own, *image.command]
        server.launch_as_is()
        wait_for(lambda: children(server.master), 10, "unshare has forked")
        server.master = children(server.master)[0].pid
        wait_for(lambda: _two_accept(server), 60, "two workers accept")
        return server

    return started


def _two_accept(server: Server) -> bool:
    assert server.running, server.log
    return len(server.accepting()) == 2


def inside(server: Server, image: BuiltImage, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command as ``docker exec`` does."""
    enter = ["nsenter", "--target", str(server.master), "--pid", "--mount", "--root"]
    command = [*enter, "setpriv", *_nobody(image), *_clean(image), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_image_serves_with_its_own_code(run: Run, image: BuiltImage) -> None:
    server = run()
    status = Path(f"/proc/{server.master}/status").read_text()
    assert re.search(r"^NSpid:.*\t1$", status, re.MULTILINE)
    assert re.search(rf"^Uid:\t{image.user}\t", status, re.MULTILINE)
    with Client(server.address) as client:
        assert client.ask("GET", "/version").json()["version"]
        assert client.ask("GET", image.environment["ZD_HEALTH_PATH"]).status == 200
    assert inside(server, image, "touch", f"{image.directory}/written").returncode != 0
    seen = inside(server, image, "zdworker", "status", "--check")
    assert seen.returncode == 0, seen.stdout + seen.stderr
    assert not re.search(r"\[(WARNING|ERROR|CRITICAL)\]", server.log), server.log
    server.signal(signal.SIGTERM)
    assert server.wait_exit(20) == 0


def test_code_on_a_volume_is_deployed(run: Run, image: BuiltImage, site: Site) -> None:
    site.write("gunicorn.conf.py", (EXAMPLE / "gunicorn.conf.py").read_text())
    for name in ("marks.jsonl", "events.jsonl"):
        (site.directory / name).chmod(0o666)
    server = run(str(site.directory))
    with Load(server.address, "kept", clients=4, pause=0.01) as load:
        site.deploy("two")
        reloaded = inside(server, image, "zdworker", "reload")
        assert reloaded.returncode == 0, reloaded.stdout + reloaded.stderr
        assert versions(server.address) == {"two"}
        assert load.stop().failures == []
    with Client(server.address) as slow:
        slow.send(b"GET /sleep?seconds=2 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: site.marks("request"), 10, "the request has begun")
        server.signal(signal.SIGTERM)
        assert slow.reply().status == 200
    assert server.wait_exit(20) == 0


def test_the_compose_file_asks_for_what_was_run(image: BuiltImage) -> None:
    compose = (DEPLOY / "docker" / "compose.yaml").read_text()
    for line in ("read_only: true", "tmpfs: [/tmp]", "cap_drop: [ALL]", "no-new-privileges:true"):
        assert line in compose
    assert image.command[0] == "gunicorn", "without a shell, or PID 1 would be the shell"
