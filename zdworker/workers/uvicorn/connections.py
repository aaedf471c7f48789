"""What the drain must know about uvicorn's connections: the one file that reads its protocols' attributes.

Rules:

* uvicorn's classes stay as they are; only objects of a draining worker get something put in front of them. Every
  attribute is read with a default, so that a protocol which is not known here is left alone.
* A response says ``Connection: close`` only if nothing more comes on the connection that uvicorn has taken or the
  kernel has acknowledged: the request's body has arrived and no further request has begun. That is decided when
  the head is written (:class:`ClosingHeaders`), because until then more may arrive.
* No connection is closed on unread data: see :mod:`zdworker.workers.closing`.

Known protocols (uvicorn 0.36 to 0.54): ``HttpToolsProtocol``, ``H11Protocol``, and ``ZttpProtocol``, whose parser does
not show what it holds and is followed by :class:`ZttpRest`.
For HTTP/2 (``ZttpH2Protocol``, since 0.54 and only if asked for in ``CONFIG_KWARGS``) see :func:`end_with_last_stream`.
"""

from __future__ import annotations

import asyncio
import sys
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
    rest = getattr(protocol, "zd_rest", None)
    if rest is not None:
        return bool(rest)
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


def request_of(task: asyncio.Task[Any]) -> tuple[str, str] | None:
    """Return method and path of the request that a task, a member of ``ServerState.tasks``, answers.

    It is the scope of the cycle whose ``run_asgi`` runs there, in HTTP/2 that of one stream. None for a WebSocket.
    """
    frame = getattr(task.get_coro(), "cr_frame", None)  # None once it has ended
    scope = getattr(frame.f_locals.get("self"), "scope", None) if frame is not None else None
    return (scope["method"], scope["path"]) if scope is not None and scope["type"] == "http" else None


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


def drainable(protocol_class: Any) -> Any:
    """Return a protocol class like this one, of which a drain can know what it has to, and whose idle connections do
    not end when a request has come.

    A loop that was held up (by a slow call, or because the process was stopped) runs its timers first. It would end a
    connection whose next request has been in the kernel for long, and reset the client.
    """
    if protocol_class.__name__ == "AutoZttpProtocol":  # it makes a protocol by this name, or one for HTTP/2
        module = sys.modules[protocol_class.__module__]
        module.ZttpProtocol = drainable(module.ZttpProtocol)  # type: ignore[attr-defined]
    if not hasattr(protocol_class, "timeout_keep_alive_handler") or issubclass(protocol_class, PatientTimeout):
        return protocol_class
    followed = (ZttpRest,) if protocol_class.__name__ == "ZttpProtocol" else ()
    return type(protocol_class.__name__, (*followed, PatientTimeout, protocol_class), {})


class PatientTimeout:
    """Mixin of a protocol whose keep-alive timeout looks for a request in the kernel first."""

    def timeout_keep_alive_handler(self: Any) -> None:
        """End an idle connection. uvicorn cancels the timer when it reads data."""
        if unread(self.transport):  # if it is no request, the connection ends next time
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()  # type: ignore[misc]


_END_OF_HEAD = b"\r\n\r\n"

_UNKNOWN = b"?"
"""Stands for what a parser may hold. It ends no head, and the next piece that is one whole head ends the doubt."""

_REST_LIMIT_BYTES = 64 * 1024
"""Size from which it does not matter any more what a parser holds: it is more than one request."""


class ZttpRest:
    """Mixin of the protocol on zttp that knows what its parser holds: requests behind the one that is being answered,
    or a part of the next head. In doubt it holds something, so that the connection is not ended.

    A piece that is one whole head, as nearly all are, costs one search.
    """

    zd_rest = b""
    """What the parser holds behind the last request that it has returned."""

    def data_received(self: Any, data: bytes) -> None:
        """Have the protocol take ``data``, and note what is left of it."""
        cycle = self.cycle
        in_body = cycle is not None and cycle.more_body
        received = len(cycle.body) if in_body else 0
        super().data_received(data)  # type: ignore[misc]
        if self.cycle is not cycle:
            if not in_body and 0 < data.find(_END_OF_HEAD) == len(data) - len(_END_OF_HEAD):
                self.zd_rest = b""  # whatever it held before: that was a part of this head
            else:
                self._zd_hold(_behind(self.zd_rest + data, self.cycle))
        elif not in_body:
            self._zd_hold(self.zd_rest + data)
        elif not cycle.more_body:
            known = not cycle.response_complete  # afterwards uvicorn does not count what it drops
            self._zd_hold(_behind_body(data, len(cycle.body) - received, cycle) if known else _UNKNOWN)

    def _zd_hold(self: Any, held: bytes) -> None:
        self.zd_rest = held.lstrip(b"\r\n") if len(held) < _REST_LIMIT_BYTES else _UNKNOWN
        if self.zd_rest and self.cycle is not None and not self.cycle.response_complete:
            self.cycle.on_response = self._zd_on_response_complete

    def _zd_on_response_complete(self: Any) -> None:
        """Have the protocol go on with what its parser holds."""
        cycle = self.cycle
        self.on_response_complete()
        if self.cycle is not cycle:
            self._zd_hold(_behind(self.zd_rest, self.cycle))


def _behind(data: bytes, cycle: Any) -> bytes:
    """Return what of ``data`` comes behind the request of ``cycle``, of which the head and what came of the body are in
    it.
    """
    if cycle.more_body:
        return b""
    _head, end, body = data.lstrip(b"\r\n").partition(_END_OF_HEAD)
    return _behind_body(body, len(cycle.body), cycle) if end else _UNKNOWN


def _behind_body(data: bytes, length: int, cycle: Any) -> bytes:
    """Return what of ``data`` comes behind the body that ends in it, and of which ``length`` bytes are in it."""
    if not any(name == b"transfer-encoding" for name, _value in cycle.scope["headers"]):
        return data[length:]
    last_chunk_is_last = data.find(_END_OF_HEAD) == len(data) - len(_END_OF_HEAD)
    return b"" if last_chunk_is_last else _UNKNOWN


# -- the hand-over ---------------------------------------------------------------------------------------------------


def can_move(protocol: Any) -> bool:
    """Return whether a connection can be handed over: HTTP/1 without TLS, of which is known what has been read."""
    if state_of(protocol) in (ConnectionState.CLOSING, ConnectionState.HTTP2):
        return False
    if protocol.transport.get_extra_info("sslcontext") is not None:
        return False
    knows_rest = hasattr(protocol, "zd_rest") or hasattr(getattr(protocol, "conn", None), "trailing_data")
    return knows_rest or hasattr(protocol, "parser")  # httptools


def when_answered(protocol: Any, offer: Callable[[], None]) -> None:
    """Have ``offer`` called when the response under way is complete."""
    cycle = protocol.cycle
    if cycle is not None and not cycle.response_complete and not isinstance(cycle.on_response, _OfferWhenAnswered):
        cycle.on_response = _OfferWhenAnswered(protocol, cycle.on_response, offer)


class _OfferWhenAnswered:
    """What a cycle calls when its response is complete, in a drain that hands connections over."""

    def __init__(self, protocol: Any, on_response: Callable[[], None], offer: Callable[[], None]) -> None:
        self.__self__ = protocol  # as a bound method has it: cycle_of() finds the protocol by it
        self._on_response = on_response
        self._offer = offer

    def __call__(self) -> None:
        self._on_response()
        self._offer()


def detach(protocol: Any) -> Connection | None:
    """Let go of a connection, if it is between two requests and its last response is written out."""
    if state_of(protocol) not in (ConnectionState.IDLE, ConnectionState.UNUSED) or not can_move(protocol):
        return None
    cycle = protocol.cycle
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
