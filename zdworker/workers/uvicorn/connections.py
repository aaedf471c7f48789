"""What the drain must know about uvicorn's connections: the one file that reads its protocols' attributes.

Rules:

* uvicorn's classes stay as they are; only objects of a draining worker get something put in front of them. Every
  attribute is read with a default, so that a protocol which is not known here is left alone.
* A response says ``Connection: close`` only if nothing more comes on the connection that uvicorn has taken or the
  kernel has acknowledged: the request's body has arrived and no further request has begun. That is decided when
  the head is written (:class:`ClosingHeaders`), because until then more may arrive.
* No connection is closed on unread data: see :mod:`zdworker.workers.closing`.

Known protocols (uvicorn 0.36 to 0.54): ``HttpToolsProtocol``, ``H11Protocol``; ``ZttpProtocol`` has the same shape.
For HTTP/2 (``ZttpH2Protocol``, since 0.54 and only if asked for in ``CONFIG_KWARGS``) see :func:`end_with_last_stream`.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, cast

from zdworker.ipc.hand_over import Connection
from zdworker.workers.closing import ConnectionState, Header, with_close
from zdworker.workers.drain import Drain
from zdworker.workers.event_loop.transports import TlsCloseTimeout, linger, take_out, unread
from zdworker.workers.http2 import GOAWAY_NOTICE, DrainTimes, notice_is_due


def state_of(protocol: Any) -> ConnectionState:
    """Tell what a connection, a member of ``ServerState.connections``, is in the middle of."""
    transport = getattr(protocol, "transport", None)
    if transport is None or transport.is_closing() or not hasattr(protocol, "timeout_keep_alive_task"):
        return ConnectionState.CLOSING
    if transport.get_protocol() is not protocol:
        return ConnectionState.CLOSING  # an upgraded or a lingering one
    if hasattr(protocol, "cycles"):
        return ConnectionState.HTTP2
    cycle = protocol.cycle
    if cycle is not None and not cycle.response_complete:
        return ConnectionState.BUSY
    if _head_begun(protocol, cycle):
        return ConnectionState.READING
    return ConnectionState.UNUSED if cycle is None else ConnectionState.IDLE


def _head_begun(protocol: Any, cycle: Any) -> bool:
    """Return whether bytes of a request behind ``cycle`` (None: the first request) have been taken from the socket."""
    connection = getattr(protocol, "conn", None)
    if connection is not None:  # h11 keeps what it cannot parse yet; while a body arrives, that is none of a head
        return bool(getattr(connection, "trailing_data", (b"",))[0]) and not (cycle is not None and cycle.more_body)
    scope = getattr(protocol, "scope", None)
    # httptools: a new scope with the first byte of a request, a new cycle with the last byte of its head.
    return scope is not None and (cycle is None or scope is not cycle.scope)


# -- Connection: close -----------------------------------------------------------------------------------------------


class ClosingHeaders(list[Header]):
    """Default headers of one response, in a draining worker.

    uvicorn makes the headers of a response as ``cycle.default_headers + headers of the application`` when it writes
    the head; the addition decides whether the connection ends with this response.
    """

    def __init__(self, headers: Iterable[Header], cycle: Any, protocol: Any, drain: Drain) -> None:
        super().__init__(headers)
        self._cycle = cycle
        self._protocol = protocol
        self._drain = drain

    def __add__(self, other: Any) -> Any:
        headers = [*self, *other]
        if not may_close(self._cycle, self._protocol):
            return headers
        self._drain.told_to_close += 1
        return with_close(headers)


def may_close(cycle: Any, protocol: Any) -> bool:
    """Return whether the connection may end with the response of ``cycle``: nothing of the client's is under way."""
    return (
        not cycle.more_body
        and protocol.cycle is cycle
        and not getattr(protocol, "pipeline", None)
        and not _head_begun(protocol, cycle)
        and unread(protocol.transport) == 0
    )


def announce(cycle: Any, protocol: Any, drain: Drain) -> None:
    """Have the response of ``cycle``, if its head is not written yet, announce the end of the connection and end it."""
    if not isinstance(cycle.default_headers, ClosingHeaders):
        cycle.default_headers = ClosingHeaders(cycle.default_headers, cycle, protocol, drain)
        cycle.transport = CarefulTransport(cycle, protocol)


def announce_current(protocol: Any, drain: Drain) -> None:
    """Call :func:`announce` for the request that a connection is answering as the drain begins.

    Of pipelined requests only the last may end the connection. It has not begun yet; the announcement is made when it
    does.
    """
    state = state_of(protocol)
    if state is ConnectionState.BUSY and not getattr(protocol, "pipeline", None):
        announce(protocol.cycle, protocol, drain)
    elif state is ConnectionState.HTTP2:
        end_with_last_stream(protocol)


def cycle_of(send: Any) -> tuple[Any, Any] | None:
    """Return the cycle and the protocol behind the ``send`` that uvicorn gave to an application, if they are known."""
    cycle = getattr(send, "__self__", None)
    protocol = getattr(getattr(cycle, "on_response", None), "__self__", None)
    needed = ("default_headers", "transport", "more_body")
    if not all(hasattr(cycle, name) for name in needed) or not hasattr(protocol, "timeout_keep_alive_task"):
        return None
    return cycle, protocol


def end_with_last_stream(protocol: Any) -> None:
    """Have an HTTP/2 connection end, with GOAWAY, when its last stream does; until then new ones are answered.

    uvicorn's own ``shutdown()`` refuses them with 503. The GOAWAY names the last stream that was answered: what a
    client has sent since, it may send again elsewhere (RFC 9113 6.8).
    """
    if "on_stream_closed" in vars(protocol):
        return
    on_stream_closed = protocol.on_stream_closed

    def closed() -> None:
        if not protocol.cycles and not unread(protocol.transport):
            protocol.shutdown_requested = True
        on_stream_closed()

    protocol.on_stream_closed = closed


def with_patient_timeout(protocol_class: Any) -> Any:
    """Return a protocol class like this one, whose idle connections do not end when a request has come.

    A loop that was held up (by a slow call, or because the process was stopped) runs its timers first. It would end a
    connection whose next request has been in the kernel for long, and reset the client.
    """
    if not hasattr(protocol_class, "timeout_keep_alive_handler"):
        return protocol_class

    class PatientProtocol(protocol_class):  # type: ignore[misc]  # the class that uvicorn's configuration names
        """uvicorn's protocol, whose keep-alive timeout looks for a request in the kernel first."""

        def timeout_keep_alive_handler(self) -> None:
            if unread(self.transport):
                # uvicorn cancels it when it reads the data; if that is no request, the connection ends next time.
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
            else:
                super().timeout_keep_alive_handler()

    return PatientProtocol


# -- the hand-over ---------------------------------------------------------------------------------------------------


def can_move(protocol: Any) -> bool:
    """Return whether a connection can be handed over: it has no TLS, and what has been read of it is known."""
    transport = getattr(protocol, "transport", None)
    if transport is None or transport.get_extra_info("sslcontext") is not None or hasattr(protocol, "cycles"):
        return False
    return hasattr(getattr(protocol, "conn", None), "trailing_data") or hasattr(protocol, "scope")


def when_answered(protocol: Any, offer: Callable[[], None]) -> None:
    """Have ``offer`` called when the response under way is complete."""
    cycle = protocol.cycle
    if cycle is None or cycle.response_complete:
        return
    on_response = cycle.on_response

    def complete() -> None:
        on_response()
        offer()

    cycle.on_response = complete


def detach(protocol: Any) -> Connection | None:
    """Let go of a connection, if it is between two requests and its last response is written out."""
    state, cycle = state_of(protocol), protocol.cycle
    if state not in (ConnectionState.IDLE, ConnectionState.UNUSED) or not can_move(protocol):
        return None
    if cycle is not None and (cycle.more_body or not cycle.keep_alive):
        return None
    timer = protocol.timeout_keep_alive_task
    left_s = None if timer is None else timer.when() - asyncio.get_running_loop().time()
    sock = take_out(protocol.transport)
    if sock is None:
        return None
    return Connection(sock, None if left_s is None else time.monotonic() + left_s)


def resume(protocol: Any, connection: Connection) -> None:
    """Give a connection that was handed over the keep-alive time that it has left, unless a request has come."""
    if connection.idle_until is not None and protocol.timeout_keep_alive_task is None and protocol.cycle is None:
        protocol.timeout_keep_alive_task = asyncio.get_running_loop().call_later(
            max(0.0, connection.idle_until - time.monotonic()), protocol.timeout_keep_alive_handler
        )


# -- closing ---------------------------------------------------------------------------------------------------------


class CarefulTransport:
    """The transport that one request gets, whose ``close()`` loses no response."""

    def __init__(self, cycle: Any, protocol: Any) -> None:
        self._cycle = cycle
        self._protocol = protocol
        self._transport = protocol.transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Close the connection, but read first what the client is still sending."""
        sending = self._cycle.more_body and not self._cycle.disconnected
        if not self._transport.is_closing() and (sending or unread(self._transport)):
            _linger(self._protocol, self._transport)
        else:
            self._transport.close()


def _linger(protocol: Any, transport: Any) -> None:
    linger(protocol, transport)
    # uvicorn starts the keep-alive timer after the close, since the transport is still open.
    asyncio.get_running_loop().call_soon(_disarm, protocol)


def _disarm(protocol: Any) -> None:
    timer = cast("asyncio.TimerHandle | None", getattr(protocol, "timeout_keep_alive_task", None))
    if timer is not None:
        timer.cancel()
        protocol.timeout_keep_alive_task = None


class IdleReaper:
    """Ends connections that are not used; called in each round of a drain.

    uvicorn ends a keep-alive connection after its time, but not one on which something came that was no request (an
    empty line, the rest of a body that the application did not want), nor one that was never used.
    """

    def __init__(self) -> None:
        self._tls_close_timeout = TlsCloseTimeout()
        self._noticed: weakref.WeakSet[Any] = weakref.WeakSet()

    def check(self, protocol: Any, now: float, drain: DrainTimes) -> None:
        """End the connection of ``protocol`` if its time is over at ``now``, by ``time.monotonic()``."""
        state = state_of(protocol)
        if state is ConnectionState.IDLE and protocol.timeout_keep_alive_task is None:
            protocol.timeout_keep_alive_task = asyncio.get_running_loop().call_later(
                protocol.timeout_keep_alive, protocol.timeout_keep_alive_handler
            )
        elif state is ConnectionState.UNUSED and now >= drain.unused_until and not unread(protocol.transport):
            protocol.transport.close()
        elif state is ConnectionState.CLOSING:
            self._tls_close_timeout.check(protocol, now)
        elif state is ConnectionState.HTTP2:
            self._check_streams(protocol, now, drain)

    def _check_streams(self, protocol: Any, now: float, drain: DrainTimes) -> None:
        end_with_last_stream(protocol)  # it may have been in its TLS handshake as the drain began
        if notice_is_due(drain, now, len(protocol.cycles)) and protocol not in self._noticed:
            self._noticed.add(protocol)
            protocol.transport.write(GOAWAY_NOTICE)
        idle = not protocol.cycles and protocol.timeout_keep_alive_task is None
        if idle and now >= drain.unused_until and not unread(protocol.transport):
            protocol.shutdown()  # sends GOAWAY and closes; no stream is open that it could refuse
