"""A generation: a fresh interpreter that runs the master's own command up to the point where it would become a master.

Run as ``python -m zdworker.forkserver <channel> -- <what the master was started with>``.

Rules:

* Before Gunicorn's command line runs, ``Arbiter`` is made unable to become a master here, and daemonizing is off.
* Whatever goes wrong until the generation stands (an exception, an exit, a worker class that is not ours) goes up the
  channel; standard error is the master's pipe until then, so that it is heard whatever prints there.
* Directory, ``sys.path`` and package paths are physical: what is imported late must come from the release that was
  current at the start, however the link has been flipped since.
* It keeps no listening socket (the kernel would go on accepting into it) and takes no signal but a rotation's; it ends
  with its channel, and with its master (death signal).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import runpy
import signal
import socket
import sys
import traceback
from types import FrameType
from typing import Any, NoReturn

from zdworker import gunicorn_config, log_files, roles, syscalls
from zdworker.descendants import end_own_descendants
from zdworker.errors import GenerationError, ZdError
from zdworker.forkserver import import_checks, worker_boot
from zdworker.forkserver.bytecode import distrust_stale_bytecode
from zdworker.ipc.channel import Channel
from zdworker.ipc.messages import PROTOCOL, Forked, Init, Loaded, LoadFailed, NotForked, Spawn

UNUSABLE_GRACE_S = 0.5
"""Seconds between TERM and KILL for the processes that code has started at import which turned out to be of no use."""

# As they are before a worker class monkey-patches: gevent's own watch children from a hub that nothing turns here.
_fork, _waitpid = os.fork, os.waitpid


def main() -> NoReturn:
    """Be a fork server, as the command line says."""
    number, command = int(sys.argv[1]), sys.argv[3:]
    os.set_inheritable(number, False)
    channel = Channel(socket.socket(fileno=number))
    begin = _first_word(channel)
    syscalls.set_death_signal(signal.SIGKILL)
    if os.getppid() != begin.master:
        os._exit(0)
    for signum in syscalls.HELD:
        signal.signal(signum, _take_no_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, syscalls.HELD)
    _go_to(begin)
    distrust_stale_bytecode(begin.started)
    generation = Generation(channel, begin)
    try:
        _become_generation(generation)
        _run(command, begin.safe_path)
        raise GenerationError("the command ended without starting Gunicorn")
    except BaseException as error:  # noqa: BLE001  # exits too: the master must hear of all of them
        generation.give_up(error)


def _first_word(channel: Channel) -> Init:
    for message, _sender in channel.receive().messages:
        if isinstance(message, Init):
            return message
    os._exit(0)  # the master was gone before it could say anything


def _take_no_signal(signum: int, frame: FrameType | None) -> None:
    """Handle a signal that was meant for the master. Not SIG_IGN: workers would inherit that."""


def _go_to(begin: Init) -> None:
    """Take the place of the master at its start, by physical paths."""
    with contextlib.suppress(OSError):
        os.chdir(begin.directory)
    with contextlib.suppress(OSError):
        # Gunicorn believes PWD (``util.getcwd``), and would put the link into sys.path.
        os.environ["PWD"] = os.getcwd()
    if not begin.safe_path:
        os.environ.pop("PYTHONSAFEPATH", None)
        if not getattr(sys.flags, "safe_path", False):
            del sys.path[0]  # the working directory, which ``-m`` put there: Python 3.10 has no safe path
    sys.path[:] = [os.path.realpath(path) for path in sys.path]
    package = sys.modules["zdworker"]
    package.__path__[:] = [os.path.realpath(path) for path in package.__path__]


def _run(command: list[str], safe_path: bool) -> None:
    """Run a command as the interpreter would: ``-m module``, ``-c code`` or a script, with its arguments."""
    if command[0] == "-m":
        sys.argv = command[1:]
        if not safe_path:
            sys.path.insert(0, os.getcwd())
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    elif command[0] == "-c":
        sys.argv = ["-c", *command[2:]]
        if not safe_path:
            sys.path.insert(0, os.getcwd())
        code = compile(command[1], "<string>", "exec")
        exec(code, {"__name__": "__main__"})  # noqa: S102  # it is the user's own command, run the second time
    else:
        sys.argv = command
        if not safe_path:
            sys.path.insert(0, os.path.dirname(os.path.realpath(command[0])))
        runpy.run_path(command[0], run_name="__main__")


def _become_generation(generation: Generation) -> None:
    """Let ``Arbiter(app).run()`` lead here, whoever calls it, and keep this process attached."""
    from gunicorn import util
    from gunicorn.arbiter import Arbiter

    roles.in_generation = True

    def keep_app(arbiter: Any, app: Any) -> None:
        arbiter.app = app

    def serve(arbiter: Any) -> None:
        generation.serve(arbiter.app)

    Arbiter.__init__ = keep_app
    Arbiter.run = serve
    util.daemonize = lambda *_args, **_kwargs: None


class Generation:
    """One state of the code: its configuration, its worker class and, when preloaded, its application."""

    def __init__(self, channel: Channel, begin: Init) -> None:
        self.channel = channel
        self.number = begin.generation
        self.master = begin.master
        self._configuration = begin.configuration
        self._stderr = channel.take(begin.descriptors)["stderr"][0]
        self.app: Any = None
        self.cfg: Any = None
        self.log: Any = None
        self.settings: Any = None
        self.worker_class: Any = None

    def serve(self, app: Any) -> NoReturn:
        """Load, tell the master, and fork workers for it until it closes the channel."""
        try:
            warnings = self._load(app)
            self.channel.send(self._loaded(warnings))
            self._restore_stderr()
        except BaseException as error:  # noqa: BLE001  # exits too: the master must hear of all of them
            self.give_up(error)
        while True:
            received = self.channel.receive()
            for message, _sender in received.messages:
                if isinstance(message, Spawn):
                    self._spawn(message)
            if received.closed or received.error:
                os._exit(0)

    def give_up(self, error: BaseException) -> NoReturn:
        """Tell the master why this generation is of no use, and end."""
        from gunicorn.errors import AppImportError

        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else 1
            reason = f"the new code ended its interpreter (exit {error.code}):"
            if self.app is None:
                reason = f"the configuration was refused (exit {error.code}):"
            unusable = LoadFailed(reason, "", code or 1)
        elif isinstance(error, ZdError):
            unusable = LoadFailed(str(error), "", 1)
        else:
            text = "".join(traceback.format_exception(error))
            code = 4 if isinstance(error, AppImportError) else 3
            unusable = LoadFailed(f"{type(error).__name__}: {error}", text, code)
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        end_own_descendants(UNUSABLE_GRACE_S)
        with contextlib.suppress(OSError):
            self.channel.send(unusable)
        os._exit(unusable.exit_code)

    def _load(self, app: Any) -> list[str]:
        from gunicorn import SERVER_SOFTWARE, util

        self.app, self.cfg = app, app.cfg
        self.worker_class = self.cfg.worker_class
        gunicorn_config.refuse_foreign_class(self.cfg)
        gunicorn_config.refuse_missing_file(self.cfg, self._configuration)
        gunicorn_config.refuse_patching()
        self.settings = gunicorn_config.zd_settings(self.cfg)
        self._fix_paths()
        os.environ.update(self.cfg.env)
        os.environ["SERVER_SOFTWARE"] = SERVER_SOFTWARE
        util._setproctitle(f"fork server [{self.cfg.proc_name}] generation {self.number}")
        self.log = self.cfg.logger_class(self.cfg)
        log_files.guard(self.log)
        # A rotation: the workers do that for themselves, but the old file takes its space until all have let go of it.
        signal.signal(signal.SIGUSR1, lambda *_: self.log.reopen_files())
        if self.cfg.preload_app:
            self.worker_class.zd_prepare(self.cfg)
        before = import_checks.descriptors()
        if self.cfg.preload_app:
            self.app.wsgi()
        warnings = import_checks.warnings(before)
        # The worker class's own libraries are the generation's in any case: the workers share them.
        self.worker_class.zd_preload(self.cfg)
        # What is here stays here: a collector that looks at it would copy its pages into every worker.
        gc.freeze()
        return warnings

    def _fix_paths(self) -> None:
        """``--chdir`` and ``--pythonpath`` may have brought links into ``sys.path``."""
        sys.path[:] = [os.path.realpath(path) for path in sys.path]
        self.cfg.settings["chdir"].value = os.getcwd()

    def _loaded(self, warnings: list[str]) -> Loaded:
        return Loaded(
            protocol=PROTOCOL,
            preloaded=bool(self.cfg.preload_app),
            values=gunicorn_config.plain_values(self.cfg),
            settings=self.settings.to_plain(),
            warnings=warnings,
        )

    def _restore_stderr(self) -> None:
        """Give the workers the master's own standard error, unless a log file has taken its place."""
        sys.stderr.flush()
        pipe = os.stat(2)
        if (pipe.st_mode & 0o170000) == 0o010000:
            os.dup2(self._stderr, 2)
        os.close(self._stderr)

    def _spawn(self, message: Spawn) -> None:
        """Fork twice: the worker's parent ends at once, and the master, as subreaper, becomes its parent."""
        descriptors = self.channel.take(message.descriptors)
        signal.pthread_sigmask(signal.SIG_BLOCK, syscalls.HELD)
        try:
            pid = _fork()
        except OSError as error:
            self._answer(NotForked(message.worker_id, os.strerror(error.errno or 0)))
        else:
            if pid == 0:
                self._fork_worker(message, descriptors)
            _pid, status = _waitpid(pid, 0)
            refused = os.waitstatus_to_exitcode(status)
            self._answer(NotForked(message.worker_id, os.strerror(refused)) if refused else Forked(message.worker_id))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, syscalls.HELD)
            for numbers in descriptors.values():
                for number in numbers:
                    os.close(number)

    def _fork_worker(self, message: Spawn, descriptors: dict[str, list[int]]) -> NoReturn:
        try:
            if _fork() != 0:
                os._exit(0)
        except OSError as error:
            os._exit(error.errno or errno.EAGAIN)
        self.channel.close()
        worker_boot.become_worker(self, message, descriptors)

    def _answer(self, message: Forked | NotForked) -> None:
        with contextlib.suppress(OSError):
            self.channel.send(message)
