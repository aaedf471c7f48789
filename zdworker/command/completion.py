"""What a shell completes the values of options with: the masters that run, the worker classes, and files.

Rules: a TAB orders nothing, prints no error and does not wait for longer than :data:`SEARCH_S` seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
from click.shell_completion import CompletionItem

import zdworker
from zdworker import texts
from zdworker.command import finder
from zdworker.errors import NoInstance

SEARCH_S = 1.0
"""Seconds that masters have to answer."""


def pids(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the pids of this user's masters, each with its site."""
    return _masters(begun, lambda master: str(master.pid or ""))


def sockets(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the control sockets of this user's masters, each with its site; where none begins so, files."""
    return _masters(begun, lambda master: master.socket) or files(_context, _parameter, begun)


def files(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Have the shell complete a path."""
    return [CompletionItem(begun, type="file")]


def gunicorns(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return what may follow in Gunicorn's own arguments: behind ``-k`` the worker classes, else files."""
    words = context.params.get(parameter.name or "") or ("",)
    if words[-1] not in ("-k", "--worker-class"):
        return files(context, parameter, begun)
    classes = (f"zdworker.{name}" for name in zdworker.__all__ if name.endswith("Worker"))
    return [CompletionItem(name) for name in classes if name.startswith(begun)]


def _masters(begun: str, name: Callable[[finder.Master], str]) -> list[CompletionItem]:
    try:
        masters = finder.running(time.monotonic() + SEARCH_S)
    except NoInstance:
        return []
    found = {name(master): master for master in masters}
    # A name that does not fit in a line for the shell is skipped.
    return [
        CompletionItem(value, help=_site(master))
        for value, master in sorted(found.items())
        if value and value.startswith(begun) and value.isprintable()
    ]


def _site(master: finder.Master) -> str:
    return "does not answer" if master.status is None else texts.line(finder.site(master.status))
