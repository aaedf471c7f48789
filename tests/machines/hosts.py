"""Hosts that are namespaces of this machine, on a network of their own, each with an sshd and the recipes' service.

Rules:

* A host has its own network, processes and mounts: ``/etc``, ``/run`` and ``/srv`` are its own, so a recipe's paths,
  addresses and commands are used as they stand. It is set up with the commands of the page.
* No namespace has a name: a host is gone with its first process, and that ends with the process of the tests, however
  that ends. The machine's own network is not touched: the tests go into another one, where the bridge is.
* The interpreter of the tests, its packages and zdworker's source are mounted read-only, for they may be where a user
  of a host may not go.
* What stands for systemd is :meth:`Host.start_service`: it runs ``ExecStart`` of the recipe's unit, as its user, in its
  directory, with its environment and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.harness.clients import Broken, Client
from tests.harness.documents import ROOT
from tests.harness.processes import children, wait_for
from tests.harness.proxies import program
from tests.harness.recipes import DEPLOY, commands, run
from tests.harness.virtual_environments import lend_pip, packages_as_a_wheel
from zdworker.check import systemd_unit

PROGRAMS = ("git", "haproxy", "ip", "nsenter", "setpriv", "ssh", "ssh-keygen", "sshd", "unshare", "useradd")
NETWORK = "192.0.2"
"""The one of the recipe's haproxy.cfg (RFC 5737: for documentation, so it is nobody's)."""
BRIDGE = "hosts"
CLONE_NEWNET = 0x40000000
WHEEL = "/srv/wheels/packages_of_the_tests-1-py3-none-any.whl"
PYTHON = f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
MOUNTED = {
    "/srv/python": sys.base_prefix,
    "/srv/packages": sysconfig.get_path("purelib"),
    "/srv/zdworker": str(ROOT),
}

BOOT = """\
set -eu
for own in etc run srv; do mount --bind "$0/$own" "/$own"; done
{mounts}
cd /srv/zdworker
{page}
usermod --password '*' app
install -d -o app -g app -m 700 /srv/app/.ssh
install -o app -g app -m 600 /srv/key.pub /srv/app/.ssh/authorized_keys
install -d -o app -g app /run/app
install -d /run/sshd
exec "$1" -D -e -f /etc/ssh/sshd_config
"""
"""What the first process of a host does before it is sshd. ``page`` are the commands of the page."""
SSHD = """\
HostKey /etc/ssh/host_key
AuthenticationMethods publickey
UsePAM no
PidFile none
SetEnv PATH=/srv/programs:/usr/local/bin:/usr/bin:/bin
Subsystem sftp internal-sftp
"""
SSH = """\
Host {name}
    HostName {address}
    IdentityFile {key}
    UserKnownHostsFile {directory}/known_hosts
    HostKeyAlias {name}
    BatchMode yes
"""


class Host:
    """A host, from entering to leaving.

    :param name: its name in the recipe's inventory.
    :param number: the last one of its address.
    :param key: the key that may log in as ``app``; its public half is beside it.
    :param directory: is made, for all that is the host's own.
    """

    def __init__(self, name: str, number: int, key: Path, directory: Path) -> None:
        self.name = name
        self.address = f"{NETWORK}.{number}"
        self.key = key
        self.directory = directory
        self.root = directory / "srv" / "app"
        self._link = f"host{number}"
        self._init = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Host:
        self._make_directories()
        boot = BOOT.format(mounts=_mounts(), page=commands("index.md", "useradd"))
        spaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        words = [*spaces, "sh", "-c", boot, str(self.directory), str(program("sshd"))]
        try:
            unshared = self._start(["setpriv", "--pdeathsig", "KILL", *words], "sshd.log")
            wait_for(lambda: children(unshared), 10, "unshare has forked")
            self._init = children(unshared)[0].pid
            self._connect()
            wait_for(self._answers, 20, f"{self.name} can be logged in to")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            print(self.report())
        self._end()

    def ssh_config(self, directory: Path) -> str:
        """Return what ssh has to know of it, and add its key to ``known_hosts`` in ``directory``."""
        public = (self.directory / "etc" / "ssh" / "host_key.pub").read_text()
        with (directory / "known_hosts").open("a") as known:
            known.write(f"{self.name} {public}")
        return SSH.format(name=self.name, address=self.address, key=self.key, directory=directory)

    def start_service(self) -> None:
        """Start the recipe's service, and wait until it answers with 200 at its health path."""
        unit = systemd_unit.read(DEPLOY / "systemd" / "app.service")
        environment = [f"{name}={value}" for name, value in unit.environment.items()]
        as_user = ["setpriv", "--reuid", "app", "--regid", "app", "--init-groups"]
        clean = ["env", "-i", f"--chdir={unit.properties['WorkingDirectory']}", *environment]
        self._start([*self._enter(), *as_user, *clean, *shlex.split(unit.properties["ExecStart"])], "app.log")
        wait_for(self._healthy, 60, f"the service of {self.name} is healthy")

    def status(self) -> dict[str, Any]:
        """Return what ``zdworker status`` says there."""
        words = [*self._enter(), "/srv/app/current/venv/bin/zdworker", "status", "--socket", "/run/app/control.sock"]
        status = run([*words, "--json"], ROOT)
        assert status.returncode == 0, status.stdout
        told: dict[str, Any] = json.loads(status.stdout)
        return told

    def report(self) -> str:
        """Return what a failed test needs."""
        logs = [self.directory / name for name in ("sshd.log", "app.log")]
        texts = [f"---- {self.name}: {log.name} ----\n{log.read_text()[-10000:]}" for log in logs if log.exists()]
        return "\n".join(texts)

    def _make_directories(self) -> None:
        srv, etc = self.directory / "srv", self.directory / "etc"
        for name in ("run", "srv/programs", "srv/wheels", *(place.lstrip("/") for place in MOUNTED)):
            (self.directory / name).mkdir(parents=True)
        lend_pip(srv / "programs" / "python3", f"env PYTHONPATH=/srv/packages {PYTHON}")
        packages_as_a_wheel(srv / "wheels", "/srv/packages", "/srv/zdworker")
        (srv / "key.pub").write_bytes(self.key.with_suffix(".pub").read_bytes())
        assert run(["cp", "-a", "/etc", str(etc)], ROOT).returncode == 0
        (etc / "ssh" / "sshd_config").write_text(SSHD)
        make_key(etc / "ssh" / "host_key")

    def _connect(self) -> None:
        """Put a cable between the host and the bridge."""
        ip(f"link add {self._link} type veth peer name eth0 netns {self._init}")
        ip(f"link set {self._link} master {BRIDGE} up")
        for words in (f"addr add {self.address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            ip(words, "nsenter", "--target", str(self._init), "--net")

    def _answers(self) -> bool:
        assert self._processes[0].poll() is None, self.report()
        try:
            with Client((self.address, 22)):
                return True
        except Broken:
            return False

    def _healthy(self) -> bool:
        assert self._processes[-1].poll() is None, self.report()
        try:
            with Client((self.address, 8000)) as client:
                return client.ask("GET", "/healthz").status == 200
        except Broken:
            return False

    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self._init), "--net", "--mount", "--pid"]

    def _start(self, words: list[str], log: str) -> int:
        with (self.directory / log).open("wb") as output:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/")
        self._processes.append(process)
        return process.pid

    def _end(self) -> None:
        """End the first process, and with it all others of the host, and its network (pid_namespaces(7))."""
        if self._init:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)
        for process in self._processes:
            if not self._init:
                process.kill()
            process.wait(20)
        shutil.rmtree(self.directory / "etc", ignore_errors=True)  # there are the machine's secrets in it


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """Have these tests, and what they start, be in another network, with a bridge to which hosts can be connected."""
    with open("/proc/thread-self/ns/net") as before:
        _call("unshare", CLONE_NEWNET)
        try:
            ip("link set lo up")
            ip(f"link add {BRIDGE} type bridge")
            ip(f"addr add {NETWORK}.254/24 dev {BRIDGE}")
            ip(f"link set {BRIDGE} up")
            yield
        finally:
            _call("setns", before.fileno(), CLONE_NEWNET)


def why_not(directory: Path) -> str:
    """Return why there can be no hosts here, or ""."""
    missing = [name for name in PROGRAMS if not program(name)]
    if os.geteuid() != 0 or missing:
        return f"hosts take root and {', '.join(missing or PROGRAMS)}"
    spaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc"]
    tried = run([*spaces, "ip", "link", "add", BRIDGE, "type", "bridge"], directory)
    return f"no namespaces, or no bridges in them: {tried.stdout.strip()}" if tried.returncode else ""


def make_key(path: Path) -> Path:
    """Make a pair of keys for ssh; the public one is beside it."""
    made = run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], ROOT)
    assert made.returncode == 0, made.stdout
    return path


def ip(words: str, *enter: str) -> None:
    """Change the network that these tests are in, or the one that ``enter`` leads to."""
    done = run([*enter, "ip", *words.split()], ROOT)
    assert done.returncode == 0, f"ip {words}: {done.stdout}"


def _mounts() -> str:
    """Return commands that mount :data:`MOUNTED`, and the interpreter at its own path, too: that may be built in."""
    lines = [f"mount -o bind,ro {shlex.quote(place)} {name}" for name, place in MOUNTED.items()]
    above = [parent for parent in reversed(Path(sys.base_prefix).parents) if not parent.stat().st_mode & 0o001]
    if above:
        own = shlex.quote(sys.base_prefix)
        lines += [f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(above[0]))}", f"mkdir -p {own}"]
        lines += [f"mount -o bind,ro /srv/python {own}"]
    return "\n".join(lines)


def _call(name: str, *arguments: int) -> None:
    """Call a function of the C library that Python has from 3.12 on only."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
