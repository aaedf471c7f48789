"""One request on a connection that a master has given out, which leads to the canary of a held reload."""

from __future__ import annotations

import http.client
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from zdworker.errors import NoInstance


@dataclass(frozen=True)
class Answer:
    """What the canary has answered; ``head`` is its status line and headers, as text for a reader."""

    status: int
    head: str
    body: bytes


def ask(  # one for each part of a request
    connection: socket.socket, method: str, target: str, headers: Mapping[str, str], data: str | None, timeout_s: float
) -> Answer:
    """Send a request, and return the whole answer.

    :raises NoInstance: the canary has closed the connection instead, or has answered something else than HTTP.
    :raises TimeoutError: there was no whole answer in time.
    :raises ValueError: no such request can be sent in HTTP/1.1.
    """
    deadline = time.monotonic() + timeout_s
    connection.settimeout(timeout_s)
    client = http.client.HTTPConnection("localhost")
    client.sock = connection
    try:
        body = None if data is None else os.fsencode(data)  # the bytes of the command line
        client.request(method, target, body, {"User-Agent": "zdworker-probe", "Connection": "close", **headers})
        with client.getresponse() as answer:
            lines = [
                f"HTTP/1.1 {answer.status} {answer.reason}",
                *(f"{name}: {value}" for name, value in answer.getheaders()),
            ]
            return Answer(answer.status, "\n".join(lines) + "\n", _whole_body(connection, answer, deadline))
    except TimeoutError:
        raise TimeoutError(f"the canary has not answered {target} within {timeout_s:g} s") from None
    except http.client.InvalidURL as error:
        raise ValueError(str(error)) from None
    except (OSError, http.client.HTTPException) as error:
        raise NoInstance(f"the canary has not answered: {type(error).__name__}: {error}") from None
    finally:
        client.close()


def _whole_body(connection: socket.socket, answer: http.client.HTTPResponse, deadline: float) -> bytes:
    """Read the body in parts, because the time of a socket begins again with each: a stream may have no end.

    :raises TimeoutError: it has not ended in time.
    """
    parts: list[bytes] = []
    while not answer.isclosed():  # from Python 3.13 on it closes the connection with its last byte
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        part = answer.read1()
        if not part:
            if answer.length:
                raise http.client.IncompleteRead(b"".join(parts), answer.length)
            break
        parts.append(part)
    return b"".join(parts)
