"""How a forked process becomes a worker.

Rules, in the order of the boot:

1. The worker sends ``Hello`` on its report channel, and the kernel adds its pid for the master.
2. It waits for ``Start``. The master sends that only after the fork server has reaped the process between the two
   forks, and by then the master is the worker's parent. An end of file instead of ``Start`` means that the worker is
   not needed any more, so it ends.
3. It sets its death signal and then checks its parent, because the kernel sends no signal for a parent that has ended
   before.
4. From here on it does what the child does in Gunicorn's ``Arbiter.spawn_worker``, with the hooks in the same places.
5. At its end it does what Python does at its own exit, within bounds. The command's frames are left, as Gunicorn's
   workers leave them: a tool that runs Gunicorn, such as ``coverage run``, saves there what it has found in this
   process. Executors are stopped, and ``atexit`` functions run. Then it ends the processes that the application has
   started, and then the process without Python's exit: no thread and no process of the application can keep it.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from types import FrameType, SimpleNamespace
from typing import Any, NoReturn, Protocol

from zdworker import syscalls, texts, tracebacks
from zdworker.descendants import end_own_descendants
from zdworker.forkserver import randomness
from zdworker.ipc.channel import Channel
from zdworker.ipc.hand_over import HandOverQueue
from zdworker.ipc.messages import Hello, HookData, Spawn, Start
from zdworker.ipc.report import Reporter
from zdworker.printed import Printed, last_line
from zdworker.settings import Settings


class LoadedGeneration(Protocol):
    """What a worker takes over from the process that it is forked from, a fork server or the master.

    ``master`` is the master's pid, ``hook_data`` what hooks in the master have set. ``app``, ``cfg`` and ``log`` are
    Gunicorn's application, configuration (``gunicorn.config.Config``) and logger. ``settings`` and ``worker_class`` are
    zdworker's settings and the class of the configuration.
    """

    master: int
    app: Any
    cfg: Any
    log: Any
    settings: Settings
    worker_class: Any
    hook_data: HookData


_Socket = socket.socket
"""The socket class before a worker class monkey-patches it: a report is sent where gevent could not switch."""

EXIT_HANDLERS_TIMEOUT_S = 1.0
"""Seconds that what Python does at its exit gets, executors and functions registered with ``atexit``; less when the
master's deadline comes before."""

EXECUTORS_S = 0.5
"""Seconds of these that executors get to stop: a thread that does not end must not take ``atexit`` functions theirs."""

EXECUTORS_AFTER_CUT_S = 0.1
"""The same for a worker whose drain the deadline has ended: soon the master kills it."""

END_LIMIT_S = 0.3
"""Seconds, beside those of the processes that it has started, after which the kernel ends a worker that is to end."""

CHILDREN_TERM_MIN_S, CHILDREN_TERM_MAX_S = 0.2, 2.0
"""Seconds between TERM and KILL for the processes that the application has started: what is left of the drain's time,
within these bounds."""


def become_worker(generation: LoadedGeneration, spawn: Spawn, descriptors: dict[str, list[int]]) -> WorkerEnd:
    """Be the worker that ``spawn`` asks for, and return its end, for the caller to finish; both within bounds.

    The caller has closed before what belongs to the forking process alone.

    :param descriptors: by the names in ``spawn.descriptors``: ``report``, ``heartbeat``, ``listener``, ``queue`` and
        ``probe``.
    """
    code, ending = 3, WorkerEnd(generation)
    try:
        _leave_out_processes_of_the_fork_server()
        report = _Socket(fileno=descriptors["report"][0])
        report.setblocking(True)  # a preloaded application may have called socket.setdefaulttimeout()
        _wait_for_start(report, spawn)
        _end_with_master(generation.master)
        _handle_signals_while_booting()
        code = _run(generation, spawn, descriptors, report, ending)
    except SystemExit:
        code = 0  # ordered to leave before there was a worker that could drain
    except BaseException:  # noqa: BLE001  # a forked process must never run on into what it was forked from
        traceback.print_exc()
    finally:
        ending.begin(code)
    return ending


def _leave_out_processes_of_the_fork_server() -> None:
    """Keep ``multiprocessing`` from ending, at this worker's exit, daemonic processes of a preloaded application.

    A process that it starts by itself gets the same (``BaseProcess._bootstrap``).
    """
    process: Any = sys.modules.get("multiprocessing.process")
    if process is not None:
        process._children = set()


def _wait_for_start(report: socket.socket, spawn: Spawn) -> None:
    channel = Channel(report)
    with contextlib.suppress(OSError):
        channel.send(Hello(spawn.worker_id))
    if not any(isinstance(message, Start) for message, _sender in channel.receive().messages):
        syscalls.plain_exit(0)


def _end_with_master(master: int) -> None:
    """Have the kernel send ``TERM`` to this process when the master ends; end at once if it has ended."""
    syscalls.set_death_signal(signal.SIGTERM)
    if os.getppid() != master:
        syscalls.plain_exit(0)


def write_stack_when_asked() -> None:
    """Have the stacks of all threads written to standard error when the master asks for them: wherever Python is, a
    boot that hangs shows where it does.
    """
    with contextlib.suppress(OSError, ValueError):  # standard error may be closed
        faulthandler.register(syscalls.STACK_SIGNAL, file=2)


def _handle_signals_while_booting() -> None:
    """Set signal handlers for the time until the worker sets its own: an order to leave ends the process."""

    def ignore(signum: int, frame: FrameType | None) -> None:
        """Ignore a signal that was sent to the whole process group and is meant for the master."""

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    write_stack_when_asked()
    for signum in syscalls.HELD_SIGNALS:
        signal.signal(signum, ignore if signum in syscalls.GROUP_SIGNALS else leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, syscalls.HELD_SIGNALS)


def _run(
    generation: LoadedGeneration,
    spawn: Spawn,
    descriptors: dict[str, list[int]],
    report: socket.socket,
    ending: WorkerEnd,
) -> int:
    """Make the worker, serve, run the last hook, and return the exit code."""
    from gunicorn import util

    set_environment(generation.hook_data.environment)
    # Before the worker is made, which draws its share of max_requests_jitter: all forks have the same random state.
    util.seed()
    randomness.seed_again()
    generation.worker_class.zd_prepare(generation.cfg)
    worker = ending.worker = _make_worker(generation, spawn, descriptors)
    worker.zd_reporter, worker.zd_printed = Reporter(report), Printed()
    server = _server_for_hooks(generation, spawn, worker)
    try:
        return _serve(generation, spawn, server, worker)
    finally:
        log = generation.log
        # The master says how a drain has ended, for all workers in the same words.
        (log.debug if worker.zd_leaving and worker.booted else log.info)("Worker exiting (pid: %s)", worker.pid)
        # Also for one that ends while it boots: the hook may wait for a thread that looks at ``zd_leaving``.
        worker.zd_deadline = min(worker.zd_deadline, time.monotonic() + generation.cfg.graceful_timeout)
        try:
            worker.tmp.close()
            generation.cfg.worker_exit(server, worker)
        except Exception:  # noqa: BLE001  # a hook may raise what it likes; Gunicorn logs it the same way
            log.warning("Exception during worker exit:\n%s", traceback.format_exc())


def set_environment(changes: dict[str, str | None]) -> None:
    """Set the variables that hooks have set in the master, and remove those that are None."""
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _serve(generation: LoadedGeneration, spawn: Spawn, server: Any, worker: Any) -> int:
    """Boot and serve until the end, and return the exit code; a failure is logged and reported to the master."""
    from gunicorn import util
    from gunicorn.errors import AppImportError

    log = generation.log
    try:
        util._setproctitle(f"worker [{generation.cfg.proc_name}]")
        # The worker handles a rotation (USR1) from here on, because booting can take long before Gunicorn's handlers.
        signal.signal(signal.SIGUSR1, lambda *_: log.reopen_files())
        log.reopen_files()
        log.info("Booting worker with pid: %s (slot %s, generation %s)", worker.pid, spawn.slot, spawn.generation)
        worker.zd_printed.begin()
        generation.cfg.post_fork(server, worker)
        worker.init_process()
        return 0
    except SystemExit as error:
        return _report_exit(error, worker)
    except AppImportError as error:
        log.exception("Exception while loading the application")
        return _report_failure(worker, error, 4)
    except Exception as error:
        log.exception("Exception in worker process")
        return _report_failure(worker, error, 1 if worker.booted else 3)


def exit_code(value: object) -> int:
    """Return the code with which Python exits for the ``code`` of a ``SystemExit``.

    The kernel keeps 8 bits of it. One of which nothing would be left (256) is 1, because it stands for a failure.
    """
    if not isinstance(value, int):
        return int(value is not None)
    return value & 0xFF or int(bool(value))


def _report_exit(error: SystemExit, worker: Any) -> int:
    code = exit_code(error.code)
    if code:
        place, printed = tracebacks.place(error), worker.zd_printed.text
        reason = f"the worker exited with code {code}{place and f' (at {place})'}: {exit_words(error, printed)}"
        worker.zd_failed(reason.removesuffix(": "), printed, code)
    return code


def exit_words(error: SystemExit, printed: str) -> str:
    """Return why code has ended its interpreter: the text that it has exited with, else what it has printed last."""
    if isinstance(error.code, int | None):
        return last_line(printed)
    try:
        return texts.lines(str(error.code), texts.REASON_MAX)
    except Exception:  # noqa: BLE001  # it is anybody's class
        return last_line(printed)


def _report_failure(worker: Any, error: Exception, code: int) -> int:
    worker.zd_failed(texts.reason(error), tracebacks.of_application(error), code)  # the log has all of it already
    return code


def _make_worker(generation: LoadedGeneration, spawn: Spawn, descriptors: dict[str, list[int]]) -> Any:
    cfg, log = generation.cfg, generation.log
    sockets = [listener(number, cfg, log) for number in descriptors.get("listener", [])]
    worker = generation.worker_class(
        spawn.worker_id, generation.master, sockets, generation.app, cfg.timeout / 2.0, cfg, log
    )
    # The master watches its own heartbeat file, not the one that Gunicorn's constructor has just made.
    worker.tmp.close()
    worker.tmp._tmp = os.fdopen(descriptors["heartbeat"][0], "w+b", 0)
    worker.pid = os.getpid()
    worker.zd_settings = generation.settings
    if len(descriptors.get("queue", [])) == len(("giving", "taking")):
        giving, taking = (_Socket(fileno=number) for number in descriptors["queue"])
        worker.zd_queue = HandOverQueue(giving, taking)
    if descriptors.get("probe"):
        worker.zd_probes = HandOverQueue(*(_Socket(fileno=number) for number in descriptors["probe"]))
    worker.zd_master_pid = generation.master
    worker.slot = spawn.slot
    for name, value in spawn.worker_attributes.items():
        setattr(worker, name, value)
    return worker


def listener(number: int, cfg: Any, log: Any) -> Any:
    """Wrap a listening socket as Gunicorn does, without its constructor, which would bind it again."""
    from gunicorn import sock

    raw = socket.socket(fileno=number)
    raw.setblocking(False)
    kind: Any = sock._sock_type(raw.getsockname())
    wrapped = kind.__new__(kind)
    wrapped.sock, wrapped.cfg_addr, wrapped.conf, wrapped.log = raw, raw.getsockname(), cfg, log
    return wrapped


def _server_for_hooks(generation: LoadedGeneration, spawn: Spawn, worker: Any) -> Any:
    """Return the ``server`` of hooks in the worker: an arbiter to read, with what hooks in the master set on it."""
    from gunicorn.arbiter import Arbiter

    server: Any = Arbiter.__new__(Arbiter)
    cfg = generation.cfg
    server.app, server.cfg, server.log = generation.app, cfg, generation.log
    server.pid, server.master_pid, server.reexec_pid, server.master_name = generation.master, 0, 0, "Master"
    server.worker_class, server.address, server.timeout = generation.worker_class, cfg.address, cfg.timeout
    server.proc_name, server.worker_age, server._num_workers = cfg.proc_name, spawn.worker_id, spawn.workers
    server.LISTENERS, server.pidfile, server.systemd = worker.sockets, None, False
    # Without this worker, which Gunicorn's arbiter adds to its own only after the fork.
    server.WORKERS = {int(pid): SimpleNamespace(pid=int(pid), **known) for pid, known in spawn.siblings.items()}
    for name, value in generation.hook_data.server_attributes.items():
        setattr(server, name, value)
    return server


class WorkerEnd:
    """How a worker's process ends: between :meth:`begin` and :meth:`finish` the command's frames may be left.

    :param generation: what it was forked from.
    """

    def __init__(self, generation: LoadedGeneration) -> None:
        self._generation = generation
        self.code = 3
        """The exit code."""
        self.worker: Any = None
        """The worker, once it is made."""

    def begin(self, code: int) -> None:
        """Limit the time of all that is left to do; the process ends with ``code`` when it is over."""

        def on_signal(signum: int, frame: FrameType | None) -> None:
            # The kernel says TERM when the master dies, too, to each of its threads.
            if signum != signal.SIGTERM or self._orphaned:
                self._end(code)

        self.code = code
        try:
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                signal.signal(signum, on_signal)
            if self.worker is not None:
                self.worker.zd_exiting()
            if self._orphaned:
                # Nothing would kill a worker that hangs in C, where no handler runs: the kernel has to. Nothing would
                # end the worker's processes either.
                left, _ = signal.getitimer(signal.ITIMER_REAL)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, min(left or EXIT_HANDLERS_TIMEOUT_S, EXIT_HANDLERS_TIMEOUT_S))
                end_own_descendants(CHILDREN_TERM_MIN_S)
            else:
                signal.signal(signal.SIGALRM, on_signal)
                signal.setitimer(signal.ITIMER_REAL, EXIT_HANDLERS_TIMEOUT_S)
        except BaseException:  # noqa: BLE001  # nothing is limited then
            traceback.print_exc()
            self._end(code)

    def finish(self) -> NoReturn:
        """Do the rest of what Python does at its exit, end what the application has started, and be gone."""
        try:
            if not self._orphaned:
                stop_executors(EXECUTORS_S if self._time_left() > 0 else EXECUTORS_AFTER_CUT_S)
            run_exit_functions()
        finally:
            self._end(self.code)

    @property
    def _orphaned(self) -> bool:
        """Whether the master is dead."""
        return os.getppid() != self._generation.master

    def _time_left(self) -> float:
        return math.inf if self.worker is None else float(self.worker.zd_deadline) - time.monotonic()

    def _end(self, code: int) -> NoReturn:
        """End the processes that are left, then this one; the kernel ends it if it hangs here nevertheless."""
        try:
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                signal.signal(signum, signal.SIG_IGN)
            grace_s = CHILDREN_TERM_MIN_S
            if not self._orphaned:
                grace_s = min(max(self._time_left(), CHILDREN_TERM_MIN_S), CHILDREN_TERM_MAX_S)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, grace_s + END_LIMIT_S)
            left = end_own_descendants(grace_s)
            if left:
                names = ", ".join(map(str, left))
                self._generation.log.info("Ended what worker (pid:%s) has left: %s", os.getpid(), names)
        finally:
            syscalls.plain_exit(code)


def flush_streams() -> None:
    """Write what the standard streams hold, where they can: an application may have put anything in their place."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def run_exit_functions() -> None:
    """Call the ``atexit`` functions, and write out what was printed.

    Not by ``sys.exit``: it would join the application's own threads first, however long they take.
    """
    atexit._run_exitfuncs()
    flush_streams()


def stop_executors(limit_s: float) -> None:
    """Stop executors: call what Python calls at its exit before it joins threads (``threading._register_atexit``).

    That waits for work that has begun, which may take forever. So it runs in a thread that is waited for only so long.
    """
    functions = list(getattr(threading, "_threading_atexits", ()))
    if not functions:
        return

    def run() -> None:
        for function in reversed(functions):
            try:
                function()
            except Exception:  # noqa: BLE001  # the others have their turn whatever one raises
                traceback.print_exc()

    thread = threading.Thread(target=run, name="zdworker exit", daemon=True)
    with contextlib.suppress(RuntimeError):  # there can be no further thread
        thread.start()
        thread.join(limit_s)
