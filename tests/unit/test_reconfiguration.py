"""What the master makes of the first generation's configuration, and of sockets that are not those of ``bind``."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.app.base import BaseApplication
from gunicorn.config import Config

from zdworker import gunicorn_config
from zdworker.errors import GenerationError, SettingError
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
    configuration: Configuration,
    generation: int,
    bind: str = OWN,
    settings: Settings | None = None,
    directory: str = "",
    raw_env: tuple[str, ...] = (),
    **further: Any,
) -> None:
    cfg: Any = Config()
    for name, value in further.items():
        cfg.set(name, value)
    cfg.set("bind", bind)
    cfg.set("raw_env", list(raw_env))
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


class Scene:
    """A master with a configuration in force, and a thread that evaluates another one."""

    def __init__(self, sockets: Listeners) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self.rounds = 0
        self.directory = ""
        scene = self

        class Waiting(Application):
            def load_config(self) -> None:
                super().load_config()
                self.cfg.set("raw_env", ["ZD_RAW=zero"])
                if scene.directory:
                    os.chdir(scene.directory)
                if threading.current_thread() is not threading.main_thread():
                    scene.rounds += 1
                    scene.began.set()
                    assert scene.go_on.wait(30)

        app = Waiting()
        log = SimpleNamespace(
            **{name: getattr(LOG, name) for name in ("info", "warning", "error", "exception")}, setup=lambda _cfg: None
        )
        arbiter: Any = SimpleNamespace(
            app=app, cfg=app.cfg, log=log, systemd=False, setup=self._setup, zd_move_pidfile=lambda *_: None
        )
        self._setup(app)
        self.configuration = Configuration(arbiter, sockets)
        self.seen_by_setup: list[str] = []
        start(self.configuration)

    def _setup(self, app: Any) -> None:
        """Do what Gunicorn does, late: a thread that may begin an evaluation now has the time for that."""
        if self.rounds == 1:
            self.go_on.set()
            self.began.clear()
            self.began.wait(0.1)
        if hasattr(self, "seen_by_setup"):
            self.seen_by_setup.append(os.getcwd())
        os.environ.update(app.cfg.env)

    def take(self, number: int, **facts: Any) -> None:
        offer(self.configuration, number, **facts)
        self.configuration.take(number, self.configuration.evaluate(number))


@pytest.fixture
def scene(sockets: Listeners, monkeypatch: pytest.MonkeyPatch) -> Scene:
    for name in ("ZD_RAW", "ZD_RAW_OF_TWO", "ZD_OF_HOOK"):
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        del os.environ[name]
    monkeypatch.chdir(os.getcwd())
    return Scene(sockets)


def hooked(scene: Scene) -> dict[str, str | None]:
    """Return what hooks have set, without what pytest does."""
    changes = scene.configuration.hook_environment.changes()
    return {name: value for name, value in changes.items() if name.startswith("ZD_")}


def raw() -> tuple[str | None, str | None]:
    return os.environ.get("ZD_RAW"), os.environ.get("ZD_RAW_OF_TWO")


def test_raw_env_of_a_restored_configuration_while_a_newer_one_is_evaluated(scene: Scene) -> None:
    """The canary of generation 2 fails while the configuration of generation 3 is evaluated."""
    scene.take(2, raw_env=("ZD_RAW=two", "ZD_RAW_OF_TWO=two"))
    assert raw() == ("two", "two")
    offer(scene.configuration, 3)
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(scene.configuration.evaluate(3)))
    thread.start()
    assert scene.began.wait(30)
    scene.configuration.restore(0)
    assert raw() == ("zero", None)
    thread.join(30)
    assert scene.rounds == 2
    assert raw() == ("zero", None)
    assert hooked(scene) == {}
    scene.configuration.take(3, outcome[0])
    assert raw() == (None, None)


def test_what_a_hook_sets_while_a_configuration_is_evaluated_is_the_hooks(scene: Scene) -> None:
    offer(scene.configuration, 2)
    evaluated = scene.configuration.evaluate(2)
    with scene.configuration.modules.of_hooks():
        os.environ["ZD_OF_HOOK"] = "yes"  # child_exit, say, after which no worker is ordered before the reload's
    scene.configuration.take(2, evaluated)
    assert hooked(scene) == {"ZD_OF_HOOK": "yes"}


def test_a_configuration_without_workers_is_refused(configuration: Configuration) -> None:
    start(configuration)
    offer(configuration, 2, workers=0)
    with pytest.raises(GenerationError, match=r"workers is 0.* 1 or more"):
        configuration.evaluate(2)


def test_what_the_master_goes_by_only_at_a_start_is_named(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        scene.take(2)
        assert caplog.messages == []
        scene.take(3, reuse_port=True, statsd_prefix="shop", workers=3)
    (line,) = caplog.messages
    assert line.endswith("until a restart: reuse_port, statsd_prefix")


def test_the_mode_of_a_unix_socket_that_stays_is_named(
    scene: Scene, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = f"unix:{tmp_path}/app.sock"
    with caplog.at_level(logging.WARNING):
        scene.take(2, bind=path, umask=0o022)
        assert caplog.messages == []
        scene.take(3, bind=path, umask=0o077)
    (line,) = caplog.messages
    assert line.endswith("until a restart: umask (of the Unix sockets that stay)")


def test_a_setting_of_zdworkers_in_raw_env_is_refused() -> None:
    cfg: Any = Config()
    cfg.set("raw_env", ["A=1", "ZD_MAX_SURGE=2"])
    with pytest.raises(SettingError, match=r"raw_env sets ZD_MAX_SURGE.* set zd_max_surge in the configuration file"):
        gunicorn_config.zd_settings(cfg)


@pytest.mark.parametrize("how", ["restored", "taken back"])
def test_the_directory_goes_with_its_configuration(scene: Scene, tmp_path: Path, how: str) -> None:
    """What is relative in the one that comes back (a log file, what its hooks open) starts where it did before."""
    before = os.getcwd()
    scene.directory = str(tmp_path)
    scene.take(2)
    assert os.getcwd() == str(tmp_path)
    if how == "restored":
        scene.configuration.restore(0)
    else:
        scene.configuration.take(0, None)
    assert os.getcwd() == before
    assert scene.seen_by_setup == [str(tmp_path), before]


def test_a_directory_that_is_gone_keeps_no_configuration_from_coming_back(scene: Scene, tmp_path: Path) -> None:
    for number in (2, 3):
        scene.directory = str(tmp_path / str(number))
        os.mkdir(scene.directory)
        scene.take(number)
    os.rmdir(tmp_path / "2")
    scene.configuration.restore(2)
    assert os.getcwd() == str(tmp_path / "3")


def test_a_configuration_that_is_only_evaluated_leaves_the_directory(
    scene: Scene, sockets: Listeners, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also one that the main thread has to evaluate, and whose new address cannot be opened."""

    def fail(*_arguments: object) -> None:
        raise GenerationError("the new address cannot be opened")

    before, scene.directory = os.getcwd(), str(tmp_path)
    offer(scene.configuration, 2)
    evaluated = scene.configuration.evaluate(2)
    monkeypatch.setattr(sockets, "open", fail)
    with pytest.raises(GenerationError, match="cannot be opened"):
        scene.configuration.take(2, evaluated)
    assert os.getcwd() == before
