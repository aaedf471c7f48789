"""The configuration that a reload brings is taken over whole or not at all, whatever comes in between."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator

import pytest
from gunicorn.config import Config

from tests.harness import control_client
from tests.harness.application_site import Site
from tests.harness.clients import Address, Broken, Client, request
from tests.harness.processes import ports, stand_still, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start, reserve_port

QUICKLY = 20.0
"""Seconds in which an address that nobody listens to any more refuses: less than a drain may take."""

SLOW = """

_startup = lifespan


async def lifespan(receive, send):
    time.sleep(0.7)
    await _startup(receive, send)
"""
"""Each worker boots slowly, preloaded or not: what happens meanwhile happens in the middle of a rollout."""

PRELOAD = pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
Further = Callable[[], Address]


def test_a_configuration_that_can_be_evaluated_in_the_main_thread_only(start: Start, site: Site) -> None:
    server = start(workers=1)
    file = site.directory / "gunicorn.conf.py"
    file.write_text(f"import signal\nsignal.signal(signal.SIGPROF, lambda *_: None)\n{file.read_text()}")
    server.reload("two")


@pytest.fixture
def further() -> Iterator[Further]:
    """Give a further address at each call."""
    held: list[socket.socket] = []

    def give() -> Address:
        held.append(reserve_port())
        host, port = held[-1].getsockname()
        return host, port

    yield give
    for each in held:
        each.close()


def text(address: Address) -> str:
    return "%s:%s" % address


def refuses(address: Address) -> bool:
    try:
        Client(address).close()
    except Broken as error:
        return str(error) == "refused"
    return False


def assert_only_address(server: Server, address: Address, version: str, *closed: Address) -> None:
    """The master listens at ``address`` and nowhere else, and is answered for there."""
    wait_for(lambda: ports(server.master) == [address[1]], 30, f"only {address} is listened to")
    for other in closed:
        wait_for(lambda other=other: refuses(other), QUICKLY, f"{other} refuses")  # type: ignore[misc]
    with Client(address) as client:
        assert client.ask("GET", "/").json()["version"] == version


def reload_in_vain(server: Server) -> None:
    """Send USR2, and wait until a further generation has failed and gone."""
    before = server.fork_servers()
    assert control_client.reload(server)["result"] == "failed"
    wait_for(lambda: server.fork_servers() == before, BOOT_TIMEOUT_S, "the further generation has been given up")


def test_timeouts_of_the_configuration_file(start: Start, site: Site) -> None:
    """The new workers have the new ones, and the master goes by them."""
    server = start(workers=2, timeout=60, graceful_timeout=60)
    server.configure(timeout=4, graceful_timeout=1)
    server.reload("two")
    stand_still(server.workers()[0])
    wait_for(lambda: site.events("worker_abort") or len(site.events("child_exit")) >= 3, BOOT_TIMEOUT_S, "it was ended")
    server.wait_full()
    with Client(server.address) as slow:
        slow.send(request("GET", "/sleep?seconds=300"))
        wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "a worker has the request")
        server.reload("three")


LOGGER = """
from gunicorn.glogging import Logger


class OwnLogger(Logger):
    pass


logger_class = OwnLogger


def post_fork(server, worker):
    _note("logger", name=type(worker.log).__name__)
"""


def test_logger_class_of_the_configuration_file(start: Start, site: Site) -> None:
    """Each evaluation makes a class of its own; to a reader of the file it is the same one."""
    server = start(extra=LOGGER)
    server.reload("two")
    server.reload("three")
    assert [event["name"] for event in site.events("logger")] == ["OwnLogger"] * 6


BREAKS_EACH_WORKER = """

def post_fork(server, worker):
    raise RuntimeError("breaks each worker")
"""
"""Not the application: without preload its files are what the second generation has yet to read."""


@PRELOAD
def test_rollout_that_a_broken_one_interrupts(start: Start, site: Site, further: Further, preload: bool) -> None:
    """The third generation brings nothing but trouble: the second one goes on, with what is its own."""
    server = start(workers=2, preload_app=preload)
    first, second, third = server.address, further(), further()
    site.deploy("two", extra=SLOW)
    server.configure(bind=text(second), workers=3)
    server.signal(signal.SIGUSR2)
    server.wait_started("two")
    server.extra = BREAKS_EACH_WORKER
    server.configure(bind=text(third), workers=1)
    server.signal(signal.SIGUSR2)
    wait_for(lambda: "breaks each worker" in server.log, BOOT_TIMEOUT_S, "the third generation has failed")
    server.settings["workers"] = 3
    server.wait_only("two")
    assert_only_address(server, second, "two", first, third)


def test_rollout_that_a_further_one_supersedes(start: Start, site: Site, further: Further) -> None:
    server = start(workers=2)
    first, second, third = server.address, further(), further()
    if "control_socket" in Config().settings:  # Gunicorn's own, which a thread of it opens
        wait_for((site.directory / "gunicorn.ctl").exists, BOOT_TIMEOUT_S, "Gunicorn's control socket is there")
    held = len(server.listeners())  # the sockets of the two command lines, Gunicorn's and ours, among them
    site.deploy("two", extra=SLOW)
    server.configure(bind=text(second))
    server.signal(signal.SIGUSR2)
    server.wait_started("two")
    server.configure(bind=text(third))
    server.reload("three")
    assert_only_address(server, third, "three", first, second)
    wait_for(lambda: len(server.listeners()) == held, 30, "as many sockets listen as before")


@PRELOAD
def test_added_workers_survive_a_broken_deploy(start: Start, site: Site, preload: bool) -> None:
    server = start(workers=2, preload_app=preload)
    server.settings["workers"] = 3
    server.signal(signal.SIGTTIN)
    workers = server.wait_full()
    site.break_("raise")
    reload_in_vain(server)
    assert server.wait_full() == workers
    site.deploy("one")
    os.kill(workers[-1], signal.SIGKILL)
    wait_for(lambda: len(site.marks("startup")) == 4, BOOT_TIMEOUT_S, "the third worker is replaced")
    assert server.wait_full()[:2] == workers[:2]


def test_broken_deploy_that_wants_fewer_workers(start: Start, site: Site) -> None:
    """Nobody leaves for a generation of which no worker has been ready yet."""
    server = start(workers=3)
    workers = server.workers()
    server.configure(workers=1)
    site.break_("raise")
    reload_in_vain(server)
    server.settings["workers"] = 3
    assert server.wait_full() == workers
    assert site.events("worker_exit")[:-1] == [], "only the worker on trial has left"


def test_term_during_a_rollout_that_changes_the_address(start: Start, site: Site, further: Further) -> None:
    server = start(workers=2, graceful_timeout=40)
    second = further()
    with Client(server.address) as client:
        client.send(request("GET", "/hold"))
        wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the request is in flight")
        site.deploy("two", extra=SLOW)
        server.configure(bind=text(second))
        server.signal(signal.SIGUSR2)
        server.wait_started("two")
        server.signal(signal.SIGTERM)
        for address in (server.address, second):
            wait_for(lambda address=address: refuses(address), QUICKLY, f"{address} refuses")  # type: ignore[misc]
        wait_for(lambda: ports(server.master) == [], 10, "the master listens to nothing")
        assert not client.ended(), "the drain is still under way"
        site.answer_held()
        assert client.reply().status == 200
    assert server.wait_exit(30) == 0
    server.wait_nothing_left(30)


REFUSALS = {
    "setting": "zd_max_surge = 'much'",
    "address": "bind = '203.0.113.1:80'",
    "in the master": "if os.getpid() == {master}: raise RuntimeError('not in the master')",
}


@PRELOAD
@pytest.mark.parametrize("how", REFUSALS)
def test_refused_reload_leaves_the_environment(start: Start, site: Site, how: str, preload: bool) -> None:
    server = start(workers=1, preload_app=preload, raw_env=["KEPT=yes", "SAME=yes"])
    server.extra = f"\nimport os\nos.environ['SET'] = 'no'\n{REFUSALS[how].format(master=server.master)}\n"
    server.configure(raw_env=["KEPT=no", "NEW=no"])
    reload_in_vain(server)
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_for(lambda: len(site.marks("startup")) == 2, BOOT_TIMEOUT_S, "a replacement has started")
    server.wait_full()
    values = {name: server.get(f"/environment?name={name}")["value"] for name in ("KEPT", "SAME", "NEW", "SET")}
    assert values == {"KEPT": "yes", "SAME": "yes", "NEW": None, "SET": None}


def test_new_address_of_a_reload_that_fails(start: Start, site: Site, further: Further) -> None:
    """The first new worker fails, when the new address is open already."""
    server = start(workers=2)
    second, workers = further(), server.workers()
    server.configure(bind=text(second))
    unique = site.break_("raise")
    reload_in_vain(server)
    wait_for(lambda: unique in server.log, 30, "the log says why")
    assert_only_address(server, server.address, "one", second)
    assert server.wait_full() == workers
    site.deploy("one")
    os.kill(workers[0], signal.SIGKILL)
    wait_for(lambda: len(site.marks("startup")) == 3, BOOT_TIMEOUT_S, "a replacement has started")
    server.wait_full()
    assert_only_address(server, server.address, "one", second)
