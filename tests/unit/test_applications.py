"""Which kind of application something is: told by its arguments, and by nothing that would be a request."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from django.core.asgi import ASGIHandler
from django.core.wsgi import WSGIHandler
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from tornado.web import Application

from zdworker.workers.applications import kind_of, mismatch


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application."""


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    return []


class Unbound:
    """A proxy that has nothing behind it yet, as those of a context have."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} of what?")

    def __call__(self, *args: Any) -> Any:
        """Nothing."""


def wraps_asgi(scope: Any, receive: Any, send: Any) -> Any:
    return asgi(scope, receive, send)


def takes_anything(*arguments: Any) -> Any:
    return None


async def anything_asynchronous(*arguments: Any) -> None:
    """What a decorator makes of an ASGI application."""


def with_a_default(environ: Any, start_response: Any, debug: bool = False) -> list[bytes]:
    return []


def factory() -> Any:
    return asgi


class SecondVersion:
    """ASGI 2: a class that takes the scope, whose objects take the rest."""

    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        """Answer."""


class Middleware:
    """An object that is called."""

    def __init__(self, application: Callable[..., Any]) -> None:
        self.application = application

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self.application(environ, start_response)


@pytest.mark.parametrize(
    ("application", "kind"),
    [
        (asgi, "asgi"),
        (wraps_asgi, "asgi"),
        (anything_asynchronous, "asgi"),
        (functools.partial(asgi), "asgi"),
        (Starlette(), "asgi"),
        (FastAPI(), "asgi"),
        (ASGIHandler.__call__.__get__(object()), "asgi"),
        (wsgi, "wsgi"),
        (Middleware(wsgi), "wsgi"),
        (Flask("app"), "wsgi"),
        (WSGIHandler.__call__.__get__(object()), "wsgi"),
        (takes_anything, ""),
        (with_a_default, ""),
        (factory, ""),
        (SecondVersion, ""),
        (Application(), ""),
        ("app:app", ""),
        (None, ""),
    ],
)
def test_the_kind_of_an_application(application: object, kind: str) -> None:
    assert kind_of(application) == kind


def test_an_application_that_cannot_be_looked_at_is_of_no_kind() -> None:
    assert kind_of(Unbound()) == ""


def test_a_mismatch_names_a_class_that_would_do() -> None:
    text = mismatch(wsgi, {"asgi"}, "zdworker.UvicornWorker")
    assert text.startswith("this is a WSGI application (it takes environ and start_response), and zdworker.Uvicorn")
    assert text.endswith("use zdworker.WSGIWorker, zdworker.ThreadWorker or zdworker.GeventWorker")
    assert "use zdworker.UvicornWorker or" in mismatch(asgi, {"wsgi"}, "zdworker.ThreadWorker")


@pytest.mark.parametrize("serves", [set(), {"wsgi"}, {"asgi", "wsgi"}])
def test_what_may_be_served_is_no_mismatch(serves: set[str]) -> None:
    assert mismatch(wsgi, serves, "mine") == ""
    assert mismatch(takes_anything, serves, "mine") == ""
