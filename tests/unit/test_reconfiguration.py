"""What the master makes of sockets that are not those of ``bind``, or that are lost."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.app.base import BaseApplication

from zdworker.master.listeners import Listeners
from zdworker.master.reconfiguration import Configuration

LOG = logging.getLogger("test_reconfiguration")
OWN = "127.0.0.1:0"


class Application(BaseApplication):  # type: ignore[misc]  # Gunicorn has no types
    """An application whose configuration is what a test has set last."""

    bind = OWN

    def load_config(self) -> None:
        self.cfg.set("bind", self.bind)
        self.cfg.set("worker_class", "zdworker.ThreadWorker")


@pytest.fixture
def sockets() -> Iterator[Listeners]:
    made = Listeners(LOG)
    yield made
    made.close(unlink=True)


@pytest.fixture
def configuration(sockets: Listeners) -> Configuration:
    app = Application()
    arbiter: Any = SimpleNamespace(app=app, cfg=app.cfg, log=LOG, systemd=False)
    return Configuration(arbiter, sockets)


def listening() -> Any:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


def start(configuration: Configuration) -> None:
    configuration.current.listeners = [listening()]
    configuration.take_start([])


def test_sockets_that_a_hook_has_opened_are_all_that_there_are(configuration: Configuration) -> None:
    both = configuration.current.listeners = [listening(), listening()]
    configuration.take_start([])
    assert configuration.current.listeners == both
    assert configuration.not_listened_on() == ""


def test_an_address_that_is_lost_is_named(configuration: Configuration) -> None:
    start(configuration)
    assert configuration.not_listened_on() == ""
    configuration.current.listeners[0].shutdown(socket.SHUT_RDWR)
    assert configuration.not_listened_on() == OWN
