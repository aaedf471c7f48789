"""Whether a request has arrived on a connection, and whether more has arrived behind it.

Rules:

* A worker with threads, or with one process for one request, gives no thread to a connection that is silent or whose
  request has arrived in part. It collects the head in its poll, and Gunicorn's parser gets the head whole.
* What can never become a head (TLS on the plain port, another protocol, bare line feeds) is given to Gunicorn's parser
  at once, with an end that makes it answer instead of waiting for one.
* A header of the PROXY protocol is no part of a head: a proxy sends it as soon as its client has connected.
* The end of a head cannot be seen with TLS, with uWSGI's protocol and with HTTP/2. There the first byte counts as a
  request, and no byte is read: Gunicorn must find each byte in the socket.
"""

from __future__ import annotations

import math
import re
import select
import socket
import time
from typing import Any

from zdworker.workers.drain import UNUSED_CONNECTION_S

HEAD_LIMIT_BYTES = 8 * 1024
"""Size from which a head counts as whole: Gunicorn reads the rest itself, and applies its own limits."""

_END_OF_HEAD = b"\r\n\r\n"

_PROXY_V1 = b"PROXY "
_PROXY_V2 = b"\r\n\r\n\x00\r\nQUIT\n"
"""The beginnings of a PROXY header (haproxy's doc/proxy-protocol.txt, 2.1 and 2.2); the second has 16 bytes and a
length in its last two."""

_NO_HEAD = re.compile(
    rb"""
      [^!\#$%&'*+.^_`|~0-9A-Za-z\r\n-]          # the first byte is neither a method's nor of an empty line
    | .*(?<!\r)\n                              # a line feed without a carriage return ends the first line,
    | (?s:.*)[^\r]\n                           # or another one
    | (?!\r).*(?<!\ HTTP/[0-9]\.[0-9])\r\n    # the first line names no version
    """,
    re.VERBOSE,
)
"""Matches what cannot begin a head (RFC 9112 2.2 and 3)."""


def shows_heads(cfg: Any) -> bool:
    """Tell whether the end of a request's head can be seen on the connections of this configuration."""
    return not cfg.is_ssl and cfg.protocol == "http" and "h2" not in cfg.http_protocols


def speaks_proxy_protocol(cfg: Any) -> bool:
    """Return whether connections may begin with a header of the PROXY protocol."""
    return cfg.proxy_protocol not in (False, "off")


def begin_of_request(head: bytes | bytearray, proxied: bool) -> int | None:
    """Return where the request begins in ``head``: behind a header of the PROXY protocol, or at 0.

    :param proxied: there may be such a header.
    :return: None if that header has arrived in part, or may have.
    """
    if not proxied:
        return 0
    if head.startswith(_PROXY_V1):
        end = head.find(b"\r\n")
        return None if end < 0 else end + 2
    if head.startswith(_PROXY_V2):
        end = 16 + int.from_bytes(head[14:16], "big")
        return end if len(head) >= max(16, end) else None
    return None if head and (_PROXY_V1.startswith(head) or _PROXY_V2.startswith(head)) else 0


def has_begun(head: bytes | bytearray, proxied: bool) -> bool:
    """Return whether a part of the request itself has arrived."""
    begin = begin_of_request(head, proxied)
    return begin is not None and len(head) > begin


def read_head(sock: socket.socket, head: bytearray, proxied: bool = False) -> bool:
    """Append to ``head`` what has arrived, without waiting, and tell whether a thread should take the connection.

    To what cannot become a head an end is appended, for which Gunicorn's parser would wait.

    :param sock: without a timeout.
    :param proxied: see :func:`begin_of_request`.
    :return: True if the head is whole, cannot become one or has reached :data:`HEAD_LIMIT_BYTES`, or if the connection
        has ended or failed.
    """
    try:
        # The base class's method: a subclass may return what was read before.
        data = socket.socket.recv(sock, HEAD_LIMIT_BYTES, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True  # Gunicorn meets the error when it serves the connection, and handles it
    head += data
    return not data or len(head) >= HEAD_LIMIT_BYTES or _is_ready(head, proxied)


def _is_ready(head: bytearray, proxied: bool) -> bool:
    """Tell whether a head is whole, or cannot become one; then it has an end from here on."""
    begin = begin_of_request(head, proxied)
    if begin is None:
        return False
    if head.find(_END_OF_HEAD, begin) >= 0:
        return True
    if not _NO_HEAD.match(head, begin):
        return False
    head += _END_OF_HEAD
    return True


def is_readable(sock: socket.socket, timeout_s: float = 0.0) -> bool:
    """Tell whether a byte has arrived, or the end of the connection; reads nothing.

    :param timeout_s: seconds to wait for it.
    """
    # Not by MSG_PEEK: on a socket with a timeout Python waits before it calls recv(2).
    poll = select.poll()
    try:
        poll.register(sock, select.POLLIN)
    except ValueError:  # it is closed
        return True
    return bool(poll.poll(timeout_s * 1000))


def body_is_read(request: Any) -> bool:
    """Tell whether the body of a ``gunicorn.http.message.Request`` has been read to its end; False if unknown."""
    reader = getattr(getattr(request, "body", None), "reader", None)
    if reader is None:
        return False
    remaining = getattr(reader, "length", None)
    if remaining is not None:
        return bool(remaining == 0)
    return getattr(reader, "parser", reader) is None  # ChunkedReader drops its parser behind the last chunk


def unread_body_bytes(request: Any) -> int | None:
    """Return how many bytes of a request's body have not been read; None if that is unknown, as with chunks."""
    return getattr(getattr(getattr(request, "body", None), "reader", None), "length", None)


def has_read_ahead(unreader: Any, sock: socket.socket) -> bool:
    """Tell whether bytes behind a request have left the kernel, so that no poll reports them any more.

    :param unreader: a ``gunicorn.http.unreader.Unreader``.
    """
    pending = getattr(sock, "pending", None)  # of a TLS socket: bytes that are decrypted already
    return bool(unreader.buf.getvalue()) or (pending is not None and bool(pending()))


def wait_until(cfg: Any, head_begun: bool, unused_until: float) -> float:
    """Return until when a connection without a whole request is kept, by ``time.monotonic()``.

    With a part of a head it is kept for ``timeout`` seconds from its last byte. A connection that was never used is
    kept for ``keepalive`` and 5 seconds, as Gunicorn's threads do; in a drain until ``unused_until``, or for
    ``keepalive`` seconds if that is later.

    :param unused_until: infinite while the worker does not drain.
    """
    now, keepalive = time.monotonic(), float(cfg.keepalive)
    if head_begun:
        return now + (float(cfg.timeout) or math.inf)
    if unused_until == math.inf:
        return now + UNUSED_CONNECTION_S + keepalive
    return max(unused_until, now + keepalive)
