"""Write the reference into ``docs/reference/*.md``, between the markers there, from the code.

``python docs/reference_tables.py`` rewrites the pages; ``--check`` only tells, by its exit code, whether that is due.

Rules: names, defaults, options, exit codes and fields are the code's; so are the meanings where the code has them
(settings, hooks, the command's help, the handlers of signals). The meaning of a field of the JSON stands here, and a
field without one is an error. What is outside the markers is not touched.
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


def setting_rows() -> str:
    """Return the table of settings."""
    defaults = settings.Settings()
    return _table(
        ("name", "default", "may be", "meaning"),
        (
            (
                f"`{name}`",
                _default(getattr(defaults, name.removeprefix(settings.PREFIX)), spec),
                spec.allowed,
                spec.meaning,
            )
            for name, spec in settings.SPECS.items()
        ),
    )


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


def master_signals() -> str:
    """Return what each signal does to the master, by the docstrings of its handlers."""
    from zdworker.master.arbiter import ZeroDowntimeArbiter

    said: dict[str, list[str]] = {}
    for number in ZeroDowntimeArbiter.SIGNALS:
        name = number.name.removeprefix("SIG")
        words = inspect.getdoc(getattr(ZeroDowntimeArbiter, f"handle_{name.lower()}")) or ""
        # Ours begin with the name and a colon, Gunicorn's have a line "SIGX handling." before what they say.
        _, _, meaning = words.partition(": ") if words.startswith(f"{name}: ") else words.rpartition("\n")
        said.setdefault(_sentence(meaning), []).append(f"`{name}`")
    return _table(("signal", "what the master does"), ((", ".join(names), words) for words, names in said.items()))


def worker_signals() -> str:
    """Return what each signal does to a worker."""
    from zdworker.workers.base import ZeroDowntime

    rows = []
    for handler in (ZeroDowntime.handle_exit, ZeroDowntime.handle_quit):
        names, _, meaning = (inspect.getdoc(handler) or "").partition(": ")
        rows.append((_names(names), _sentence(meaning)))
    quiet = re.search(
        r"((?:[A-Z0-9]+(?:, | and ))+[A-Z0-9]+) change nothing", inspect.getdoc(ZeroDowntime.init_signals) or ""
    )
    if quiet is None:
        raise ValueError("ZeroDowntime.init_signals does not say which signals change nothing")
    rows.append(
        (_names(quiet[1]), "Nothing, so that a signal to the whole process group is an order to the master alone.")
    )
    rows.append(("`USR1`", "It reopens its log files."))
    return _table(("signal", "what a worker does"), rows)


def _names(words: str) -> str:
    return ", ".join(f"`{name.removeprefix('SIG')}`" for name in re.findall(r"\b[A-Z][A-Z0-9]+\b", words))


def _sentence(words: str) -> str:
    plain = re.split(r"(?<=[.]) ", words.replace("``", "`").strip())[0]
    return plain[:1].upper() + plain[1:]


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
    return "\n\n".join([*parts, *([_table(("option", ""), rows)] if rows else [])])


def exit_codes() -> str:
    """Return the exit codes, with the words that the command's own help has for them."""
    words = dict(re.findall(r"(\d) ([^,.]+)", (cli.main.help or "").partition("Exit codes:")[2]))
    return _table(("exit code", ""), ((f"`{code.value}`", words[str(code.value)].strip()) for code in cli.Exit))


# -- JSON ----------------------------------------------------------------------------------------------------------

STATUS = {
    "pid": "the master's",
    "directory": "where it was started, by the path of then: `current`, not the release that this link pointed to",
    "application": "`app:app`, say; null if a program has embedded it",
    "bind": "a list of the addresses at which it listens",
    "started_at": "UTC, ISO 8601",
    "age_s": "seconds since then",
    "reason": "why the state is `degraded` or `failed`, a line, else null",
    "label": "the version of the application that serves (`zd_version`), or null",
    "workers_wanted": "the number of workers that there are to be",
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
    "generations[].answers.seconds": "that all of them took together, until the head of each",
    "generations[].answers.p50_s": "seconds within which half of them came, as the buckets tell; null without answers",
    "generations[].answers.p99_s": "seconds within which 99 of 100 came",
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
    "last_reload.duration_s": "so far, or in all",
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
    "totals.handed_over": "the same four, of all drains",
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
    "`held` (its canary serves, and it waits for `resume` or `rollback`), `failed`, or `degraded` (it goes on, but "
    "without success, and there is no way back)",
    "generation": "the one that was loaded",
    "duration_s": "seconds",
    "serving": "the generation that serves now",
    "error": "a line, empty when it is done",
    "traceback": "the application's own, or the newest failed requests of code that was given up; empty without",
    "handed_over": "connections that went on to the next worker of their slot",
    "told_to_close": "connections that a response has ended because of the reload",
    "cut_requests": "requests that were cut at `graceful_timeout`",
    "closed_websockets": "WebSockets that were closed",
    "label": "the version of the application, empty if nothing tells",
    "judgement": "with `zd_max_error_rate`, what was found of the answers, when it is done",
    "note": "what is left to do (`zdworker upgrade`), empty if nothing is",
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
    "findings[].about": "`versions`, `configuration`, `worker class`, `settings`, `start`, `bind`, `application`, "
    "`hooks`, `systemd` or `control socket`",
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
    return _table(("field", ""), rows)


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
    "settings.md": {"settings": setting_rows},
    "signals.md": {"master": master_signals, "worker": worker_signals},
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
