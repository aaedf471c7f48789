"""The check as a program: ``python -m zdworker.check … -- <the interpreter's arguments that start Gunicorn>``.

Rules:

* Before ``--`` are two descriptors, of the channel to the command and for stacks, the systemd unit that was named, and
  the value of PYTHONSAFEPATH before the command has set it.
* It ends with 0 when it is through, whatever it has found, and with 2 when Gunicorn does not understand its arguments.
  Any other end is one that it was given: the command tells of it.
* The program that starts Gunicorn is run in this process as a generation runs it, up to the point at which Gunicorn
  makes its arbiter. So a configuration means what it means at a start.
* What comes from the process that has called the check, and means a master, is taken out of the environment before:
  systemd's sockets, those of an old master, the number of a generation.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

from zdworker import gunicorn_config, log_files, syscalls, takeover, texts
from zdworker.check import configuration, control_socket, systemd_unit, versions, worker_class
from zdworker.check.findings import Findings
from zdworker.check.trial import TrialArbiter
from zdworker.descendants import end_own_descendants
from zdworker.errors import GenerationError, SettingError, UnsupportedGunicorn, ZdError
from zdworker.forkserver import rerun, worker_boot
from zdworker.ipc.channel import Channel
from zdworker.settings import GENERATION_VARIABLE, SPECS, Settings

MISUSE = 2
"""The exit code of Gunicorn's parser of arguments, and of this program, for words that it does not know."""

PROCESSES_GRACE_S = 0.5
"""Seconds between TERM and KILL for the processes that a configuration, or a launcher, has started."""

OF_A_MASTER = (
    "GUNICORN_FD",
    "GUNICORN_PID",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    GENERATION_VARIABLE,
)
"""Variables that mean a master, or a process of one."""


class CheckEnded(SystemExit):
    """The check is through, and the program that has started Gunicorn has to end."""


class Program:
    """One check.

    :param arguments: the arguments of the interpreter that start Gunicorn.
    :param unit: the systemd unit that was named, "" for none.
    """

    def __init__(self, findings: Findings, arguments: list[str], unit: str) -> None:
        self._findings = findings
        self._arguments = arguments
        self._safe_path = bool(os.environ.get("PYTHONSAFEPATH"))
        self._unit = unit
        self._started = False

    def run(self) -> None:
        """Run the program that starts Gunicorn, up to where it would start.

        :raises SystemExit: (2) Gunicorn does not understand the arguments.
        """
        findings = self._findings
        findings.begin("versions", _boot_timeout())
        versions.check(findings)
        findings.begin("configuration", _boot_timeout())
        self._redirect_arbiter()
        try:
            rerun.run(self._arguments, safe_path=self._safe_path)
            if not self._started:
                findings.error(f"{self._name()} has ended without starting Gunicorn", printed=True)
        except CheckEnded:
            pass
        except SystemExit as end:
            if end.code == MISUSE:
                raise
            self._ended(end)
        except BaseException as error:  # noqa: BLE001  # whatever a launcher raises
            findings.error(texts.reason(error), details=_traceback_of(error))

    def _ended(self, end: SystemExit) -> None:
        if end.code in (None, 0):
            self._findings.error(
                f"{self._name()} has ended before its start: leave out what only prints (--check-config, "
                "--print-config, --version, --help)",
                printed=True,
            )
        elif isinstance(end.code, int):
            self._findings.error(f"{self._name()} refuses the configuration (exit {end.code}):", printed=True)
        else:
            self._findings.error(texts.line(str(end.code)))

    def _name(self) -> str:
        """Return what starts Gunicorn, for a reader."""
        return self._arguments[1] if self._arguments[0] == "-m" else os.path.basename(self._arguments[0])

    def _redirect_arbiter(self) -> None:
        """Have Gunicorn's arbiter check instead of starting, and keep Gunicorn from daemonizing."""
        from gunicorn import util
        from gunicorn.arbiter import Arbiter

        stock_init, program = Arbiter.__init__, self

        def begin(arbiter: Any, app: Any) -> NoReturn:
            program._started = True
            if program.check_configuration(app):
                program._findings.begin("start", _boot_timeout())
                gunicorn_config.set_for_trial(app.cfg)
                with log_files.written_to_standard_error():
                    stock_init(arbiter, app)
                program.check_start(arbiter)
            else:
                program.skip_application()
            program.check_surroundings(app.cfg)
            raise CheckEnded(0)

        Arbiter.__init__ = begin
        util.daemonize = lambda *_args, **_kwargs: None

    def check_configuration(self, app: Any) -> bool:
        """Check what the configuration says; return whether a generation can be tried with it."""
        findings, cfg = self._findings, app.cfg
        file = gunicorn_config.file_of(cfg)
        findings.ok(file or "no configuration file")
        findings.begin("worker class", _boot_timeout())
        usable = worker_class.check(cfg, findings)
        findings.begin("settings", _boot_timeout())
        usable = configuration.check_settings(cfg, findings) and usable
        configuration.check_files(cfg, findings)
        if not cfg.workers:
            findings.warning(
                "workers is 0: a start would serve nothing before zdworker scale, or a reload to another number"
            )
        return usable

    def skip_application(self) -> None:
        """Send that the application was not tried."""
        self._findings.skipped("not tried, because of the error above", "application")

    def check_start(self, arbiter: Any) -> None:
        """Have the arbiter become the master of a trial."""
        findings = self._findings
        refusal = takeover.refusal_of(arbiter)
        if refusal:
            findings.error(refusal)
            self.skip_application()
            return
        arbiter.__class__ = TrialArbiter
        TrialArbiter.zd_arguments, TrialArbiter.zd_safe_path = self._arguments, self._safe_path
        arbiter.zd_note_warnings()
        try:
            arbiter.zd_take_over()
        except (SettingError, UnsupportedGunicorn, GenerationError) as error:
            findings.error(str(error))
            self.skip_application()
            return
        configuration.check_addresses(arbiter.cfg, findings)
        if arbiter.zd_configuration.current.settings.health_path and not arbiter.worker_class.zd_answers_health:
            findings.warning(f"{arbiter.cfg.worker_class_str} does not answer zd_health_path: the application has to")
        arbiter.zd_try(findings)

    def check_surroundings(self, cfg: Any) -> None:
        """Check what is outside of the site's own code."""
        findings = self._findings
        try:
            settings = gunicorn_config.zd_settings(cfg)
        except ZdError:
            settings = Settings()  # what is wrong with them has been said
        findings.begin("systemd", systemd_unit.LIMIT_S)
        systemd_unit.check(self._unit, cfg, settings, findings)
        findings.begin("control socket", systemd_unit.LIMIT_S)
        control_socket.check(settings.control_socket, findings)


def _boot_timeout() -> float:
    """Return the seconds that things before the settings may take: those of the environment, or the default."""
    try:
        found = SPECS["zd_boot_timeout"].checked(os.environ.get("ZD_BOOT_TIMEOUT", Settings().boot_timeout), "")
    except SettingError:
        found = Settings().boot_timeout
    return float(str(found))


def _traceback_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def main() -> NoReturn:
    """Be the check that the command line asks for."""
    syscalls.set_death_signal(signal.SIGKILL)
    end = sys.argv.index("--")
    *numbers, unit, safe_path = sys.argv[1:end]
    arguments = sys.argv[end + 1 :]
    channel, stacks = map(int, numbers)
    for number in (channel, stacks):
        os.set_inheritable(number, False)
    findings = Findings(Channel(socket.socket(fileno=channel)), stacks)
    for name in OF_A_MASTER:
        os.environ.pop(name, None)
    _restore_safe_path(safe_path)
    try:
        Program(findings, arguments, unit).run()
    except SystemExit as end_of_gunicorn:
        _leave(end_of_gunicorn.code if isinstance(end_of_gunicorn.code, int) else 1)
    except KeyboardInterrupt:
        _leave(130)
    findings.end()
    _leave(0)


def _restore_safe_path(before: str) -> None:
    """Take out of the import path what ``-m`` has put there, and what the command has set against that.

    :param before: the variable's value before, "" for none.
    """
    os.environ["PYTHONSAFEPATH"] = before
    if not before:
        del os.environ["PYTHONSAFEPATH"]
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # Python 3.10 has no safe path


def _leave(code: int) -> NoReturn:
    """End, with the processes that the site's code has started; not by Python's exit, which would wait for threads."""
    worker_boot.flush_streams()
    end_own_descendants(PROCESSES_GRACE_S)
    syscalls.plain_exit(code)


if __name__ == "__main__":
    main()
