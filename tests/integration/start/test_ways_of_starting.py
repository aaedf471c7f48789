"""Every way in which Gunicorn is started works as with stock Gunicorn, and can be reloaded."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import signal
import socket
import subprocess
import sys
from pathlib import Path

import gunicorn
import pytest

from tests.harness.application_site import LOOKS, Site
from tests.harness.clients import Address, Client
from tests.harness.processes import ports, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, DEFAULT_CLASS, Server, Start, run_once, script

HAS_CONTROL_SOCKET = gunicorn.version_info >= (25, 1)
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")


def ask(address: Address) -> str:
    """Return the version that answers at ``address``."""
    with Client(address) as client:
        return str(client.ask("GET", "/").json()["version"])


def assert_reloads_and_stops(server: Server) -> None:
    assert server.get()["version"] == "one"
    server.reload("two")
    assert server.get()["version"] == "two"
    assert server.stop() == 0
    server.wait_nothing_left(10)


@pytest.mark.parametrize("words", [(sys.executable, "-m", "gunicorn"), (script("gunicorn"),)], ids=["-m", "script"])
@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_both_ways_to_call_gunicorn(start: Start, words: tuple[str, ...], preload: bool) -> None:
    assert_reloads_and_stops(start(command=words, preload_app=preload))


def test_a_wrapper_that_gives_the_interpreter_its_own_name(start: Start, site: Site) -> None:
    """As nixpkgs' ``makeWrapper`` and systemd's ``ExecStart=@`` do it; Python takes that name for its own path."""
    wrapper = site.directory / "shop"
    wrapper.write_text(f'#!/bin/bash\nexec -a "$0" {os.path.realpath(sys.executable)} -m gunicorn "$@"\n')
    wrapper.chmod(0o755)
    packages = os.pathsep.join(entry for entry in sys.path if entry)
    assert_reloads_and_stops(start(command=(str(wrapper),), environment={"PYTHONPATH": packages}))


def test_an_interpreter_with_the_name_of_a_script_of_its_environment(start: Start) -> None:
    """``ExecStart=@/srv/venv/bin/python gunicorn -m gunicorn``: Python finds its environment by that name."""
    python = Path(sys.executable)
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    words = ("bash", "-c", 'exec -a gunicorn "$@"', "-", str(python), "-m", "gunicorn")
    assert_reloads_and_stops(start(command=words, environment={"PATH": path}))


def test_without_a_configuration_file(make_server: Start, site: Site) -> None:
    """Everything on the command line, as in most Procfiles."""
    server = make_server()
    server.words = [
        script("gunicorn"),
        "-k",
        DEFAULT_CLASS,
        "-w",
        "2",
        "-b",
        "%s:%s" % server.address,
        "app:app",
    ]
    server.configure()
    (site.directory / "gunicorn.conf.py").unlink()
    server.environment["GUNICORN_CMD_ARGS"] = "--keep-alive 1" + " --no-control-socket" * HAS_CONTROL_SOCKET
    server.launch_as_is().wait_full()
    assert_reloads_and_stops(server)


# -- answers without a server --------------------------------------------------------------------------------


def test_check_config(site: Site) -> None:
    good = run_once(site, "gunicorn", "--check-config", "-k", DEFAULT_CLASS, "app:app")
    assert (good.returncode, good.stdout) == (0, "")
    site.break_("raise")
    assert run_once(site, "gunicorn", "--check-config", "-k", DEFAULT_CLASS, "app:app").returncode != 0


def test_print_config(site: Site) -> None:
    printed = run_once(site, "gunicorn", "--print-config", "-k", DEFAULT_CLASS, "-w", "3", "app:app")
    assert printed.returncode == 0
    lines = dict(line.split("=", 1) for line in printed.stdout.splitlines() if "=" in line)
    settings = {name.strip(): value.strip() for name, value in lines.items()}
    assert settings["worker_class"] == DEFAULT_CLASS
    assert settings["workers"] == "3"


# -- ways to start -------------------------------------------------------------------------------------------


def test_start_as_a_daemon(make_server: Start, site: Site) -> None:
    log = str(site.directory / "error.txt")
    server = make_server("--daemon", pidfile="gunicorn.pid", errorlog=log)
    server.launch()
    assert server.wait_exit(BOOT_TIMEOUT_S) == 0
    pidfile = site.directory / "gunicorn.pid"
    wait_for(lambda: pidfile.exists() and pidfile.read_text().strip(), BOOT_TIMEOUT_S, "the pidfile is written")
    server.adopt(int(pidfile.read_text()))
    server.wait_full()
    assert server.get()["version"] == "one"
    server.reload("two")
    assert server.get()["version"] == "two"
    assert int(pidfile.read_text()) == server.master
    server.signal(signal.SIGTERM)
    server.wait_nothing_left(BOOT_TIMEOUT_S)
    assert not pidfile.exists()
    assert server.port_free()


EMBEDDED = """
import sys

from gunicorn.app.base import BaseApplication


class Embedded(BaseApplication):
    def load_config(self):
        for name, value in {options!r}.items():
            self.cfg.set(name, value)

    def load(self):
        from app import app

        return app


if __name__ == "__main__":
    Embedded().run()
"""


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_custom_base_application(make_server: Start, site: Site, preload: bool) -> None:
    server = make_server()
    control = {"control_socket": str(site.directory / "gunicorn.ctl")} if HAS_CONTROL_SOCKET else {}
    options = {**server.settings, "preload_app": preload, **control}
    site.write("embed.py", EMBEDDED.format(options=options))
    server.words = [sys.executable, "embed.py"]
    assert_reloads_and_stops(server.start())


def test_custom_base_application_from_standard_input(make_server: Start, site: Site) -> None:
    """A script that nobody can run a second time: rolled with Gunicorn's own fork, and it says so."""
    server = make_server()
    text = EMBEDDED.format(options=server.settings)
    site.write("embed.py", text)
    server.words = ["sh", "-c", f"exec {sys.executable} - <embed.py"]
    server.start()
    assert server.get()["version"] == "one"
    server.reload("two")
    assert server.get()["version"] == "two"
    assert server.stop() == 0


def test_reload_in_development(start: Start, site: Site) -> None:
    """``--reload``: a changed file brings new code without a signal."""
    server = start("--reload", workers=1, reload_engine="poll", extra=LOOKS)
    assert server.get()["version"] == "one"
    # What has changed before the reloader has looked at all files for the first time is passed over, in stock too.
    wait_for(lambda: len(site.events("look")) > 2, BOOT_TIMEOUT_S, "it has looked twice")
    site.deploy("two")
    wait_for(lambda: server.site.marks("startup", "two"), BOOT_TIMEOUT_S, "the changed file is served")
    server.wait_only("two")


# -- addresses -----------------------------------------------------------------------------------------------


def test_unix_bind(make_server: Start, site: Site) -> None:
    path = str(site.directory / "gunicorn.sock")
    server = make_server(bind=f"unix:{path}")
    server.address = path
    server.start()
    assert_reloads_and_stops(server)
    assert not os.path.exists(path)


def test_several_binds(make_server: Start, site: Site) -> None:
    path = str(site.directory / "gunicorn.sock")
    server = make_server()
    with contextlib.closing(socket.socket()) as second:
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        second.bind(("127.0.0.1", 0))
        addresses: list[Address] = [server.address, second.getsockname(), path]
        server.settings["bind"] = ["%s:%s" % server.address, "%s:%s" % second.getsockname(), f"unix:{path}"]
        server.start()
        assert [ask(address) for address in addresses] == ["one"] * 3
        server.reload("two")
        assert [ask(address) for address in addresses] == ["two"] * 3
        assert server.stop() == 0


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_fd_bind(make_server: Start, preload: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(bind=f"fd://{listener.fileno()}", pass_fds=[listener.fileno()], preload_app=preload)
        server.address = listener.getsockname()
        server.start()
        assert_reloads_and_stops(server)


ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""What systemd does between fork and exec."""


def test_socket_activation(make_server: Start) -> None:
    """The sockets that systemd hands over (sd_listen_fds(3)): they begin at descriptor 3."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = str(listener.fileno())
        words = [sys.executable, "-c", ACTIVATE, number, sys.executable, "-m", "gunicorn"]
        server = make_server(command=words, pass_fds=[listener.fileno()])
        server.address = listener.getsockname()
        server.start()
        assert_reloads_and_stops(server)


def test_port_zero_keeps_its_port(make_server: Start) -> None:
    server = make_server(bind="127.0.0.1:0")
    server.start()
    (port,) = ports(server.master)
    server.address = ("127.0.0.1", port)
    assert_reloads_and_stops(server)


def test_start_with_reuse_port(start: Start) -> None:
    assert_reloads_and_stops(start(reuse_port=True))


def test_bind_that_changes_with_a_reload(start: Start, site: Site) -> None:
    """The new address is opened beside the old one; connections of the old one are answered."""
    server = start()
    with Client(server.address) as old, contextlib.closing(socket.socket()) as second:
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        second.bind(("127.0.0.1", 0))
        server.configure(bind="%s:%s" % second.getsockname())
        site.deploy("two")
        server.signal(signal.SIGUSR2)
        wait_for(lambda: site.marks("startup", "two"), BOOT_TIMEOUT_S, "a new worker has started")
        assert old.ask("GET", "/").status == 200
        server.wait_only("two")
        assert ask(second.getsockname()) == "two"
        assert server.stop() == 0


# -- users and places ----------------------------------------------------------------------------------------


def readable_by_nobody() -> bool:
    """Whether the interpreter of these tests is one that nobody may use (not one in root's home)."""
    words = [sys.executable, "-c", "import uvicorn, asyncio"]
    try:
        done = subprocess.run(words, user="nobody", group="nogroup", capture_output=True, check=False)
    except PermissionError:
        return False
    return done.returncode == 0


@ROOT
def test_start_with_a_group(start: Start) -> None:
    server = start("--group", "nogroup")
    server.reload("two")
    answer = server.get("/identity")
    assert (answer["uid"], answer["gid"]) == (0, grp.getgrnam("nogroup").gr_gid)


@ROOT
@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_start_with_a_user_and_a_group(start: Start, preload: bool) -> None:
    if not preload and not readable_by_nobody():
        pytest.skip("nobody may not read this interpreter's library; with --preload it has been read before")
    nobody = pwd.getpwnam("nobody")
    server = start("--user", "nobody", "--group", str(nobody.pw_gid), preload_app=preload)
    answer = server.get("/identity")
    assert (answer["uid"], answer["gid"]) == (nobody.pw_uid, nobody.pw_gid)
    server.reload("two")
    answer = server.get("/identity")
    assert (answer["uid"], answer["gid"], answer["version"]) == (nobody.pw_uid, nobody.pw_gid, "two")
    os.kill(server.workers()[0], signal.SIGKILL)
    server.wait_full()
    server.signal(signal.SIGKILL)
    server.wait_nothing_left(10)  # the death signal survives the change of user


def test_environment_from_the_command_line(start: Start) -> None:
    server = start("--env", "FROM_COMMAND_LINE=yes", raw_env=["FROM_FILE=no"])
    server.reload("two")
    assert server.get("/environment?name=FROM_COMMAND_LINE")["value"] == "yes"


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
@pytest.mark.parametrize("way", ["chdir", "directory"])
def test_releases_behind_a_link(make_server: Start, site: Site, preload: bool, way: str) -> None:
    """A reload follows the flipped link; a respawn stays in the release that was running."""
    site.release("one")
    server = make_server(preload_app=preload, workers=2)
    current = site.directory / "current"
    conf = str(site.directory / "gunicorn.conf.py")
    words = [sys.executable, "-m", "gunicorn", "-c", conf]
    if way == "chdir":
        server.words = [*words, "--chdir", str(current), "app:app"]
    else:
        server.words = ["sh", "-c", 'cd "$0" && exec "$@"', str(current), *words, "app:app"]
    server.start()
    assert server.get("/identity")["directory"] == str((site.directory / "releases" / "one").resolve())
    site.release("two")
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_for(lambda: len(site.marks("startup")) == 3, BOOT_TIMEOUT_S, "the replacement has started")
    server.wait_full()
    assert set(server.versions().values()) == {"one"}
    server.signal(signal.SIGUSR2)
    server.wait_only("two")
    assert server.get("/identity")["directory"] == str((site.directory / "releases" / "two").resolve())
