"""The start of a generation's interpreter, which runs the master's own command again.

Rules:

* The command is captured once, when the master starts: ``sys.orig_argv``, the environment before the configuration
  changed it, and the start directory by its logical path (``current``, not the release that the link pointed to).
* The interpreter is started in the start directory, so that everything relative leads where it leads for a start at
  that moment: PYTHONPATH, PYTHONHOME, PATH, the script, the interpreter's own path. :func:`start_interpreter` is the
  one place that starts one.
* For a script that was started by its ``#!`` line, the interpreter is the one that this line names now, so that a
  virtual environment inside ``current/`` changes with the link. For other commands it is the master's own, by the path
  by which it was called, so that it changes with the link too.
* A generation reports the places that it comes from. It is refused if they are not those of a start at the end of its
  load any more (:func:`refuse_moved`).
* What Python reads from the environment at its start (PYTHONPATH) is what the master's interpreter was started with:
  agents that a wrapper puts there take themselves out, so that the application's own processes do without them.
* The first generation's interpreter is started before the master imports the rest of itself (:func:`start_early`). It
  imports its own modules meanwhile, and waits for the master's first message.
* The interpreter is started with ``posix_spawn`` and never with ``fork``, because the master may have threads
  (Gunicorn's control server is one).
* Signals that end a process by default are blocked until the new interpreter has handlers, so that a ``kill`` of the
  whole process group does not end it during its start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from zdworker import boot, gunicorn_config, syscalls
from zdworker.errors import GenerationError
from zdworker.ipc.channel import Channel
from zdworker.ipc.messages import SERVER_REPORT_BYTES, Init
from zdworker.master import addresses
from zdworker.master.children import ForkServer
from zdworker.settings import GENERATION_VARIABLE
from zdworker.syscalls import FileState, file_state

SAME_DEPLOY_NS = 2_000_000_000
"""Nanoseconds before the master's start in which a change of a source file counts as a deploy too: a script may write a
file and start the master at once."""

FIRST_GENERATION = 1
"""The number of a master's first generation."""

PYTHONS_VARIABLES = ("PYTHONPATH", "PYTHONHOME")
"""Variables that decide what an interpreter can import."""

_LONG_OPTION_WITH_VALUE = "--check-hash-based-pycs"
_LETTERS_WITH_VALUE = "cmWX"
_SHELLS = ("sh", "bash", "dash")


@dataclass(frozen=True)
class Command:
    """The command that has started the master.

    ``interpreter`` and ``options`` are Python's path and options; ``target`` is what it runs with its arguments: ``-m``
    and a module, ``-c`` and code, or a script, as it was called. ``directory`` is the start directory by its logical
    path. ``safe_path`` means that Python was started with ``-P`` or ``-I``. ``started`` is when the master started,
    less :data:`SAME_DEPLOY_NS`, in nanoseconds since the epoch. ``archive`` is the file that the program was unpacked
    from, empty if it was not, and ``archive_state`` that file's state at the start. ``follows_line`` means that the
    ``#!`` line of the script has given the master its interpreter, and gives generations theirs. ``trial`` means that
    generations are only tried.
    """

    interpreter: str
    options: list[str]
    target: list[str]
    environment: dict[str, str]
    directory: str
    safe_path: bool
    started: int
    archive: str = ""
    archive_state: FileState | None = None
    follows_line: bool = True
    trial: bool = False

    @property
    def script(self) -> str | None:
        """The path of the script, or None for ``-m`` and ``-c``."""
        return None if self.target[0] in ("-m", "-c") else os.path.join(self.directory, self.target[0])


def capture(
    environment: Mapping[str, str], directory: str, *, daemon: bool, arguments: Sequence[str] | None = None
) -> Command:
    """Return the command that started this process.

    :param environment: the environment it was started with.
    :param directory: the logical directory that it was in when Gunicorn was imported.
    :param daemon: Gunicorn has made a daemon of this process, by forking it.
    :param arguments: the interpreter's arguments, where they are others than those of this process.
    :raises GenerationError: it cannot be run again; the text says why.
    """
    parent = sys.modules.get("multiprocessing.process")
    if parent is not None and parent.parent_process() is not None:
        raise GenerationError("this is a child of multiprocessing")
    if getattr(sys, "frozen", False):
        raise GenerationError("this is a frozen application")
    if syscalls.was_forked() and not daemon:
        # The command would start what forked this process once more, and that might start anything besides.
        raise GenerationError("this is a fork of the program that was started")
    options, target = _split(list(sys.orig_argv[1:] if arguments is None else arguments))
    if target[0] not in ("-m", "-c"):
        directory = _start_directory(target[0], environment, directory)
    safe_path = bool(getattr(sys.flags, "safe_path", False) or sys.flags.isolated)
    started = time.time_ns() - SAME_DEPLOY_NS
    own = _interpreter_as_called(environment, directory)
    archive = _archive(environment, os.path.join(directory, target[0]))
    state = file_state(archive) if archive else None
    variables = _as_python_was_started(environment)
    found = Command(own, options, target, variables, directory, safe_path, started, archive, state)
    return dataclasses.replace(found, follows_line=_was_started_by_line(found))


def _as_python_was_started(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with what the kernel knows of Python's own variables when this interpreter was started."""
    changed = dict(environment)
    with contextlib.suppress(OSError), open("/proc/self/environ", "rb") as file:
        at_start = dict(word.split("=", 1) for word in os.fsdecode(file.read()).split("\0") if "=" in word)
        # A title for the process has been written over all of it, if there is one by now.
        changed.update({name: at_start[name] for name in PYTHONS_VARIABLES if name in at_start})
    return changed


def _was_started_by_line(command: Command) -> bool:
    """Return whether the ``#!`` line of the command's script has given the master its interpreter.

    ``venv/bin/python manage.py`` has another one than the line names, and so have its generations. Directories are
    compared, because an environment has its interpreter under several names.
    """
    try:
        named = _named_by_line(command)
        return bool(named) and os.path.samefile(os.path.dirname(named[0]), os.path.dirname(sys.executable))
    except (OSError, ValueError, GenerationError):
        return False


def _archive(environment: Mapping[str, str], script: str) -> str:
    """Return the file that a script was unpacked from by PEX, which has replaced itself with it then; else "".

    The script lies in a directory that is named after the contents, so it never changes.
    """
    unpacked = os.path.exists(os.path.join(os.path.dirname(os.path.realpath(script)), "PEX-INFO"))
    return environment.get("PEX", "") if unpacked else ""


def refuse_changed_archive(command: Command) -> None:
    """Refuse a reload of a program that was unpacked from a file which is another by now.

    :raises GenerationError: it is; the command would run what was unpacked at the start.
    """
    if command.archive and file_state(command.archive) != command.archive_state:
        raise GenerationError(
            f"the program was unpacked from {command.archive} at its start, and that file has changed: only a restart "
            "unpacks it again"
        )


def _start_directory(script: str, environment: Mapping[str, str], directory: str) -> str:
    """Return the logical directory that a script was started in; it may have left it before it imported Gunicorn."""
    file = str(getattr(sys.modules["__main__"], "__file__", None) or "")
    began = file.removesuffix(script)  # the interpreter has put the start directory before a relative path
    if began in ("", file):
        return directory
    for logical in (directory, environment.get("PWD", ""), began):
        with contextlib.suppress(OSError):
            if os.path.samefile(logical, began):
                return logical
    return directory


def _interpreter_as_called(environment: Mapping[str, str], directory: str) -> str:
    """Return the path of this interpreter below the logical start directory, if it was called by such a path.

    ``sys.executable`` has the release that the link pointed to at the start: with ``venv/bin/python`` every generation
    would use the virtual environment of the first release.
    """
    called = sys.orig_argv[0]
    path = os.path.join(directory, called) if "/" in called else _which(called, environment, directory)
    # A profiler may have put a program of its own into sys.executable; the kernel knows which one runs.
    for running in (sys.executable, "/proc/self/exe"):
        with contextlib.suppress(OSError):
            if path is not None and _has_pythons_name(path) and os.path.samefile(path, running):
                return path
    if _has_pythons_name(sys.executable):
        return sys.executable
    # ``exec -a "$0" python ...`` in a wrapper gives Python the wrapper's name, and Python takes that for its own path,
    # and looks there for a virtual environment. Started again, the wrapper would start another master.
    for known in filter(None, (path, sys.executable)):
        for beside in _pythons_in(os.path.dirname(known)):
            with contextlib.suppress(OSError):
                if os.path.samefile(beside, "/proc/self/exe"):
                    return beside
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/exe")
    return sys.executable


def _pythons_in(directory: str) -> list[str]:
    """Return where a virtual environment with this directory of programs has its interpreter."""
    return [os.path.join(directory, name) for name in ("python3", "python")]


def _has_pythons_name(path: str) -> bool:
    return os.path.basename(path).startswith(("python", "pypy"))


def _which(name: str, environment: Mapping[str, str], directory: str) -> str | None:
    """Return where ``PATH`` has a program; its relative entries count from the start directory."""
    entries = environment.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which(name, path=os.pathsep.join(os.path.join(directory, entry) for entry in entries))


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
        if word.startswith("--"):
            options.append(word)
            if word == _LONG_OPTION_WITH_VALUE and words:
                options.append(words.pop(0))
            continue
        # One-letter options may be joined, and one with a value ends them: ``-Im gunicorn``, ``-uX dev``.
        letters = itertools.takewhile(lambda letter: letter not in _LETTERS_WITH_VALUE, word[1:])
        before = "-" + "".join(letters)
        rest = word[len(before) :]
        if rest[:1] in ("m", "c"):
            options += [before] if before != "-" else []
            value = rest[1:] or (words.pop(0) if words else "")
            return options, [f"-{rest[0]}", value, *words]
        options.append(word)
        if len(rest) == 1 and words:
            options.append(words.pop(0))
    raise GenerationError("this interpreter reads its program from standard input")


def own_options() -> list[str]:
    """Return the options with which this interpreter was started."""
    return _split(list(sys.orig_argv[1:]))[0]


def interpreter(command: Command) -> list[str]:
    """Return the interpreter for a generation that starts now, with its options.

    :raises GenerationError: the command's script cannot be read.
    """
    named = _named_by_line(command)
    return named if named and command.follows_line else [command.interpreter, *command.options]


def _named_by_line(command: Command) -> list[str]:
    """Return the interpreter that the ``#!`` line of the command's script names now, with its options; or nothing.

    Where that line names a shell, the script's next line starts the interpreter. Installers write this when a path is
    too long for the kernel or has a blank (distlib), or to have a virtual environment that can be moved (``uv venv
    --relocatable``). It lies beside the script then. A line that names anything else is ignored.

    :raises GenerationError: the script cannot be read.
    """
    if command.script is None:
        return []
    try:
        with open(command.script, "rb") as file:
            line = file.readline(4096)
    except IsADirectoryError:  # its __main__.py is run
        return []
    except OSError as error:
        raise GenerationError(f"the command cannot be run again: {error}") from error
    # Not shlex.split(): a quote has no meaning there for the kernel either (execve(2)).
    words = os.fsdecode(line[2:]).split() if line.startswith(b"#!") else []
    if words and os.path.basename(words[0]) == "env":
        found = _which(words[1], command.environment, command.directory) if len(words) == 2 else None
        words = [found] if found else []
    if words and os.path.basename(words[0]) in _SHELLS:
        return [_beside(command), *command.options]
    if not words or not _has_pythons_name(words[0]):
        return []
    path = os.path.join(command.directory, words[0])
    return [path, *(words[1:] or command.options)] if os.path.exists(path) else []


def _beside(command: Command) -> str:
    """Return the path of the interpreter in the directory of the command's script, where links lead now."""
    directory = os.path.dirname(os.path.realpath(command.script or ""))
    paths = [os.path.join(directory, os.path.basename(command.interpreter)), *_pythons_in(directory)]
    return next(filter(os.path.exists, paths), paths[0])  # if there is none, the start's error names it


@dataclass(frozen=True)
class Interpreter:
    """A fork server's interpreter, which waits for its first message and ends if its channel is closed before that.

    ``words`` are its path and its options, ``stderr`` is the reading end of the pipe that is its standard error.
    """

    generation: int
    command: Command
    words: list[str]
    pid: int
    channel: Channel
    stderr: int

    def close(self) -> None:
        """Have it end."""
        self.channel.close()
        os.close(self.stderr)


early: Interpreter | None = None
"""The first generation's interpreter, until that generation is started or given up."""


def start_early(cfg: Any, directory: str) -> None:
    """Start the first generation's interpreter now, if it will be the same as if it is started when its time has come.

    There are three cases in which it is not. A hook may set what it would have to inherit, such as a limit. It would
    inherit the listening sockets that the master has been handed and has not taken yet. The master forks a process that
    would inherit its channel. What fails here fails again later, and is reported then.

    :param cfg: Gunicorn's configuration.
    :param directory: see :func:`capture`.
    """
    global early
    hooks = any(gunicorn_config.is_set(cfg, name) for name in ("on_starting", "when_ready"))
    forks = getattr(cfg, "dirty_workers", 0) or not syscalls.become_subreaper()
    if boot.current is not None or hooks or forks:
        return
    with contextlib.suppress(OSError, ValueError, RuntimeError, GenerationError):
        if addresses.handed_over() or any(isinstance(address, int) for address in cfg.address):
            return
        early = _start_interpreter(FIRST_GENERATION, capture(cfg.env_orig, directory, daemon=cfg.daemon))


def _take_early(number: int, command: Command) -> Interpreter | None:
    """Return the interpreter that :func:`start_early` has started, if it is the one that is wanted and still runs."""
    global early
    found, early = early, None
    if found is None:
        return None
    if (number, command) == (found.generation, found.command):
        # If it has ended before the master had a handler for that, there is no signal to learn it from.
        with contextlib.suppress(ChildProcessError):  # the handler was there, and has reaped it
            if os.waitpid(found.pid, os.WNOHANG) == (0, 0):
                return found
    found.close()
    return None


def start_generation(
    number: int,
    command: Command,
    configuration: str,
    hooked: dict[str, str | None],
    log: Any,
    show: Callable[[str], None],
) -> ForkServer:
    """Start the fork server of a generation.

    :param configuration: the file that the master's configuration was read from, empty without one.
    :param hooked: the environment variables that hooks have set, None for those that they have removed.
    :param log: the master's logger.
    :param show: is called with what the fork server prints.
    :raises OSError: the system gives no process, pipe or socket.
    :raises GenerationError: the command cannot be run again.
    """
    init = Init(
        generation=number,
        master=os.getpid(),
        directory=command.directory,
        safe_path=command.safe_path,
        descriptors=["stderr"],
        configuration=configuration,
        started=command.started,
        environment=hooked,
        trial=command.trial,
    )
    started = _take_early(number, command) or _start_interpreter(number, command)
    try:
        # It may not read yet; the registry of children sends what there is no room for.
        log.debug("master -> fork server of generation %s: %r", number, init)
        started.channel.post(init, [2])
    except BaseException:
        started.close()
        raise
    server = ForkServer(number, started.pid, started.channel, started.stderr, log, show)
    server.interpreter = started.words[0]
    return server


def _start_interpreter(number: int, command: Command) -> Interpreter:
    """Start the interpreter of a generation.

    :raises OSError: the system gives no process, pipe or socket.
    :raises GenerationError: the command cannot be run again.
    """
    words = interpreter(command)
    channel, other = Channel.pair(SERVER_REPORT_BYTES)
    stderr, writer = -1, -1
    try:
        stderr, writer = os.pipe()
        os.set_blocking(stderr, False)
        pid = _spawn(command, number, words, other, writer)
    except BaseException:
        channel.close()
        if stderr >= 0:
            os.close(stderr)
        raise
    finally:
        other.close()
        if writer >= 0:
            os.close(writer)
    return Interpreter(number, command, words, pid, channel, stderr)


def _spawn(command: Command, generation: int, words: list[str], channel: socket.socket, stderr: int) -> int:
    """Start a fork server and return its pid.

    :param generation: its number.
    :param words: the interpreter with its options.
    :param channel: the fork server's end of the channel.
    :param stderr: the descriptor that becomes its standard error.
    :raises OSError: there is no such interpreter, or no process can be started.
    :raises GenerationError: the interpreter or the command's script is gone.
    """
    # With a safe path the fork server's own imports do not find a types.py of the application in the working directory.
    environment = {**command.environment, "PYTHONSAFEPATH": "1", GENERATION_VARIABLE: str(generation)}
    number = 3 + max(channel.fileno(), stderr)
    words = [*words, "-m", "zdworker.forkserver", str(number), "--", *command.target]
    actions: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_DUP2, channel.fileno(), number),
        (os.POSIX_SPAWN_DUP2, stderr, 2),
    ]
    # Where the master was started without one of them, a file of its own may be in its place (the log, say).
    closed = [stream for stream in (0, 1) if not os.get_inheritable(stream)]
    actions += [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_RDWR, 0) for stream in closed]
    return start_interpreter(command.directory, words, environment, actions)


def start_interpreter(
    directory: str, words: list[str], environment: Mapping[str, str], actions: list[tuple[Any, ...]]
) -> int:
    """Start an interpreter in the start directory and return its pid.

    If that directory cannot be entered, the interpreter is started in the root directory, where nothing relative leads
    into the code of an earlier release. The generation fails if it depends on the start directory (``places.py``).

    :param words: the interpreter's path and its arguments.
    :param actions: what is done with descriptors, as ``os.posix_spawn`` takes it.
    :raises OSError: there is no such interpreter, or no process can be started.
    """
    # posix_spawn sets no directory, so this process changes to it for the moment. A thread with a directory of its own
    # would not do: the child's death signal comes when the thread ends that has started it (prctl(2)).
    before = os.open(".", syscalls.OPEN_DIRECTORY)
    try:
        try:
            os.chdir(directory)
        except OSError:
            os.chdir("/")
        return os.posix_spawn(
            words[0],
            words,
            environment,
            file_actions=actions,
            setsigmask=syscalls.HELD_SIGNALS,
            setsigdef=[signal.SIGCHLD],
        )
    finally:
        os.fchdir(before)
        os.close(before)


class Started(Protocol):
    """An interpreter that was started here: by which path, and the places that it comes from."""

    interpreter: str
    places: dict[str, dict[str, str]]


def refuse_moved(command: Command, server: Started, what: str = "the generation", remedy: str = "reload again") -> None:
    """Refuse a generation whose places are not those that a start at this moment would use.

    :param what: what was started, and ``remedy`` what to do, for a reader.
    :raises GenerationError: one leads elsewhere now; the text has both, and what to do.
    """
    now = interpreter(command)[0]
    if now != server.interpreter:
        raise GenerationError(
            f"the command's interpreter was {server.interpreter} when {what} started and is {now} now: {remedy}"
        )
    for names in server.places.values():
        for name, before in names.items():
            now = os.path.realpath(name)
            if os.path.isabs(name) and now != before:
                missing = "" if os.path.exists(now) else ", which does not exist,"
                raise GenerationError(
                    f"{name} pointed to {before} when {what} started and points to {now}{missing} now: {remedy}"
                )
