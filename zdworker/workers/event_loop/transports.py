"""Closing a transport of asyncio or uvloop so that the client loses nothing.

Rules:

* The kernel is asked what it holds unread and what the peer has not acknowledged; nothing is guessed.
* What is still to come is read for a bounded time (:func:`linger`), because a close on unread data is a reset
  (:mod:`zdworker.workers.closing`).
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import socket
import termios
import weakref
from typing import Any

from zdworker import syscalls
from zdworker.workers.closing import LINGER_S

TLS_CLOSE_TIMEOUT_S = 2.0
"""Seconds that a client has to answer the end of a TLS connection."""


def unread(transport: Any) -> int:
    """Return how many bytes the kernel holds that the worker has not read; 0 if unknown."""
    sock = transport and transport.get_extra_info("socket")
    return syscalls.unread(sock) if sock else 0


def is_quiet(transport: Any) -> bool:
    """Return whether the peer has acknowledged all it was sent, and has sent nothing that is not read."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, count)  # tcp(7), SIOCOUTQ
    except (AttributeError, OSError, ValueError):
        return False
    return count[0] == 0 and unread(transport) == 0


def take_out(transport: Any) -> socket.socket | None:
    """Return a copy of the socket of ``transport``, and close that, which the client does not notice.

    None, and nothing has changed, if something is still to be written, or if no descriptor is left. The copy stays
    open, and closing one of two descriptors sends nothing. Nothing has been read that was not handed to the protocol,
    so what the client has sent since is in the kernel.
    """
    if transport.is_closing() or transport.get_write_buffer_size():
        return None
    try:
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
    except OSError:
        return None
    hold(transport)
    transport.abort()
    return socket.socket(fileno=descriptor)


def hold(transport: Any) -> None:
    """Leave what comes next in the kernel, from the call on in which the response was written.

    Any later would be too late for a client that never rests: uvloop polls between two turns of its callbacks.
    """
    if not transport.is_closing():
        with contextlib.suppress(RuntimeError):  # an older uvloop raises it when reading was paused already
            transport.pause_reading()


def read_on(transport: Any) -> None:
    """Undo :func:`hold`."""
    if not transport.is_closing():
        with contextlib.suppress(RuntimeError):  # an older uvloop raises it when reading was not paused
            transport.resume_reading()


def linger(protocol: Any, transport: Any) -> None:
    """Close the writing half, and all of it once the client has closed or :data:`LINGER_S` seconds have passed.

    With TLS there is no half (asyncio and uvloop): the client ends the connection, since the response said so.

    :param protocol: gets no more data, but still learns when writing has to pause and when the connection is lost.
    """
    sink = _Sink(protocol)
    transport.set_protocol(sink)
    if transport.can_write_eof():
        transport.write_eof()
    with contextlib.suppress(RuntimeError):  # an older uvloop raises it when reading was not paused
        transport.resume_reading()
    sink.timer = asyncio.get_running_loop().call_later(LINGER_S, transport.close)


class _Sink(asyncio.Protocol):
    """Reads and drops data for a protocol that is done, and lets that protocol know of the end."""

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


class TlsCloseTimeout:
    """Ends TLS connections that are closing and whose client does not answer; called in each round of a drain.

    asyncio and uvloop wait half a minute for the client's close_notify, and a client that keeps the connection in a
    pool sends none before it uses that connection again. Nothing gets lost, since the client has acknowledged all that
    it was sent.
    """

    def __init__(self) -> None:
        self._closing_since: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    def check(self, protocol: Any, now: float) -> None:
        """Abort the connection of ``protocol`` if its time is over at ``now``, by ``time.monotonic()``."""
        transport = getattr(protocol, "transport", None)
        if transport is None or not transport.is_closing() or transport.get_extra_info("sslcontext") is None:
            return
        if now - self._closing_since.setdefault(protocol, now) > TLS_CLOSE_TIMEOUT_S and is_quiet(transport):
            transport.abort()
