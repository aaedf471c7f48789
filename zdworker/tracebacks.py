"""The traceback of an exception that an application has raised, as its author wants to read it.

Rules:

* Frames of the server are left out: those of zdworker, Gunicorn, uvicorn, and of what imports modules. An exception
  that has no other frames is shown without any.
* Of the others the application's own are shown, and the one that has raised; those of libraries between them are left
  out. An application that is installed as a library is shown like one, with all of its frames.
* The middle of a long stack is left out.
* What is left out here stands in the log, which has each exception once, and whole.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from traceback import FrameSummary, StackSummary, TracebackException

from zdworker import texts

SERVER = ("zdworker", "gunicorn", "uvicorn", "importlib", "runpy")
"""Modules whose frames say nothing about the application."""

FRAMES_MAX = 6
"""Frames of the application's that are shown of a stack: with a line of source each they fit on a screen."""


def of_application(error: BaseException) -> str:
    """Return the traceback of an exception and of those that have led to it, without the server's frames."""
    shown = TracebackException.from_exception(error)
    server = tuple(_places_of(SERVER))
    libraries = tuple(_real(path) for path in {*sysconfig.get_paths().values()} if os.path.isabs(path))
    for one in _chain(shown):
        # Without a stack there is no line "Traceback (most recent call last)" (``TracebackException.format``).
        one.stack = _shortened(one.stack or [], server, libraries) or None  # type: ignore[assignment]
    return texts.lines("".join(shown.format()))


def place(error: BaseException) -> str:
    """Return the file and the line of the application that has raised an exception, "" if the server has."""
    server = tuple(_places_of(SERVER))
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or _is_below(frames[-1].filename, server):
        return ""
    return f"{frames[-1].filename}, line {frames[-1].lineno}"


def _chain(shown: TracebackException) -> Iterator[TracebackException]:
    """Yield an exception, those that have led to it, and those that it groups."""
    left = [shown]
    while left:
        one = left.pop()
        yield one
        grouped = getattr(one, "exceptions", None) or ()  # since Python 3.11
        left += [other for other in (one.__cause__, one.__context__, *grouped) if other is not None]


def _shortened(
    frames: list[FrameSummary] | StackSummary, server: tuple[str, ...], libraries: tuple[str, ...]
) -> StackSummary:
    kept = [frame for frame in frames if not _is_below(frame.filename, server)]
    own = [frame for frame in kept if not _is_library(frame.filename, libraries)] or kept
    if len(own) > FRAMES_MAX:
        half = FRAMES_MAX // 2
        own = [*own[:half], *own[-half:]]
    if kept and own[-1] is not kept[-1]:
        own.append(kept[-1])
    # Without the column, for which there would be a line of its own.
    return StackSummary.from_list([FrameSummary(one.filename, one.lineno, one.name, line=one.line) for one in own])


def _is_library(file: str, libraries: tuple[str, ...]) -> bool:
    return "-packages" + os.sep in file or _is_below(file, libraries)


def _is_below(file: str, places: tuple[str, ...]) -> bool:
    return file.startswith("<frozen ") or _real(file).startswith(places)


def _places_of(names: tuple[str, ...]) -> Iterator[str]:
    """Yield the directory of each package, and the file of each module, that this process has imported."""
    for name in names:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            is_package = os.path.basename(file) == "__init__.py"
            yield os.path.join(_real(os.path.dirname(file)), "") if is_package else _real(file)


def _real(path: str) -> str:
    return os.path.realpath(path)
