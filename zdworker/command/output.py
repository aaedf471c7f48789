"""The command's standard streams, which may fail: a full disk, a reader that has gone.

Rules: a write that fails ends nothing and raises nothing, because the command may be waiting for a reload, whose result
is its exit code. A command that is there to print asks :func:`failure` afterwards.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


class Stream(io.FileIO):
    """A standard stream; after a write that failed ``error`` says why, and what is written is lost."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or lose, ``data``."""
        size = memoryview(data).nbytes
        if self.error is not None:
            return size
        try:
            written: int | None = super().write(data)
        except OSError as error:
            self.error = error
            return size
        if written is None:
            self.error = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return size if written is None else written


def guard() -> None:
    """Have writes to the standard streams never fail; characters that they cannot show are written out."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # Without a buffer (PYTHONUNBUFFERED) the descriptor itself is in its place.
        if isinstance(stream, io.TextIOWrapper) and isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO):
            stream.flush()
            raw = Stream(stream.fileno(), "w", closefd=False)
            guarded = io.TextIOWrapper(
                io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=stream.line_buffering
            )
            setattr(sys, name, guarded)


def failure() -> OSError | None:
    """Return why standard output could not be written, None if all is well."""
    if sys.stdout is None:  # it was closed when the command was started
        return OSError(errno.EBADF, os.strerror(errno.EBADF))
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, Stream) else None
