"""System calls that Python lacks: subreaper, death signal, unread bytes, memory, descriptors and credentials.

Rules: each function is a thin cover of one kernel interface. Where the kernel lacks it, the function does not raise but
returns a result that says so, because every caller can do without.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import functools
import os
import posix
import resource
import signal
import socket
import stat
import struct
import sys
import termios
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

plain_fork, plain_exit = posix.fork, posix._exit  # noqa: SLF001  # it is public in its copy, os._exit
"""fork(2) and _exit(2) of the interpreter, whatever tools have put into ``os``: with a debugger's fork the child waits
for the debugger's client, with gevent's it gets a hub, and a profiler's exit raises."""

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CLONE_FS = 0x200  # include/uapi/linux/sched.h
PF_FORKNOEXEC = 0x40  # include/linux/sched.h
_UCRED = struct.Struct("3i")
OPEN_DIRECTORY = getattr(os, "O_PATH", os.O_RDONLY)
"""How to open a directory in order to return to it: with O_PATH also one that may be entered and not listed."""
_DESCRIPTORS_MAX = 253  # SCM_MAX_FD, include/net/scm.h

GROUP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGTTIN", "SIGTTOU")
    if hasattr(signal, name)
)
"""Signals that may be sent to the whole process group and are meant for the master alone."""

HELD_SIGNALS = (*GROUP_SIGNALS, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""Signals that are blocked while a process has no handlers of its own yet: their default action would end it."""


STACK_SIGNAL = signal.SIGURG
"""The signal at which a worker that boots, or a fork server, writes the stacks of its threads. The default
action of SIGURG is to do nothing, so it harms no process that has no handler for it (signal(7))."""

_SIGACTION_BYTES = 512
"""More than a ``struct sigaction`` has (sigaction(2)): 152 bytes on 64-bit Linux."""


@functools.cache
def _c_library() -> ctypes.CDLL:
    """Return the C library. Each new object for it costs as much as a hundred calls."""
    return ctypes.CDLL(None, use_errno=True)


def fork(call: Callable[[], int] | None = None) -> int:
    """Fork, and return what ``os.fork()`` does, also where other threads run.

    Python warns of those since 3.12. With warnings as errors, 3.15 raises that in the parent when the child runs.

    :param call: ``os.fork`` as a tool may have replaced it; :data:`plain_fork` by default.
    :raises OSError: the kernel refuses the fork.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return (call or plain_fork)()


@dataclass(frozen=True)
class SignalAction:
    """What the kernel does at a signal. ``handler`` is the beginning, with the handler's address: the C library leaves
    a part of the rest as it finds it.
    """

    handler: bytes
    whole: bytes = field(default=b"", compare=False, repr=False)


def signal_action(signum: int) -> SignalAction:
    """Return what the kernel does at a signal.

    Python does not know of a handler that a library has set in C. Where the system lacks this call, all are equal.
    """
    if not sys.platform.startswith("linux"):
        return SignalAction(b"")
    action = ctypes.create_string_buffer(_SIGACTION_BYTES)
    if _c_library().sigaction(signum, None, action) != 0:
        return SignalAction(b"")
    return SignalAction(action.raw[: 2 * ctypes.sizeof(ctypes.c_void_p)], action.raw)


def set_signal_action(signum: int, action: SignalAction) -> None:
    """Set what :func:`signal_action` has returned."""
    if action.whole:
        _c_library().sigaction(signum, action.whole, None)


class HasDescriptor(Protocol):
    """A socket of any library."""

    def fileno(self) -> int:
        """Return the descriptor, -1 if it is closed."""


def _prctl(option: int, argument: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    return bool(_c_library().prctl(option, argument, 0, 0, 0) == 0)


def unshare_directory() -> bool:
    """Give this thread a working directory of its own (CLONE_FS in unshare(2)), which needs no privilege.

    :return: whether it has one now; elsewhere than on Linux it goes on sharing the process's.
    """
    if not sys.platform.startswith("linux"):
        return False
    return bool(_c_library().unshare(CLONE_FS) == 0)


def become_subreaper() -> bool:
    """Let orphans among the descendants become children of this process (PR_SET_CHILD_SUBREAPER in prctl(2)).

    :return: whether the kernel has done it.
    """
    return _prctl(PR_SET_CHILD_SUBREAPER, 1)


def was_forked() -> bool:
    """Return whether this process is a fork that has not replaced its program since (the flag PF_FORKNOEXEC in
    proc_pid_stat(5)); False where the kernel does not say.
    """
    try:
        with open("/proc/self/stat", "rb") as file:
            flags = int(file.read().rpartition(b")")[2].split()[6])
    except (OSError, ValueError, IndexError):
        return False
    return bool(flags & PF_FORKNOEXEC)


def set_process_name(name: str) -> None:
    """Set the kernel's name of this process (see :func:`process_name`); ``execve`` makes it that of the program."""
    try:
        with open("/proc/self/comm", "wb") as file:
            file.write(os.fsencode(name))
    except OSError:
        pass


def open_standard_streams() -> None:
    """Open ``/dev/null`` in the place of each of the descriptors 0, 1 and 2 that is closed.

    What is opened next would take that place, be it the pipe that wakes the master: whatever prints would write there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, and those below are not
            os.set_inheritable(opened, True)


def set_death_signal(signum: int) -> bool:
    """Have the kernel send ``signum`` to this process when its parent ends (PR_SET_PDEATHSIG in prctl(2)).

    The kernel clears it at ``fork``, ``setuid`` and similar calls, after which it must be set again. The kernel sends
    no signal for a parent that has ended before this call, so check ``getppid()`` afterwards.

    :return: whether the kernel has done it.
    """
    return _prctl(PR_SET_PDEATHSIG, signum)


def unread(sock: HasDescriptor) -> int:
    """Return the number of received bytes that are still unread (SIOCINQ in tcp(7)); 0 if the socket is closed."""
    count = array.array("i", [0])  # twice as fast as an immutable buffer, of which the result has to be converted
    try:
        fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    except (OSError, ValueError):
        return 0
    return count[0]


def resident_memory(pid: int | None = None) -> int | None:
    """Return the bytes of memory that a process holds, shared ones included (RSS, proc_pid_statm(5)).

    Without a ``/proc`` it is the most that this process has ever held (getrusage(2)). The result is None for a process
    that has ended and, without a ``/proc``, for every other process.

    :param pid: the process; this one by default.
    """
    try:
        with open(f"/proc/{pid or 'self'}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        if pid is not None:
            return None
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class Peer:
    """The process and the user at the other end of a Unix socket. ``pid`` is 0 for one of another pid namespace."""

    pid: int
    uid: int


def peer(connection: socket.socket) -> Peer | None:
    """Return the other end of a Unix socket (SO_PEERCRED in unix(7)); None where that is unknown.

    A client gets the process that has called ``listen``, and the effective user that it was at that time.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    pid, uid, _gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _UCRED.size))
    return Peer(pid, uid)


def process_name(pid: int) -> str | None:
    """Return the name of a process (proc_pid_comm(5)), which it can change; None if it has ended or that is unknown.

    Not its command line: what is in there may be secret, and its reading may wait for that process.
    """
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return os.fsdecode(file.read()).strip()
    except OSError:
        return None


def pass_credentials(channel: socket.socket) -> None:
    """Have the kernel add the sender's pid to what is received on ``channel`` (SO_PASSCRED in unix(7), Linux)."""
    if hasattr(socket, "SO_PASSCRED"):
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def send_with_descriptors(channel: socket.socket, data: bytes, descriptors: list[int]) -> None:
    """Send all of ``data``, the first piece of it with ``descriptors`` (SCM_RIGHTS in unix(7)).

    :raises OSError: the other end is closed, or (``BlockingIOError``) takes no more.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sent = channel.sendmsg([data], ancillary)
    if sent < len(data):
        channel.sendall(data[sent:])


def send_some(channel: socket.socket, data: bytes, descriptors: list[int]) -> int:
    """Send what ``channel`` has room for, and return how many bytes that is; the descriptors go with the first of them.

    :raises OSError: the other end is gone, or the kernel passes no more descriptors on.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    try:
        return channel.sendmsg([data], ancillary)
    except BlockingIOError:
        return 0


def send_message(channel: socket.socket, data: bytes, descriptors: list[int]) -> None:
    """Send a message, with descriptors, over a socket that keeps the bounds of messages; whole, or not at all.

    :raises OSError: the other end is gone, or (``BlockingIOError``) takes no more now.
    """
    flags = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
    channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))], flags)


@dataclass(frozen=True)
class Piece:
    """The result of one ``recvmsg``. ``sender`` is a pid where it is passed. ``refused`` means that descriptors came
    for which there was no room: the kernel has closed them.
    """

    data: bytes
    descriptors: list[int]
    sender: int | None
    refused: bool


def receive_with_descriptors(
    channel: socket.socket, size: int = 65536, *, descriptors: bool, credentials: bool
) -> Piece:
    """Return bytes, the descriptors that came with them (close-on-exec), and the sender's pid or None.

    :param descriptors: make room for descriptors. Without it none can get into this process.
    :param credentials: make room for the sender's pid, which the kernel passes after :func:`pass_credentials`; not
        otherwise, because the kernel would put descriptors there.
    :raises OSError: whatever ``recvmsg`` raises.
    """
    space = socket.CMSG_SPACE(_DESCRIPTORS_MAX * 4) if descriptors else 0
    space += socket.CMSG_SPACE(_UCRED.size) if credentials else 0
    data, ancillary, flags, _address = channel.recvmsg(size, space, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
    taken, sender = array.array("i"), None
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            taken.frombytes(payload[: len(payload) - len(payload) % taken.itemsize])
        elif level == socket.SOL_SOCKET and kind == getattr(socket, "SCM_CREDENTIALS", -1):
            sender = _UCRED.unpack(payload[: _UCRED.size])[0]
    return Piece(data, list(taken), sender, refused=bool(flags & socket.MSG_CTRUNC))


FileState = tuple[int, int, int]
"""Of a file: time of its last change in nanoseconds, size, inode."""


def file_state(path: str) -> FileState | None:
    """Return the state of a file, that of the archive which the path leads into, or None if there is neither."""
    while path:
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            path = os.path.dirname(path) if os.path.dirname(path) != path else ""
        except (OSError, ValueError):
            return None
        else:
            return (found.st_mtime_ns, found.st_size, found.st_ino) if stat.S_ISREG(found.st_mode) else None
    return None
