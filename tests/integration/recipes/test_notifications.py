"""The hooks of the recipe, against an HTTP server of these tests in the place of the chat's and of Sentry's."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.recipes import adapted
from tests.harness.screens import environment, typed
from tests.harness.server import Server, Start


class Call(NamedTuple):
    """A request that has come."""

    path: str
    authorization: str | None
    body: dict[str, Any]


class Receiver:
    """An HTTP server that answers each request with a status, when the test allows it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.status = 200
        self.answers = threading.Event()
        self.answers.set()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            """Notes a request."""

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.headers["Content-Type"] == "application/json"
                receiver.calls.append(Call(self.path, self.headers["Authorization"], body))
                receiver.answers.wait()
                self.send_response(receiver.status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_request(self, code: object = "-", size: object = "-") -> None:
                """Write nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, count: int) -> list[Call]:
        """Return the first ``count`` calls, when they have come."""
        wait_for(lambda: len(self.calls) >= count, 30, f"{count} calls")
        return self.calls[:count]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def notifying(
    make_server: Start, site: Site, file: str, /, changes: Mapping[str, str] = MappingProxyType({}), **variables: str
) -> Server:
    """Start a server whose configuration ends with a file of the recipe, with ``changes`` made."""
    extra = "\nzd_version = open('version').read()\n" + adapted(f"hooks/{file}", changes)
    site.write("version", "v1")
    return make_server(
        environment={**environment(site.directory), **variables},
        workers=1,
        preload_app=True,
        zd_rollback_window=60,
        extra=extra,
    ).start()


def deploy(server: Server, site: Site, version: str) -> None:
    site.write("version", version)
    site.deploy(version)
    assert typed(server, "reload").code == 0


def test_a_chat_has_a_line_for_each_deploy(make_server: Start, site: Site, receiver: Receiver) -> None:
    server = notifying(make_server, site, "chat.py", CHAT_WEBHOOK_URL=f"{receiver.url}/services/T/B")
    deploy(server, site, "v2")
    (done,) = receiver.wait_for(1)
    assert done.path == "/services/T/B"
    assert list(done.body) == ["text"]
    assert done.body["text"].startswith("Deploy: generation 2 (v2) serves, after ")
    site.break_("raise")
    assert typed(server, "reload").code == 1
    failed = receiver.wait_for(2)[1].body["text"]
    assert failed.startswith("Deploy failed: generation 3")
    assert "RuntimeError: broken" in failed
    assert failed.endswith("The code before serves.")
    assert typed(server, "rollback").code == 0
    assert receiver.wait_for(3)[2].body["text"].startswith("Rollback: generation 1 (v1) serves")
    assert "The hook" not in server.log


def test_a_chat_that_does_not_answer_holds_nothing_up(make_server: Start, site: Site, receiver: Receiver) -> None:
    longer = {"timeout=10": "timeout=600"}  # than any deadline of this test
    server = notifying(make_server, site, "chat.py", changes=longer, CHAT_WEBHOOK_URL=receiver.url)
    receiver.answers.clear()
    deploy(server, site, "v2")
    receiver.wait_for(1)
    site.deploy("v3")
    done = typed(server, "reload")
    assert done.code == 0, str(done)
    assert server.stop() == 0


def test_a_chat_that_refuses_is_a_warning(make_server: Start, site: Site, receiver: Receiver) -> None:
    receiver.status = 403
    server = notifying(make_server, site, "chat.py", CHAT_WEBHOOK_URL=receiver.url)
    deploy(server, site, "v2")
    wait_for(lambda: "The chat was not told of the reload: HTTP Error 403" in server.log, 30, "the log says so")


def test_without_an_address_nothing_is_sent(make_server: Start, site: Site) -> None:
    server = notifying(make_server, site, "chat.py")
    deploy(server, site, "v2")
    assert "not told" not in server.log


def test_sentry_has_a_release_and_a_deploy(make_server: Start, site: Site, receiver: Receiver) -> None:
    known = {"SENTRY_AUTH_TOKEN": "secret", "SENTRY_ORG": "shop", "SENTRY_PROJECT": "web", "SENTRY_URL": receiver.url}
    server = notifying(make_server, site, "sentry.py", changes={}, **known)
    deploy(server, site, "v2/rc 1")
    release, deployed = receiver.wait_for(2)
    assert release.path == "/api/0/organizations/shop/releases/"
    assert release.body == {"version": "v2/rc 1", "projects": ["web"]}
    assert deployed.path == "/api/0/organizations/shop/releases/v2%2Frc%201/deploys/"
    assert deployed.body["environment"] == "production"
    assert {release.authorization, deployed.authorization} == {"Bearer secret"}
    site.break_("raise")
    assert typed(server, "reload").code == 1
    deploy(server, site, "v3")
    assert receiver.wait_for(4)[2].body["version"] == "v3", "the one that failed is no release"
    assert "secret" not in server.log
