"""What the worker classes for WSGI applications need to serve a connection that another worker has accepted."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any

from gunicorn import http

from zdworker.ipc.hand_over import Connection

WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  # compared with, and not bound to


def listening_name(sock: socket.socket, names: Iterable[Any]) -> Any:
    """Return the address that a connection came to, as its listener calls it: applications see it as ``SERVER_NAME``.

    :param names: the addresses of this worker's listeners.
    """
    own = sock.getsockname()
    known = list(names)
    if own in known or not isinstance(own, tuple):
        return own
    wildcards = (name for name in known if isinstance(name, tuple) and name[0] in WILDCARDS and name[1] == own[1])
    return next(wildcards, own)


def parser_for(cfg: Any, connection: Connection, sock: Any, client: Any) -> Any:
    """Return Gunicorn's parser for a connection that may have had requests: only the first may have a PROXY header.

    :param sock: what the parser is to read from.
    """
    parser = http.get_parser(cfg, sock, client)
    parser.req_count = connection.requests
    return parser
