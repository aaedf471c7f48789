"""The command's search for the master that is meant.

Rules:

* A master is named by its pid, its pidfile or its socket (an option, or ``ZD_CONTROL_SOCKET`` in the environment).
  Names that contradict each other are an error.
* Without a name it is the one that was started in the present directory, or else in the nearest directory above it.
  If there is none, it is the only one that runs. Where several would do, none is guessed.
* A master that was found somewhere else than in the present directory is announced before anything is ordered.
* A process is trusted to be the master if its user is root, the user of this command, or the one whose master was
  named. In directories that others can write to, nothing is looked for.
* The kernel is asked which sockets a process listens on, not a log or a file name.
* A master that does not answer counts as one that runs. Of one in another container, with which this command shares
  the directory of the sockets, the start directory says nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zdworker import texts
from zdworker.command import client
from zdworker.errors import ContradictoryNames, MessageError, NoInstance, OrderRefused, SeveralInstances
from zdworker.ipc.control_directory import directories_of, is_private

SEARCH_MIN_S = 1.0
"""Seconds that masters have to answer the search, at least: with ``--timeout 0`` an order is given, too."""

ANSWERS_CHECK_INTERVAL_S = 0.005
"""Seconds between two looks whether all masters have answered the search."""

PIDFILE_MAX_BYTES = 100
"""Bytes of a pidfile that are read."""

UNIX_SOCKETS_FILE = "/proc/{}/net/unix"
LISTENING_FLAGS = "00010000"
"""The flags of a listening socket in that file (proc_net_unix(5), __SO_ACCEPTCON)."""


@dataclass
class Master:
    """A master: the path of its control socket, and the users that may listen there.

    ``status`` is what it has answered, None if it was not asked or does not answer; ``error`` says why. ``runs`` is
    whether a process listens there, ``foreign`` whether it is in another pid namespace. ``announcement`` is what the
    user has to know before it gets an order.
    """

    path: str
    users: frozenset[int] = field(default_factory=client.trusted_users)
    status: dict[str, Any] | None = None
    error: Exception | None = None
    runs: bool = True
    foreign: bool = False
    announcement: str = ""

    def ask(self, deadline: float | None) -> None:
        """Ask for the status; see :class:`zdworker.command.client.Connection` for the deadline."""
        try:
            with client.Connection(self.path, deadline, self.users) as connection:
                self.foreign = connection.peer is not None and connection.peer.pid == 0
                self.status = connection.status()
        except (NoInstance, MessageError, OrderRefused, TimeoutError) as error:
            self.error, self.runs = error, _is_listened_on(self.path)

    @property
    def socket(self) -> str:
        """The path of its control socket, where it has put it."""
        return os.path.realpath(self.path)

    @property
    def pid(self) -> int | None:
        """Its pid; of a master that does not answer it is the one in the name of its socket."""
        name = Path(self.path).stem
        return self.fact("pid") or (int(name) if name.isdecimal() else None)

    def fact(self, name: str) -> Any:
        """Return a field of its status, None if it is unknown: a master of an older version does not send all."""
        return None if self.status is None else self.status.get(name)

    def description(self) -> str:
        """Return which master it is, for a reader."""
        pid = f"pid {self.pid}" if self.pid is not None else self.socket
        return f"{pid} ({'does not answer' if self.status is None else site(self.status)})"

    def listed(self) -> dict[str, Any]:
        """Return it as ``zdworker list --json`` shows it."""
        names = ("directory", "application", "bind", "started_at", "age_s", "state", "generation", "label")
        facts = {name: self.fact(name) for name in names}
        return {"pid": self.pid, "socket": self.socket, **facts, "error": str(self.error) if self.error else None}


def site(status: Mapping[str, Any]) -> str:
    """Return which site a master serves, for a reader: its directory, application, addresses and age."""
    facts = [f"in {status.get('directory') or 'an unknown directory'}"]
    if status.get("application"):
        label = f" ({status['label']})" if status.get("label") else ""
        facts.append(f"{status['application']}{label}")
    if status.get("bind"):
        facts.append(f"at {', '.join(status['bind'])}")
    if status.get("age_s") is not None:
        facts.append(f"for {span(status['age_s'])}")
    return ", ".join(facts)


def span(seconds: float) -> str:
    """Return a time that has passed, for a reader."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def find(
    pid: int | None = None, pidfile: str | None = None, path: str | None = None, deadline: float | None = None
) -> Master:
    """Return the master that is meant.

    :param deadline: when to give up, by ``time.monotonic()``; see :class:`zdworker.command.client.Connection`.
    :raises NoInstance: there is none.
    :raises SeveralInstances: there are several, and none is named.
    :raises ContradictoryNames: the names are those of different masters.
    :raises TimeoutError: the only one does not answer.
    """
    if deadline is not None:
        deadline = max(deadline, time.monotonic() + SEARCH_MIN_S)
    if pidfile is not None:
        written = _read_pidfile(pidfile)
        if pid not in (None, written):
            raise ContradictoryNames(f"--pid {pid} is not the pid in --pidfile {pidfile}, {written}: give one of them")
        pid = written
    if path is None and pid is None:
        named = os.environ.get("ZD_CONTROL_SOCKET", "")
        path = named if named.startswith("/") else None
    if path is None:
        return _of_process(pid, deadline) if pid is not None else _nearest(deadline)
    master = Master(path, client.trusted_users(_owner_of_file(path)))
    if pid is not None and _listener(master, deadline) not in (pid, None):
        raise ContradictoryNames(f"another process than {pid} listens on --socket {path}: name one master")
    return master


# -- by a name -----------------------------------------------------------------------------------------------------


def _read_pidfile(name: str) -> int:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO would wait until a process writes
        try:
            return int(os.read(descriptor, PIDFILE_MAX_BYTES))
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise NoInstance(f"--pidfile {name} has no pid in it: {error}") from error


def _owner_of_file(path: str) -> int | None:
    try:
        return os.stat(path).st_uid
    except OSError:
        return None


def _owner_of_process(pid: int) -> int:
    """Return the effective user of a process, which is not always the owner of its directory in ``/proc``."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()  # the process's name is in it, cut after 15 bytes
        found = re.search(rb"^Uid:\s+\d+\s+(\d+)", status, re.MULTILINE)
        return int(found[1]) if found is not None else os.stat(f"/proc/{pid}").st_uid
    except OSError:
        raise NoInstance(f"no process has the pid {pid}") from None


def _listener(master: Master, deadline: float | None) -> int | None:
    """Return the pid of the process that listens, 0 for one of another pid namespace, None where that is unknown."""
    with client.Connection(master.path, deadline, master.users) as connection:
        return None if connection.peer is None else connection.peer.pid


def _of_process(pid: int, deadline: float | None) -> Master:
    owner = _owner_of_process(pid)
    users = client.trusted_users(owner)
    for directory in directories_of(owner):
        default = directory / f"{pid}.sock"
        try:
            if not is_private(directory, owner) or not os.path.exists(default):
                continue
        except OSError:
            continue  # there is none, or this user cannot look into it
        master = Master(str(default), users)
        if _listener(master, deadline) in (pid, None):  # not one that has the same pid in another container
            return master
    limit = time.monotonic() + client.ANSWER_TIMEOUT_S
    silent: TimeoutError | None = None
    for path in _listening_paths(pid):
        master = Master(path, users)
        master.ask(limit if deadline is None else min(limit, deadline))
        if master.status is not None:
            return master
        if isinstance(master.error, TimeoutError):
            silent = master.error
    if silent is not None:
        raise silent
    raise NoInstance(
        f"the process {pid} has no control socket that can be reached: it is no master of zdworker's, has "
        "zd_control_socket = 'none', is another user's, or its socket's file was removed (the master puts it back "
        "within ten seconds)"
    )


def _listening_paths(pid: int) -> list[str]:
    """Return the paths of the sockets that a process listens on."""
    try:
        targets = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
        lines = Path(UNIX_SOCKETS_FILE.format(pid)).read_text().splitlines()
    except OSError:
        return []
    inodes = {target[8:-1] for target in targets if target.startswith("socket:[")}
    # Num RefCount Protocol Flags Type St Inode Path
    rows = [line.split(None, 7) for line in lines[1:]]
    found = [row[7] for row in rows if len(row) == 8 and row[3] == LISTENING_FLAGS and row[6] in inodes]
    return [path for path in found if path.startswith("/")]


# -- without a name ------------------------------------------------------------------------------------------------


def running(deadline: float | None = None, enough: Callable[[Master], bool] = lambda _master: False) -> list[Master]:
    """Return all masters of this user, each asked for its status.

    :param enough: whether others are not waited for longer than :data:`SEARCH_MIN_S`, once this one has answered.
    :raises NoInstance: none was found, and there is a directory that cannot be trusted.
    """
    paths, distrusted = _sockets()
    masters = [Master(path) for path in paths]
    # In threads, and not in turn: a master that is stopped uses up all the time that there is.
    threads = [threading.Thread(target=master.ask, args=(deadline,), daemon=True) for master in masters]
    for thread in threads:
        thread.start()
    patience = time.monotonic() + SEARCH_MIN_S
    while any(thread.is_alive() for thread in threads):
        time.sleep(ANSWERS_CHECK_INTERVAL_S)
        if time.monotonic() > patience and any(map(enough, masters)):
            break
    found = [master for master in masters if master.runs]
    if distrusted and not found:
        raise NoInstance(
            f"no running master was found; {' and '.join(distrusted)} is not looked into, because it belongs to "
            "another user or others can enter it: remove it, or name a master with --pid, --pidfile or --socket"
        )
    return found


def _sockets() -> tuple[list[str], list[str]]:
    """Return the sockets in this user's directories on which a process listens, and the directories of others."""
    found: dict[str, str] = {}
    distrusted = []
    for directory in directories_of(os.geteuid()):
        try:
            private = is_private(directory, os.geteuid())
        except OSError:
            continue
        if not private:
            distrusted.append(str(directory))
            continue
        for path in sorted(map(str, directory.glob("*.sock"))):
            if _is_listened_on(path):
                found.setdefault(os.path.realpath(path), path)
    return list(found.values()), distrusted


def _is_listened_on(path: str) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # its queue of connections is full: it listens
            probe.connect(path)
        return True
    return False


def _nearest(deadline: float | None) -> Master:
    """Return the master of the present directory, of the nearest one above it, or the only one."""
    present = _present_directories()
    masters = running(deadline, lambda master: _is_started_in(master, {line[0] for line in present}))
    if not masters:
        raise NoInstance("no running master was found: start one, or name it with --pid, --pidfile or --socket")
    for distance in range(max(map(len, present), default=0)):
        levels = {line[distance] for line in present if distance < len(line)}
        found = [master for master in masters if _is_started_in(master, levels)]
        if found:
            # One that does not answer may have been started nearer.
            found += [master for master in masters if distance and not master.fact("directory")]
            return _only(found, present, announced=distance > 0)
    return _only(masters, present, announced=True)


def _only(masters: list[Master], present: list[list[str]], *, announced: bool) -> Master:
    if len(masters) > 1:
        raise SeveralInstances(
            f"several masters run, name one with --pid or --socket: {'; '.join(m.description() for m in masters)}"
        )
    (master,) = masters
    if master.error is not None:
        raise master.error
    if announced:
        here = present[0][0] if present else "the present directory, which is gone"
        master.announcement = f"no master was started in {here}; this is the one of {master.description()}"
    return master


def _present_directories() -> list[list[str]]:
    """Return the present directory and those above it, nearest first: by its real path, and by the shell's."""
    try:
        names = [os.getcwd()]
    except OSError:
        return []
    logical = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        # A program that starts this command in another directory leaves its own in the environment.
        if logical.startswith("/") and logical != names[0] and os.path.samefile(logical, "."):
            names.append(os.path.normpath(logical))
    return [[name, *_above(name)] for name in names]


def _above(name: str) -> Iterable[str]:
    """Yield the directories above one, nearest first; not the root, which is above everything and says nothing."""
    return [str(parent) for parent in Path(name).parents if str(parent) != "/"]


def _is_started_in(master: Master, directories: Iterable[str]) -> bool:
    started = master.fact("directory")
    if not started or master.foreign:
        return False
    for directory in directories:
        if started == texts.for_json(directory):  # as the master has sent it
            return True
        with contextlib.suppress(OSError):
            if os.path.samefile(started, directory):  # a link to a release, and the release
                return True
    return False
