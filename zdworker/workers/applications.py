"""The types of WSGI and ASGI applications (PEP 3333; ASGI 3.0), as every worker class names them, and their kinds.

Rules: the arguments that the application takes show its kind, because calling it would be a request. An application
that takes any arguments is of no known kind, and leads to no complaint.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from typing import Any

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
WsgiApplication = Callable[[Environ, StartResponse], Iterable[bytes]]

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
AsgiApplication = Callable[[Scope, Receive, Send], Awaitable[None]]

_NAMES = {"asgi": "an ASGI application", "wsgi": "a WSGI application"}
_ARGUMENTS = {"asgi": "scope, receive and send", "wsgi": "environ and start_response"}
_INSTEAD = {
    "asgi": "use zdworker.UvicornWorker or zdworker.ASGIWorker",
    "wsgi": "use zdworker.WSGIWorker, zdworker.ThreadWorker or zdworker.GeventWorker",
}


def kind_of(application: object) -> str:
    """Return ``"wsgi"`` or ``"asgi"``, "" if neither is certain."""
    try:
        signature = inspect.signature(application)  # type: ignore[arg-type]  # it raises for what is not callable
    except Exception:  # noqa: BLE001  # what is not callable; and a lazy object may raise anything when it is looked at
        return ""
    takes_two, takes_three = _takes(signature, 2), _takes(signature, 3)
    call = getattr(type(application), "__call__", None)  # noqa: B004  # it is looked at, not asked for
    is_coroutine = inspect.iscoroutinefunction(application) or inspect.iscoroutinefunction(call)
    if takes_three and (is_coroutine or not takes_two):
        return "asgi"
    return "wsgi" if takes_two and not takes_three and not is_coroutine else ""


def _takes(signature: inspect.Signature, number: int) -> bool:
    try:
        signature.bind(*range(number))
    except TypeError:
        return False
    return True


def mismatch(application: object, serves: Collection[str], class_name: str) -> str:
    """Return why a worker class can hardly serve an application; "" if it can, or if that is not known.

    :param serves: the kinds that the class serves; empty if that is not known.
    :param class_name: the name of the class, for the reader.
    """
    kind = kind_of(application)
    if not kind or not serves or kind in serves:
        return ""
    other = next(iter(serves))
    return (
        f"this is {_NAMES[kind]} (it takes {_ARGUMENTS[kind]}), and {class_name} serves {other.upper()} applications: "
        f"each request would fail; {_INSTEAD[kind]}"
    )
