"""How a generation's interpreter is started: the master's own command, run anew.

Rules:

* What is run is captured once, when the master starts: ``sys.orig_argv``, the environment as it was before the
  configuration touched it, the logical start directory (``current``, not where the link pointed then).
* The interpreter is the present one of the command's ``#!`` line when the command is a script: a virtual environment
  inside ``current/`` changes with the link. Otherwise it is the master's own, by the path it was called by: likewise.
* ``posix_spawn``, never ``fork``: the master may have threads (Gunicorn's control server is one) and is never copied.
* Signals that end a process by default are blocked until the new interpreter has handlers: a ``kill`` of the whole
  process group must not hit it half-made.
"""

from __future__ import annotations

import contextlib
import os
import shlex
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

SAME_DEPLOY = 2_000_000_000
"""Nanoseconds before the start in which a change of the code still belongs to it: a script that edits and starts."""

_OPTIONS_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")


@dataclass(frozen=True)
class Command:
    """What starts the master: interpreter and its options, what it runs, and its surroundings.

    ``started`` is when that was, in nanoseconds since the epoch.
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
        # Not os.path.abspath: it would write the release of today into the command, not the link to it.
        target[0] = os.path.normpath(os.path.join(directory, target[0]))
    safe_path = bool(getattr(sys.flags, "safe_path", False) or sys.flags.isolated)
    started = time.time_ns() - SAME_DEPLOY
    own = _interpreter_as_called(directory)
    return Command(own, options, target, dict(environment), directory, safe_path, started)


def _interpreter_as_called(directory: str) -> str:
    """Return the path of this interpreter by way of the logical start directory, if it was called that way.

    ``sys.executable`` is relative to where the link led at the start: a virtual environment in the release that is
    called as ``venv/bin/python`` would stay that of the first release.
    """
    called = sys.orig_argv[0] if "/" in sys.orig_argv[0] else sys.executable
    path = os.path.normpath(os.path.join(directory, called))
    with contextlib.suppress(OSError):
        if os.path.samefile(path, sys.executable):
            return path
    return sys.executable


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Split a command into the interpreter's options and what it runs (``-m``, ``-c`` or a script first)."""
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
            # One-letter options may stand together, and -m and -c end them: ``-Im gunicorn``, ``-mgunicorn``.
            before, found, value = word[1:].partition(kind)
            if found:
                options += [f"-{before}"] if before else []
                value = value or (words.pop(0) if words else "")
                return options, [f"-{kind}", value, *words]
        options.append(word)
    raise GenerationError("this interpreter reads its program from standard input")


def interpreter(command: Command) -> list[str]:
    """Return the interpreter for a generation that starts now, with its options.

    A ``#!`` line that names no Python (pip writes a shell there when the path is too long) is passed over.
    """
    own = [command.interpreter, *command.options]
    if command.script is None:
        return own
    try:
        with open(command.script, "rb") as file:
            line = file.readline(4096)
    except OSError as error:
        raise GenerationError(f"the command cannot be run again: {error}") from error
    words = shlex.split(line[2:].decode(errors="replace")) if line.startswith(b"#!") else []
    if words and os.path.basename(words[0]) == "env":
        found = shutil.which(words[1], path=command.environment.get("PATH")) if len(words) == 2 else None
        words = [found] if found else []
    if not words or not os.path.basename(words[0]).startswith(("python", "pypy")) or not os.path.exists(words[0]):
        return own
    return [words[0], *(words[1:] or command.options)]


def start_generation(number: int, command: Command, configuration: str, log: Any) -> ForkServer:
    """Start the fork server of a generation.

    :param configuration: the file that the master's configuration was read from, empty without one.
    :param log: the master's logger.
    :raises OSError: no process, pipe or socket can be had.
    :raises ValueError: the ``#!`` line of the command's script cannot be taken apart.
    :raises GenerationError: the command cannot be run again.
    """
    channel, theirs = Channel.pair(SERVER_REPORT_BYTES)
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
        )
        # Into the channel before there is a reader: a start must not wait for the other side.
        channel.send(init, [2])
        pid = _spawn(command, theirs, writer)
    except BaseException:
        channel.close()
        if stderr >= 0:
            os.close(stderr)
        raise
    finally:
        theirs.close()
        if writer >= 0:
            os.close(writer)
    return ForkServer(number, pid, channel, stderr, log)


def _spawn(command: Command, channel: socket.socket, stderr: int) -> int:
    """Start the interpreter and return its pid.

    :param channel: its end of the channel.
    :param stderr: what becomes its standard error until it has loaded.
    :raises OSError: there is no such interpreter, or no process can be started.
    :raises GenerationError: the command's script is gone.
    """
    # Safe path: the bootstrap's own imports must not meet a types.py of the application in the working directory.
    environment = {**command.environment, "PYTHONSAFEPATH": "1"}
    number = 3 + max(channel.fileno(), stderr)
    words = [*interpreter(command), "-m", "zdworker.forkserver", str(number), "--", *command.target]
    actions = [
        (os.POSIX_SPAWN_DUP2, channel.fileno(), number),
        (os.POSIX_SPAWN_DUP2, stderr, 2),
    ]
    return os.posix_spawn(
        words[0], words, environment, file_actions=actions, setsigmask=syscalls.HELD, setsigdef=[signal.SIGCHLD]
    )
