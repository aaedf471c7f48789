"""Ending a connection so that the client loses nothing: what the servers on an event loop have in common.

Rules:

* No close on unread data: the kernel would answer it with a reset, and the client lose a response that was sent
  (RFC 9112 9.6). Such a connection is half closed and read to its end first, for a bounded time (:func:`linger`).
* The kernel is asked, never guessed about: what it holds unread, what the peer has not acknowledged.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import enum
import fcntl
import struct
import termios
import weakref
from typing import Any

Header = tuple[bytes, bytes]

CLOSE: Header = (b"connection", b"close")

LINGER = 5.0
"""Seconds that the rest of a request body is read after its response was sent (nginx: ``lingering_timeout``)."""

CLOSE_NOTIFY = 2.0
"""Seconds that a client has to answer the end of a TLS connection."""

NOTICE = struct.pack(">HBBBIII", 0, 8, 7, 0, 0, 2**31 - 1, 0)
"""An HTTP/2 frame: GOAWAY with NO_ERROR that names the highest possible stream, and so asks for no further ones and
refuses none yet (RFC 9113 4.1, 6.8)."""


class Standing(enum.Enum):
    """What a connection is in the middle of."""

    UNUSED = "no byte has come yet"
    READING = "a request's head has come in part"
    BUSY = "a request is being answered"
    IDLE = "kept alive between two requests"
    STREAMS = "HTTP/2: see its streams"
    LEAVING = "closing, or upgraded: ends by itself"


def unread(transport: Any) -> int:
    """Return how many bytes the kernel holds that the worker has not read; 0 if unknown."""
    return _bytes_in(transport, termios.FIONREAD) or 0


def is_quiet(transport: Any) -> bool:
    """Tell whether the peer has acknowledged all it was sent, and has sent nothing that is not read."""
    return _bytes_in(transport, termios.TIOCOUTQ) == 0 and _bytes_in(transport, termios.FIONREAD) == 0


def _bytes_in(transport: Any, queue: int) -> int | None:
    """Return the bytes in a kernel's queue of a connection, None if unknown.

    :param queue: ``FIONREAD``, not read yet, or ``TIOCOUTQ``, not acknowledged yet (tcp(7), SIOCINQ and SIOCOUTQ).
    """
    count = array.array("i", [0])
    try:
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), queue, count)
    except (AttributeError, OSError, ValueError):
        return None
    return count[0]


def with_close(headers: list[Header]) -> list[Header]:
    """Return ``headers`` with one ``Connection: close``; those of an upgrade as they are (RFC 9110 7.8)."""
    kept = []
    for name, value in headers:
        if name.lower() == b"connection":
            tokens = [token.strip().lower() for token in value.split(b",")]
            if b"close" in tokens or b"upgrade" in tokens:
                return headers
            if tokens == [b"keep-alive"]:
                continue  # clients that read the first Connection header only would believe it
        kept.append((name, value))
    return [*kept, CLOSE]


def linger(protocol: Any, transport: Any) -> None:
    """Close the writing half, and all of it once the client has closed or :data:`LINGER` seconds have passed.

    With TLS there is no half (asyncio and uvloop): the client ends it, since the response said so.

    :param protocol: gets no more data, but is told as ever when writing has to pause and when the connection is lost.
    """
    sink = _Sink(protocol)
    transport.set_protocol(sink)
    if transport.can_write_eof():
        transport.write_eof()
    with contextlib.suppress(RuntimeError):  # it was not paused, says an older uvloop
        transport.resume_reading()
    sink.timer = asyncio.get_running_loop().call_later(LINGER, transport.close)


class _Sink(asyncio.Protocol):
    """Reads on for a protocol that is done, and lets it know of the end."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self.timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self._protocol.connection_lost(exc)


class SeeingOff:
    """Ends TLS connections that are closing and whose client does not answer; asked again and again during a drain.

    asyncio and uvloop wait half a minute for the client's close_notify, and a client that keeps the connection in a
    pool sends none before it looks. All it was sent has been acknowledged: nothing gets lost.
    """

    def __init__(self) -> None:
        self._since: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    def look(self, protocol: Any, now: float) -> None:
        """Do for a connection what there is to do at ``now``, by ``time.monotonic()``."""
        transport = getattr(protocol, "transport", None)
        if transport is None or not transport.is_closing() or transport.get_extra_info("sslcontext") is None:
            return
        if now - self._since.setdefault(protocol, now) > CLOSE_NOTIFY and is_quiet(transport):
            transport.abort()
