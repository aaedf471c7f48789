"""Django in one file: some endpoints of endpoints.py, with a model in a database. VERSION and MARKS are filled in.

``application`` is for WSGI classes, ``app`` for ASGI ones.
"""

from __future__ import annotations

import os

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpRequest, JsonResponse
from django.urls import path

from endpoints import Digest, Endpoints

VERSION = "VERSION"
MARKS = "MARKS"

endpoints = Endpoints(VERSION, MARKS)
started, ended = endpoints.started, endpoints.ended

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


def version(request: HttpRequest) -> JsonResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
    return JsonResponse(endpoints.facts())


def echo(request: HttpRequest) -> JsonResponse:
    return JsonResponse(endpoints.facts(**Digest(request.body).facts()))


def sleep(request: HttpRequest) -> JsonResponse:
    endpoints.wait("/sleep", request.GET)
    return JsonResponse(endpoints.facts())


urlpatterns = [path("", version), path("echo", echo), path("sleep", sleep)]
application = get_wsgi_application()
app = get_asgi_application()
endpoints.mark("import")
