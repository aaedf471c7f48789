r"""Texts of others (of the application, of a configuration, of a hook) on their way to a reader or to a program.

Rules:

* Such a text may hold anything: lone surrogates (``os.fsdecode`` makes them), sequences that control a terminal, NULs,
  megabytes. It passes through one of these functions where it leaves a process.
* For a reader it becomes printable and bounded. What controls something is written out (``\x1b``), and a text that is
  too long loses its middle, because the cause stands at the end of a traceback and the place at its beginning.
* For a program it becomes valid JSON: lone surrogates are written out, everything else is the program's affair.
* None of these functions raises.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

LINES_MAX = 32 * 1024
"""Characters of a text with many lines: a traceback, a line of the log."""

REASON_MAX = 4096
"""Characters of a reason."""

COLUMNS = 80
"""Of a reader's screen."""

SCREEN_ROWS = 14
"""Rows of a traceback on a screen of 24, with what is said before and after it."""

LINE_ROWS_MAX = 3
"""Rows of a single line of it."""

LINE_MAX = 500
"""Characters of a single line: the state of a service."""

_SURROGATES = "\ud800-\udfff"
# The C0 and C1 controls but tab and newline, what else separates lines, and what turns the direction of writing.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
_UNPRINTABLE = re.compile(f"[{_CONTROLS}{_SURROGATES}]")
_LONE_SURROGATE = re.compile(f"[{_SURROGATES}]")
# A carriage return, for progress bars, and colours ("ESC [ … m", ECMA-48) may stay.
_HARMFUL = re.compile(f"(?!\r|\x1b\\[[0-9;]*m)[{_CONTROLS}{_SURROGATES}]")


def lines(text: str, longest: int = LINES_MAX) -> str:
    """Return a text for a reader, with its lines, in ``longest`` characters."""
    return _cut(_UNPRINTABLE.sub(_written_out, _cut(text, longest)), longest)


def line(text: str, longest: int = LINE_MAX) -> str:
    """Return a text for a reader, in one line of ``longest`` characters."""
    return lines(" ".join(_cut(text, 2 * longest).split()), longest)


def screen(text: str, rows: int = SCREEN_ROWS) -> str:
    """Return a text for a reader who has a screen of 80 columns, in so many rows: its middle is left out."""
    every = [_cut(one, LINE_ROWS_MAX * COLUMNS) for one in lines(text.rstrip()).splitlines()]
    head, tail, left = list[str](), list[str](), rows
    taken = sum(map(_rows, every))
    if taken <= rows:
        return "\n".join(every)
    left -= 1  # for the note
    while every and _rows(every[-1]) <= left - rows // 4:
        left -= _rows(every[-1])
        tail.insert(0, every.pop())
    while every and _rows(every[0]) <= left:
        left -= _rows(every[0])
        head.append(every.pop(0))
    return "\n".join([*head, f"[… {counted(len(every), 'line')} left out: see the log …]", *tail])


def _rows(text: str) -> int:
    return max(1, -(-len(text) // COLUMNS))


def printed(text: str) -> str:
    """Return what a process prints, for where it is printed: whole, and its colours stay."""
    return _HARMFUL.sub(_written_out, text)


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun; ``many`` is the plural where that is not the singular with an "s"."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def named(number: int, names: Sequence[str]) -> str:
    """Return, in brackets, the names that are known of ``number`` things; "" if none is."""
    among = "among them " if number > len(names) else ""
    return f" ({among}{', '.join(names)})" if names else ""


def reason(error: BaseException) -> str:
    """Return what an exception says, with its type, for a reader."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # it is anybody's class
        text = "(it has no text)"
    return lines(f"{type(error).__name__}: {text}" if text else type(error).__name__, REASON_MAX)


def for_json(value: Any) -> Any:
    """Return a value out of which ``json.dumps`` makes valid JSON text: without lone surrogates (RFC 8259, 8.2)."""
    if isinstance(value, str):
        return _LONE_SURROGATE.sub(_written_out, value)
    if isinstance(value, dict):
        return {for_json(name): for_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(item) for item in value]
    return value


def _written_out(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    note = f" [… {len(text) - longest} characters are left out …] "
    kept = max(0, longest - len(note))
    return text[: kept - kept // 2] + note + text[len(text) - kept // 2 :]
