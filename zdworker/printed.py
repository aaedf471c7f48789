"""What new code prints while it is loaded or boots: often the only word on why it has ended its interpreter.

Rules:

* What is printed goes where it went; the end of it is kept beside. It is taken from Python's own streams: the
  descriptors behind them may be anything, and what is buffered for a pipe or a file has not reached them yet.
* Only the stream's ``write`` is put in its place, so that everything else of it stays what it was.
* Nothing here raises: an application may have put anything in the place of its streams.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from zdworker import texts

KEPT_MAX = texts.REASON_MAX
"""Characters that are kept, from the end."""


class Printed:
    """The end of what this process prints between :meth:`begin` and :meth:`end`."""

    def __init__(self) -> None:
        self._text = ""
        self._watched: list[tuple[Any, object]] = []

    def begin(self) -> None:
        """Begin to keep what is printed."""
        for stream in {id(stream): stream for stream in (sys.stdout, sys.stderr) if stream is not None}.values():
            with contextlib.suppress(Exception):
                watching = self._watching(stream.write)
                stream.write = watching  # type: ignore[method-assign]
                self._watched.append((stream, watching))

    def end(self) -> None:
        """Keep nothing more, and leave the streams as they were."""
        while self._watched:
            stream, watching = self._watched.pop()
            with contextlib.suppress(Exception):
                if stream.__dict__.get("write") is watching:  # else something has taken its place
                    del stream.write

    @property
    def text(self) -> str:
        """What was printed last, for a reader."""
        return texts.lines(self._text.strip(), KEPT_MAX)

    def _watching(self, write: Callable[[str], Any]) -> Callable[[str], Any]:
        def watching(text: str) -> Any:
            if isinstance(text, str):
                self._text = (self._text + text[-KEPT_MAX:])[-KEPT_MAX:]
            return write(text)

        return watching


def last_line(text: str) -> str:
    """Return the last line of a text, which tells the cause more often than not."""
    return text.rpartition("\n")[2]
