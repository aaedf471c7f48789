"""Whether a request has come on a connection; and whether anything has come behind it.

Rules:

* A worker with few hands (threads, or none but its own) gives none of them to a connection that is silent, or whose
  request has come only in part: it collects the head in its poll, and Gunicorn's parser gets it whole.
* Where the end of a head cannot be seen (TLS, uWSGI's protocol, HTTP/2), the first byte counts as a request, and no
  byte is taken: Gunicorn must find each where it looks for it.
"""

from __future__ import annotations

import math
import select
import socket
import time
from typing import Any

from zdworker.workers.base import UNUSED

HEAD_LIMIT = 8 * 1024
"""Bytes after which a head counts as whole: Gunicorn reads the rest itself, and knows its own limits."""

LINGER = 5.0
"""Seconds without a byte after which the rest of a request body is no longer read (nginx: ``lingering_timeout``)."""

LINGER_IN_ALL = 30.0
"""Seconds that such a rest is read at most (nginx: ``lingering_time``)."""

_END_OF_HEAD = b"\r\n\r\n"


def shows_heads(cfg: Any) -> bool:
    """Tell whether the end of a request's head can be seen on the connections of this configuration."""
    return not cfg.is_ssl and cfg.protocol == "http" and "h2" not in cfg.http_protocols


def read_head(sock: socket.socket, head: bytearray) -> bool:
    """Add to ``head`` what has come, without waiting; tell whether it is whole (or longer than a head, or ended).

    :param sock: without a timeout.
    """
    try:
        data = socket.socket.recv(sock, HEAD_LIMIT, socket.MSG_DONTWAIT)  # of a subclass it may give what is read ahead
    except BlockingIOError:
        return False
    except OSError:
        return True  # whoever serves it will meet the error, and knows what to do
    head += data
    return not data or _END_OF_HEAD in head or len(head) >= HEAD_LIMIT


def has_come(sock: socket.socket) -> bool:
    """Tell whether a byte has come, or the connection's end; it stays where it is."""
    # Not a look at the bytes: on a socket with a timeout Python would wait for them.
    poll = select.poll()
    try:
        poll.register(sock, select.POLLIN)
    except ValueError:  # it is closed
        return True
    return bool(poll.poll(0))


def body_has_come(request: Any) -> bool:
    """Tell whether the body of a ``gunicorn.http.message.Request`` has been read to its end; False if unsure."""
    reader = getattr(getattr(request, "body", None), "reader", None)
    if reader is None:
        return False
    remaining = getattr(reader, "length", None)
    if remaining is not None:
        return bool(remaining == 0)
    return getattr(reader, "parser", reader) is None  # of a chunked body, dropped behind the last chunk


def read_ahead(unreader: Any, sock: socket.socket) -> bool:
    """Tell whether bytes behind a request have left the kernel, so that no poll shows them any more.

    :param unreader: a ``gunicorn.http.unreader.Unreader``.
    """
    pending = getattr(sock, "pending", None)  # of a TLS socket: decrypted already
    return bool(unreader.buf.getvalue()) or (pending is not None and bool(pending()))


def patience(cfg: Any, head_begun: bool, unused_until: float) -> float:
    """Return until when a connection on which no request has come yet is kept, by ``time.monotonic()``.

    One that is half-read has ``timeout`` seconds from its last byte. One never used has, as with Gunicorn's threads,
    ``keepalive`` and 5 seconds; in a drain until ``unused_until``, and ``keepalive`` if it became idle only then.

    :param unused_until: infinite while there is no drain.
    """
    now, keepalive = time.monotonic(), float(cfg.keepalive)
    if head_begun:
        return now + (float(cfg.timeout) or math.inf)
    if unused_until == math.inf:
        return now + UNUSED + keepalive
    return max(unused_until, now + keepalive)
