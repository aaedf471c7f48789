"""Finding the request that a thread or a greenlet answers, by the frames of its calls.

Nothing is kept for this while requests are answered, so it costs them nothing. It is for the end of a drain.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import FrameType
from typing import Any


def request_of(frame: FrameType | None, functions: Iterable[Any]) -> tuple[str, str] | None:
    """Return method and path of the request that a thread or a greenlet answers, None if it answers none.

    :param frame: its innermost one.
    :param functions: those that answer a request, which is their parameter ``req``.
    """
    codes = [function.__code__ for function in functions]
    while frame is not None:
        if any(frame.f_code is code for code in codes):
            request = frame.f_locals.get("req")
            return (request.method, request.path) if request is not None else None
        frame = frame.f_back
    return None
