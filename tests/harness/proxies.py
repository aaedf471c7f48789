"""nginx and HAProxy in front of a server under test, as ordinary child processes.

Rules:

* Foreground, own configuration and own directory, loopback only: nothing of the machine's own proxies is used, and no
  service is started.
* Nothing is ever tried twice by the proxy: what is lost behind it is a 502, 503 or 504 for the client, or a closed
  connection.
* The proxy ends an unused upstream connection :data:`UPSTREAM_IDLE_S` seconds after its last use, long before the
  worker would do it. HTTP/1.1 knows no other way to keep a request from meeting a close that is already under way
  (RFC 9112 9.5), deploy or not.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from types import TracebackType

from tests.harness.clients import Address, Broken, Client
from tests.harness.processes import wait_for
from tests.harness.server import reserve_port

UPSTREAM_IDLE_S = 1
"""Seconds that the proxies keep an unused upstream connection."""
MIXED_REQUESTS = Path(__file__).with_name("mixed_requests.lua")
"""What ``wrk`` sends through a proxy."""
BEHIND = {"keepalive": 10, "graceful_timeout": 15}
"""Gunicorn's settings behind them: the proxy's time is shorter than the worker's, and that fits into the drain's."""

NGINX = """\
daemon off;
{user}
worker_processes 2;
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
    map $http_upgrade $upstream_connection {{ default upgrade; "" ""; }}
    upstream gunicorn {{
        server {upstream};
        keepalive 32;
        keepalive_timeout {idle}s;
    }}
    server {{
        listen {host}:{port};
        client_max_body_size 10m;
        location / {{
            proxy_pass http://gunicorn;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $upstream_connection;
            proxy_request_buffering {buffering};
            proxy_next_upstream off;
        }}
    }}
}}
"""

HAPROXY = """\
global
    maxconn 4096
    nbthread 2
    log stdout format raw local0
defaults
    mode http
    log global
    log-format "%ST %ts %r"
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout tunnel 60s
    http-reuse always
    retries 0
frontend public
    bind {host}:{port}
    default_backend gunicorn
backend gunicorn
    server gunicorn {upstream} pool-purge-delay {idle}s
"""


def program(name: str) -> str | None:
    """Return the path of ``nginx`` or ``haproxy``, None if it is not installed."""
    # Debian puts them where a user's own path may not lead.
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


class Proxy:
    """A proxy in front of ``upstream``, from entering to leaving.

    :param idle: seconds after which an unused upstream connection is ended.
    """

    name = ""
    log_name = "log.txt"

    def __init__(self, upstream: Address, *, idle: int = UPSTREAM_IDLE_S) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="zd-proxy-"))
        self.upstream = upstream
        self.idle = idle
        self.reserved = reserve_port()
        self.address: tuple[str, int] = self.reserved.getsockname()
        self._process: subprocess.Popen[bytes] | None = None

    def arguments(self, configuration: Path) -> list[str]:
        """Return the words of the command behind its name."""
        raise NotImplementedError

    def configuration(self) -> str:
        """Return the text of the configuration."""
        raise NotImplementedError

    def complaints(self) -> list[str]:
        """Return what the proxy says of requests that failed, for the report of a failed test."""
        raise NotImplementedError

    def statuses(self) -> Counter[int]:
        """Return how many requests were answered with each status, by the proxy's own log."""
        file = self.directory / self.log_name
        words = (line.split(maxsplit=1)[0] for line in file.read_text(errors="replace").splitlines() if line)
        return Counter(int(word) for word in words if word.isdigit())

    def __enter__(self) -> Proxy:
        file = self.directory / "configuration"
        file.write_text(self.configuration())
        words = [program(self.name) or self.name, *self.arguments(file)]
        with (self.directory / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                words, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            wait_for(self._answers, 10, f"{self.name} answers")
        except AssertionError:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            print(f"---- {self.name} ----", self.statuses(), *self.complaints()[-50:], sep="\n")
        self._end()

    def _end(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.reserved.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "log.txt").read_text()
        try:
            with Client(self.address) as client:
                return client.ask("GET", "/", headers="Connection: close\r\n").status == 200
        except Broken:
            return False


class Nginx(Proxy):
    """nginx, two workers, each with a pool of 32 upstream connections.

    :param buffering: whether it has read a request's body whole before the upstream gets any of it, as by default.
    """

    name = "nginx"
    log_name = "access.log"

    def __init__(self, upstream: Address, *, idle: int = UPSTREAM_IDLE_S, buffering: bool = True) -> None:
        super().__init__(upstream, idle=idle)
        self.buffering = buffering

    def arguments(self, configuration: Path) -> list[str]:
        return ["-p", str(self.directory), "-c", str(configuration), "-e", str(self.directory / "error.log")]

    def configuration(self) -> str:
        host, port = self.address
        # Started as root it would give its workers to a user who may not come near the tests' directories.
        user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
        upstream = f"unix:{self.upstream}" if isinstance(self.upstream, str) else "%s:%s" % self.upstream
        return NGINX.format(
            directory=self.directory,
            user=user,
            host=host,
            port=port,
            upstream=upstream,
            idle=self.idle,
            buffering="on" if self.buffering else "off",
        )

    def complaints(self) -> list[str]:
        return (self.directory / "error.log").read_text(errors="replace").splitlines()


class HAProxy(Proxy):
    """HAProxy, two threads that share their upstream connections; of unused ones it ends half in each ``idle``."""

    name = "haproxy"

    def arguments(self, configuration: Path) -> list[str]:
        return ["-db", "-f", str(configuration)]

    def configuration(self) -> str:
        host, port = self.address
        upstream = f"unix@{self.upstream}" if isinstance(self.upstream, str) else "%s:%s" % self.upstream
        return HAPROXY.format(host=host, port=port, upstream=upstream, idle=self.idle)

    def complaints(self) -> list[str]:
        # Two letters for how a session ended, "--" for a good end (configuration manual, 8.5).
        lines = (self.directory / self.log_name).read_text(errors="replace").splitlines()
        return [line for line in lines if line.split(maxsplit=2)[1:2] != ["--"]]
