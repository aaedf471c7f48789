"""A validator around the application, through a reload: the server keeps to PEP 3333, and to ASGI 3.0."""

from __future__ import annotations

import pytest

from tests.harness.application_site import Site
from tests.harness.server import Start
from tests.suites.reloads import asking
from tests.suites.variants import VARIANTS, WEBSOCKETS, Variant, for_each

WSGI = """
import warnings
from wsgiref.validate import WSGIWarning, validator

import app as site

warnings.simplefilter("error", WSGIWarning)


def plain(environ, start_response):
    body = environ["wsgi.input"].read(1000)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


application = validator(plain)
"""

ASGI = '''
"""What ASGI 3.0 has a server keep to (asgiref's specs: main, www, lifespan); each breach is a line in a file."""
import app as site

TYPES = {
    "type": str, "asgi": dict, "http_version": str, "method": str, "scheme": str, "path": str, "raw_path": bytes,
    "query_string": bytes, "root_path": str, "headers": list, "subprotocols": list, "state": dict, "extensions": dict,
}
NEEDED = {
    "http": {"type", "asgi", "http_version", "method", "path", "query_string", "headers"},
    "websocket": {"type", "asgi", "path", "query_string", "headers"},
    "lifespan": {"type", "asgi"},
}
SCHEMES = {"http": ("http", "https"), "websocket": ("ws", "wss")}


def fault(*words):
    with open("faults.txt", "a") as file:
        print(*words, file=file)


def check(fact, *words):
    if not fact:
        fault(*words)


def check_scope(scope):
    kind = scope["type"]
    check(type(scope) is dict, "the scope is a", type(scope))
    check(NEEDED[kind] <= scope.keys(), kind, "lacks", NEEDED[kind] - scope.keys())
    for name, expected in TYPES.items():
        if name in scope and not (name in ("raw_path", "extensions") and scope[name] is None):
            check(isinstance(scope[name], expected), kind, name, "is", repr(scope[name]))
    check(scope["asgi"].get("version") == "3.0", "version", scope["asgi"])
    check(isinstance(scope["asgi"].get("spec_version", "2.0"), str), "spec_version", scope["asgi"])
    if kind == "lifespan":
        return
    check(scope.get("scheme", SCHEMES[kind][0]) in SCHEMES[kind], kind, "scheme", scope.get("scheme"))
    check(scope.get("http_version", "1.1") in ("1.0", "1.1", "2"), "http_version", scope.get("http_version"))
    check(b"?" not in (scope.get("raw_path") or b""), "raw_path has the query", scope.get("raw_path"))
    for name, value in scope["headers"]:
        check(type(name) is bytes and type(value) is bytes, "header", name, value)
        check(name == name.lower(), "header's name", name)
    for name in ("client", "server"):
        if scope.get(name) is not None:
            host, port = scope[name]
            check(isinstance(host, str) and (port is None or isinstance(port, int)), name, scope[name])
    if kind == "http":
        check(scope["method"] == scope["method"].upper(), "method", scope["method"])


class Receive:
    """``receive()``: what may come, and in which order."""

    def __init__(self, kind, receive):
        self.kind, self.receive, self.over, self.count = kind, receive, False, 0

    async def __call__(self):
        message = await self.receive()
        kind = message["type"]
        check(type(message) is dict, "a message is a", type(message))
        check(kind.partition(".")[0] == self.kind, self.kind, "received", message)
        if self.kind == "http":
            check(kind in ("http.request", "http.disconnect"), "received", message)
            if kind == "http.request":
                check(not self.over, "received a body behind its end", message)
                check(isinstance(message.get("body", b""), bytes), "body", message)
                check(isinstance(message.get("more_body", False), bool), "more_body", message)
                self.over = not message.get("more_body", False)
        elif self.kind == "websocket":
            check((kind == "websocket.connect") == (self.count == 0), "received", message, "as number", self.count)
            check(not self.over, "received behind the disconnect", message)
            if kind == "websocket.receive":
                given = [message.get("text"), message.get("bytes")]
                check(sum(one is not None for one in given) == 1, "text and bytes", message)
            elif kind == "websocket.disconnect":
                check(isinstance(message.get("code", 1005), int), "code", message)
                self.over = True
        self.count += 1
        return message


async def application(scope, receive, send):
    check_scope(scope)
    receive = Receive(scope["type"], receive)

    async def checked_send(message):
        result = await send(message)
        check(result is None, "send() returned", result)

    if scope["type"] == "lifespan":
        scope.get("state", {})["number"] = 1
        return await site.lifespan(receive, checked_send)
    check(scope.get("state", {"number": 1}).get("number") == 1, "state", scope.get("state"))
    if scope["type"] == "http":
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = [(b"content-length", b"%d" % len(body))]
        await checked_send({"type": "http.response.start", "status": 200, "headers": headers})
        await checked_send({"type": "http.response.body", "body": body})
    else:
        await receive()
        await checked_send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await checked_send({"type": "websocket.send", "text": message["text"]})
        site.mark("closed", code=message.get("code"))
'''

OF_WSGI = tuple(variant for variant in VARIANTS if variant.kind == "wsgi")
OF_ASGI = (
    *(variant for variant in VARIANTS if variant.kind == "asgi"),
    *(variant for variant in WEBSOCKETS if variant.name.startswith("Uvicorn")),
)
REQUESTS = (("/", None), ("/a%20b?c=d", None), ("/", b"hello"), ("/", b"a" * 30_000))
"""No larger body: with the C parser Gunicorn 27's own ASGI worker drops the request behind one of more than 64 KB."""
OPTIONS = {"graceful_timeout": 20, "keepalive": 2, "application": ("served:application",)}


@for_each(OF_WSGI)
def test_wsgi_is_kept_to(start: Start, site: Site, variant: Variant) -> None:
    variant.require()
    site.write("served.py", WSGI)
    server = start(**{**OPTIONS, **variant.options(site, stock=False)})
    with asking(server, *REQUESTS[:3]) as answers:
        server.reload("two")
    assert answers.failures == []
    assert answers.good > 20
    for word in ("AssertionError", "WSGIWarning", "garbage collected without being closed"):
        assert word not in server.log


@for_each(OF_ASGI)
def test_asgi_is_kept_to(start: Start, site: Site, variant: Variant) -> None:
    websockets = pytest.importorskip("websockets.sync.client")
    variant.require()
    site.write("served.py", ASGI)
    server = start(**{**OPTIONS, **variant.options(site, stock=False)})
    uri = "ws://%s:%s/a" % server.reserved.getsockname()
    with asking(server, *REQUESTS) as answers, websockets.connect(uri) as client:
        client.send("hello")
        assert client.recv() == "hello"
        server.reload("two")
    assert answers.failures == []
    assert answers.good > 20
    assert [mark["code"] for mark in site.marks("closed")] == [1012]
    assert server.stop() == 0
    faults = site.directory / "faults.txt"
    assert not faults.exists(), faults.read_text()
