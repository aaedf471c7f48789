"""Django in one file: what asgi_app.py answers, with a model in a database. VERSION and MARKS are filled in.

``application`` is for WSGI classes, ``app`` for ASGI ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import time

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpRequest, JsonResponse
from django.urls import path

VERSION = "VERSION"
MARKS = "MARKS"


def mark(event: str) -> None:
    line = {"event": event, "version": VERSION, "pid": os.getpid(), "time": time.monotonic()}
    with open(MARKS, "a", encoding="ascii") as marks:
        marks.write(json.dumps(line) + "\n")


def started() -> None:
    mark("startup")


def ended() -> None:
    mark("shutdown")


settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="not a secret",  # noqa: S106
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.path.join(os.path.dirname(MARKS), "database.sqlite3"),
            "CONN_MAX_AGE": 600,  # connections are kept from request to request
        }
    },
)
django.setup()


def answer(**facts: str) -> JsonResponse:
    return JsonResponse({"version": VERSION, "pid": os.getpid(), **facts})


def version(request: HttpRequest) -> JsonResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
    return answer()


def echo(request: HttpRequest) -> JsonResponse:
    return answer(digest=hashlib.sha256(request.body).hexdigest())


def sleep(request: HttpRequest) -> JsonResponse:
    time.sleep(float(request.GET["seconds"]))
    return answer()


urlpatterns = [path("", version), path("echo", echo), path("sleep", sleep)]
application = get_wsgi_application()
app = get_asgi_application()
mark("import")
