"""``zdworker upgrade``: the master replaces its own program, under its pid, and keeps everything that it holds.

Rules:

* ``execve`` keeps the pid, the children, the subreaper and each descriptor that is not close-on-exec. What the program
  itself knows goes along as the state, in a sealed memory file (:func:`sealed`).
* The next program is what a fresh generation would run now. First it is started beside, as a rehearsal: it gets the
  whole state and the descriptors, makes its arbiter and its core from them, and answers. Unless the answer is good
  nothing has happened.
* Nothing is replaced while a reload is under way, or when the interpreter or one of the places that the rehearsal came
  from leads elsewhere by then.
* A rehearsal runs beside the master, as a generation does, and ``ZD_GENERATION`` says so to both: a program of
  the user's opens its own port only once.
* Between the block of the signals and ``execve`` nothing is read, so that the state is that of one moment. What came
  before is in it, what comes after is still in the descriptors.
* Only the descriptors that are named in the state lose their close-on-exec flag, and get it back if ``execve`` fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zdworker import boot, plain, syscalls, texts
from zdworker.core.fleet import Fleet, Phase
from zdworker.descendants import before_kill
from zdworker.errors import GenerationError
from zdworker.ipc.messages import Place, Upgraded
from zdworker.master import launch
from zdworker.master.launch import Command
from zdworker.master.leftovers import LeftoverProcesses
from zdworker.master.parts import Parts
from zdworker.master.state import Descriptors, sealed
from zdworker.settings import GENERATION_VARIABLE
from zdworker.versions import versions

REHEARSING, REPLACING = "rehearsing", "replacing"
"""The steps."""

NOT_PASSED_ON = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "GUNICORN_PID", "GUNICORN_FD")
"""Variables that hand sockets over to a program that starts: this one has them already."""

_INTERPRETER = os.path.join(os.path.realpath(os.path.dirname(sys.executable)), os.path.basename(sys.executable))
_FILE = os.path.join(os.path.dirname(os.path.realpath(boot.__file__)), "upgraded.py")
_PATH = [os.path.realpath(entry) for entry in sys.path if entry]
"""Where this program comes from: the master imports this file at its start, and links may point elsewhere later."""

BLOCKED = (*boot.HELD, signal.SIGCHLD)
"""The signals that wait while the state is written and the program replaced: in this thread, and the others of the
master block :data:`zdworker.boot.HELD` all their life, or the kernel would give the signals to them. (Not those that
evaluate a configuration, since the processes that it starts would inherit that.)"""

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


def under_way(fleet: Fleet) -> str:
    """Return what has to be done first, as a reason for a refusal; "" if nothing has."""
    if fleet.stopping:
        return "the master is stopping"
    if fleet.phase in (Phase.NEW, Phase.STARTING):
        return "the master's start is not done yet"
    if fleet.held and fleet.reloading is not None:
        return 'a reload is held at its canary: "zdworker resume" or "zdworker rollback" first'
    if fleet.loading is not None or fleet.reloading is not None or fleet.reload_again:
        return "a reload is under way: order it again when that is done"
    return ""


@dataclass
class Ordered:
    """An upgrade that is under way. ``began`` is by ``time.monotonic()``, ``before`` the versions then."""

    began: float = field(default_factory=time.monotonic)
    before: dict[str, str] = field(default_factory=versions)

    def outcome(self, result: str, error: str = "", traceback: str = "") -> Upgraded:
        """Return how it has ended, now and in this program."""
        duration_s = round(time.monotonic() - self.began, 3)
        return Upgraded(result, duration_s, self.before, versions(), texts.lines(error), texts.lines(traceback))


@dataclass
class _Rehearsal:
    """The process of a rehearsal. ``interpreter`` and ``places`` are those of ``launch.refuse_moved``."""

    pid: int
    answer: int
    stderr: int
    interpreter: str
    places: dict[str, dict[str, str]] = field(default_factory=dict)
    said: bytes = b""
    printed: bytes = b""
    why_given_up: str = ""


class Upgrader:
    """Replaces the master's program.

    :param command: what started the master, None where workers are forked from it.
    :param write: returns what each part of the master goes on from; it is given what has a descriptor go along.
    :param progress: is called with the step that begins.
    :param ended: is called when an upgrade has failed.
    """

    def __init__(
        self,
        command: Command | None,
        parts: Parts,
        leftovers: LeftoverProcesses,
        *,
        write: Callable[[Descriptors], dict[str, Any]],
        progress: Callable[[str], None],
        ended: Callable[[Upgraded], None],
    ) -> None:
        self._command = command
        self._gunicorn = parts.gunicorn
        self._log: Any = parts.gunicorn.log
        self._fleet = parts.fleet
        self._reactor = parts.reactor
        self._leftovers = leftovers
        self._servers = parts.children.servers
        self._write = write
        self._progress = progress
        self._ended = ended
        self._rehearsal: _Rehearsal | None = None
        self.ordered: Ordered | None = None
        """The upgrade that is under way."""

    # -- the order -----------------------------------------------------------------------------------------------

    def refusal(self) -> str:
        """Return why the program cannot be replaced now, "" if that can be tried."""
        if self.ordered is not None:
            return "an upgrade is under way already"
        try:
            self._refuse()
        except GenerationError as error:
            return str(error)
        return ""

    def begin(self) -> None:
        """Begin to replace the program, where there is no :meth:`refusal`."""
        self.ordered = Ordered()
        self._log.info("Upgrade: rehearsing the next program beside this one")
        self._progress(REHEARSING)
        try:
            self._rehearse()
        except Exception as error:  # noqa: BLE001  # whatever it is, the client waits for an answer
            self._fail(f"the next program cannot be started: {_reason(error)}")

    def _refuse(self) -> Command:
        if self._command is None:
            raise GenerationError("workers are forked from this master (see its log): that needs a restart")
        reason = under_way(self._fleet)
        if reason:
            raise GenerationError(reason)
        launch.refuse_changed_archive(self._command)
        return self._command

    def _fail(self, reason: str, traceback: str = "") -> None:
        ordered = self.ordered or Ordered()
        self.ordered = None
        self._log.error("Upgrade failed, the program that was running is still in place: %s", reason)
        self._ended(ordered.outcome("failed", reason, traceback))

    # -- the rehearsal -------------------------------------------------------------------------------------------

    def _rehearse(self) -> None:
        command = self._refuse()
        words = launch.interpreter(command)
        descriptors = Descriptors()
        state = sealed(self._state(command, descriptors))
        opened = [state]
        try:
            reading, answer = os.pipe()
            opened += [answer]
            self._rehearsal = _Rehearsal(0, reading, -1, words[0])
            self._rehearsal.stderr, stderr = os.pipe()
            opened += [stderr]
            kept = (*descriptors.named.values(), state, answer)
            actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, number, number) for number in kept]
            actions += [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
            actions += [(os.POSIX_SPAWN_DUP2, stderr, stream) for stream in (1, 2)]
            line = _words(words, state, answer, command)
            with self._leftovers.masters_own():
                environment = {**_environment(command), GENERATION_VARIABLE: str(self._fleet.last_generation)}
                self._rehearsal.pid = launch.start_interpreter(command.directory, line, environment, actions)
        except BaseException:
            self._forget_rehearsal()
            raise
        finally:
            for number in opened:
                os.close(number)
        rehearsal = self._rehearsal
        os.set_blocking(rehearsal.answer, False)
        os.set_blocking(rehearsal.stderr, False)
        self._reactor.add(rehearsal.answer, lambda: self._read(rehearsal))
        self._reactor.add(rehearsal.stderr, lambda: self._read(rehearsal))
        self._reactor.call_later(self._timeout_s(), lambda: self._is_late(rehearsal))

    def _timeout_s(self) -> float:
        return self._fleet.policy.boot_timeout

    def _read(self, rehearsal: _Rehearsal) -> None:
        for name in ("answer", "stderr"):
            number = getattr(rehearsal, name)
            if number < 0:
                continue
            with contextlib.suppress(BlockingIOError):
                data = os.read(number, 65536)
                if name == "answer":
                    rehearsal.said += data
                else:
                    rehearsal.printed = (rehearsal.printed + data)[-texts.LINES_MAX :]
                if not data:
                    self._reactor.remove(number)
                    os.close(number)
                    setattr(rehearsal, name, -1)

    def look(self) -> None:
        """Give an upgrade up when the master has something else to do: a reload, or its end."""
        if self._rehearsal is not None:
            self._give_up(self._rehearsal, under_way(self._fleet))

    def _is_late(self, rehearsal: _Rehearsal) -> None:
        self._give_up(rehearsal, f"the next program has not answered within {self._timeout_s():g} s, and was killed")

    def _give_up(self, rehearsal: _Rehearsal, why: str) -> None:
        if why and self._rehearsal is rehearsal and not rehearsal.why_given_up:
            rehearsal.why_given_up = why
            self.kill_rehearsal()

    def kill_rehearsal(self) -> None:
        """Kill the rehearsal, if there is one."""
        if self._rehearsal is not None and self._rehearsal.pid:
            started = before_kill(self._rehearsal.pid) or []  # by its configuration; one that ends by itself ends them
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._rehearsal.pid, signal.SIGKILL)
            for process in started:
                process.send(signal.SIGKILL)

    def _forget_rehearsal(self) -> None:
        rehearsal, self._rehearsal = self._rehearsal, None
        for number in (rehearsal.answer, rehearsal.stderr) if rehearsal is not None else ():
            if number >= 0:
                self._reactor.remove(number)
                os.close(number)

    def reaped(self, pid: int, code: int) -> bool:
        """Handle the end of a child; return whether it was the rehearsal.

        :param code: its exit code, negative for a signal.
        """
        rehearsal = self._rehearsal
        if rehearsal is None or rehearsal.pid != pid:
            return False
        for _ in range(64):
            self._read(rehearsal)
        self._forget_rehearsal()
        try:
            answer = json.loads(rehearsal.said)
        except ValueError:
            answer = {}
        answer = answer if isinstance(answer, dict) else {}
        if answer.get("can") and "places" in answer and code == 0 and not rehearsal.why_given_up:
            rehearsal.places = answer["places"]
            self._reactor.call_later(0.0, lambda: self._replace(rehearsal))
            return True
        printed = texts.lines(rehearsal.printed.decode(errors="replace").strip())
        if rehearsal.why_given_up:
            reason = rehearsal.why_given_up
        elif "reason" in answer:
            reason = f"the next program cannot take the master over: {answer['reason']}"
        else:
            ending = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
            reason = f"the next program {ending}: {printed.rpartition(chr(10))[2]}".removesuffix(": ")
        self._fail(reason, str(answer.get("traceback") or printed))
        return True

    # -- the replacement -----------------------------------------------------------------------------------------

    def _replace(self, rehearsal: _Rehearsal) -> None:
        hooks_have_stopped = False
        try:
            command = self._refuse()
            launch.refuse_moved(command, rehearsal, "the rehearsal", "order it again")
            self._settle_log()
            hooks_have_stopped = True
            self._gunicorn.zd_hook("pre_exec")
            self._execute(command, launch.interpreter(command))
        except Exception as error:  # noqa: BLE001  # whatever it is, the client waits for an answer
            if hooks_have_stopped:
                self._gunicorn.zd_hook("when_ready")  # where they start again what pre_exec has ended
            self._fail(_reason(error))

    def _settle_log(self) -> None:
        """Have the log written.

        :raises GenerationError: it is not read.
        """
        if not self._gunicorn.zd_settle_log():
            raise GenerationError("what reads the master's log does not keep up, and lines of it would be lost")

    def _execute(self, command: Command, words: list[str]) -> None:
        """Replace the program; this returns only by an exception.

        :raises OSError: the kernel refuses it, and everything is as before.
        :raises GenerationError: the log is not read.
        """
        self._log.info("Upgrade: replacing the program, by %s", words[0])
        self._progress(REPLACING)
        self._settle_log()
        descriptors = Descriptors()
        directory = os.open(".", syscalls.OPEN_DIRECTORY)
        state, mask = -1, signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
        # Timers outlive execve(2), the handlers of their signals do not, and those signals end a process.
        timers = {timer: signal.setitimer(timer, 0.0) for timer in _TIMERS}
        try:
            signals: list[int] | None = None
            while signals != (come := self._gunicorn.zd_signals()):
                # Again if one has come meanwhile: a thread of a configuration that hangs does not block any.
                signals, last = come, state
                descriptors = Descriptors()
                descriptors.named["directory"] = directory
                state = sealed(self._state(command, descriptors))
                descriptors.named["state"] = state
                if last >= 0:
                    os.close(last)
            descriptors.set_inheritable(True)
            with contextlib.suppress(OSError):
                os.chdir(command.directory)
            line = _words(words, state, -1, command)
            os.execve(line[0], line, _environment(command))  # noqa: S606  # the master's own command, without a shell
        finally:
            os.fchdir(directory)
            descriptors.set_inheritable(False)
            for timer, (left_s, interval_s) in timers.items():
                signal.setitimer(timer, left_s, interval_s)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for number in (directory, state):
                if number >= 0:
                    os.close(number)

    def _physical_directory(self, command: Command) -> str:
        """Return what the start directory was when the generation that serves was started."""
        server = self._servers.get(self._fleet.source(self._fleet.current) or 0)
        known = server.places.get(Place.DIRECTORY, {}) if server is not None else {}
        return known.get(command.directory) or os.path.realpath(command.directory)

    def _state(self, command: Command, descriptors: Descriptors) -> bytes:
        """Return the state.

        :raises TypeError: something in it cannot be written.
        """
        parts = self._write(descriptors)
        return plain.encode(
            {
                "number": boot.NUMBER,
                "versions": versions(),
                "master": os.getpid(),
                "timeout": self._timeout_s(),
                "signals": self._gunicorn.zd_signals(),
                "command": command,
                "back": _way_back(command, self._physical_directory(command)),
                "upgrade": self.ordered,
                "directory": descriptors.named.get("directory", -1),
                **parts,
                "descriptors": descriptors.named,
            }
        )


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, GenerationError) else texts.reason(error)


def _words(words: list[str], state: int, answer: int, command: Command) -> list[str]:
    return [*words, "-m", "zdworker.upgraded", str(state), str(answer), "--", *command.target]


def _environment(command: Command) -> dict[str, str]:
    """Return the environment in which the next program starts: that in which the first one did."""
    known = {name: value for name, value in command.environment.items() if name not in NOT_PASSED_ON}
    # With a safe path its own imports do not find a types.py of the application in the working directory.
    return {**known, "PYTHONSAFEPATH": "1"}


def _way_back(command: Command, directory: str) -> dict[str, Any]:
    """Return how this program is executed once more: by the paths that it came from, wherever links point by then.

    :param directory: where the configuration in force was evaluated, without links.
    """
    return {
        "words": [_INTERPRETER, *launch.own_options()],
        "file": _FILE,
        "environment": {**_environment(command), "PYTHONPATH": os.pathsep.join(_PATH)},
        "target": command.target,
        "directory": directory,
    }
