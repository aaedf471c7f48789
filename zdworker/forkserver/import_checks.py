"""What an import has left open or running in a fork server, and workers should not inherit.

Rules:

* This only looks. A finding that is certain comes with advice, and is a warning where the user has asked for
  preloading. Another one may be meant as it is, and only tells against preloading by default.
* A socket counts as a connection when the kernel names a peer; the two ends of a socket pair, which have no name,
  belong to this process.
* Threads that Python does not know (those of a C library) are left to that library where they have no name of their
  own and OpenBLAS is loaded: its threads start again after a fork. Other libraries name theirs, and have no such way.
* Threads that were there before the command ran are those of an agent that instruments the interpreter from ``site``
  (ddtrace, OpenTelemetry). It begins them again after each fork, and a master of stock Gunicorn has them, too.
* A lock of a thread needs no look: in a worker it is as it would be after an import there, unless another thread holds
  it, and threads are found. A lock on a file is held by all that have inherited the file.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import socket
import stat
import sys
import threading
import weakref
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from zdworker.descendants import own_descendants
from zdworker.forkserver import randomness

PROCESS = "/proc/self"
EVENT_LOOP = "anon_inode:[eventpoll]"
MEMORY_DEVICES = 1
"""The major number of ``/dev/null``, ``/dev/urandom`` and the like (devices.txt in the kernel's documentation)."""

FORK_SAFE_THREADS = {"jemalloc_bg_thd"}
"""Threads of libraries that do without them after a fork: jemalloc's, which pyarrow brings."""

REMOVERS = {"tempfile", "shutil", "posix"}
"""The modules of functions that remove what was made at import."""

GENERATORS_OF_NUMPY = ("Generator", "RandomState")

_Socket = socket.socket
"""The socket class before a worker class monkey-patches it."""


class Finding(NamedTuple):
    """What was found, as a line; one that is certain has a colon and advice at its end.

    ``new`` is False for what a script that embeds Gunicorn has begun before: the workers lack it in any case.
    """

    line: str
    certain: bool = False
    new: bool = True

    @property
    def what(self) -> str:
        """The line without the advice."""
        return self.line.rpartition(": ")[0] if self.certain else self.line


class Snapshot(NamedTuple):
    """What a process had open before an import."""

    threads: list[threading.Thread]
    kernel_threads: set[int]
    processes: set[int]
    descriptors: dict[int, str]
    mappings: set[str]
    handlers: dict[int, Any]
    alike: list[object]
    finalizers: set[int]


def snapshot() -> Snapshot:
    """Return what this process has open; empty where there is no ``/proc``."""
    return Snapshot(
        threads=threading.enumerate(),
        kernel_threads=_kernel_threads(),
        processes={process.pid for process in own_descendants()},
        descriptors=_descriptors(),
        mappings=_shared_mappings(),
        handlers=_handlers(),
        alike=list(_alike()),
        finalizers={id(each) for each in _finalizers()},
    )


def findings(before: Snapshot, agents: Collection[int] = ()) -> list[Finding]:
    """Return each kind of thing that was started or opened since ``before``.

    :param agents: the result of :func:`agents`, before the command ran.
    """
    now = _descriptors()
    opened = {number: target for number, target in now.items() if before.descriptors.get(number) != target}
    return [*_of_threads(before.threads, agents), *_of_processes(before.processes), *_of_descriptors(opened)]


def doubts(before: Snapshot) -> list[Finding]:
    """Return what else may not be inherited as it is. With numpy or gevent, this looks at all objects."""
    return [
        *_of_other_threads(before.kernel_threads),
        *_of_shared_memory(_shared_mappings() - before.mappings),
        *_of_handlers(before.handlers),
        *_of_what_is_alike(before.alike),
        *_of_finalizers(before.finalizers),
    ]


def warnings(found: Iterable[Finding]) -> list[str]:
    """Return the lines of the findings that are certain."""
    return [finding.line for finding in found if finding.certain]


# -- threads and processes -------------------------------------------------------------------------------------------


def agents() -> frozenset[int]:
    """Return the kernel's numbers of the threads beside the main one: before the command runs, those of agents."""
    return frozenset(_kernel_threads() - {os.getpid()})


def _kernel_threads() -> set[int]:
    """Return the kernel's numbers of all threads (proc_pid_task(5))."""
    with contextlib.suppress(OSError):
        return {int(name) for name in os.listdir(f"{PROCESS}/task")}
    return set()


def _of_threads(before: list[threading.Thread], agents: Collection[int]) -> Iterator[Finding]:
    others = [
        thread
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and thread.native_id not in agents
    ]
    if others:
        yield Finding(
            f"the application started threads at import ({', '.join(thread.name for thread in others)}): "
            "they do not exist in the workers; start them in the lifespan, or in post_fork",
            certain=True,
            new=any(thread not in before for thread in others),
        )


def _of_other_threads(before: set[int]) -> Iterator[Finding]:
    unknown = _kernel_threads() - before - {thread.native_id for thread in threading.enumerate()}
    names = {_text(f"task/{number}/comm").strip() for number in unknown} - FORK_SAFE_THREADS
    if names and "openblas" in _text("maps"):
        names.discard(_text("comm").strip())
    if names:
        yield Finding(f"a library of the application started threads at import ({', '.join(sorted(names))})")


def _of_processes(before: set[int]) -> Iterator[Finding]:
    found = own_descendants()
    names = ", ".join(map(str, found))
    if names:
        yield Finding(
            f"the application started processes at import ({names}): all workers share them, each reload starts more "
            "of them, and they end with their generation; start them in the lifespan, or in post_fork",
            certain=True,
            new=any(process.pid not in before for process in found),
        )


# -- descriptors -----------------------------------------------------------------------------------------------------


def _descriptors() -> dict[int, str]:
    """Return the open descriptors, and what each refers to (proc_pid_fd(5)); empty where there is no ``/proc``."""
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(f"{PROCESS}/fd"):
            with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed by now
                found[int(name)] = os.readlink(f"{PROCESS}/fd/{name}")
    return found


def _of_descriptors(opened: dict[int, str]) -> Iterator[Finding]:
    names: dict[str, set[str]] = {}
    for number, target in opened.items():
        with contextlib.suppress(OSError):  # closed meanwhile
            kind, name = _kind(number, target)
            names.setdefault(kind, set()).add(name)
    for kind, line in _LINES.items():
        if kind in names:
            yield Finding(line.replace("%s", ", ".join(sorted(names[kind]))), certain=kind in _CERTAIN)


_LINES = {
    "connection": "the application opened connections at import (%s): all workers share them; "
    "open them in the lifespan, or in post_fork",
    "event loop": "the application left an event loop open at import: it is of no use in the workers; make it in the "
    "lifespan, or in post_fork",
    "lock": "the application holds locks on files since its import (%s): each worker would think that it has them; "
    "take them in the lifespan, or in post_fork",
    "written": "the application left files open for writing at import (%s): all workers share their position; "
    "open them in the lifespan, in post_fork, or for appending",
    "read": "the application left files open at import (%s)",
    "other": "the application left descriptors open at import (%s)",
}
"""What there is to say of each kind of descriptor."""

_CERTAIN = ("connection", "event loop", "lock", "written")


def _kind(number: int, target: str) -> tuple[str, str]:
    """Return the kind of a descriptor, a key of :data:`_LINES` or "" for one that can be shared, and its name.

    :raises OSError: it is closed.
    """
    if target == EVENT_LOOP:
        # gevent's event loop notices a fork by itself.
        return "" if "gevent" in sys.modules else "event loop", target
    if target.startswith("socket:"):
        return _kind_of_socket(number, target)
    status = os.fstat(number)
    if stat.S_ISREG(status.st_mode):
        return _kind_of_file(number, status), target
    shared = stat.S_ISDIR(status.st_mode) or (
        stat.S_ISCHR(status.st_mode) and (os.major(status.st_rdev) == MEMORY_DEVICES or os.isatty(number))
    )
    return "" if shared else "other", target


def _kind_of_file(number: int, status: os.stat_result) -> str:
    # A lock of lockf() or flock() stands there with the file, on a line of its own (proc_pid_fdinfo(5)).
    facts = _text(f"fdinfo/{number}")
    flags = re.search(r"^flags:\s*([0-7]+)", facts, re.MULTILINE)
    mode = int(flags[1], 8) if flags else os.O_RDWR
    if re.search(r"^lock:", facts, re.MULTILINE):
        return "lock"
    if mode & os.O_APPEND or mode & getattr(os, "O_PATH", 0):
        return ""
    if mode & os.O_ACCMODE != os.O_RDONLY:
        return "written"
    # What is mapped is read by its addresses, not by the position that workers would share.
    mapped = re.search(rf"^\S+ \S+ \S+ \S+ {status.st_ino} ", _text("maps"), re.MULTILINE)
    return "" if mapped else "read"


def _kind_of_socket(number: int, target: str) -> tuple[str, str]:
    # A duplicate can be closed without closing the application's socket. They share the open file, on which a default
    # timeout would set O_NONBLOCK.
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(None)
    try:
        with _Socket(fileno=os.dup(number)) as connection:
            if connection.type == socket.SOCK_DGRAM:
                return "", target  # datagrams (syslog, statsd) can be sent by all workers through one socket
            peer = connection.getpeername() if connection.type == socket.SOCK_STREAM else ""
    except OSError:
        peer = ""
    finally:
        socket.setdefaulttimeout(timeout)
    if not peer:
        return "other", target
    return "connection", f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else os.fsdecode(peer)


# -- memory, signals, chance, files to remove --------------------------------------------------------------------------


def _shared_mappings() -> set[str]:
    """Return what of this process's memory is shared for writing (proc_pid_maps(5))."""
    found = set()
    for line in _text("maps").splitlines():
        _addresses, mode, _offset, device, inode, *path = line.split(maxsplit=5)
        if mode[1] == "w" and mode[3] == "s":
            found.add(f"{path[0] if path else ''} {device} {inode}")
    return found


def _of_shared_memory(mapped: set[str]) -> Iterator[Finding]:
    names = ", ".join(sorted({name.rsplit(" ", 2)[0].removesuffix(" (deleted)") for name in mapped}))
    if names:
        yield Finding(f"the application mapped memory at import that all workers would share ({names})")


def _handlers() -> dict[int, Any]:
    return {signum: signal.getsignal(signum) for signum in signal.valid_signals()}


def _of_handlers(before: dict[int, Any]) -> Iterator[Finding]:
    changed = [signum for signum, handler in _handlers().items() if before.get(signum) != handler]
    if changed:
        names = ", ".join(getattr(signum, "name", f"signal {signum}") for signum in changed)
        yield Finding(f"the application set handlers of signals at import ({names})")


def _alike() -> Iterator[object]:
    """Yield what would do the same in all workers: generators of numpy, and what gevent has still to run."""
    greenlet: Any = getattr(sys.modules.get("gevent"), "Greenlet", ())
    seeded_again = randomness.global_generator_of_numpy()
    if not {"numpy.random", "gevent"} & sys.modules.keys():
        return
    objects = gc.get_objects()  # millions, perhaps, of few types
    types = dict(zip(map(id, map(type, objects)), map(type, objects), strict=True))  # a class may be unhashable
    draws = {number for number, kind in types.items() if _is_generator_of_numpy(kind)}
    runs = {number for number, kind in types.items() if issubclass(kind, greenlet)}
    if draws or runs:
        for each in objects:
            number = id(type(each))
            if (number in draws and each is not seeded_again) or (number in runs and not each.dead):
                yield each


def _is_generator_of_numpy(kind: type) -> bool:
    return kind.__name__ in GENERATORS_OF_NUMPY and str(kind.__module__).startswith("numpy.random")


def _of_what_is_alike(before: list[object]) -> Iterator[Finding]:
    known = {id(each) for each in before}
    names = sorted({type(each).__qualname__ for each in _alike() if id(each) not in known})
    if names:
        yield Finding(f"the application made at import what all workers would do alike ({', '.join(names)})")


def _finalizers() -> Iterator[object]:
    """Yield what removes a file or a directory at the end of the process."""
    registry: dict[weakref.finalize[Any, Any], Any] = vars(weakref.finalize)["_registry"]
    for each in list(registry):
        finalizer = each.peek()
        if finalizer is not None and each.atexit and getattr(finalizer[1], "__module__", "") in REMOVERS:
            yield each


def _of_finalizers(before: set[int]) -> Iterator[Finding]:
    if any(id(each) not in before for each in _finalizers()):
        yield Finding(
            "the application made at import what the first worker to end would remove (a temporary directory)"
        )


def _text(name: str) -> str:
    """Return a file of ``/proc/self``, empty where there is none."""
    with contextlib.suppress(OSError), open(f"{PROCESS}/{name}", encoding="utf-8", errors="replace") as file:
        return file.read()
    return ""
