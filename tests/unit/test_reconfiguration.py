"""What the master makes of the first generation's configuration, and of sockets that are not those of ``bind``."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.app.base import BaseApplication
from gunicorn.config import Config

from zdworker import gunicorn_config
from zdworker.errors import GenerationError
from zdworker.master.listeners import Listeners
from zdworker.master.reconfiguration import Configuration
from zdworker.settings import Settings

LOG = logging.getLogger("test_reconfiguration")
OWN, OTHER = "127.0.0.1:0", "localhost:0"


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


def offer(
    configuration: Configuration, generation: int, bind: str, settings: Settings | None = None, directory: str = ""
) -> None:
    cfg: Any = Config()
    cfg.set("bind", bind)
    cfg.set("worker_class", "zdworker.ThreadWorker")
    cfg.settings["chdir"].value = directory or os.getcwd()  # as in a generation
    values = json.loads(json.dumps(gunicorn_config.plain_values(cfg)))
    configuration.offer(generation, values, settings or Settings())


def start(configuration: Configuration) -> None:
    configuration.current.listeners = [listening()]
    configuration.take_start([])


def test_the_same_configuration_gives_nothing_to_say(configuration: Configuration) -> None:
    start(configuration)
    offer(configuration, 1, OWN)
    assert configuration.compare_first(1) == ""
    offer(configuration, 2, "127.0.0.1:1")
    assert configuration.evaluate(2).places[0].key == ("127.0.0.1", 1)


def test_another_bind_is_not_followed_until_the_present_one_has_come_back(configuration: Configuration) -> None:
    start(configuration)
    offer(configuration, 1, OTHER, Settings(max_surge=2))
    text = configuration.compare_first(1)
    assert all(word in text for word in ("bind", OWN, OTHER, "zd_max_surge"))
    offer(configuration, 2, OTHER)
    before = configuration.current.listeners
    # Another name for the same address does not move the site.
    assert configuration.evaluate(2).places[0].key == configuration.current.places[0].key
    offer(configuration, 3, "127.0.0.1:1")
    with pytest.raises(GenerationError, match=r"from 127\.0\.0\.1:0 to 127\.0\.0\.1:1"):
        configuration.evaluate(3)
    assert configuration.current.listeners == before


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_configuration_that_was_changed_during_the_start_is_followed(
    configuration: Configuration, tmp_path: Path, what: str
) -> None:
    start(configuration)
    if what == "file":
        file = tmp_path / "gunicorn.conf.py"
        file.write_text("")
        configuration.current.file = str(file)
        offer(configuration, 1, OTHER)
    else:
        offer(configuration, 1, OTHER, directory=str(tmp_path))
    assert "changed" in configuration.compare_first(1)
    configuration.current.file = ""
    offer(configuration, 2, "127.0.0.1:1")
    assert configuration.evaluate(2).places[0].key == ("127.0.0.1", 1)


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
