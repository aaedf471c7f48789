"""Who is compared, each configured as its own documentation recommends.

Rules:

* The same number of workers, the same application, a port on the loopback; no logs of requests.
* A difference from a default stands in the command, with ``source`` saying where it is recommended.
* What is not installed is a contender too, with the reason.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Literal

from tests.benchmarks.deploys import signals
from tests.benchmarks.deploys.applications import Kind
from tests.benchmarks.deploys.servers import KEEPALIVE_S, PROGRAMS

Style = Literal["new", "kept", "slow", "websocket", "crowd"]
HTTP: tuple[Style, ...] = ("new", "kept", "slow", "crowd")
ALL: tuple[Style, ...] = (*HTTP, "websocket")
PORT = "127.0.0.1:@PORT@"


@dataclass(frozen=True)
class Contender:
    """One way to serve and to deploy.

    :param title: as in the tables.
    :param how: what one does after the new code is on disk.
    :param needs: "module NAME" or "program NAME", without which it is missing.
    :param package: the one whose version is shown.
    :param loads: those that its application and protocol know.
    :param keep: words of the command, before the last one, with which it keeps idle connections for
        ``KEEPALIVE_S`` seconds; empty for one that reads it from the environment (``KEEPALIVE``), or keeps none.
    """

    name: str
    title: str
    kind: Kind
    command: tuple[str, ...]
    how: str
    deploy: signals.Deploy
    source: str
    needs: tuple[str, ...] = ()
    package: str = ""
    loads: tuple[Style, ...] = ALL
    files: dict[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] = ()

    def keeping(self) -> Contender:
        """Return this one with a command that keeps idle connections for ``KEEPALIVE_S`` seconds."""
        return replace(self, command=(*self.command[:-1], *self.keep, self.command[-1]))

    def missing(self) -> str:
        """Why it cannot be measured here; empty when it can."""
        for need in self.needs:
            what, name = need.split()
            if what == "module" and importlib.util.find_spec(name) is None:
                return f"Python module {name} is not installed"
            if what == "program" and not found(name):
                return f"program {name} is not installed"
        return ""

    def version(self) -> str:
        """Of the Python package, where it is one."""
        return metadata.version(self.package) if self.package and not self.missing() else ""


def found(program: str) -> str | None:
    """Where a program is: beside the interpreter, else on the path."""
    return shutil.which(program, path=os.pathsep.join([str(PROGRAMS), os.environ.get("PATH", os.defpath)]))


# -- Gunicorn ------------------------------------------------------------------------------------------------------

# the program, not -m: the second master of USR2 could not import http, which gunicorn/http would stand in the place of
GUNICORN = ("gunicorn", "--bind", PORT, "--workers", "@WORKERS@", "--pid", "gunicorn.pid")
KEEP = ("--keep-alive", str(KEEPALIVE_S))
APPLICATION = "application:app"
OURS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "UvicornWorker": ("asgi", ()),
    "UvicornH11Worker": ("asgi", ()),
    "ASGIWorker": ("asgi", ()),
    "ThreadWorker": ("wsgi", ("--threads", "8")),
    "GeventWorker": ("wsgi", ()),
    "TornadoWorker": ("tornado", ()),
    "WSGIWorker": ("wsgi", ()),
}
STOCK: dict[str, tuple[Kind, tuple[str, ...], str]] = {
    "uvicorn_worker.UvicornWorker": ("asgi", (), "uvicorn_worker"),
    "asgi": ("asgi", (), "gunicorn"),
    "gthread": ("wsgi", ("--threads", "8"), "gunicorn"),
    "gevent": ("wsgi", (), "gevent"),
    "sync": ("wsgi", (), "gunicorn"),
}
MODULES = {"UvicornH11Worker": "h11", "GeventWorker": "gevent", "TornadoWorker": "tornado"}


def _loads(kind: Kind, worker: str) -> tuple[Style, ...]:
    if worker in ("sync", "WSGIWorker"):
        return tuple(style for style in HTTP if style != "crowd")  # they keep no connection
    return HTTP if kind == "wsgi" else ALL


def _ours(name: str, *options: str) -> Contender:
    kind, more = OURS[name]
    return Contender(
        name=f"zdworker-{name}{''.join(options)[1:]}",
        title=" ".join((f"zdworker.{name}", *options)),
        kind=kind,
        command=(*GUNICORN, "-k", f"zdworker.{name}", *more, *options, APPLICATION),
        how="USR2",
        deploy=signals.send(signal.SIGUSR2),
        source="README.md",
        needs=(f"module {MODULES.get(name, 'zdworker')}",),
        package="zdworker",
        loads=_loads(kind, name),
        keep=KEEP,
    )


def _stock(worker: str, how: str) -> Contender:
    kind, more, module = STOCK[worker]
    short = worker.partition(".")[0]
    return Contender(
        name=f"gunicorn-{short}-{how.partition(' ')[0].lower()}",
        title=f"Gunicorn {short}, {how}",
        kind=kind,
        command=(*GUNICORN, "-k", worker, *more, APPLICATION),
        how=how,
        deploy=signals.send(signal.SIGHUP) if how == "HUP" else signals.second_master,
        source="https://gunicorn.org/signals",
        needs=(f"module {module}",),
        package="gunicorn",
        loads=_loads(kind, worker),
        keep=KEEP,
    )


# -- the others of Python ------------------------------------------------------------------------------------------

UVICORN = Contender(
    name="uvicorn",
    title="uvicorn --workers",
    kind="asgi",
    command=(
        sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", "@PORT@", "--workers", "@WORKERS@",
        "--no-access-log", APPLICATION,
    ),
    how="HUP",
    deploy=signals.send(signal.SIGHUP),
    source="https://www.uvicorn.org/deployment/",
    needs=("module uvicorn",),
    package="uvicorn",
    keep=("--timeout-keep-alive", str(KEEPALIVE_S)),
)  # fmt: skip
GRANIAN = Contender(
    name="granian",
    title="granian",
    kind="asgi",
    command=(
        "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", "@PORT@", "--workers", "@WORKERS@",
        "--respawn-failed-workers", APPLICATION,
    ),
    how="HUP",
    deploy=signals.send(signal.SIGHUP),
    source="https://github.com/emmett-framework/granian",
    needs=("program granian",),
    package="granian",
)  # fmt: skip
HYPERCORN = Contender(
    name="hypercorn",
    title="hypercorn",
    kind="asgi",
    command=("hypercorn", "--bind", PORT, "--workers", "@WORKERS@", APPLICATION),
    how="HUP",
    deploy=signals.send(signal.SIGHUP),
    source="https://hypercorn.readthedocs.io/; the signal: hypercorn/run.py",
    needs=("program hypercorn",),
    package="hypercorn",
    keep=KEEP,
)
UWSGI = Contender(
    name="uwsgi",
    title="uWSGI, chain reloading",
    kind="wsgi",
    command=("uwsgi", "--ini", "uwsgi.ini"),
    how="c into the master's FIFO",
    deploy=signals.chain,
    source="https://uwsgi-docs.readthedocs.io/en/latest/articles/TheArtOfGracefulReloading.html",
    needs=("program uwsgi",),
    package="uwsgi",
    loads=("new", "kept", "slow"),
    # add-header: http-socket keeps no connection, and HTTP/1.1 clients have to know
    files={
        "uwsgi.ini": f"""\
[uwsgi]
http-socket = {PORT}
wsgi-file = application.py
callable = app
processes = @WORKERS@
threads = 8
master = true
lazy-apps = true
need-app = true
strict = true
vacuum = true
die-on-term = true
single-interpreter = true
master-fifo = fifo
disable-logging = true
add-header = Connection: close
"""
    },
)

# -- other languages -----------------------------------------------------------------------------------------------

CLUSTER = """\
// The cluster script as many write it: for each old worker a new one, the old one leaves when that listens.
const cluster = require('cluster');
cluster.setupPrimary({ exec: 'application.js' });
for (let number = 0; number < Number(process.env.WORKERS); number++) cluster.fork();
const leaving = new Set();
cluster.on('exit', worker => { if (!leaving.delete(worker.id)) cluster.fork(); });
process.on('SIGHUP', async () => {
  for (const old of Object.values(cluster.workers)) {
    const fresh = cluster.fork();
    await new Promise(resolve => fresh.once('listening', resolve));
    leaving.add(old.id);
    old.disconnect();
  }
});
process.on('SIGTERM', () => process.exit(0));
"""
NODE = Contender(
    name="node",
    title="Node cluster script",
    kind="node",
    command=("node", "cluster.js"),
    how="HUP",
    deploy=signals.send(signal.SIGHUP),
    source="https://nodejs.org/api/cluster.html",
    needs=("program node",),
    loads=HTTP,
    files={"cluster.js": CLUSTER},
)
PM2 = Contender(
    name="pm2",
    title="PM2, cluster mode",
    kind="node",
    command=("pm2", "start", "ecosystem.config.js"),
    how="pm2 reload",
    deploy=signals.pm2,
    source="https://pm2.keymetrics.io/docs/usage/signals-clean-restart/",
    needs=("program node", "program pm2"),
    loads=HTTP,
    files={
        "ecosystem.config.js": """\
module.exports = { apps: [{
  name: 'application', script: 'application.js', exec_mode: 'cluster', instances: @WORKERS@,
  wait_ready: true, listen_timeout: 10000, kill_timeout: 10000,
}] };
"""
    },
)
PUMA = Contender(
    name="puma",
    title="Puma, phased restart",
    kind="rack",
    command=("puma", "--config", "puma.rb"),
    how="USR1",
    deploy=signals.send(signal.SIGUSR1),
    source="https://github.com/puma/puma/blob/master/docs/restart.md",
    needs=("program puma",),
    loads=HTTP,
    files={
        "puma.rb": f"""\
environment 'production'
bind 'tcp://{PORT}'
workers @WORKERS@
threads 5, 5
persistent_timeout Integer(ENV.fetch('KEEPALIVE', 65))
preload_app! false
"""
    },
)

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        *(_ours(name, *options) for name in OURS for options in ((), ("--preload",))),
        *(_stock(worker, how) for worker in STOCK for how in ("HUP", "USR2 + TERM")),
        UVICORN,
        GRANIAN,
        HYPERCORN,
        UWSGI,
        PM2,
        NODE,
        PUMA,
    )
}
