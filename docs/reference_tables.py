"""Write the reference into ``docs/reference/*.md``, between the markers there, from the code.

``python docs/reference_tables.py`` rewrites the pages. With ``--check`` it writes nothing, and exits with 1 if a page
is out of date.

Rules: names, defaults, allowed values, options, exit codes and fields are the code's; so are the meanings of hooks and
of the command's options. The meanings of settings, signals and fields of the JSON stand here, and one that is missing
is an error. What is outside the markers is not touched.
"""

# ruff: noqa: INP001 (a script, no package)

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from zdworker import settings
from zdworker.command import check, cli, finder
from zdworker.core import events, history
from zdworker.core.fleet import Fleet
from zdworker.core.rollout import Rollout
from zdworker.ipc import messages
from zdworker.master import status
from zdworker.master.answers import AnswerBook
from zdworker.master.observers import Reload
from zdworker.master.reconfiguration import Site

DIRECTORY = Path(__file__).with_name("reference")
BEGIN = "<!-- {}: written by docs/reference_tables.py, not by hand -->"
END = "<!-- end of {} -->"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head)]
    lines.append(["---"] * len(lines[0]))
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


# -- settings and hooks --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Described:
    """What the page says of a setting: its type and unit, what it does, an example, and what it interacts with."""

    kind: str
    meaning: str
    example: str
    interacts: str


SETTINGS: Mapping[str, Described] = {
    "zd_max_surge": Described(
        "number of processes, or percentage of `workers` (rounded up)",
        "The number of worker processes that may exist above `workers` during a reload. A higher number makes a reload "
        "faster and takes more memory and CPU while it runs.",
        'zd_max_surge = "25%"',
        "With 0, `zd_max_unavailable` must be above 0. A canary serves beside all old workers only if this leaves room "
        "for it.",
    ),
    "zd_max_unavailable": Described(
        "number of workers, or percentage of `workers` (rounded down)",
        "The number of ready workers that may be missing during a reload. Where `zd_max_surge` leaves no room for a "
        "new worker, an old one leaves before its successor starts.",
        "zd_max_unavailable = 1",
        "`zd_max_surge` and this setting cannot both be 0, because then no worker could be replaced.",
    ),
    "zd_boot_timeout": Described(
        "seconds",
        "The time that a new worker, or the fork server that loads a generation, has to get ready. In a reload, the "
        "reload fails when the canary or its fork server is late, and the old workers keep serving.",
        "zd_boot_timeout = 120",
        "The warm-up (`zd_warmup`) is a part of this time. A worker that you send `TERM` waits at most this long for "
        "its successor.",
    ),
    "zd_min_ready_seconds": Described(
        "seconds",
        "The time that a new worker must stay up before it counts as verified and the next worker is replaced.",
        "zd_min_ready_seconds = 5",
        "A reload of several steps takes this time for each of them. `zd_canary_seconds` concerns the first new worker "
        "only.",
    ),
    "zd_warmup": Described(
        "list of paths or URLs; in the environment one text, with spaces or commas between them",
        "The requests that a new worker has to answer itself, with a status below 400, before it is ready. A URL gives "
        "the scheme and the host that the application sees.",
        'zd_warmup = ["/", "http://example.org/shop"]',
        "It must not name `zd_health_path`, which zdworker answers without the application. Its time is limited by "
        "`zd_boot_timeout`.",
    ),
    "zd_websocket_drain": Described(
        "seconds",
        "The longest time over which a worker that leaves closes its WebSockets, with code 1012. It closes one every "
        "0.05 s, and closes them faster if there are many, so that clients do not all reconnect at once.",
        "zd_websocket_drain = 20",
        "`graceful_timeout` limits the whole drain.",
    ),
    "zd_max_rss": Described(
        "bytes; a text may end in K, M, G or T (powers of 1024)",
        "The memory above which a worker is replaced. The replacement is ready before the worker leaves.",
        'zd_max_rss = "512M"',
        "`max_requests` causes the same kind of replacement, after a number of requests.",
    ),
    "zd_on_crash": Described(
        "word",
        '`"respawn"` starts a new worker in the slot of one that crashed. `"exit"` ends the master when a worker '
        "crashes, for set-ups in which the platform restarts the whole server.",
        'zd_on_crash = "exit"',
        'With `"exit"`, a supervisor such as systemd has to restart the master.',
    ),
    "zd_health_path": Described(
        "path without a query",
        "The path that each worker answers itself, for balancers and probes. The status is 200 while the site takes "
        "traffic and 503 once the master has to end. A worker that is being replaced answers 200 until its end.",
        'zd_health_path = "/health"',
        "`zd_shutdown_delay` is the time in which balancers see the 503. `zd_warmup` must not name this path.",
    ),
    "zd_shutdown_delay": Described(
        "seconds",
        "The time between `TERM` and the moment at which the server stops accepting connections. `zd_health_path` "
        "answers 503 during this time, so that balancers turn away first. The `TERM` may go to the master or, as on "
        "Heroku, to its whole process group.",
        "zd_shutdown_delay = 10",
        "The platform's own timeout has to be longer than this and `graceful_timeout` together.",
    ),
    "zd_rollback_window": Described(
        "seconds",
        "The time for which the master keeps the generation before, so that `zdworker rollback` can undo a reload "
        "without loading code. The generation that is kept has to be preloaded.",
        "zd_rollback_window = 600",
        "The kept fork server takes memory for that time. Without preload (`zd_preload`) nothing can be kept.",
    ),
    "zd_preload": Described(
        "word",
        '`"auto"` imports the application once for each reload, for all workers, unless something in the configuration '
        'or what the import leaves open prevents that. With `"never"` each worker imports it.',
        'zd_preload = "never"',
        '`preload_app = True` (`--preload`) always imports it once; together with `"never"` it is an error. [Fork '
        "safety](../fork-safety.md) explains the choice.",
    ),
    "zd_control_socket": Described(
        "absolute path of at most 100 bytes",
        'The path of the control socket, on which the master takes orders from the command. `"none"` opens no socket. '
        "[The default path](#the-control-socket) depends on the user.",
        'zd_control_socket = "/run/shop/control.sock"',
        "The command finds the default by itself; [the command](command.md) says how it is given another one.",
    ),
    "zd_version": Described(
        "text, or function that returns one",
        "The version of the application, for the log, `status`, the metrics and the hooks. The application finds it in "
        "its environment as `ZD_VERSION`. The default is the name of the release to which the `current` link leads, or "
        "else git's name for the commit.",
        'zd_version = "v1.4.2"',
        "The label of a generation in the metrics and in `status --json` is this text.",
    ),
    "zd_hand_over": Described(
        "truth value",
        "Whether a worker that is replaced hands its keep-alive connections over to the next worker of its slot. "
        "Without the hand-over each of them ends with its next response, or when its keep-alive time is over.",
        "zd_hand_over = False",
        "Without it a drain may last as long as `keepalive` ([draining](../draining.md)).",
    ),
    "zd_canary_seconds": Described(
        "seconds",
        "The time for which the first new worker, the canary, serves its share beside all old workers before the "
        "reload goes on.",
        "zd_canary_seconds = 30",
        "With `zd_max_error_rate` the master compares the canary's answers with those of the old workers in this time. "
        "`zdworker reload --hold` waits for an order instead.",
    ),
    "zd_max_error_rate": Described(
        "percentage of answers",
        "The share of failed answers above which new code is given up during its reload. An answer counts as failed "
        "with a status of 500 and above, or if there was none. The new code is given up only if its share is higher "
        "than that of the old code in the same time, and chance cannot explain the difference. Code whose workers "
        "crash while the old ones do not is given up, too.",
        "zd_max_error_rate = 5",
        "`zd_canary_seconds` gives the comparison time ([judged deploys](../judged-deploys.md)). With this setting "
        "workers count their answers, whatever `zd_count_answers` says.",
    ),
    "zd_count_answers": Described(
        "truth value",
        "Whether workers count their answers, failures and latency for `status` and the metrics.",
        "zd_count_answers = True",
        "`zd_max_error_rate` and a statsd make them count in any case.",
    ),
}
"""A setting without an entry is an error, and so is an entry without a setting."""


def setting_rows() -> str:
    """Return the table of settings: each links to its section."""
    rows = ((f"[`{name}`](#{name})", _shown_default(name), described.kind) for name, described in SETTINGS.items())
    return _table(("name", "default", "type and unit"), rows)


def setting_sections() -> str:
    """Return a section for each setting.

    :raises ValueError: the page describes other settings than there are.
    """
    if SETTINGS.keys() != settings.SPECS.keys():
        raise ValueError(f"settings that are not described, or do not exist: {SETTINGS.keys() ^ settings.SPECS.keys()}")
    return "\n\n".join(
        f"### `{name}`\n\n{described.meaning}\n\n"
        f"* Type and unit: {described.kind}\n"
        f"* Default: {_shown_default(name)}\n"
        f"* Allowed: {settings.SPECS[name].allowed}\n"
        f"* Example: `{described.example}`\n"
        f"* Other settings: {described.interacts}"
        for name, described in SETTINGS.items()
    )


def _shown_default(name: str) -> str:
    return _default(getattr(settings.Settings(), name.removeprefix(settings.PREFIX)), settings.SPECS[name])


def _default(value: object, spec: settings.Spec) -> str:
    if value in (None, ()) or (value == "" and '""' not in spec.allowed):
        return "none"
    if isinstance(value, bool):
        return f"`{value}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value:g}`"


def hook_rows() -> str:
    """Return the table of our hooks."""
    rows = ((f"`{name}{hook.arguments}`", hook.meaning) for name, hook in settings.HOOKS.items())
    return _table(("hook", "is called"), rows)


# -- signals -------------------------------------------------------------------------------------------------------


MASTER_SIGNALS = {
    "HUP": (
        "The master loads the newest code and replaces the workers one by one: a rolling reload.",
        "After a deploy, where a tool can only send `HUP`. `zdworker reload` does the same, and waits for the result.",
    ),
    "USR2": (
        "A rolling reload, as with `HUP`. There is no second master, and the PID does not change.",
        "As `HUP`.",
    ),
    "TERM": (
        "Graceful end: the workers drain for at most `graceful_timeout`, then the master exits.",
        "To stop the site; systemd and Docker send it.",
    ),
    "QUIT": (
        "Quick end: the workers stop without a drain, and requests in flight are lost.",
        "When a graceful end takes too long.",
    ),
    "INT": ("As `QUIT`.", "`Ctrl-C` in a terminal sends it."),
    "TTIN": (
        "One worker more, until a reload brings the number of the configuration.",
        "To try another number of workers; `zdworker scale` sets the number itself.",
    ),
    "TTOU": ("One worker less.", "As `TTIN`."),
    "USR1": (
        "The master, the fork servers and the workers reopen their log files.",
        "After log files were renamed, for example by logrotate.",
    ),
    "WINCH": (
        "With `--daemon` all workers leave, and there are none until the next reload. Otherwise nothing happens.",
        "Rarely: to take the site out of service without ending the master.",
    ),
}
"""What each signal does to the master, and when to send it."""


def master_signals() -> str:
    """Return the table of signals to the master.

    :raises ValueError: the table has other signals than the master handles.
    """
    from zdworker.master.arbiter import ZeroDowntimeArbiter

    handled = {number.name.removeprefix("SIG") for number in ZeroDowntimeArbiter.SIGNALS}
    if handled != MASTER_SIGNALS.keys():
        raise ValueError(f"signals that are not described, or not handled: {sorted(handled ^ MASTER_SIGNALS.keys())}")
    rows = ((f"`{name}`", *words) for name, words in MASTER_SIGNALS.items())
    return _table(("signal", "what happens", "when to send it"), rows)


# -- the command ---------------------------------------------------------------------------------------------------


def command_pages() -> str:
    """Return each command with its options."""
    return "\n\n".join(_command(name, command) for name, command in cli.main.commands.items())


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name)
    usage = " ".join(["zdworker", name, *command.collect_usage_pieces(context)])
    parts = [f"### `zdworker {name}`", inspect.cleandoc(command.help or ""), f"    {usage}"]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    rows = [(f"`{' '.join([*option.opts, option.metavar or '']).strip()}`", option.help or "") for option in options]
    return "\n\n".join([*parts, *([_table(("option", "meaning"), rows)] if rows else [])])


def exit_codes() -> str:
    """Return the exit codes, with the words that the command's own help has for them."""
    words = dict(re.findall(r"(\d) ([^,.]+)", (cli.main.help or "").partition("Exit codes:")[2]))
    return _table(("exit code", "meaning"), ((f"`{code.value}`", words[str(code.value)].strip()) for code in cli.Exit))


# -- JSON ----------------------------------------------------------------------------------------------------------

STATUS = {
    "pid": "the master's",
    "directory": "where the master was started, with links as they were named: `current`, not the release behind it",
    "application": "for example `app:app`; null if a program embeds Gunicorn",
    "bind": "a list of the addresses at which it listens",
    "started_at": "UTC, ISO 8601",
    "age_s": "seconds since then",
    "reason": "why the state is `degraded` or `failed`, a line, else null",
    "label": "the version of the application that serves (`zd_version`), or null",
    "workers_wanted": "the number of workers that there should be",
    "canary": "the new worker that serves beside all old ones: `generation`, `pid`, `slot`, `held` (until it is "
    "resumed), `left_s` (seconds); null if there is none",
    "retries": "the slots that lack a worker because one has failed: `slot`, `failures` in a row, `next_try_in_s`",
    "state": "`starting` (until all workers are ready for the first time), `steady`, `rolling` (a reload), `failed` "
    "(the last reload; what ran before keeps serving), `degraded` (something is wrong for which no new code is to "
    "blame), or `stopping`",
    "generation": "the newest one that is verified",
    "target_generation": "the one that is loading or being rolled out, or null",
    "workers": "a list, by slot; the old and the new worker of a slot stand beside each other",
    "workers[].pid": "null while it is being forked",
    "workers[].slot": "0 to `workers` - 1; a replacement keeps it",
    "workers[].generation": "whose code it runs",
    "workers[].state": "`booting`, `ready` or `draining`",
    "workers[].age_s": "seconds since it was asked for",
    "workers[].rss_bytes": "resident memory, shared pages included; null if it cannot be read",
    "workers[].connections": "open connections, as last reported",
    "workers[].requests": "requests answered since it was forked, as last reported",
    "fork_servers": "a list, by generation",
    "fork_servers[].pid": "its own",
    "fork_servers[].generation": "whose code it has",
    "fork_servers[].preloaded": "whether it has imported the application",
    "fork_servers[].not_preloaded": 'why `zd_preload = "auto"` has left that to the workers, or null',
    "generations": "a list of those that load, that workers run, or that are kept for a rollback; where one comes from "
    "is null until it is loaded, and where there is no fork server. All paths are without links",
    "generations[].generation": "its number",
    "generations[].label": "the version of its application, or null",
    "generations[].directory": "the start directory, as it was when its interpreter was started",
    "generations[].interpreter": "the interpreter",
    "generations[].path": "`sys.path` before the application is imported",
    "generations[].application": "the file of the application's module; null where none is named",
    "generations[].answers": "what it has answered, as far as its workers count (`zd_max_error_rate`, "
    "`zd_count_answers`, a statsd, a held reload); null if they do not",
    "generations[].answers.answers": "all, those that failed included",
    "generations[].answers.errors": "those with a status of 500 or above",
    "generations[].answers.exceptions": "requests without an answer, because the application has raised",
    "generations[].answers.seconds": "the sum of the times from each request to the head of its answer, in seconds",
    "generations[].answers.p50_s": "the median of these times, estimated from `latency`; null without answers",
    "generations[].answers.p99_s": "their 99th percentile, estimated in the same way",
    "generations[].answers.latency": "how many took at most 5, 10, 25, 50, 100, 250, 500 ms, 1, 2.5, 5 and 10 s, and "
    "more than that; each is counted once",
    "generations[].answers.newest_failures": "the newest three, the newest one last: method, path, status or exception",
    "generations[].versions": "of what it runs; null until it is loaded, and where there is no fork server",
    "generations[].versions.python": "",
    "generations[].versions.gunicorn": "",
    "generations[].versions.zdworker": "",
    "last_reload": "null before the first one",
    "last_reload.result": "`done`, `failed`, `superseded` by a newer one, `rolled_back` (a rollback has undone it), "
    "or null while it goes on",
    "last_reload.generation": "the one that it loads",
    "last_reload.started_at": "UTC, ISO 8601",
    "last_reload.duration_s": "seconds that it took, or has taken so far",
    "last_reload.error": "a line, or null",
    "last_reload.traceback": "the application's own, or null",
    "last_reload.label": "the version of the application, or null",
    "last_reload.rollback": "whether it goes back to an older generation",
    "last_reload.judgement": "with `zd_max_error_rate`, what was found of the new code's answers and the old one's, a "
    "line, else null",
    "last_reload.handed_over": "connections that went on to the next worker of their slot",
    "last_reload.told_to_close": "connections that a response has ended because of the reload",
    "last_reload.cut_requests": "requests that were cut at `graceful_timeout`",
    "last_reload.closed_websockets": "WebSockets that were closed",
    "last_reload.cut_paths": "method and path, without the query, of three of these requests at most, say "
    '`["GET /export"]`; each name once',
    "reloads": "how many there were, rollbacks included",
    "crashes": "how many workers died that were ready",
    "upgrades": "how often the master's program was replaced (`zdworker upgrade`)",
    "versions": "of what the master runs",
    "versions.python": "",
    "versions.gunicorn": "",
    "versions.zdworker": "",
    "totals": "since the master's start, for metrics",
    "totals.boots": "workers that became ready",
    "totals.boot_duration_s": "seconds that they took for it, all together",
    "totals.reloads_done": "reloads that have ended well, rollbacks included",
    "totals.reloads_failed": "reloads that have failed",
    "totals.reloads_superseded": "reloads that a newer one has overtaken",
    "totals.reloads_rolled_back": "reloads that a rollback has undone before they were done",
    "totals.reload_duration_s": "seconds that all of these took together",
    "totals.handed_over": "the same four numbers, of all drains",
    "totals.told_to_close": "",
    "totals.cut_requests": "",
    "totals.closed_websockets": "",
    "settings": "all `zd_` settings in force; null is one that is not set",
}

EXAMPLE_VERSIONS = {"python": "3.13.1", "gunicorn": "27.0.1", "zdworker": "1.0.0"}
EXAMPLE_PLACES = {
    "directory": {"/srv/current": "/srv/releases/2"},
    "interpreter": {"/srv/current/venv/bin/python": "/usr/bin/python3.12"},
    "path": {"/srv/current": "/srv/releases/2", "…": "…"},
    "application": {"/srv/releases/2/app.py": "/srv/releases/2/app.py"},
}

OUTCOME = {
    "result": "`done`, `superseded` (a newer reload took its place), `rolled_back` (a rollback has undone it), "
    "`held` (its canary serves, and it waits for `resume` or `rollback`), `failed`, or `degraded`. The last one means "
    "that new workers fail one after the other, and that the master keeps trying because the old code is not in memory",
    "generation": "the one that was loaded",
    "duration_s": "seconds",
    "serving": "the generation that serves now",
    "error": "a line, empty when it is done",
    "traceback": "the application's own, or the newest failed requests of code that was given up; empty without",
    "handed_over": "connections that went on to the next worker of their slot",
    "told_to_close": "connections that a response has ended because of the reload",
    "cut_requests": "requests that were cut at `graceful_timeout`",
    "closed_websockets": "WebSockets that were closed",
    "cut_paths": STATUS["last_reload.cut_paths"],
    "label": "the version of the application, empty if it is not known",
    "judgement": "with `zd_max_error_rate`, how the answers of the new code and the old code compare; empty without",
    "note": "what you still have to do (`zdworker upgrade`), empty if nothing",
}

HISTORY = {
    "kind": "`reload`, `rollback`, `crash` (a worker died that was ready), or `upgrade` (of the master's program)",
    "at": "when it began: UTC, ISO 8601",
    "master": "the pid of the master then",
    "generation": "the one that was loaded, or whose worker died; for an upgrade the one that serves",
    "by": "a list of those that have asked for it, empty for a crash",
    "by[].signal": "`HUP` or `USR2`, whose sender is unknown; else null",
    "by[].uid": "the user of the process that has ordered it by the control socket, else null",
    "by[].pid": "that process; null in another container",
    "by[].command": "its name, `zdworker` say; null if it had ended by then",
    "label": "the version of the application, or null",
    "result": "`done`, `failed`, `superseded`, `rolled_back` (by a rollback, which has an entry of its own), "
    "`unfinished` (the master ended before), or null: for a crash, and while it is under way",
    "duration_s": "seconds that it took, null while it is under way; of several crashes, from the first to the last",
    "error": "a line, how the worker died say, or null",
    "slot": "that of the worker that died, or null",
    "pid": "its pid, or null",
    "times": "1; of crashes that are alike and follow each other, how many there were",
    "handed_over": STATUS["last_reload.handed_over"],
    "told_to_close": STATUS["last_reload.told_to_close"],
    "cut_requests": STATUS["last_reload.cut_requests"],
    "closed_websockets": STATUS["last_reload.closed_websockets"],
    "cut_paths": STATUS["last_reload.cut_paths"],
}

LIST = {
    "pid": STATUS["pid"],
    "socket": "its control socket",
    **{name: STATUS[name] for name in ("directory", "application", "bind", "started_at", "age_s")},
    "state": STATUS["state"],
    "generation": STATUS["generation"],
    "label": STATUS["label"],
    "error": "why it does not answer; the fields above, but for `pid` and `socket`, are null then. Else null",
}


CHECK = {
    "result": "`done`, or `failed` if there was an error",
    "errors": "their number",
    "warnings": "their number",
    "findings": "a list, in the order in which they were found; new ones may be added, so go by `level`",
    "findings[].level": "`ok`, `warning`, `error`, or `skipped` for what was not checked",
    "findings[].about": "`versions`, `configuration`, `worker class`, `settings`, `files`, `start`, `bind`, "
    "`application`, `hooks`, `systemd` or `control socket`",
    "findings[].text": "what was found, and what to do: the line that is printed",
    "findings[].details": "the traceback, or what was printed, of an error; else empty",
}


def status_fields() -> str:
    """Return the fields of ``status --json``."""
    return _fields(STATUS, _paths(_status()))


def status_example() -> str:
    """Return an example of ``status --json``."""
    example = _status()
    example["settings"] = {"zd_max_surge": example["settings"]["zd_max_surge"], "…": "…"}
    return f"```json\n{json.dumps(example, indent=2, ensure_ascii=False)}\n```"


def outcome_fields() -> str:
    """Return the fields of ``reload --json`` and ``rollback --json``."""
    return _fields(OUTCOME, (field.name for field in dataclasses.fields(messages.Outcome)))


def list_fields() -> str:
    """Return the fields of a master in ``list --json``."""
    return _fields(LIST, finder.Master("").listed())


def history_fields() -> str:
    """Return the fields of an entry in ``history --json``."""
    entry = history.Entry("reload", "", 0, 0, [history.Requester()]).to_plain()
    return _fields(HISTORY, _paths(entry))


def check_fields() -> str:
    """Return the fields of ``check --json``."""
    return _fields(CHECK, _paths(check.Checked([messages.Finding("ok", "", "")]).to_plain()))


def report_fields() -> str:
    """Return the keys of the report that ``zd_reload_finished`` gets."""
    keys = Reload(1, 0.0, 0.0).to_plain()
    return _fields({name: STATUS[f"last_reload.{name}"] for name in keys}, keys)


def _fields(meanings: Mapping[str, str], names: Iterable[str]) -> str:
    names = list(names)
    if set(names) != meanings.keys():
        raise ValueError(f"fields without a meaning, or meanings without a field: {sorted({*names} ^ {*meanings})}")
    rows = (
        (f"{'&emsp;' * len(re.findall(r'[.]', name))}`{re.split(r'[.]', name)[-1]}`", meanings[name]) for name in names
    )
    return _table(("field", "meaning"), rows)


def _paths(value: Any, before: str = "") -> Iterable[str]:
    """Yield the path of each field in ``value``, but for the settings, which have a page of their own."""
    if isinstance(value, list):
        yield from _paths(value[0] if value else None, f"{before}[]")
    elif isinstance(value, dict) and before != "settings":
        for name, inner in value.items():
            path = f"{before}.{name}" if before else name
            yield path
            yield from _paths(inner, path)


def _status() -> dict[str, Any]:
    """Return what the master would say after a first reload, as the code makes it; what changes is set fixed."""
    policy = events.Policy(workers=1)
    core = Rollout(Fleet(policy=policy, size=1), lambda: 0.0)
    for number in (1, 2):
        core.handle(events.Start() if number == 1 else events.Reload(), 0.0)
        core.handle(events.GenerationLoaded(number, preloaded=True), 0.0)
        if number == 2:
            core.handle(events.ConfigurationTaken(2, policy), 0.0)
        core.handle(events.WorkerForked(number), 0.0)
        core.handle(events.WorkerReady(number), 0.0)
    core.handle(events.WorkerGone(1, "exited with code 0", 0), 0.0)
    book = AnswerBook()
    latency = [80, 25, 10, 3, 1, 1, 0, 0, 0, 0, 0, 0]
    book.worker_answered(2, 2, messages.Answers(120, 1, 0, 1.25, latency, ["GET /cart: 500"]))
    log = status.Journal(book)
    reload = dataclasses.replace(Reload.begin(2), result=events.Outcome.DONE, duration=1.204, label="v1.4.2")
    log.reload_started(reload)
    log.reload_finished(reload, core.fleet)
    log.generation_loaded(2, EXAMPLE_PLACES, "v1.4.2", dict(EXAMPLE_VERSIONS))
    record: Any = SimpleNamespace(
        worker_id=2, slot=0, pid=0, has_pid=False, generation=2, ordered_at=0.0, connections=3, requests=120
    )
    server: Any = SimpleNamespace(pid=4712, not_preloaded="")
    site = Site("/srv/shop/current", "app:app", ["http://127.0.0.1:8000"])
    found = log.status(core.fleet, {2: record}, {2: server}, settings.Settings(), site)
    found.update(pid=4711, started_at="2026-11-20T18:03:41.012+00:00", age_s=47192.7)
    found["versions"] = dict(EXAMPLE_VERSIONS)
    found["workers"][0].update(pid=4713, age_s=8.125, rss_bytes=48234496)
    found["totals"].update(boots=2, boot_duration_s=0.618, reload_duration_s=1.204)
    found["last_reload"].update(started_at="2026-11-21T07:10:12.345+00:00", duration_s=1.204)
    return found


# -- pages ---------------------------------------------------------------------------------------------------------

SECTIONS: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "settings.md": {"settings": setting_rows, "each setting": setting_sections},
    "signals.md": {"master": master_signals},
    "command.md": {"commands": command_pages, "exit codes": exit_codes},
    "json.md": {
        "status": status_fields,
        "example": status_example,
        "outcome": outcome_fields,
        "list": list_fields,
        "history": history_fields,
        "check": check_fields,
    },
    "hooks.md": {"hooks": hook_rows, "report": report_fields},
}


def renewed(page: str, document: str) -> str:
    """Return a page with the sections of today.

    :raises ValueError: a section's markers are missing.
    """
    for name, section in SECTIONS[page].items():
        begin, end = BEGIN.format(name), END.format(name)
        head, found, rest = document.partition(begin)
        _, closed, tail = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{page} lacks the markers of {name!r}")
        document = f"{head}{begin}\n\n{section()}\n\n{end}{tail}"
    return document


def main(arguments: list[str]) -> int:
    """Rewrite the pages, or check them; 1 when one is out of date."""
    stale = False
    for page in SECTIONS:
        before = (DIRECTORY / page).read_text(encoding="utf-8")
        after = renewed(page, before)
        stale = stale or before != after
        if "--check" not in arguments:
            (DIRECTORY / page).write_text(after, encoding="utf-8")
    return int(stale and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
