"""The ``zdworker`` command: check, reload, resume, rollback, upgrade, scale, status, history, list, metrics.

Rules:

* Exit codes are fixed, because scripts rely on them (:class:`Exit`). With ``--json`` the output for a program is one
  JSON object on standard output. Errors go to standard error. Where the output cannot be written, the exit code of an
  order is still that of its result.
* The command prints what the master has answered and decides nothing itself.
* What it prints of the master's answers is made printable (:mod:`zdworker.texts`), whichever master has sent it.
* ``click`` is imported here and by ``completion.py`` and nowhere else, ``rich`` only here, ``prometheus_client`` only
  by ``openmetrics.py``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from enum import IntEnum
from typing import Any, NoReturn, TypeVar

import click
from click.shell_completion import get_completion_class
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from zdworker import texts
from zdworker.command import check, client, finder, history, output, probing
from zdworker.command.completion import files, gunicorns, pids, sockets
from zdworker.errors import ContradictoryNames, MessageError, NoInstance, OrderRefused, SeveralInstances
from zdworker.ipc import messages

REFRESH_INTERVAL_S = 1.0
"""Seconds between two updates of ``status --watch``."""

SECONDS_MAX = 10 * 365 * 24 * 3600.0
"""Seconds that can be waited for: the system's calls take no infinite time, and no longer one everywhere."""

GOOD = ("done", "superseded", "held")
"""The results of an order that ask for nothing more."""

HOLD_S = 600.0
"""Seconds for which ``reload --hold`` waits by default."""

WIDTH_MIN = 40
"""Columns that are printed at the least, also on a terminal that says it has fewer."""

REASON_ROWS = 5
"""Rows of a reason on a screen of 80 columns; the log has the rest."""

STYLES = {
    "ready": "green",
    "booting": "yellow",
    "draining": "cyan",
    "starting": "yellow",
    "steady": "green",
    "rolling": "yellow",
}


class Seconds(click.FloatRange):
    """A number of seconds, which has a bound, and is no NaN: Click finds that in each range, as it is never outside."""

    def __init__(self, *, above_zero: bool = False, longest: float = SECONDS_MAX) -> None:
        super().__init__(min=0, min_open=above_zero, max=longest)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or end with misuse."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is no number.", param, ctx)
        return number


Command = TypeVar("Command", bound=Callable[..., Any])


class Exit(IntEnum):
    """The exit codes."""

    DONE = 0
    FAILED = 1
    MISUSE = 2
    NO_INSTANCE = 3
    TIMED_OUT = 4


def _with_master_options(command: Command) -> Command:
    """Add the options that name the master."""
    for option in (
        click.option(
            "--socket", "path", metavar="P", shell_complete=sockets, help="The master with this control socket."
        ),
        click.option("--pidfile", metavar="F", shell_complete=files, help="The master whose pid is in this file."),
        click.option("--pid", type=int, metavar="N", shell_complete=pids, help="The master with this pid."),
    ):
        command = option(command)
    return command


def _with_wait_options(command: Command) -> Command:
    """Add the options that say whether and how long to wait."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end."),
        click.option("--timeout", type=Seconds(), metavar="S", help="Give up waiting after S seconds."),
        click.option("--no-wait", is_flag=True, help="Return as soon as the master has the order."),
        click.option("--quiet", "-q", is_flag=True, help="Show no progress, but the result."),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="zdworker")
def main() -> None:
    """Zero-downtime deploys for Gunicorn: reload a running master, see what it does, undo a reload.

    The master that was started in this directory, or above it, is found by itself, and so is the only one that runs;
    else name it with --pid, --pidfile or --socket. "zdworker list" shows all.

    Exit codes: 0 done (also if a newer reload took its place and is done), 1 failed (the old code keeps serving),
    2 misuse, 3 no such master or not allowed, 4 timed out.
    """
    output.guard()


@main.command()
@_with_master_options
@_with_wait_options
@click.option(
    "--hold",
    type=Seconds(above_zero=True, longest=messages.HOLD_MAX_S),
    is_flag=False,
    flag_value=HOLD_S,
    metavar="[SECONDS]",
    help=f"Stop when the first new worker serves, and wait for 'zdworker resume', at most SECONDS ({HOLD_S:g}).",
)
@click.option("--upgrade", "upgrades", is_flag=True, help="When that is done, replace the master's program, too.")
def reload(hold: float | None, upgrades: bool, **options: Any) -> None:
    """Load the newest code and replace all workers, one after the other.

    With --hold the command ends with 0 when the first new worker, the canary, serves beside all old ones. "zdworker
    resume" continues the reload, "zdworker rollback" ends it. Without either the new code is given up when the time is
    over.
    """
    if upgrades and options["no_wait"]:
        raise click.UsageError("--upgrade comes after the reload, and --no-wait does not wait for it: give one of them")
    if upgrades and hold:
        raise click.UsageError("--upgrade comes after the reload, and --hold stops before its end: give one of them")
    _send_order("reload", "upgrade" if upgrades else "", hold_s=hold or 0.0, **options)


@main.command()
@_with_master_options
@_with_wait_options
def resume(**options: Any) -> None:
    """Continue a reload that waits at its canary, the first new worker (reload --hold, zd_canary_seconds)."""
    _send_order("resume", **options)


@main.command()
@_with_master_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("workers", type=click.IntRange(0, messages.SCALE_MAX), metavar="N")
def scale(pid: int | None, pidfile: str | None, path: str | None, as_json: bool, workers: int) -> None:
    """Have N workers, until a reload brings the number of the configuration (as TTIN and TTOU do)."""
    with _exit_codes(as_json):
        found = _find(pid, pidfile, path)
        with client.Connection(found.path, None, found.users) as master:
            answer = master.order(messages.Order("scale", workers=workers))
        if not isinstance(answer, messages.Report):
            raise MessageError(f"a strange answer: {answer!r}")
        if as_json:
            _print_json({"workers_wanted": workers})
        else:
            click.echo(f"scale ordered: {texts.counted(workers, 'worker')}")
        _require_output()


@main.command()
@_with_master_options
@click.option("--method", default="GET", metavar="M", show_default=True, help="The method of the request.")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header; may be repeated.")
@click.option("--data", metavar="TEXT", help="The body of the request.")
@click.option(
    "--timeout",
    type=Seconds(above_zero=True),
    default=30.0,
    metavar="S",
    help="Seconds to wait for the answer (30).",
)
@click.argument("target", metavar="PATH")
def probe(  # noqa: PLR0913  # one for each option
    *,
    pid: int | None,
    pidfile: str | None,
    path: str | None,
    method: str,
    headers: tuple[str, ...],
    data: str | None,
    timeout: float,
    target: str,
) -> None:
    """Send a request to the canary of a held reload and print the answer; exit with 1 if its status is 400 or above."""
    if not target.startswith("/"):
        raise click.UsageError(f"{target!r} is no path: it begins with /")
    if not all(":" in header for header in headers):
        raise click.UsageError("a header is a name and a value: --header 'Accept: text/html'")
    with _exit_codes(as_json=False):
        deadline = time.monotonic() + timeout
        found = _find(pid, pidfile, path, deadline)
        with client.Connection(found.path, deadline, found.users) as master:
            _generation, connection = master.probe()
        named = {name.strip(): value.strip() for name, _, value in (header.partition(":") for header in headers)}
        try:
            answer = probing.ask(connection, method, target, named, data, timeout)
        except ValueError as error:
            _exit_with(Exit.MISUSE, f"this is no request of HTTP/1.1: {error}", as_json=False)
        click.echo(texts.lines(answer.head), err=True)
        click.echo(answer.body, nl=False)
        _require_output()
    if answer.status >= 400:
        raise SystemExit(Exit.FAILED)


@main.command()
@_with_master_options
@_with_wait_options
def rollback(**options: Any) -> None:
    """Undo the newest reload, while the generation before it is kept (zd_rollback_window)."""
    _send_order("rollback", **options)


@main.command()
@_with_master_options
@_with_wait_options
def upgrade(**options: Any) -> None:
    """Replace the master's own program (Python, Gunicorn, zdworker), under its pid; workers and connections stay."""
    _send_order("upgrade", **options)


@main.command()
@_with_master_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--watch", is_flag=True, help="Look again every second, until interrupted.")
@click.option("--check", is_flag=True, help="Exit with 1 unless it is steady with all its workers; print one line.")
def status(pid: int | None, pidfile: str | None, path: str | None, as_json: bool, watch: bool, check: bool) -> None:
    """Show state, generation, the last reload, and every worker."""
    if check and watch:
        raise click.UsageError("--check looks once, and --watch without end: give one of them")
    with _exit_codes(as_json):
        master = finder.find(pid, pidfile, path)
        console = Console()
        if check:
            _check(_status_of(master), as_json)
            return
        if not watch:
            _show(console, _status_of(master), as_json)
            return
        with Live(console=console, auto_refresh=False, screen=console.is_terminal and not as_json) as live:
            while True:
                found = _status_of(master)
                if as_json or not console.is_terminal:
                    _show(console, found, as_json)
                else:
                    live.update(_table(found), refresh=True)
                time.sleep(REFRESH_INTERVAL_S)


@main.command("history")
@_with_master_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show_history(pid: int | None, pidfile: str | None, path: str | None, as_json: bool) -> None:
    """Show the last 50 reloads, rollbacks, crashes and upgrades of a site: when, who asked, what came of it."""
    with _exit_codes(as_json):
        found = _find(pid, pidfile, path)
        with client.Connection(found.path, None, found.users) as master:
            answer = master.order(messages.Order("history"))
        if not isinstance(answer, messages.History):
            raise MessageError(f"a strange answer: {answer!r}")
        if as_json:
            _print_json({"history": answer.entries})
        else:
            click.echo("\n".join(history.lines(answer.entries, max(Console().width, WIDTH_MIN))))
        _require_output()


@main.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_masters(as_json: bool) -> None:
    """Show all running masters of this user: pid, directory, application, addresses, age."""
    with _exit_codes(as_json):
        masters = sorted(finder.running(), key=lambda master: (master.fact("directory") or "", master.pid or 0))
        if as_json:
            _print_json({"masters": [master.listed() for master in masters]})
        else:
            lines = [master.description() for master in masters] or ["no master of this user runs"]
            click.echo(texts.lines("\n".join(lines)))
        _require_output()


@main.command()
@_with_master_options
def metrics(pid: int | None, pidfile: str | None, path: str | None) -> None:
    """Print the metrics of a master in the OpenMetrics text format (needs zdworker[metrics])."""
    with _exit_codes(as_json=False):
        try:
            from zdworker.command.openmetrics import exposition
        except ModuleNotFoundError as error:
            _exit_with(Exit.MISUSE, f"{error.name} is not installed: pip install 'zdworker[metrics]'", as_json=False)
        click.echo(exposition(_status_of(_find(pid, pidfile, path))), nl=False)
        _require_output()


@main.command("check", context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--unit", default="", metavar="U", help="The systemd unit of the site, or its file, to look at as well.")
@click.option("--launcher", is_flag=True, help="ARGUMENTS start a program that starts Gunicorn: serve.py, or -m site.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, shell_complete=gunicorns)
def check_site(as_json: bool, unit: str, launcher: bool, arguments: tuple[str, ...]) -> None:
    """Try, beside a running site, whether a site would start with gunicorn's own ARGUMENTS and GUNICORN_CMD_ARGS."""
    words = list(arguments) if launcher else [*check.gunicorn(), *arguments]
    if not words or words == ["-m"]:
        raise click.UsageError("--launcher needs the program: a script, or -m and a module")
    with _exit_codes(as_json):
        checked = check.Check(
            words, unit, lambda finding: None if as_json else click.echo(check.line_of(finding))
        ).run()
    if checked.misuse:
        _exit_with(Exit.MISUSE, checked.misuse, as_json)
    if as_json:
        _print_json(checked.to_plain())
    else:
        click.echo(check.total_of(checked))
    _require_output()
    if checked.count("error"):
        raise SystemExit(Exit.FAILED)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete this command; for bash: eval "$(zdworker completion bash)"."""
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 (for the type checker: the choice allows known ones only)
    click.echo(kind(main, {}, "zdworker", "_ZDWORKER_COMPLETE").source())
    _require_output()


def _find(pid: int | None, pidfile: str | None, path: str | None, deadline: float | None = None) -> finder.Master:
    """Return the master that is meant, after a line that says which one it is if that is not obvious."""
    master = finder.find(pid, pidfile, path, deadline)
    if master.announcement:
        _print_error(master.announcement)
    return master


def _status_of(master: finder.Master) -> dict[str, Any]:
    return client.status(master.path, users=master.users)


# -- orders ------------------------------------------------------------------------------------------------------


def _send_order(  # noqa: PLR0913  # one for each option
    command: str,
    then: str = "",
    *,
    pid: int | None,
    pidfile: str | None,
    path: str | None,
    no_wait: bool,
    timeout: float | None,
    as_json: bool,
    quiet: bool,
    hold_s: float = 0.0,
) -> None:
    with _exit_codes(as_json):
        deadline = None if timeout is None else time.monotonic() + timeout
        found = _find(pid, pidfile, path, deadline)
        with client.Connection(found.path, deadline, found.users) as master:
            first = master.order(messages.Order(command, wait=not no_wait, hold_s=hold_s))
            if isinstance(first, messages.Report):
                _print_ordered(command, first.status, as_json)
                return
            ended = {command: _follow(master, first, deadline, quiet=as_json or quiet)}
            if not as_json:
                _print_ended(command, ended[command])  # also if what comes then is refused
            if then and ended[command].result in GOOD:
                ended[then] = _follow(master, master.order(messages.Order(then, wait=True)), deadline, as_json or quiet)
                if not as_json:
                    _print_ended(then, ended[then])
        if as_json:
            further = {then: asdict(ended[then]) if then in ended else None} if then else {}
            _print_json({**asdict(ended[command]), **further})
        if any(outcome.result not in GOOD for outcome in ended.values()):
            raise SystemExit(Exit.FAILED)


def _follow(
    master: client.Connection, answer: messages.Message, deadline: float | None, quiet: bool
) -> messages.Outcome | messages.Upgraded:
    """Show the progress until the reload or the upgrade has ended, and return its outcome."""
    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[ready]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task, printed = bar.add_task("", total=1, ready=""), ""
        while isinstance(answer, (messages.Progress, messages.UpgradeStep)):
            if isinstance(answer, messages.UpgradeStep):
                bar.update(task, description=f"upgrade: {_in_table(answer.step)}")
                if not console.is_terminal and not quiet:
                    console.print(f"upgrade: {_in_table(answer.step)}", soft_wrap=True)
                answer = master.receive(deadline)
                continue
            # A start replaces nothing, and while a reload goes on, "0 of 4 ready" would read as if nothing served.
            what = "ready" if answer.state == "starting" else "replaced"
            words = f"generation {answer.generation}", f"{answer.ready} of {answer.workers} {what}"
            waiting = f"; {_in_table(answer.waiting)}" if answer.waiting else ""
            left = "" if answer.left_s is None else f", at most {answer.left_s} s more"
            ready = words[1] + waiting + left
            bar.update(task, description=words[0], ready=ready, completed=answer.ready, total=answer.workers)
            line = f"{_in_table(answer.state)}: {words[0]}, {words[1]}{waiting}"
            # The seconds that are left go down: without a terminal that would be a line a second.
            if not console.is_terminal and not quiet and line != printed:
                console.print(line + left, soft_wrap=True)
                printed = line
            answer = master.receive(deadline)
    if not isinstance(answer, (messages.Outcome, messages.Upgraded)):
        raise MessageError(f"a strange answer: {answer!r}")
    return answer


def _print_ordered(command: str, status: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json({"result": None, "state": status["state"], "generation": status["target_generation"]})
    else:
        click.echo(f"{command} ordered")


def _print_ended(command: str, outcome: messages.Outcome | messages.Upgraded) -> None:
    _print_upgraded(outcome) if isinstance(outcome, messages.Upgraded) else _print_outcome(command, outcome)


def _print_outcome(command: str, outcome: messages.Outcome) -> None:
    if outcome.result == "done":
        label = f" ({texts.lines(outcome.label)})" if outcome.label else ""
        done_in = f"{command} done: generation {outcome.generation}{label} serves, after {outcome.duration_s:.1f} s"
        found = [texts.lines(outcome.judgement)] if outcome.judgement else []
        click.echo("; ".join([done_in, *found, *history.cost(asdict(outcome))]))
        if outcome.note:
            click.echo(texts.lines(outcome.note))
    elif outcome.result == "held":
        click.echo(
            f"{command} held: the canary of generation {outcome.generation} serves beside all workers of generation "
            f'{outcome.serving}; go on with "zdworker resume", end it with "zdworker rollback"'
        )
    elif outcome.result == "superseded":
        click.echo(texts.lines(f"{command} superseded: {outcome.error}"))
    else:
        _print_failure(command, outcome)
        if outcome.result == "failed" and command == "reload":
            # Of code that was given up for its answers this has the newest failed requests, and the log has no more.
            in_log = outcome.traceback and not outcome.error.startswith("given up: ")
            whole = "; the log has the whole traceback" if in_log else ""
            _print_error(f"fix that, and reload again{whole}")
        _print_error(f"generation {outcome.serving} is still serving")


def _print_upgraded(outcome: messages.Upgraded) -> None:
    if outcome.result == "done":
        before = outcome.before
        changed = {
            name: f" (before: {before.get(name, '?')})"
            for name, new in outcome.after.items()
            if before.get(name) != new
        }
        runs = [f"{name} {new}{changed.get(name, '')}" for name, new in outcome.after.items()]
        click.echo(texts.lines(f"upgrade done, after {outcome.duration_s:.1f} s: the master runs {', '.join(runs)}"))
    else:
        _print_failure("upgrade", outcome)
        _print_error("the program that was running is still in place")


def _print_failure(command: str, outcome: messages.Outcome | messages.Upgraded) -> None:
    if outcome.traceback:
        _print_error(texts.screen(outcome.traceback))
    _print_error(texts.screen(f"{command} {outcome.result.replace('_', ' ')}: {outcome.error}", REASON_ROWS))


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(texts.for_json(value)))


def _print_error(text: str) -> None:
    click.echo(texts.lines(text), err=True)


@contextlib.contextmanager
def _exit_codes(as_json: bool) -> Iterator[None]:
    """Turn an error into one line of output and an exit code."""
    try:
        yield
    except OrderRefused as error:
        _exit_with(Exit.FAILED, str(error), as_json)
    except (SeveralInstances, ContradictoryNames) as error:
        _exit_with(Exit.MISUSE, str(error), as_json)
    except (NoInstance, MessageError) as error:
        _exit_with(Exit.NO_INSTANCE, str(error), as_json)
    except TimeoutError as error:
        _exit_with(Exit.TIMED_OUT, str(error), as_json)
    except OSError as error:  # of this process: it may open no more files, say
        _exit_with(Exit.FAILED, texts.reason(error), as_json)
    except KeyboardInterrupt:
        # The master still carries out the order. Shells expect 130 (128 + SIGINT).
        click.echo(err=True)
        raise SystemExit(130) from None


def _exit_with(code: Exit, text: str, as_json: bool) -> NoReturn:
    if as_json:
        _print_json({"result": code.name.lower(), "error": text})
    _print_error(f"Error: {text}")
    raise SystemExit(code)


def _require_output() -> None:
    """Exit if standard output could not be written, for commands that are there to print."""
    error = output.failure()
    if error is not None:
        if error.errno != errno.EPIPE:  # a reader that has left, "head" say, knows that
            _print_error(f"Error: the output cannot be written: {error.strerror}")
        raise SystemExit(Exit.FAILED)


# -- status ------------------------------------------------------------------------------------------------------


def _show(console: Console, status: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(status)
    else:
        console.print(_table(status))
    _require_output()


def _check(status: dict[str, Any], as_json: bool) -> None:
    """Print how things are, in one line, and exit with 1 unless all is well."""
    ready = sum(worker["state"] == "ready" for worker in status["workers"])
    wanted = status.get("workers_wanted", ready)
    if as_json:
        _print_json(status)
    else:
        reason = f": {status['reason']}" if status.get("reason") else ""
        click.echo(texts.lines(f"{status['state']}, {ready} of {texts.counted(wanted, 'worker')} ready{reason}"))
    _require_output()
    if status["state"] != "steady" or ready < wanted:
        raise SystemExit(Exit.FAILED)


def _table(status: dict[str, Any]) -> Table:
    table = Table(
        title=_title(status), title_justify="left", title_style="", caption=_caption(status), caption_justify="left"
    )
    for name in ("slot", "pid", "generation", "state", "age", "memory", "connections", "requests"):
        table.add_column(name, justify="left" if name == "state" else "right")
    for worker in status["workers"]:
        memory = worker["rss_bytes"]
        table.add_row(
            str(worker["slot"]),
            str(worker["pid"] or "-"),
            str(worker["generation"]),
            _styled(worker["state"]),
            f"{worker['age_s']:.0f} s",
            f"{memory / (1 << 20):.0f} MiB" if memory else "-",
            str(worker["connections"]),
            str(worker["requests"]),
        )
    for slot in status.get("retries", ()):
        table.add_row(str(slot["slot"]), "-", "-", "[red]waiting[/]", "-", "-", "-", "-")
    return table


def _title(status: dict[str, Any]) -> str:
    state, target = status["state"], status["target_generation"]
    going = f", to generation {target}" if target else ""
    label = f" ({_in_table(status['label'])})" if status.get("label") else ""
    return f"master {status['pid']}: {_styled(state)}, generation {status['generation']}{label}{going}"


def _caption(status: dict[str, Any]) -> str:
    counts = f"{texts.counted(status['reloads'], 'reload')}, {texts.counted(status['crashes'], 'crash', 'crashes')}"
    lines = [_in_table(finder.site(status)), counts, *_versions(status)]
    if status.get("reason"):
        lines.append(f"{status['state']}: {_in_table(status['reason'])}")
    for slot in status.get("retries", ()):  # not in a cell, where 80 columns would break it over several rows
        times = texts.counted(slot["failures"], "time")
        lines.append(f"slot {slot['slot']} has failed {times}, next try in {slot['next_try_in_s']:.0f} s")
    lines += [_figures(known) for known in status.get("generations", ()) if known.get("answers")]
    canary = status.get("canary")
    if canary is not None:
        left = "until it is resumed, at most " if canary["held"] else ""
        lines.append(
            f"canary: worker {canary['pid']}, generation {canary['generation']}, {left}{canary['left_s']} s more"
        )
    last = status["last_reload"]
    if last is not None:
        result = (last["result"] or "under way").replace("_", " ")
        what = "rollback" if last.get("rollback") else "reload"
        took = f"{last['duration_s']:.1f} s, {last['started_at']}"
        lines.append(f"last {what}: {result}, generation {last['generation']}, {took}")
        lines += [_in_table(last[name]) for name in ("judgement", "error") if last.get(name)]
    return "\n".join(lines)


def _figures(generation: dict[str, Any]) -> str:
    """Return what a generation has answered, in one line."""
    known = generation["answers"]
    failed = known["errors"] + known["exceptions"]
    latency = ", ".join(
        f"{name} {known[f'{name}_s'] * 1000:.0f} ms" for name in ("p50", "p99") if known[f"{name}_s"] is not None
    )
    answers = texts.counted(known["answers"], "answer")
    return f"generation {generation['generation']}: {answers}, {failed} failed, {latency}"


def _versions(status: dict[str, Any]) -> list[str]:
    """Return what the master runs, and each generation that runs something else; nothing of an older master."""
    own = status.get("versions")
    if not own:
        return []
    others = {str(found["generation"]): found.get("versions") or own for found in status["generations"]}
    differing = {f"generation {number}": found for number, found in others.items() if found != own}
    runs = {"the master": own, **differing} if differing else {"all": own}
    return [
        f"{who}: {', '.join(f'{_in_table(name)} {_in_table(found[name])}' for name in found)}"
        for who, found in runs.items()
    ]


def _styled(state: str) -> str:
    return f"[{STYLES.get(state, 'red')}]{_in_table(state)}[/]"


def _in_table(text: str) -> str:
    """Return a text of the master's for ``rich``, which would take brackets for its markup."""
    return escape(texts.lines(text))
