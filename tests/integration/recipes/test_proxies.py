"""The proxies' files as they stand in the recipes, in front of a server that is reloaded."""

from __future__ import annotations

import http.client
import os
import pwd
from pathlib import Path

import gunicorn
import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Address, Load
from tests.harness.processes import wait_for
from tests.harness.proxies import HAProxy, Nginx, Proxy, program
from tests.harness.recipes import DEPLOY, adapted, run
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ALL, ASGI, TORNADO, UVICORN, UVICORN_H11, WorkerClass, for_each

BEHIND = {"keepalive": 5, "graceful_timeout": 20}
"""What the example's gunicorn.conf.py has, too."""

NGINX = """\
daemon off;
{user}
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
    log_format plain "$status $upstream_status $request";
    access_log {directory}/access.log plain;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {recipe}
}}
"""
"""What Debian's nginx.conf is: the recipe's file is one of those that it includes."""


class RecipeNginx(Nginx):
    """nginx with the recipe's file; it may try nothing twice."""

    def configuration(self) -> str:
        assert isinstance(self.upstream, str)
        host, port = self.address
        own = {"unix:/run/app.sock": f"unix:{self.upstream}", "listen 80;": f"listen {host}:{port};"}
        once = {"proxy_pass http://app;": "proxy_pass http://app; proxy_next_upstream off;"}
        user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
        return NGINX.format(directory=self.directory, user=user, recipe=adapted("nginx/app.conf", {**own, **once}))


class RecipeCaddy(Proxy):
    """Caddy with the recipe's file, without TLS, for which it would need a name that the world knows."""

    name = "caddy"

    def arguments(self, configuration: os.PathLike[str]) -> list[str]:
        return ["run", "--adapter", "caddyfile", "--config", str(configuration)]

    def configuration(self) -> str:
        assert isinstance(self.upstream, str)
        host, port = self.address
        site = f"http://:{port} {{\n\tbind {host}"  # whatever the Host header says
        own = {"app.example.org {": site, "unix//run/app.sock": f"unix/{self.upstream}"}
        return "{\n\tadmin off\n}\n" + adapted("caddy/Caddyfile", own)

    def complaints(self) -> list[str]:
        return (self.directory / self.log_name).read_text(errors="replace").splitlines()


class RecipeHAProxy(HAProxy):
    """HAProxy with the recipe's file and one machine behind it; it may try nothing twice."""

    def configuration(self) -> str:
        own = {"bind :80": "bind %s:%s" % self.address, "192.0.2.1:8000": "%s:%s" % self.upstream}
        once = {"mode http": "mode http\n    retries 0"}
        text = adapted("haproxy/haproxy.cfg", {**own, **once, "inter 1s": "inter 200ms"})
        return "".join(line for line in text.splitlines(keepends=True) if "192.0.2." not in line)


@pytest.mark.parametrize("kind", [RecipeNginx, RecipeHAProxy, RecipeCaddy], ids=lambda kind: str(kind.name))
def test_reloads_behind_a_recipe_s_proxy(
    make_server: Start, site: Site, kind: type[Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    if program(kind.name) is None:
        pytest.skip(f"{kind.name} is not installed")
    for place in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):  # where Caddy writes
        monkeypatch.setenv(place, str(site.directory))
    unix = str(site.directory / "app.sock")
    bind = {} if kind is RecipeHAProxy else {"bind": f"unix:{unix}"}
    server: Server = make_server(zd_health_path="/healthz", **BEHIND, **bind).start()
    upstream: Address = unix if bind else server.address
    with (
        kind(upstream) as proxy,
        Load(proxy.address, "kept", clients=8, pause=0.01) as kept,
        Load(proxy.address, "new", clients=4, pause=0.02) as new,
        Load(proxy.address, "upload", clients=2) as uploads,
    ):
        for version in ("two", "three"):
            server.reload(version, 60)
        for load in (kept, new, uploads):
            results = load.stop()
            assert results.failures == []
            assert results.versions()[-1] == "three"


@pytest.mark.parametrize(
    "words",
    [
        ["haproxy", "-c", "-f", str(DEPLOY / "haproxy" / "haproxy.cfg")],
        ["caddy", "adapt", "--adapter", "caddyfile", "--config", str(DEPLOY / "caddy" / "Caddyfile")],
    ],
    ids=lambda words: str(words[0]),
)
def test_a_proxy_understands_its_file_as_it_stands(words: list[str], tmp_path: Path) -> None:
    path = program(words[0])
    if path is None:
        pytest.skip(f"{words[0]} is not installed")
    understood = run([path, *words[1:]], tmp_path)
    assert understood.returncode == 0, understood.stdout
    assert "WARN" not in understood.stdout.upper()


SEEN_BY = {
    "asgi": """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    seen = f"{scope['scheme']} {scope['client'][0]}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": seen})
""",
    "wsgi": """
def app(environ, start_response):
    start_response("200 OK", [])
    return [f"{environ['wsgi.url_scheme']} {environ['REMOTE_ADDR']}".encode()]
""",
}
FORWARDED = {"X-Forwarded-For": "203.0.113.5", "X-Forwarded-Proto": "https"}
PROXY = "127.0.0.2"
"""Another address of this machine, which no server trusts by default."""


@for_each(ALL)
def test_a_proxy_with_another_address(make_server: Start, site: Site, worker: WorkerClass) -> None:
    """The scheme is believed by every class but Tornado's (and Gunicorn 26's for ASGI), the address by uvicorn's."""
    seen = []
    for environment in ({"FORWARDED_ALLOW_IPS": "127.0.0.1"}, {"FORWARDED_ALLOW_IPS": "*"}):
        server: Server = make_server(worker_class=worker.path, environment=environment, **worker.settings)
        site.write("app.py", SEEN_BY.get(worker.kind, SEEN_BY["wsgi"]))
        server.launch()
        wait_for(lambda: ask(server) is not None, BOOT_TIMEOUT_S, "it answers")  # noqa: B023
        seen.append(ask(server))
        assert server.stop() == 0
    ignored = worker is TORNADO or (worker is ASGI and gunicorn.version_info[:1] == (26,))
    scheme = "http" if ignored else FORWARDED["X-Forwarded-Proto"]
    client = FORWARDED["X-Forwarded-For"] if worker in (UVICORN, UVICORN_H11) else PROXY
    assert seen == [f"http {PROXY}", f"{scheme} {client}"]


def ask(server: Server) -> str | None:
    """Return the answer to a request with the proxy's headers, from its address; None before the server answers."""
    assert isinstance(server.address, tuple)
    host, port = server.address
    connection = http.client.HTTPConnection(str(host), int(port), timeout=10, source_address=(PROXY, 0))
    try:
        connection.request("GET", "/", headers=FORWARDED)
        return connection.getresponse().read().decode()
    except OSError:
        return None
    finally:
        connection.close()
