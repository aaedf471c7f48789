"""What the master has counted, judged and noted goes on in the next program, and a canary comes before an upgrade."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest

from tests.harness import control_client
from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from zdworker.command import client
from zdworker.errors import OrderRefused
from zdworker.ipc import messages

FAILS = """
_sound = app

async def app(scope, receive, send):
    if scope["type"] == "http":
        raise RuntimeError("broken")
    await _sound(scope, receive, send)
"""
"""Code for the end of an application that fails all its requests."""


def answered(server: Server) -> int:
    """Return how many answers the master has counted, of all generations."""
    counted = [generation["answers"] or {} for generation in control_client.status(server)["generations"]]
    return sum(known.get("answers", 0) for known in counted)


def history(server: Server) -> list[dict[str, Any]]:
    with client.Connection(control_client.control_socket(server)) as connection:
        answer = connection.order(messages.Order("history"))
    assert isinstance(answer, messages.History)
    return answer.entries


def outcome(connection: client.Connection, order: messages.Order) -> messages.Outcome:
    """Give an order and return how it has ended."""
    end = time.monotonic() + BOOT_TIMEOUT_S
    answer = connection.order(order)
    while isinstance(answer, messages.Progress):
        answer = connection.receive(end)
    assert isinstance(answer, messages.Outcome), answer
    return answer


def test_answers_are_counted_once(start: Start) -> None:
    server = start(zd_count_answers=True)
    for _ in range(10):
        server.get()
    wait_for(lambda: answered(server) >= 10, 30, "they are counted")
    before = answered(server)
    assert control_client.upgrade(server).result == "done"
    assert answered(server) == before
    server.get()
    wait_for(lambda: answered(server) == before + 1, 30, "it is counted, too")


def test_new_code_is_judged_after_an_upgrade(start: Start, site: Site) -> None:
    server = start(zd_max_error_rate=5.0, zd_canary_seconds=60.0)
    assert control_client.upgrade(server).result == "done"
    site.deploy("two", extra=FAILS)
    with Load(server.address, "new", clients=4, pause=0.02) as running:
        ended = control_client.order_and_wait(server, "reload")
        running.stop()
    assert (ended.result, ended.serving) == ("failed", 1)
    assert "given up" in ended.error


def test_the_hooks_of_the_judgement_are_called_in_the_next_program(start: Start, site: Site) -> None:
    extra = """
def zd_canary_ready(server, worker):
    open("canary", "w").write(str(worker.pid))
def zd_judge(server, report):
    return "orders are down" if report["canary"] and report["answers"] > 5 else None
"""
    server = start(extra=extra, zd_count_answers=True, zd_canary_seconds=60.0)
    before = server.workers()
    assert control_client.upgrade(server).result == "done"
    site.deploy("two")
    with Load(server.address, "new", clients=4, pause=0.02) as running:
        ended = control_client.order_and_wait(server, "reload")
        assert running.stop().failures == []
    assert (ended.result, ended.error) == ("failed", "given up: zd_judge: orders are down")
    assert int((site.directory / "canary").read_text()) not in before


def test_a_held_reload_comes_first_and_its_canary_goes_along(start: Start, site: Site) -> None:
    server = start()
    site.deploy("two")
    with contextlib.closing(client.Connection(control_client.control_socket(server))) as connection:
        assert outcome(connection, messages.Order("reload", wait=True, hold_s=600.0)).result == "held"
        with pytest.raises(OrderRefused) as refused:
            connection.order(messages.Order("upgrade", wait=True))
        assert '"zdworker resume" or "zdworker rollback" first' in str(refused.value)
        assert outcome(connection, messages.Order("resume", wait=True)).result == "done"
    workers = server.workers()
    assert control_client.upgrade(server).result == "done"
    assert server.workers() == workers
    site.deploy("three")
    assert control_client.order_and_wait(server, "reload").result == "done"
    assert set(server.versions().values()) == {"three"}


def test_the_history_goes_on_and_names_who_ordered_the_upgrade(start: Start, site: Site) -> None:
    server = start()
    site.deploy("two")
    assert control_client.order_and_wait(server, "reload").result == "done"
    assert control_client.upgrade(server).result == "done"
    site.deploy("three")
    assert control_client.order_and_wait(server, "reload").result == "done"
    wait_for(lambda: len(history(server)) >= 3, 30, "all three are noted")
    entries = history(server)
    assert [(entry["kind"], entry["result"], entry["generation"]) for entry in entries] == [
        ("reload", "done", 2),
        ("upgrade", "done", 2),
        ("reload", "done", 3),
    ]
    upgrade = entries[1]
    assert upgrade["duration_s"] > 0
    assert upgrade["by"][0]["pid"] == entries[0]["by"][0]["pid"]
    assert {entry["master"] for entry in entries} == {server.master}


def test_an_upgrade_that_failed_is_in_the_history_too(start: Start) -> None:
    server = start()
    server.extra = "\nraise RuntimeError('not now')\n"
    server.configure()
    failed = control_client.upgrade(server)
    assert failed.result == "failed"
    (entry,) = wait_for(lambda: history(server), 30, "it is noted")
    assert (entry["kind"], entry["result"]) == ("upgrade", "failed")
    assert "not now" in entry["error"]
