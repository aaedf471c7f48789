"""Applications of the raw corpus: each answers what it was given, in an order that does not change.

Rules: each imports the application of the harness beside it, ``app.py``, which marks that a worker has started.
"""

from __future__ import annotations

from tests.harness.application_site import Kind

ASGI = r"""
import hashlib, json
import app as site

BIG = b"x" * 30
PLAIN = {"/404": 404, "/500": 500, "/empty": 200}


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        return await site.lifespan(receive, send)
    if scope["type"] == "websocket":
        await receive()
        if scope["path"] == "/refused":
            await send({"type": "websocket.close", "code": 1000})
            return
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})
        return
    path, digest = scope["path"], hashlib.sha256()
    length = 0
    if path != "/unread":
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            length += len(message.get("body", b""))
            digest.update(message.get("body", b""))
            if not message.get("more_body"):
                break

    async def answer(status, headers, *pieces):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for number, piece in enumerate(pieces, 1):
            await send({"type": "http.response.body", "body": piece, "more_body": number < len(pieces)})

    if path == "/raise":
        raise RuntimeError("as asked")
    if path in ("/204", "/304"):
        await answer(int(path[1:]), [], b"")
    elif path in PLAIN:
        await answer(PLAIN[path], [(b"content-length", b"0")], b"")
    elif path == "/stream":
        await answer(200, [], b"one", b"two", b"")
    elif path == "/close":
        await answer(200, [(b"content-length", b"2"), (b"connection", b"close")], b"ok")
    elif path == "/long":
        await answer(200, [(b"content-length", b"5")], BIG)
    elif path == "/short":
        await answer(200, [(b"content-length", b"50")], BIG)
    elif path == "/date":
        await answer(200, [(b"date", b"x"), (b"server", b"y"), (b"content-length", b"2")], b"ok")
    else:
        seen = {name: repr(scope.get(name)) for name in (
            "type", "asgi", "http_version", "scheme", "root_path", "path", "raw_path", "query_string", "method",
            "headers",
        )}
        seen["client"] = repr(scope["client"] and scope["client"][0])
        seen["extensions"] = sorted(scope.get("extensions") or ())
        body = json.dumps({**seen, "length": length, "digest": digest.hexdigest()}).encode()
        await answer(200, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))], body)
"""

WSGI = r"""
import hashlib, json
import app as site

BIG = b"x" * 30
PLAIN = {"/204": "204 No Content", "/304": "304 Not Modified"}
EMPTY = {"/404": "404 Not Found", "/500": "500 Internal Server Error", "/empty": "200 OK"}


def application(environ, start_response):
    path, body = environ["PATH_INFO"], b""
    if path != "/unread":
        body = environ["wsgi.input"].read()
    if path == "/raise":
        raise RuntimeError("as asked")
    if path in PLAIN:
        start_response(PLAIN[path], [])
        return []
    if path in EMPTY:
        start_response(EMPTY[path], [("Content-Length", "0")])
        return []
    if path == "/stream":
        start_response("200 OK", [])
        return iter([b"one", b"two"])
    if path == "/close":
        start_response("200 OK", [("Content-Length", "2"), ("Connection", "close")])
        return [b"ok"]
    if path == "/long":
        start_response("200 OK", [("Content-Length", "5")])
        return [BIG]
    if path == "/short":
        start_response("200 OK", [("Content-Length", "50")])
        return [BIG]
    if path == "/date":
        start_response("200 OK", [("Date", "x"), ("Server", "y"), ("Content-Length", "2")])
        return [b"ok"]
    seen = {
        name: repr(value) for name, value in sorted(environ.items())
        if name.startswith("HTTP_") or name in (
            "REQUEST_METHOD", "RAW_URI", "PATH_INFO", "QUERY_STRING", "SCRIPT_NAME", "SERVER_PROTOCOL", "SERVER_NAME",
            "SERVER_SOFTWARE", "CONTENT_TYPE", "CONTENT_LENGTH", "REMOTE_ADDR", "wsgi.url_scheme", "wsgi.multithread",
            "wsgi.multiprocess", "wsgi.run_once", "wsgi.version", "wsgi.input_terminated",
        )
    }
    seen["keys"] = sorted(environ)
    answer = json.dumps({**seen, "length": len(body), "digest": hashlib.sha256(body).hexdigest()}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]
"""

TORNADO = r"""
import hashlib, json
import app as site

from tornado.web import Application, RequestHandler, stream_request_body
from tornado.websocket import WebSocketHandler

BIG = b"x" * 30


class EveryMethod(tuple):
    def __contains__(self, method):
        return True


class Seen(RequestHandler):
    SUPPORTED_METHODS = EveryMethod()

    async def prepare(self):
        path = self.request.path
        if path == "/raise":
            raise RuntimeError("as asked")
        if path in ("/204", "/304", "/404", "/500"):
            self.set_status(int(path[1:]))
            self.finish()
        elif path == "/empty":
            self.finish()
        elif path == "/stream":
            self.write(b"one")
            await self.flush()
            self.write(b"two")
            self.finish()
        elif path == "/close":
            self.set_header("Connection", "close")
            self.finish(b"ok")
        elif path == "/date":
            self.set_header("Date", "x")
            self.set_header("Server", "y")
            self.finish(b"ok")
        else:
            request = self.request
            seen = {name: repr(getattr(request, name)) for name in (
                "method", "uri", "path", "query", "version", "remote_ip", "protocol", "host", "arguments", "files",
            )}
            self.finish(json.dumps({
                **seen,
                "headers": list(request.headers.get_all()),
                "length": len(request.body or b""),
                "digest": hashlib.sha256(request.body or b"").hexdigest(),
            }))


@stream_request_body
class Unread(RequestHandler):
    SUPPORTED_METHODS = EveryMethod()

    def prepare(self):
        self.finish(b"unread")

    def data_received(self, chunk):
        pass


class Echo(WebSocketHandler):
    def on_message(self, message):
        self.write_message(message, binary=isinstance(message, bytes))


application = Application(
    [("/unread", Unread), ("/echo", Echo)], default_handler_class=Seen, log_function=lambda handler: None
)
"""

CODE: dict[Kind, str] = {"asgi": ASGI, "wsgi": WSGI, "tornado": TORNADO}
