"""The start of a generation's interpreter, which runs the master's own command again.

Rules:

* The command is captured once, when the master starts: ``sys.orig_argv``, the environment before the configuration
  changed it, and the start directory by its logical path (``current``, not the release that the link pointed to).
* For a script, the interpreter is the one that its ``#!`` line names now, so that a virtual environment inside
  ``current/`` changes with the link. For other commands it is the master's own, by the path by which it was called, so
  that it changes with the link too.
* The interpreter is started with ``posix_spawn`` and never with ``fork``, because the master may have threads
  (Gunicorn's control server is one).
* Signals that end a process by default are blocked until the new interpreter has handlers, so that a ``kill`` of the
  whole process group does not end it during its start.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zdworker import syscalls
from zdworker.errors import GenerationError
from zdworker.ipc.channel import Channel
from zdworker.ipc.messages import SERVER_REPORT_BYTES, Init
from zdworker.master.children import ForkServer

SAME_DEPLOY_NS = 2_000_000_000
"""Nanoseconds before the master's start in which a change of a source file counts as a deploy too: a script may write a
file and start the master at once."""

_OPTIONS_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")


@dataclass(frozen=True)
class Command:
    """The command that has started the master.

    ``interpreter`` and ``options`` are Python's path and options; ``target`` is what it runs with its arguments: ``-m``
    and a module, ``-c`` and code, or a script. ``directory`` is the start directory by its logical path. ``safe_path``
    means that Python was started with ``-P`` or ``-I``. ``started`` is when the master started, less
    :data:`SAME_DEPLOY_NS`, in nanoseconds since the epoch.
    """

    interpreter: str
    options: list[str]
    target: list[str]
    environment: dict[str, str]
    directory: str
    safe_path: bool
    started: int

    @property
    def script(self) -> str | None:
        """The path of the script, or None for ``-m`` and ``-c``."""
        return None if self.target[0] in ("-m", "-c") else self.target[0]


def capture(environment: Mapping[str, str], directory: str) -> Command:
    """Return the command that started this process.

    :param environment: the environment it was started with.
    :param directory: the logical directory it was started in.
    :raises GenerationError: it cannot be run again; the text says why.
    """
    parent = sys.modules.get("multiprocessing.process")
    if parent is not None and parent.parent_process() is not None:
        raise GenerationError("this is a child of multiprocessing")
    options, target = _split(list(sys.orig_argv[1:]))
    if target[0] not in ("-m", "-c"):
        # Not os.path.abspath, which would put the present release into the command instead of the link to it.
        target[0] = os.path.normpath(os.path.join(directory, target[0]))
    safe_path = bool(getattr(sys.flags, "safe_path", False) or sys.flags.isolated)
    started = time.time_ns() - SAME_DEPLOY_NS
    own = _interpreter_as_called(directory)
    return Command(own, options, target, dict(environment), directory, safe_path, started)


def _interpreter_as_called(directory: str) -> str:
    """Return the path of this interpreter below the logical start directory, if it was called by such a path.

    ``sys.executable`` has the release that the link pointed to at the start: with ``venv/bin/python`` every generation
    would use the virtual environment of the first release.
    """
    called = sys.orig_argv[0] if "/" in sys.orig_argv[0] else sys.executable
    path = os.path.normpath(os.path.join(directory, called))
    with contextlib.suppress(OSError):
        if os.path.samefile(path, sys.executable):
            return path
    return sys.executable


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Split a command into the interpreter's options and its target (see :class:`Command`).

    :raises GenerationError: the interpreter reads its program from standard input.
    """
    options: list[str] = []
    while words:
        word = words.pop(0)
        if word == "-" or word.startswith("--multiprocessing"):
            break
        if word == "--":
            return options, words
        if not word.startswith("-"):
            return options, [word, *words]
        if word.startswith("--") or word[:2] in _OPTIONS_WITH_VALUE:
            options.append(word)
            if word in _OPTIONS_WITH_VALUE and words:
                options.append(words.pop(0))
            continue
        for kind in "mc":
            # One-letter options may be joined, and -m and -c end them: ``-Im gunicorn``, ``-mgunicorn``.
            before, found, value = word[1:].partition(kind)
            if found:
                options += [f"-{before}"] if before else []
                value = value or (words.pop(0) if words else "")
                return options, [f"-{kind}", value, *words]
        options.append(word)
    raise GenerationError("this interpreter reads its program from standard input")


def interpreter(command: Command) -> list[str]:
    """Return the interpreter for a generation that starts now, with its options.

    A ``#!`` line that names no Python is ignored (pip writes a shell there when the path is too long).

    :raises GenerationError: the command's script cannot be read.
    :raises ValueError: its ``#!`` line cannot be split into words.
    """
    own = [command.interpreter, *command.options]
    if command.script is None:
        return own
    try:
        with open(command.script, "rb") as file:
            line = file.readline(4096)
    except OSError as error:
        raise GenerationError(f"the command cannot be run again: {error}") from error
    # Not shlex.split(): a quote has no meaning there for the kernel either (execve(2)).
    words = os.fsdecode(line[2:]).split() if line.startswith(b"#!") else []
    if words and os.path.basename(words[0]) == "env":
        found = shutil.which(words[1], path=command.environment.get("PATH")) if len(words) == 2 else None
        words = [found] if found else []
    if not words or not os.path.basename(words[0]).startswith(("python", "pypy")) or not os.path.exists(words[0]):
        return own
    return [words[0], *(words[1:] or command.options)]


def start_generation(
    number: int, command: Command, configuration: str, hooked: dict[str, str | None], log: Any
) -> ForkServer:
    """Start the fork server of a generation.

    :param configuration: the file that the master's configuration was read from, empty without one.
    :param hooked: the environment variables that hooks have set, None for those that they have removed.
    :param log: the master's logger.
    :raises OSError: the system gives no process, pipe or socket.
    :raises GenerationError: the command cannot be run again.
    """
    channel, other = Channel.pair(SERVER_REPORT_BYTES)
    stderr, writer = -1, -1
    try:
        stderr, writer = os.pipe()
        os.set_blocking(stderr, False)
        init = Init(
            generation=number,
            master=os.getpid(),
            directory=command.directory,
            safe_path=command.safe_path,
            descriptors=["stderr"],
            configuration=configuration,
            started=command.started,
            environment=hooked,
        )
        # The message is sent before there is a reader; the registry of children sends what there is no room for yet.
        log.debug("master -> fork server of generation %s: %r", number, init)
        channel.post(init, [2])
        pid = _spawn(command, other, writer)
    except BaseException:
        channel.close()
        if stderr >= 0:
            os.close(stderr)
        raise
    finally:
        other.close()
        if writer >= 0:
            os.close(writer)
    return ForkServer(number, pid, channel, stderr, log)


def _spawn(command: Command, channel: socket.socket, stderr: int) -> int:
    """Start the interpreter and return its pid.

    :param channel: the fork server's end of the channel.
    :param stderr: the descriptor that becomes its standard error.
    :raises OSError: there is no such interpreter, or no process can be started.
    :raises ValueError: the ``#!`` line of the command's script cannot be split into words.
    :raises GenerationError: the command's script is gone.
    """
    # With a safe path the fork server's own imports do not find a types.py of the application in the working directory.
    environment = {**command.environment, "PYTHONSAFEPATH": "1"}
    number = 3 + max(channel.fileno(), stderr)
    words = [*interpreter(command), "-m", "zdworker.forkserver", str(number), "--", *command.target]
    actions: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_DUP2, channel.fileno(), number),
        (os.POSIX_SPAWN_DUP2, stderr, 2),
    ]
    # Where the master was started without one of them, a file of its own may be in its place (the log, say).
    closed = [stream for stream in (0, 1) if not os.get_inheritable(stream)]
    actions += [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_RDWR, 0) for stream in closed]
    return os.posix_spawn(
        words[0], words, environment, file_actions=actions, setsigmask=syscalls.HELD_SIGNALS, setsigdef=[signal.SIGCHLD]
    )
