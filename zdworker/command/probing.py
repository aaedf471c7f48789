"""One request on a connection that a master has given out, which leads to the canary of a held reload."""

from __future__ import annotations

import http.client
import socket
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
    :raises TimeoutError: there was no answer in time.
    """
    connection.settimeout(timeout_s)
    client = http.client.HTTPConnection("localhost")
    client.sock = connection
    try:
        body = None if data is None else data.encode()
        client.request(method, target, body, {"User-Agent": "zdworker-probe", "Connection": "close", **headers})
        answer = client.getresponse()
        lines = [
            f"HTTP/1.1 {answer.status} {answer.reason}",
            *(f"{name}: {value}" for name, value in answer.getheaders()),
        ]
        return Answer(answer.status, "\n".join(lines) + "\n", answer.read())
    except TimeoutError:
        raise TimeoutError(f"the canary has not answered {target} within {timeout_s:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise NoInstance(f"the canary has not answered: {type(error).__name__}: {error}") from None
    finally:
        client.close()
