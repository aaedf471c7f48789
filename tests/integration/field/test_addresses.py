"""When a reload is done, the master listens at every address that the configuration names, and at no other."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Address, Client
from tests.harness.control_client import reload_error
from tests.harness.processes import listeners, ports, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start, reserve_port


def text(address: Address) -> str:
    return "%s:%s" % address


def answer(address: Address) -> str:
    """Return the version that answers at ``address``."""
    with Client(address) as client:
        return str(client.ask("GET", "/").json()["version"])


def reload(server: Server, bind: str | list[str], version: str = "") -> str | None:
    """Reload to another ``bind`` and, if given, another version; return the error, None if the reload is done."""
    server.configure(bind=bind)
    if version:
        server.site.deploy(version)
    return reload_error(server)


def with_control(site: Site) -> dict[str, str]:
    return {"zd_control_socket": str(site.directory / "control.sock")}


def test_a_descriptor_beside_an_address(make_server: Start, site: Site) -> None:
    """Each is listened on at the start, keeps its socket while it is named, in whatever order, and only then."""
    with socket.create_server(("127.0.0.1", 0)) as handed_over, reserve_port() as other:
        number, given, third = handed_over.fileno(), handed_over.getsockname(), other.getsockname()
        server = make_server(workers=1, pass_fds=[number], **with_control(site))
        own, descriptor = text(server.address), f"fd://{number}"
        server.settings["bind"] = [own, descriptor]
        server.start()
        assert (answer(server.address), answer(given)) == ("one", "one")
        held = listeners(server.master)

        assert reload(server, [descriptor, own], "two") is None
        assert (answer(server.address), answer(given)) == ("two", "two")
        assert listeners(server.master) == held

        # Another name for the same address, and one more address.
        assert reload(server, [text(third), f"tcp://LOCALHOST:{server.address[1]}", text(given)], "three") is None
        assert [answer(address) for address in (server.address, given, third)] == ["three"] * 3
        assert listeners(server.master) > held

        assert reload(server, [own], "four") is None
        assert answer(server.address) == "four"
        assert ports(server.master) == [server.address[1]]

        error = reload(server, [own, descriptor])
        assert error is not None
        assert descriptor in error
        assert answer(server.address) == "four"


REFUSED = {
    "unknown descriptor": ("fd://{unknown}", "fd://{unknown}"),
    "the same address twice": ("localhost:{port}", "localhost:{port}"),
    "no port": ("127.0.0.1:x", "'x'"),
}


def test_what_cannot_be_listened_on_is_refused(start: Start, site: Site) -> None:
    server = start(workers=1, **with_control(site))
    workers, held, own = server.workers(), listeners(server.master), text(server.address)
    values = {"unknown": 3, "port": server.address[1]}
    for bind, named in REFUSED.values():
        error = reload(server, [own, bind.format(**values)])
        assert error is not None
        assert named.format(**values) in error
        assert "\n" not in error
    assert reload(server, []) is not None
    assert (server.workers(), listeners(server.master)) == (workers, held)
    assert reload(server, own, "two") is None
    assert answer(server.address) == "two"


@pytest.mark.parametrize(
    ("bind", "named"),
    [(["127.0.0.1:{port}", "localhost:{port}"], "localhost:{port}"), (["fd://{free}"], "fd://{free}"), ([], "bind")],
    ids=["the same address twice", "no such descriptor", "nothing"],
)
def test_what_cannot_be_listened_on_ends_the_start(make_server: Start, site: Site, bind: list[str], named: str) -> None:
    server = make_server(workers=1, reuse_port=True)
    values: dict[str, Any] = {"port": server.address[1], "free": 77}
    server.settings["bind"] = [each.format(**values) for each in bind]
    assert server.launch().wait_exit(BOOT_TIMEOUT_S) == 1
    assert named.format(**values) in server.log
    assert "Traceback" not in server.log


def test_a_relative_path_belongs_to_its_release(make_server: Start, site: Site) -> None:
    """The path leads into the release that is current: a proxy that connects there finds the new one."""
    site.release("one")
    server = make_server("--chdir", "current", workers=1, bind="unix:app.sock", **with_control(site))
    server.address = str(site.directory / "current" / "app.sock")
    server.start()
    old = site.directory / "releases" / "one" / "app.sock"
    assert (answer(str(old)), answer(server.address)) == ("one", "one")
    site.release("two")
    assert reload(server, "unix:app.sock") is None
    assert answer(server.address) == "two"
    assert not old.exists()

    held = listeners(server.master)
    site.deploy("two")  # not into the release: nothing but the signal
    assert reload(server, f"unix:{server.address}") is None
    assert listeners(server.master) == held, "the same file by another path"

    os.unlink(server.address)
    assert reload(server, "unix:app.sock") is None
    assert answer(server.address) == "two"

    # Another server has taken the path: it is not thrown out, neither by a reload nor by the end.
    os.unlink(server.address)
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(server.address)
        foreign.listen()
        error = reload(server, "unix:app.sock")
        assert error is not None
        assert "app.sock" in error
        assert server.stop() == 0
        assert os.path.exists(server.address)


def test_sockets_of_an_old_master(make_server: Start, site: Site) -> None:
    """A stock master hands its sockets over (``USR2``): they serve, and so does what ``bind`` names beside them."""
    path = str(site.directory / "old.sock")
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(path)
        old.listen()
        environment = {"GUNICORN_PID": str(os.getpid()), "GUNICORN_FD": str(old.fileno())}
        server = make_server(workers=1, environment=environment, pass_fds=[old.fileno()], **with_control(site))
        server.start()
        assert (answer(server.address), answer(path)) == ("one", "one")
        assert reload(server, text(server.address), "two") is None
        assert (answer(server.address), answer(path)) == ("two", "two")
        assert server.stop() == 0
        assert os.path.exists(path), "the old master still listens there"


ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""What systemd does between fork and exec."""


def test_sockets_of_systemd(make_server: Start, site: Site) -> None:
    """They are the ones that count: ``bind`` opens nothing, at a reload as at the start, and it is said."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.closing(reserve_port()) as other:
        number = listener.fileno()
        words = [sys.executable, "-c", ACTIVATE, str(number), sys.executable, "-m", "gunicorn"]
        server = make_server(command=words, pass_fds=[number], workers=1, **with_control(site))
        unused, server.address = text(server.address), listener.getsockname()
        server.start()
        assert set(ports(server.master)) == {server.address[1]}
        assert reload(server, text(other.getsockname()), "two") is None
        assert set(ports(server.master)) == {server.address[1]}
        assert answer(server.address) == "two"
        for address in (unused, text(other.getsockname())):
            wait_for(lambda address=address: address in server.log, BOOT_TIMEOUT_S, f"the log names {address}")  # type: ignore[misc]
