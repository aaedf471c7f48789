"""Stacks of threads that hang, and where in them the application is.

Rules: a stack is text in the form of :mod:`faulthandler`, the most recent call first, because that is what a process
writes that can do nothing else any more. The main thread is the last one there. These functions only read; a text of
another form has no frames.
"""

from __future__ import annotations

import os
import re
import sys
from types import FrameType

import gunicorn

import zdworker

FRAMES_SHOWN = 10
"""Frames of the application that an error has."""

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):$", re.MULTILINE)
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$', re.MULTILINE)
_LIBRARY = re.compile(r"^<|/lib/python3[^/]*/|/(?:site|dist)-packages/")
_SERVER = tuple(f"{os.path.dirname(str(package.__file__))}/" for package in (zdworker, gunicorn))


def of_thread(identifier: int | None) -> str:
    """Return the stack of a thread of this process, "" if it has ended."""
    frame: FrameType | None = sys._current_frames().get(identifier or 0)  # noqa: SLF001  # it is documented
    lines = []
    while frame is not None:
        lines.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
        frame = frame.f_back
    return "\n".join([f"Thread 0x{identifier:016x} (most recent call first):", *lines, ""]) if lines else ""


def where(stack: str) -> str:
    """Return where the main thread of a stack is, for a reader: the application's own line if it has one there."""
    frames = [found.groupdict() for found in _FRAME.finditer(_main_thread(stack))]
    own = [frame for frame in frames if _is_applications(frame["file"])]
    for frame in own or frames:
        return f"{frame['file']}, line {frame['line']}, in {frame['function']}"
    return ""


def of_application(stack: str) -> str:
    """Return the lines of a stack's main thread that are the application's, "" if there are none."""
    found = [match[0] for match in _FRAME.finditer(_main_thread(stack)) if _is_applications(match["file"])]
    return "\n".join(["Stack (most recent call first):", *found[:FRAMES_SHOWN]]) if found else ""


def _main_thread(stack: str) -> str:
    heads = list(_THREAD.finditer(stack))
    return stack[heads[-1].end() :] if heads else ""


def _is_applications(file: str) -> bool:
    return not _LIBRARY.search(file) and not file.startswith(_SERVER)
