"""The master's next program, which ``zdworker upgrade`` puts in the place of the one before, and its rehearsal.

Run as ``python -m zdworker.upgraded <state> <answer> -- <what the master was started with>``: ``state`` is the
descriptor of the state, ``answer`` that of a pipe for a rehearsal's answer, or -1 when this is the master.

Rules:

* Whatever goes wrong before the master is adopted is handled by ``boot.py``, which is imported first. Everything else
  is imported when it is needed.
* The command is run up to the point where it would start a master, as in a fork server. Gunicorn evaluates the
  configuration that is on disk, for its hooks. All values are those of the configuration in force.
* Where there is no program to go back to, one that cannot evaluate its configuration goes on without: the program
  before that was executed again, or this one if the program before is not on disk any more.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from zdworker import boot

NOT_TAKEN = frozenset({"logger_class"})
"""Settings of the configuration on disk that count: the logger is made of it."""


def main() -> None:
    """Be what the command line asks for."""
    end = sys.argv.index("--")
    state, answer = map(int, sys.argv[1:end])
    current = boot.begin(state, answer)
    try:
        current.prepare()
        current.refuse_other_formats()
        _run(current, sys.argv[end + 1 :])
        raise boot.StateError("the command ended without starting Gunicorn")
    except BaseException as error:
        if current.is_adopted:
            raise  # the master has ended
        if current.rehearses or current.has_begun or current.can_go_back():
            current.fail(error)
        # There is no other program to go back to. Serving does not depend on what the configuration is evaluated for.
        current.without_configuration = boot.reason_of(error)
        boot.print_error("zdworker: the configuration cannot be evaluated, going on without its hooks", error)
        _serve_without_configuration(current)


def _serve_without_configuration(current: boot.Boot) -> None:
    """Go on with the values of the configuration in force alone: without hooks, and what else is no plain data."""
    try:
        from gunicorn.app.wsgiapp import WSGIApplication
        from gunicorn.arbiter import Arbiter
        from gunicorn.config import Config

        sys.modules.pop("__config__", None)  # what there is of it would be taken for the zd_ settings
        app: Any = WSGIApplication.__new__(WSGIApplication)
        app.usage, app.prog, app.callable, app.logger, app.app_uri = (
            "%(prog)s [OPTIONS] [APP_MODULE]",
            None,
            None,
            None,
            None,
        )
        app.cfg = Config(app.usage, prog=app.prog)
        Arbiter(app).run()
    except BaseException as error:
        if current.is_adopted:
            raise
        current.fail(error)


def _run(current: boot.Boot, command: list[str]) -> None:
    """Run the master's command, which leads to Gunicorn's arbiter, and so to the adoption."""
    from zdworker import plain
    from zdworker.forkserver import rerun
    from zdworker.forkserver.places import Places

    if current.rehearses:
        _be_quiet(current)
    known = current.known = plain.decode(current.data)
    own = known["command"]
    if current.failure:  # which has this program find its packages, wherever links point by now
        _set("PYTHONPATH", own.environment.get("PYTHONPATH"))
    places = Places(os.getcwd() if current.failure else own.directory)
    places.enter()
    rerun.make_paths_physical(places, safe_path=own.safe_path)
    current.places = places.to_plain()
    _redirect_arbiter(current)
    rerun.run(command, safe_path=own.safe_path)


def _be_quiet(current: boot.Boot) -> None:
    """Write no line of the master's log, and end with the master."""
    import logging
    import signal

    from zdworker.syscalls import set_death_signal

    set_death_signal(signal.SIGKILL)
    if os.getppid() != current.master:
        os._exit(0)
    logging.disable(logging.CRITICAL)


def _set(name: str, value: str | None) -> None:
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value


def _redirect_arbiter(current: boot.Boot) -> None:
    """Have Gunicorn's arbiter go by the configuration in force from its beginning, and go on as zdworker's."""
    from gunicorn import util
    from gunicorn.arbiter import Arbiter
    from gunicorn.config import Chdir

    from zdworker import gunicorn_config, takeover

    start_directory = current.known["configuration"]["facts"]["_start_directory"]
    # The program before evaluates the configuration of its own release.
    Chdir.default = os.getcwd() if current.failure else start_directory
    util.daemonize = lambda *_args, **_kwargs: None
    takeover.install()
    begin, go_on = Arbiter.__init__, Arbiter.run
    configuration = current.known["configuration"]
    values = configuration["taken"][configuration["in_force"]]["values"]

    def make(arbiter: Any, app: Any) -> None:
        Chdir.default = start_directory
        gunicorn_config.set_values(app.cfg, {n: value for n, value in values.items() if n not in NOT_TAKEN})
        hook = app.cfg.settings["nworkers_changed"]  # their number does not change
        own, hook.value = hook.value, hook.default
        begin(arbiter, app)
        hook.value = own

    def run(arbiter: Any) -> None:
        gunicorn_config.refuse_foreign_class(arbiter.cfg)
        current.has_begun = True
        go_on(arbiter)

    Arbiter.__init__, Arbiter.run = make, run


if __name__ == "__main__":
    main()
