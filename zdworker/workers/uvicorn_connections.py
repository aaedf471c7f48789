"""What the drain must know about uvicorn's connections: the one file that reads its protocols' attributes.

Rules:

* uvicorn is asked, never changed: its classes stay as they are, only objects of a draining worker get something put in
  front of them. Every attribute is looked up with care, so a protocol that we do not know is let alone.
* A response says ``Connection: close`` only if nothing more will come on the connection that uvicorn has taken or the
  kernel has acknowledged: the request's body has arrived and no further request has begun. That is decided when
  the head is written (:class:`ClosingHeaders`), not before: until then more may arrive.
* No close on unread data: the kernel would answer it with a reset, and the client lose a response that was sent
  (RFC 9112 9.6). Such a connection is half closed and read to its end first, for a bounded time (:func:`linger`).

Known protocols (uvicorn 0.36 to 0.54): ``HttpToolsProtocol``, ``H11Protocol``; ``ZttpProtocol`` has the same shape.
"""

from __future__ import annotations

import array
import asyncio
import enum
import fcntl
import termios
import weakref
from collections.abc import Iterable
from typing import Any, cast

Header = tuple[bytes, bytes]

CLOSE: Header = (b"connection", b"close")

LINGER = 5.0
"""Seconds that the rest of a request body is read after its response was sent (nginx: ``lingering_timeout``)."""

CLOSE_NOTIFY = 2.0
"""Seconds that a client has to answer the end of a TLS connection."""


class Standing(enum.Enum):
    """What a connection is in the middle of."""

    UNUSED = "no byte has come yet"
    READING = "a request's head has come in part"
    BUSY = "a request is being answered"
    IDLE = "kept alive between two requests"
    LEAVING = "closing, or not HTTP/1.1: ends by itself"


def standing(protocol: Any) -> Standing:
    """Tell what a connection, a member of ``ServerState.connections``, is in the middle of."""
    transport = getattr(protocol, "transport", None)
    if transport is None or transport.is_closing() or not hasattr(protocol, "timeout_keep_alive_task"):
        return Standing.LEAVING
    if transport.get_protocol() is not protocol:
        return Standing.LEAVING  # an upgraded or a lingering one
    cycle = protocol.cycle
    if cycle is not None and not cycle.response_complete:
        return Standing.BUSY
    if _head_begun(protocol, cycle):
        return Standing.READING
    return Standing.UNUSED if cycle is None else Standing.IDLE


def _head_begun(protocol: Any, cycle: Any) -> bool:
    """Tell whether bytes of a request behind ``cycle`` (None: of the first request) have been taken from the socket."""
    connection = getattr(protocol, "conn", None)
    if connection is not None:  # h11 keeps what it cannot parse yet; while a body arrives, that is none of a head
        return bool(getattr(connection, "trailing_data", (b"",))[0]) and not (cycle is not None and cycle.more_body)
    scope = getattr(protocol, "scope", None)
    # httptools: a new scope with the first byte of a request, a new cycle with the last byte of its head.
    return scope is not None and (cycle is None or scope is not cycle.scope)


def unread(transport: Any) -> int:
    """Return how many bytes the kernel holds that the worker has not read; 0 if unknown."""
    return _bytes_in(transport, termios.FIONREAD) or 0


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


# -- Connection: close -----------------------------------------------------------------------------------------------


class ClosingHeaders(list[Header]):
    """Default headers of one response, in a draining worker.

    uvicorn makes the headers of a response as ``cycle.default_headers + headers of the application`` when it writes
    the head; the addition is where this decides whether the connection ends with this response.
    """

    def __init__(self, headers: Iterable[Header], cycle: Any, protocol: Any) -> None:
        super().__init__(headers)
        self._cycle = cycle
        self._protocol = protocol

    def __add__(self, other: Any) -> Any:
        headers = [*self, *other]
        return with_close(headers) if may_close(self._cycle, self._protocol) else headers


def may_close(cycle: Any, protocol: Any) -> bool:
    """Tell whether the connection may end with the response of ``cycle``: nothing of the client's is under way."""
    return (
        not cycle.more_body
        and protocol.cycle is cycle
        and not getattr(protocol, "pipeline", None)
        and not _head_begun(protocol, cycle)
        and unread(protocol.transport) == 0
    )


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


def announce(cycle: Any, protocol: Any) -> None:
    """Have the response of ``cycle``, if its head is not written yet, end the connection as a client expects it to."""
    if not isinstance(cycle.default_headers, ClosingHeaders):
        cycle.default_headers = ClosingHeaders(cycle.default_headers, cycle, protocol)
        cycle.transport = CarefulTransport(cycle, protocol)


def announce_standing(protocol: Any) -> None:
    """:func:`announce` for the request that a connection is answering as the drain begins.

    Of pipelined requests only the last may end the connection; it is not begun yet, and gets it when it is.
    """
    if standing(protocol) is Standing.BUSY and not getattr(protocol, "pipeline", None):
        announce(protocol.cycle, protocol)


def cycle_of(send: Any) -> tuple[Any, Any] | None:
    """Return the cycle and the protocol behind the ``send`` that uvicorn gave to an application, if they are known."""
    cycle = getattr(send, "__self__", None)
    protocol = getattr(getattr(cycle, "on_response", None), "__self__", None)
    needed = ("default_headers", "transport", "more_body")
    if not all(hasattr(cycle, name) for name in needed) or not hasattr(protocol, "timeout_keep_alive_task"):
        return None
    return cycle, protocol


# -- closing ---------------------------------------------------------------------------------------------------------


class CarefulTransport:
    """The transport as one request sees it: ``close()`` loses no response."""

    def __init__(self, cycle: Any, protocol: Any) -> None:
        self._cycle = cycle
        self._protocol = protocol
        self._transport = protocol.transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Close, but read what the client is still sending first."""
        sending = self._cycle.more_body and not self._cycle.disconnected
        if not self._transport.is_closing() and (sending or unread(self._transport)):
            linger(self._protocol, self._transport)
        else:
            self._transport.close()


def linger(protocol: Any, transport: Any) -> None:
    """Close the writing half, and all of it once the client has closed or :data:`LINGER` seconds have passed.

    With TLS there is no half (asyncio and uvloop): the client ends it, since the response said so.
    """
    sink = _Sink(protocol)
    transport.set_protocol(sink)
    if transport.can_write_eof():
        transport.write_eof()
    flow = getattr(protocol, "flow", None)
    if flow is not None:
        flow.resume_reading()
    loop = asyncio.get_running_loop()
    sink.timer = loop.call_later(LINGER, transport.close)
    # uvicorn arms the keep-alive timer behind the close, as for any transport that is still open.
    loop.call_soon(_disarm, protocol)


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


def _disarm(protocol: Any) -> None:
    timer = cast("asyncio.TimerHandle | None", getattr(protocol, "timeout_keep_alive_task", None))
    if timer is not None:
        timer.cancel()
        protocol.timeout_keep_alive_task = None


class Tending:
    """Lets connections end that nobody uses; asked again and again during a drain.

    uvicorn ends a kept connection after its keep-alive time, but not one on which something came that was no
    request (an empty line, the rest of a body that the application did not want), nor one that was never used.

    :param unused_until: when connections on which no byte ever came have had their time, by ``time.monotonic()``.
    """

    def __init__(self, unused_until: float) -> None:
        self._unused_until = unused_until
        self._leaving: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    def tend(self, protocol: Any, now: float) -> None:
        """Do for a connection what there is to do at ``now``, by ``time.monotonic()``."""
        what = standing(protocol)
        if what is Standing.IDLE and protocol.timeout_keep_alive_task is None:
            protocol.timeout_keep_alive_task = asyncio.get_running_loop().call_later(
                protocol.timeout_keep_alive, protocol.timeout_keep_alive_handler
            )
        elif what is Standing.UNUSED and now >= self._unused_until and not unread(protocol.transport):
            protocol.transport.close()
        elif what is Standing.LEAVING:
            self._see_off(protocol, now)

    def _see_off(self, protocol: Any, now: float) -> None:
        # With TLS, asyncio and uvloop wait half a minute for the client's close_notify, and a client that keeps the
        # connection in a pool sends none before it looks. All it was sent has been acknowledged: nothing gets lost.
        transport = getattr(protocol, "transport", None)
        if transport is None or not transport.is_closing() or transport.get_extra_info("sslcontext") is None:
            return
        if now - self._leaving.setdefault(protocol, now) > CLOSE_NOTIFY and _is_quiet(transport):
            transport.abort()


def _is_quiet(transport: Any) -> bool:
    return _bytes_in(transport, termios.TIOCOUTQ) == 0 and _bytes_in(transport, termios.FIONREAD) == 0
