"""A generation: a fresh interpreter that runs the master's own command up to the point where it would become a master.

Run as ``python -m zdworker.forkserver <channel> -- <what the master was started with>``, and by itself a second time
with two further descriptors (``restart.py``).

Rules:

* Before Gunicorn's command line runs, ``Arbiter`` is changed so that it cannot become a master here, and daemonizing
  is off.
* A failure to load (an exception, an exit, a worker class that is not zdworker's) is sent to the master with a reason.
  Until the generation is loaded, standard error is a pipe, through which the master gets all that is printed.
* Directory, ``sys.path`` and package paths are physical: a late import comes from the release that was current at the
  start, wherever the link points by then (``places.py``).
* With ``zd_preload = "auto"`` the application is imported here, and what that leaves open or running decides: if there
  is something, the fork server starts once more, and does not import it.
* The fork server keeps no listening socket, because the kernel would go on completing connections into it. The only
  signal that it handles is a log rotation's. It ends when its channel is closed and, by its death signal, with its
  master.
* If the application has started processes at import, the death signal is one that can be handled, once all is loaded:
  with the master's death these processes end, too, after the workers, which may need them.
* The workers get the signal handlers back that a preloaded application has set. In the fork server these could take the
  end of a child that it waits for, or end it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import faulthandler
import functools
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Collection
from types import FrameType
from typing import Any, NoReturn

from zdworker import gunicorn_config, log_files, roles, syscalls, texts, tracebacks
from zdworker.descendants import end_own_descendants, own_descendants
from zdworker.errors import GenerationError, ZdError
from zdworker.forkserver import import_checks, preloading, randomness, rerun, worker_boot
from zdworker.forkserver.bytecode import distrust_stale_bytecode
from zdworker.forkserver.places import Places
from zdworker.forkserver.restart import Restart, first_message
from zdworker.forkserver.tls_check import refuse_bad_tls
from zdworker.forkserver.version import label_of
from zdworker.ipc.channel import Channel
from zdworker.ipc.messages import PROTOCOL, Forked, HookData, Init, Loaded, LoadFailed, NotForked, Place, Spawn
from zdworker.printed import Printed, last_line
from zdworker.settings import GENERATION_VARIABLE
from zdworker.versions import versions

UNUSABLE_GRACE_S = 0.5
"""Seconds between TERM and KILL for the processes that a generation has started at import which cannot be used."""

ORPHANED_WORKERS_S = 1.4
"""Seconds after which no worker is left whose master is dead (``ORPHAN_LIMIT_S`` in ``workers/base.py``)."""

GUNICORNS_WORDS_MAX = 3
"""Lines that Gunicorn prints at most about a setting that it refuses: which one it is, and why."""

OTHER_PARENT_LIMIT_S = 1.0
"""Seconds that a debugger's fork waits at most until the master has adopted the worker."""

# The functions before a worker class monkey-patches them: gevent's watch children from a hub that does not run here.
_waitpid, _poll, _sleep = os.waitpid, select.poll, time.sleep


def main() -> NoReturn:
    """Be the fork server that the command line asks for."""
    agents = import_checks.agents()
    end = sys.argv.index("--")
    number, *restarted = map(int, sys.argv[1:end])
    command = sys.argv[end + 1 :]
    restart = Restart(number)
    os.set_inheritable(number, False)
    channel = Channel(socket.socket(fileno=number), takes_descriptors=True)
    init = _first_message(channel, restarted)
    syscalls.set_death_signal(signal.SIGKILL)
    if os.getppid() != init.master:
        os._exit(0)
    worker_boot.write_stack_when_asked()
    for signum in syscalls.HELD_SIGNALS:
        signal.signal(signum, _ignore_signal)
    with contextlib.suppress(OSError, ValueError):  # standard error may be closed
        faulthandler.register(syscalls.STACK_SIGNAL, file=2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, syscalls.HELD_SIGNALS)
    places = Places(init.directory)
    places.enter()
    with contextlib.suppress(OSError):
        # Gunicorn trusts PWD (``util.getcwd``) and would put the link into sys.path.
        os.environ["PWD"] = os.getcwd()
    rerun.make_paths_physical(places, safe_path=init.safe_path)
    distrust_stale_bytecode(init.started)
    generation = Generation(channel, init, places, restart)
    generation.agents = agents
    generation.tool = preloading.tool(command)
    generation.run_once_more = _run_once_more(command, generation.tool, init.generation)
    generation.printed.begin()
    try:
        _redirect_arbiter(generation)
        if command[0] not in ("-m", "-c"):
            places.note(Place.SCRIPT, command[0])
        rerun.run(command, safe_path=init.safe_path)
        raise GenerationError("the command ended without starting Gunicorn")
    except BaseException as error:  # noqa: BLE001  # exits too: the master must know the reason of each
        generation.finish_worker()
        generation.fail(error)


def _first_message(channel: Channel, restarted: list[int]) -> Init:
    """Return the master's first message, or what takes its place at a second start.

    :param restarted: the descriptors of the second start: of the message, and of what came with it.
    """
    if restarted:
        init, *descriptors = restarted
        for number in descriptors:
            os.set_inheritable(number, False)
        channel.descriptors = descriptors
        return first_message(init)
    closed = False
    while not closed:
        received = channel.receive()
        for message, _sender in received.messages:
            if isinstance(message, Init):
                return message
        closed = received.closed or bool(received.error)
    os._exit(0)  # the master ended before it could send anything


def _ignore_signal(signum: int, frame: FrameType | None) -> None:
    """Ignore a signal that is meant for the master. SIG_IGN would not do, because workers would inherit it."""


def _redirect_arbiter(generation: Generation) -> None:
    """Have every ``Arbiter(app).run()`` serve the generation instead, and keep Gunicorn from daemonizing."""
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

    def __init__(self, channel: Channel, init: Init, places: Places, restart: Restart) -> None:
        self.channel = channel
        self.number = init.generation
        self.master = init.master
        self._pid = os.getpid()
        self._init = init
        self._places = places
        self._restart = restart
        self._preloads = False
        self._not_preloaded = init.not_preloaded
        self._stderr = channel.take(init.descriptors)["stderr"][0]
        self._pipe = os.fstat(2)
        self._application_handlers: dict[int, Any] = {}
        self.hook_data = HookData()
        self.printed = Printed()
        """What is printed until it is loaded."""
        self.loaded = False
        self.label = ""
        """The version of the application."""
        self.worker_end: worker_boot.WorkerEnd | None = None
        """In the process of a worker that has served: what is left to do."""
        self.tool = ""
        """The tool that runs Gunicorn's command, if there is one."""
        self.agents: Collection[int] = ()
        """The threads of agents that instrument the interpreter (:func:`import_checks.agents`)."""
        self.run_once_more = ""
        """What a failure before Gunicorn starts has to say of the command; empty for Gunicorn's own."""
        self.app: Any = None
        self.cfg: Any = None
        self.log: Any = None
        self.settings: Any = None
        self.worker_class: Any = None

    def serve(self, app: Any) -> NoReturn:
        """Load the generation, report that to the master, and fork workers until the master closes the channel."""
        self.finish_worker()  # the command passes over the exit in a worker, and would have it load once more
        try:
            warnings = self._load(app)
            self._restart.forget()
            self.printed.end()
            self.loaded = True
            self.channel.send(self._loaded(warnings))
            self._restore_stderr()
            self._take_care_of_processes()
            while True:
                received = self.channel.receive()
                for message, _sender in received.messages:
                    if isinstance(message, HookData):
                        self.hook_data = message
                    elif isinstance(message, Spawn):
                        self._spawn(message)
                if received.closed or received.error:
                    self._end()
        except BaseException as error:  # exits too: the master must know the reason of each
            if self.worker_end is not None:
                raise
            self.fail(error)

    def finish_worker(self) -> None:
        """End the process if it has been a worker; the frames of the command have been left by then."""
        if self.worker_end is not None:
            self.worker_end.finish()

    def _take_care_of_processes(self) -> None:
        """Live to see the master's death, if there are processes to end then: while it lives, it does that itself.

        The signal resumes this process if it is stopped, and is handled wherever Python waits.
        """
        if not own_descendants():
            return
        signal.signal(signal.SIGCONT, self._end_if_orphaned)
        syscalls.set_death_signal(signal.SIGCONT)
        self._end_if_orphaned()

    def _end_if_orphaned(self, signum: int = 0, frame: FrameType | None = None) -> None:
        if os.getpid() == self._pid and os.getppid() != self.master:  # and not a process between two forks
            self._end()

    def _end(self) -> NoReturn:
        """End, and what the application has started at import with it, if the master is dead."""
        try:
            if own_descendants():
                _sleep(ORPHANED_WORKERS_S)  # the channel of a master that dies ends before the master has died, too
                if os.getppid() != self.master:
                    end_own_descendants(UNUSABLE_GRACE_S)
        finally:
            syscalls.plain_exit(0)

    def fail(self, error: BaseException) -> NoReturn:
        """Report to the master why this generation cannot be used, and end the process."""
        configured = self.app is not None or bool(self.run_once_more)
        failure = _load_failed(error, self.printed.text, configured=configured)
        if self.app is None and self.run_once_more:
            failure = dataclasses.replace(failure, reason=f"{failure.reason} ({self.run_once_more})")
        if self._places.obstacle and not self.loaded:
            failure = dataclasses.replace(failure, reason=f"{self._places.obstacle}; {failure.reason}")
        worker_boot.flush_streams()
        if not self.loaded:  # later there are workers that may need what the application has started
            end_own_descendants(UNUSABLE_GRACE_S)
        try:
            self.channel.send(failure)
        except OSError as unsent:
            _print_unsent(failure, unsent)
        syscalls.plain_exit(failure.exit_code)

    def _load(self, app: Any) -> list[str]:
        from gunicorn import SERVER_SOFTWARE, util

        self.app, self.cfg = app, app.cfg
        if self._init.trial:
            gunicorn_config.set_for_trial(self.cfg)
        self.worker_class = self.cfg.worker_class
        gunicorn_config.refuse_foreign_class(self.cfg)
        self._places.refuse_unreachable(app)
        gunicorn_config.refuse_missing_file(self.cfg, self._init.configuration)
        gunicorn_config.refuse_patching()
        self.settings = gunicorn_config.zd_settings(self.cfg)
        self._resolve_paths()
        worker_boot.set_environment(self._init.environment)
        os.environ.update(self.cfg.env)
        os.environ["SERVER_SOFTWARE"] = SERVER_SOFTWARE
        self.label = os.environ["ZD_VERSION"] = label_of(self.settings.version, self._init.directory)
        util._setproctitle(f"fork server [{self.cfg.proc_name}] generation {self.number}")
        with log_files.written_to_standard_error() if self._init.trial else contextlib.nullcontext():
            self.log = self.cfg.logger_class(self.cfg)
        log_files.guard(self.log)
        self._take_rotations()
        self._decide_preload()
        if self._preloads:
            self.worker_class.zd_prepare(self.cfg)
        before = import_checks.snapshot()
        if self._preloads:
            with randomness.noting_generators():
                self.app.wsgi()
        found = import_checks.findings(before, self.agents)
        if self._preloads and not self.cfg.preload_app:
            self._load_again_unless_clean([*found, *import_checks.doubts(before)])
        self._keep_application_handlers()
        # Also without preload, so that the workers share the memory of the worker class's own libraries.
        self.worker_class.zd_preload(self.cfg)
        if self.cfg.is_ssl:
            refuse_bad_tls(self.worker_class, self.cfg)
        # The garbage collector writes to the objects that it visits, which would copy their pages into every worker.
        gc.freeze()
        return [*self.worker_class.zd_warnings(self.cfg), *import_checks.warnings(found)]

    def _decide_preload(self) -> None:
        word = preloading.by_word(self.cfg, self.settings)
        if word is None and not self._not_preloaded:
            self._not_preloaded = preloading.hindrance(self.cfg, self.tool)
        self._preloads = not self._not_preloaded if word is None else word

    def _load_again_unless_clean(self, found: list[import_checks.Finding]) -> None:
        """Start again, and leave the import to the workers, if it has left what they should not inherit."""
        what = "; ".join(finding.what for finding in found if finding.new)
        if what:
            self._restart.run(dataclasses.replace(self._init, not_preloaded=what), self._stderr)

    def _take_rotations(self) -> None:
        """Reopen the log files on a rotation: the old file takes up space until the last process has closed it."""
        signal.signal(signal.SIGUSR1, lambda *_: self.log.reopen_files())

    def _keep_application_handlers(self) -> None:
        """Set the fork server's own handlers, and keep what the application has set at import for the workers."""
        before = {
            signum: signal.getsignal(signum) for signum in (*syscalls.HELD_SIGNALS, signal.SIGCHLD, signal.SIGCONT)
        }
        # None is a handler that Python did not set, and cannot set again.
        self._application_handlers = {signum: handler for signum, handler in before.items() if handler is not None}
        for signum in syscalls.HELD_SIGNALS:
            signal.signal(signum, _ignore_signal)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._take_rotations()

    def _resolve_paths(self) -> None:
        """Make ``sys.path`` physical again, into which ``--chdir`` and ``--pythonpath`` may have put links."""
        file = gunicorn_config.file_of(self.cfg)
        if file:
            self._places.note(Place.CONFIGURATION, os.path.abspath(file))
        self._places.note(Place.CHDIR, self.cfg.chdir)
        self._places.resolve_import_path()
        self.cfg.settings["chdir"].value = os.getcwd()

    def _loaded(self, warnings: list[str]) -> Loaded:
        self._places.note_application(self.app)
        return Loaded(
            protocol=PROTOCOL,
            preloaded=self._preloads,
            values=gunicorn_config.plain_values(self.cfg),
            settings=self.settings.to_plain(),
            warnings=warnings,
            places=self._places.to_plain(),
            not_preloaded="" if self._preloads else self._not_preloaded,
            label=self.label,
            versions=versions(),
        )

    def _restore_stderr(self) -> None:
        """Restore the master's standard error for the workers, unless a log file has taken the place of the pipe."""
        worker_boot.flush_streams()
        try:
            is_pipe = os.path.samestat(os.fstat(2), self._pipe)
        except OSError:  # the application has closed it
            is_pipe = True
        if is_pipe:
            os.dup2(self._stderr, 2)
        os.close(self._stderr)

    def _spawn(self, message: Spawn) -> None:
        """Fork twice: when the process in between ends, the master, as subreaper, becomes the worker's parent."""
        descriptors = self.channel.take(message.descriptors)
        if _is_called_off(descriptors["report"][0]):
            _close(descriptors)
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, syscalls.HELD_SIGNALS)
        try:
            pid = syscalls.fork()
            if pid == 0:
                self._fork_worker()
            refused = _wait_for_end(pid) if pid else 0
        except OSError as error:
            pid, refused = -1, error.errno or errno.EAGAIN
        if pid == 0:
            self._be_worker(message, descriptors)
        self._report(NotForked(message.worker_id, os.strerror(refused)) if refused else Forked(message.worker_id))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, syscalls.HELD_SIGNALS)
        _close(descriptors)

    def _fork_worker(self) -> None:
        """Fork the worker, which returns from this, and end the process in between."""
        try:
            fork = syscalls.plain_fork
            if os.fork is not fork and not str(getattr(os.fork, "__module__", "")).startswith("gevent"):
                # A debugger's: it follows workers, as it does in Gunicorn, if it finds that their parent is the master.
                fork = os.fork
                os.register_at_fork(after_in_child=functools.partial(_wait_for_other_parent, os.getpid()))
            if syscalls.fork(fork) != 0:
                syscalls.plain_exit(0)
        except OSError as error:
            syscalls.plain_exit(error.errno or errno.EAGAIN)
        except BaseException:  # noqa: BLE001  # what a debugger raises, in either process
            traceback.print_exc()
            syscalls.plain_exit(errno.EAGAIN)

    def _be_worker(self, message: Spawn, descriptors: dict[str, list[int]]) -> NoReturn:
        """Serve as a worker, then leave the frames of the command, as Gunicorn's workers do."""
        self.channel.close()
        for signum, handler in self._application_handlers.items():
            signal.signal(signum, handler)
        self.worker_end = worker_boot.become_worker(self, message, descriptors)
        raise SystemExit(self.worker_end.code)

    def _report(self, message: Forked | NotForked) -> None:
        with contextlib.suppress(OSError):
            self.channel.send(message)


def _run_once_more(command: list[str], tool: str, generation: int) -> str:
    """Return what a failure of the command before Gunicorn starts has to say; empty if the command is Gunicorn's own.

    A tool that runs Gunicorn's command is not the user's to change.
    """
    if tool:
        return (
            f"{tool} is a part of the command, which was run once more to load generation {generation}: leave out of "
            "its options what can be used only once at a time, such as an output file or a port"
        )
    name = command[1] if command[0] == "-m" else "python -c" if command[0] == "-c" else os.path.basename(command[0])
    if name.partition(".")[0] == "gunicorn":
        return ""
    return (
        f"{name} was run once more, to load generation {generation}: what it does before it starts Gunicorn has to be "
        f"left out where {GENERATION_VARIABLE} is set and not 0"
    )


def _print_unsent(failure: LoadFailed, error: OSError) -> None:
    """Print a failure of which the master cannot learn otherwise."""
    if error.errno != errno.EBADF:
        return  # the master is gone
    why = "the application has closed descriptors that are not its own (os.closerange, say): it must spare them"
    with contextlib.suppress(OSError):
        os.write(2, f"zdworker: {why}. {failure.reason}\n".encode(errors="replace"))


def _load_failed(error: BaseException, printed: str, *, configured: bool) -> LoadFailed:
    """Return the report of a failed load, with the code that Gunicorn would have exited with.

    :param printed: what the code has printed.
    :param configured: an exit was not Gunicorn's refusal of the configuration.
    """
    from gunicorn.errors import AppImportError

    if isinstance(error, SystemExit):
        return _exited(error, printed, configured=configured)
    if isinstance(error, ZdError):
        return LoadFailed(texts.lines(str(error), texts.REASON_MAX), "", 1)
    whole = texts.lines("".join(traceback.format_exception(error)))
    exit_code = 4 if isinstance(error, AppImportError) else 3
    return LoadFailed(texts.reason(error), tracebacks.of_application(error), exit_code, whole)


def _exited(error: SystemExit, printed: str, *, configured: bool) -> LoadFailed:
    """Return the report of new code that has ended its interpreter, and said why or not."""
    code = worker_boot.exit_code(error.code) or 1
    place, cause = tracebacks.place(error), error.__context__
    if configured or place:
        what = "the new code ended its interpreter" if configured else "the configuration ended its interpreter"
        reason = f"{what} (exit {code}{place and f', at {place}'}): {worker_boot.exit_words(error, printed)}"
        return LoadFailed(reason.rstrip(), "", code, printed=printed)
    # Gunicorn has printed why, and exits; what the configuration itself has raised is the context of that.
    if isinstance(cause, Exception) and (isinstance(cause, SyntaxError) or tracebacks.place(cause)):
        at = "" if isinstance(cause, SyntaxError) else f" ({tracebacks.place(cause)})"
        reason = f"the configuration was refused: {texts.reason(cause)}{at}"
        return LoadFailed(reason, tracebacks.of_application(cause), code, printed=printed)
    lines = [line for line in printed.splitlines() if line.strip()]
    words = "; ".join(lines) if len(lines) <= GUNICORNS_WORDS_MAX else last_line(printed)
    return LoadFailed(f"the configuration was refused: {words}", "", code, printed=printed)


def _is_called_off(report: int) -> bool:
    """Return whether the master has closed its end of a worker's report channel: it does not want that worker any more.

    Nothing has been sent on it yet, so that an event can only be its end.
    """
    poll = _poll()
    poll.register(report, select.POLLIN)
    return bool(poll.poll(0))


def _wait_for_other_parent(parent: int) -> None:
    """Wait until a process has another parent, not for long. It is called at later forks, too, where nothing is left
    to wait for.
    """
    end = time.monotonic() + OTHER_PARENT_LIMIT_S
    while os.getppid() == parent and time.monotonic() < end:
        _sleep(0.001)


def _wait_for_end(pid: int) -> int:
    """Wait for the end of a child and return its exit code; 0 when another thread has taken it.

    Then a worker that could not be forked is missed by the master: its report channel ends.
    """
    try:
        _pid, status = _waitpid(pid, 0)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status)


def _close(descriptors: dict[str, list[int]]) -> None:
    for numbers in descriptors.values():
        for number in numbers:
            os.close(number)
