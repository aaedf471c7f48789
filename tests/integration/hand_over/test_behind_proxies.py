"""Behind proxies with pools of connections: a reload closes none of them."""

from __future__ import annotations

import pytest

from tests.harness.clients import Load
from tests.harness.proxies import HAProxy, Nginx, Proxy, program
from tests.harness.server import Server, Start
from tests.harness.tcp_sockets import OPEN, tcp

IDLE_S = 600
"""Seconds that proxy and server keep an unused connection, at least: longer than the test."""

pytestmark = pytest.mark.skipif(
    not (program("nginx") and program("haproxy")), reason="nginx or haproxy is not installed"
)


def pool(server: Server) -> set[int]:
    """Return the proxy's ports of its connections to the server."""
    return {connection.peer for connection in tcp(OPEN, int(server.address[1])) if connection.peer}


@pytest.mark.parametrize("kind", [Nginx, HAProxy], ids=lambda kind: str(kind.name))
def test_no_connection_of_a_pool_is_closed(start: Start, kind: type[Proxy]) -> None:
    server = start(workers=2, keepalive=10 * IDLE_S, preload_app=True)
    with kind(server.address, idle=IDLE_S) as proxy:
        with Load(proxy.address, "kept", clients=12) as crowd:
            crowd.stop()
        before = pool(server)
        assert before
        with Load(proxy.address, "kept", clients=4, think=0.05) as some:
            for version in ("two", "three", "four"):
                server.reload(version)
            seen = some.stop()
        assert seen.failures == []
        assert before <= pool(server)
        assert proxy.complaints() == []
