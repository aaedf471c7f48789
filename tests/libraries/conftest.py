"""The fixtures of the integration tests, and servers for the clients of the libraries."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest

from tests.integration.conftest import make_server, pytest_runtest_makereport, site, start

__all__ = ["make_server", "pytest_runtest_makereport", "site", "start"]


class Services(NamedTuple):
    """The addresses of the servers."""

    http: str
    redis: tuple[str, int]
    grpc: str


class Echo(BaseHTTPRequestHandler):
    """Answers each request with the last part of its path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # the base class's name
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        body = self.path.rpartition("/")[2].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_words: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    import grpc
    from fakeredis import TcpFakeServer

    http = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    redis = TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    for server in (http, redis):
        threading.Thread(target=server.serve_forever, daemon=True).start()

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]  # only this environment has the library
        def service(self, _details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)

    echo = grpc.server(ThreadPoolExecutor(4), handlers=[Handler()])
    port = echo.add_insecure_port("127.0.0.1:0")
    echo.start()
    yield Services(
        f"http://127.0.0.1:{http.server_address[1]}",
        ("127.0.0.1", redis.server_address[1]),
        f"127.0.0.1:{port}",
    )
    echo.stop(None)
    for server in (http, redis):
        server.shutdown()
        server.server_close()
