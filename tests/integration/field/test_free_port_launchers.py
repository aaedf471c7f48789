"""A launcher that looks for a free port finds the master's own port taken when a generation runs it again."""

from __future__ import annotations

import sys

from tests.harness.application_site import Site
from tests.harness.clients import Client
from tests.harness.control_client import reload_error
from tests.harness.processes import ports, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start, reserve_port

LAUNCHER = """
import socket

from gunicorn.app.base import BaseApplication


def in_use(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


port = {port}
{search}


class Embedded(BaseApplication):
    def load_config(self):
        for name, value in {options!r}.items():
            self.cfg.set(name, value)
        self.cfg.set("bind", f"127.0.0.1:{{port}}")
        self.cfg.set("raw_env", [f"APP_TOKEN=secret-{{port}}"])

    def load(self):
        from app import app

        return app


Embedded().run()
"""
SEARCH = "while in_use(port):\n    port = {second}"
"""Not the next one, which another process may have."""


def launcher(server: Server, port: int | str, search: str = "") -> None:
    options = {name: value for name, value in server.settings.items() if name != "bind"}
    server.site.write("launch.py", LAUNCHER.format(port=port, search=search, options=options))


def warned(server: Server, *words: str) -> bool:
    """Return whether one warning of the log has all of these words."""
    return any(all(word in line for word in ("[WARNING]", *words)) for line in server.log.splitlines())


def reload(server: Server, version: str) -> str | None:
    """Deploy and reload; return the error, None if the reload is done."""
    server.site.deploy(version)
    return reload_error(server)


def test_the_site_stays_on_its_port(make_server: Start, site: Site) -> None:
    control = str(site.directory / "control.sock")
    server = make_server(workers=1, environment={"ZD_CONTROL_SOCKET": control})
    server.words = [sys.executable, "launch.py"]
    port = server.address[1]
    with reserve_port() as free:
        second = free.getsockname()[1]
        launcher(server, port, SEARCH.format(second=second))
        server.launch_as_is().wait_full()

        # Known at the start: the setting, with both values; of the environment only the name.
        for words in (("bind", f":{port}'", f":{second}'"), ("APP_TOKEN",)):
            wait_for(lambda words=words: warned(server, *words), BOOT_TIMEOUT_S, f"a warning: {words}")  # type: ignore[misc]
        assert "secret" not in server.log
        assert server.get()["version"] == "one"

        # A reload that would move the site is refused, with both addresses.
        error = reload(server, "two")
        assert error is not None
        assert f"127.0.0.1:{second}" in error
        assert f"127.0.0.1:{port} " in error
        assert ports(server.master) == [port]
        assert server.get()["version"] == "one"

    # A fixed launcher deploys; from then on its bind is believed.
    launcher(server, port)
    assert reload(server, "two") is None
    assert server.get()["version"] == "two"
    with reserve_port() as other:
        launcher(server, other.getsockname()[1])
        assert reload(server, "three") is None
        assert ports(server.master) == [other.getsockname()[1]]
        with Client(other.getsockname()) as client:
            assert client.ask("GET", "/").json()["version"] == "three"
        # Each change of address is one line of the log for what is opened, and one for what is closed.
        new, gone = f"http://127.0.0.1:{other.getsockname()[1]}", f"http://127.0.0.1:{port}"

        def named() -> list[int]:
            lines = server.log.splitlines()
            return [sum(address in line for line in lines) for address in (new, gone)]

        what = "the new address is named once, the other one at the start, and when it was closed"
        wait_for(lambda: named() == [1, 2], BOOT_TIMEOUT_S, what)


def test_an_ordinary_configuration_gives_no_warning(make_server: Start, site: Site) -> None:
    """Nothing that depends on the directory, the link to it, the process or the order of a set differs."""
    site.release("one")
    current = site.directory / "current"
    extra = """
import multiprocessing
import os

proc_name = os.path.basename(os.getcwd())
pythonpath = os.environ["PWD"]
errorlog = os.path.join(os.environ["PWD"], "error.txt")
forwarded_allow_ips = ",".join(["127.0.0.1", "::1"])
raw_env = list({f"NAME_{number}=1" for number in range(9)})
workers = min(2, multiprocessing.cpu_count())
pidfile = os.path.abspath("gunicorn.pid")
"""
    server = make_server(extra=extra)
    server.configure()
    (site.directory / "gunicorn.conf.py").rename(site.directory / "releases" / "one" / "gunicorn.conf.py")
    server.words = ["sh", "-c", 'cd "$0" && exec "$@"', str(current), *server.words]
    server.launch_as_is()
    wait_for(lambda: site.marks("startup"), BOOT_TIMEOUT_S, "a worker has started")
    log = (current / "error.txt").read_text() + server.log
    assert "WARNING" not in log
