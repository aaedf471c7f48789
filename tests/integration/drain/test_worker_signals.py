"""Signals to a worker: the moment at which it closes its listener, and those that mean nothing to it."""

from __future__ import annotations

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Broken, Client, request
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Start
from tests.harness.worker_classes import ALL, WorkerClass, for_each

BURST = 300


@for_each(ALL)
def test_burst_of_connections_at_the_moment_of_the_drain(start_class: Start, worker: WorkerClass) -> None:
    """Connections that arrive while the listener is being closed are answered by someone."""
    server = start_class(worker, workers=2, graceful_timeout=10)
    for _ in range(3):
        victim = server.wait_full()[0]
        with ThreadPoolExecutor(1) as pool:
            burst = pool.submit(lambda: [Client(server.address) for _ in range(BURST)])
            os.kill(victim, signal.SIGTERM)
            silent = burst.result()
        for client in silent:
            client.send(request("GET", "/", headers="Connection: close\r\n"))
        for client in silent:
            assert client.reply().status == 200
            client.close()


@for_each(ALL)
def test_hup_and_usr2_to_a_worker_change_nothing(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """A signal to the whole process group is one for the master, and nothing for the workers."""
    server = start_class(worker)
    workers = server.workers()
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(server.get, "/sleep?seconds=0.5") for _ in range(6)]
        wait_for(lambda: len(site.marks("request")) == 6, BOOT_TIMEOUT_S, "the requests are in flight")
        for pid in workers:
            for signum in (signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU):
                os.kill(pid, signum)
        assert {answer.result()["pid"] for answer in asked} <= set(workers)
    wait_for(lambda: server.accepting() == workers, BOOT_TIMEOUT_S, "the same workers accept")
    assert site.events("worker_exit") == []


def test_the_clients_of_these_tests_notice_a_lost_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as rude:
        client = Client(rude.getsockname())
        rude.accept()[0].close()
        with pytest.raises(Broken):
            client.ask("GET", "/")
