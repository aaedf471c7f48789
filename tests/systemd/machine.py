"""A machine in namespaces of its own, whose PID 1 is a real systemd.

Rules:

* What it writes goes to memory, above a root that stays as debootstrap has made it, and ends with it.
* It has PIDs, mounts, a host name, IPC, a network and a part of the control groups of its own; nothing that its systemd
  does reaches the machine around it. It ends with the process that has started it.
* Its files are below :attr:`Machine.root`, its commands are run by :meth:`Machine.run`.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.harness.processes import children, wait_for
from tests.harness.recipes import run

PROGRAMS = ("debootstrap", "unshare", "nsenter")

BOOT_S = 90.0
"""Seconds that systemd may take to reach its target, on a machine under load."""

GROUP = """\
set -e
mount --make-rprivate /
mount -t cgroup2 cgroup2 /mnt
before=/mnt$(sed -n 's/^0:://p' /proc/self/cgroup)
mkdir "/mnt/$1"
echo $$ > "/mnt/$1/cgroup.procs"
exec 3<&0
unshare --cgroup --pid --fork --kill-child --mount --uts --ipc --net sh -c "$2" sh "$0" 3<&- &
machine=$!
{ read -r _ <&3 || kill -9 $machine; } &
wait $machine || true
kill $! || true
echo $$ > "$before/cgroup.procs"
for _ in $(seq 100); do
    find "/mnt/$1" -depth -type d -exec rmdir {} + 2>/dev/null && break
    sleep 0.1
done
"""
"""$0 is the root, $1 the name of a control group, the root of those that systemd sees, and $2 what runs there.
The machine is killed at the end of the standard input, which comes with the end of the process that has the other end.
"""

START = """\
set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o "lowerdir=$1,upperdir=/mnt/upper,workdir=/mnt/work" /mnt/root
cd /mnt/root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs dev
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty dev/
mount -t tmpfs tmpfs run
mkdir before
pivot_root . before
exec chroot . sh -c 'umount -l /before; exec "$@"' sh env -i container=other \
    PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=basic.target --show-status=no
"""
"""$1 is the root. The kernel's settings, which are not in a namespace, can be read only, as in any container."""


class Machine:
    """A machine that runs from entering to leaving it.

    :param lower: the directory of its root, which is not changed.
    :param log: the file for what goes wrong before systemd runs; what it writes itself is in its journal.
    """

    def __init__(self, lower: Path, log: Path) -> None:
        self._lower = lower
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.init = 0

    def __enter__(self) -> Machine:
        name = f"zdworker-test-{time.time_ns()}"
        words = ["unshare", "--mount", "sh", "-c", GROUP, str(self._lower), name, START]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            self.init = wait_for(self._find_init, BOOT_S, "systemd runs")
            wait_for(lambda: self.run("systemctl is-active basic.target", check=False) == "active", BOOT_S, "it is up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _find_init(self) -> int:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        pids = [child.pid for one in children(self._process.pid) for child in children(one.pid)]
        for pid in pids:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                    return pid
        return 0

    @property
    def root(self) -> Path:
        """The machine's root, as this process reaches it."""
        return Path(f"/proc/{self.init}/root")

    def command(self, line: str, user: str = "root") -> list[str]:
        """Return the words that run a shell command on the machine."""
        words = ["nsenter", "--target", str(self.init), "--all", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        own = ["setpriv", "--reuid", user, "--regid", user, "--init-groups"] if user != "root" else []
        return [*words, *own, "sh", "-c", line]

    def try_(self, line: str, user: str = "root", deadline: float = 180) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the machine; its standard error is part of its output."""
        return run(self.command(line, user), Path("/"), deadline=deadline)

    def run(self, line: str, user: str = "root", *, check: bool = True) -> str:
        """Run a shell command on the machine and return its output.

        :raises AssertionError: it has failed, and ``check`` is set.
        """
        done = self.try_(line, user)
        assert not check or done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}"
        return done.stdout.strip()

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Return properties of a unit (systemctl(1), show)."""
        lines = self.run(f"systemctl show -p {','.join(names)} {shlex.quote(unit)}").splitlines()
        return dict(line.split("=", 1) for line in lines)

    @contextlib.contextmanager
    def begin(self, line: str) -> Iterator[subprocess.Popen[str]]:
        """Run a shell command on the machine meanwhile, and wait for its end."""
        words = self.command(line)
        with subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            yield process
