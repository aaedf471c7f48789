"""Where the control socket is, what may stand in its place, and which answers its clients get."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.control_orders import Orders
from zdworker.core.events import Outcome, Policy
from zdworker.core.fleet import Fleet, Phase
from zdworker.core.history import Kind
from zdworker.errors import ControlError
from zdworker.ipc import messages
from zdworker.ipc.control_directory import directories_of, directory_of
from zdworker.ipc.messages import Order, decode, encode
from zdworker.master import control
from zdworker.master.control import Control, default_path
from zdworker.master.observers import Reload
from zdworker.master.reactor import Reactor
from zdworker.settings import Settings


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("ZD_CONTROL_SOCKET", raising=False)
    return tmp_path


@pytest.fixture
def reactor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reactor]:
    monkeypatch.setattr(control, "FILES_INTERVAL_S", 0.0)  # in each turn
    made = Reactor()
    yield made
    made.close_in_child()


@pytest.fixture
def server(reactor: Reactor) -> Iterator[Control]:
    orders: Any = None  # no client orders anything here
    made = Control(orders, reactor, logging.getLogger())
    yield made
    made.close()


def test_the_directory_is_this_users_own(runtime: Path) -> None:
    path = Path(default_path(4711))
    assert path == runtime / "zdworker" / "4711.sock"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_directory_that_others_can_enter_is_not_trusted(runtime: Path) -> None:
    (runtime / "zdworker").mkdir(mode=0o755)
    (runtime / "zdworker").chmod(0o755)
    with pytest.raises(ControlError, match="only this user can enter"):
        default_path(4711)


def test_a_link_is_not_followed(runtime: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (runtime / "zdworker").symlink_to(elsewhere)
    with pytest.raises(ControlError, match="only this user can enter"):
        default_path(4711)


def test_where_nothing_can_be_made_there_is_none(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "directory_of", lambda _uid: Path("/proc/zdworker"))
    with pytest.raises(ControlError, match="/proc/zdworker cannot be made"):
        default_path(4711)


def test_without_a_runtime_directory_it_is_a_temporary_one(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert directory_of(1234) == tmp_path / "zdworker-1234"
    for name in ("relative", ""):
        monkeypatch.setenv("TMPDIR", name)
        assert directory_of(1234) == Path("/tmp/zdworker-1234")  # noqa: S108  # where everybody may write


def test_the_runtime_directory_of_another_user_is_not_used(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As with ``sudo -E``, which leaves it in the environment."""
    assert directories_of(os.geteuid()) == [runtime / "zdworker", *directories_of(os.geteuid())[1:]]
    other = os.geteuid() + 1234
    monkeypatch.setattr("os.geteuid", lambda: other)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert directories_of(other) == [tmp_path / f"zdworker-{other}"]


def test_a_relative_runtime_directory_is_none(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runtime.parent)
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime.name)
    assert directory_of(os.geteuid()).is_absolute()


def test_sockets_that_nobody_listens_on_are_swept(runtime: Path) -> None:
    left = Path(default_path(1))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left))
    default_path(2)
    assert not left.exists()


def test_it_is_for_this_user_alone(server: Control, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    server.open(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    server.open("")
    assert not path.exists()


def test_a_file_is_never_removed_for_it(server: Control, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("precious")
    with pytest.raises(ControlError, match="no socket"):
        server.open(str(path))
    assert path.read_text() == "precious"


def test_another_masters_is_not_taken(server: Control, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ControlError, match="another master listens there"):
            server.open(str(path))


def test_another_masters_is_not_removed_at_the_end(server: Control, tmp_path: Path) -> None:
    """Somebody has removed the first master's socket, so that a second one could bind its own to the same path."""
    path = tmp_path / "control.sock"
    server.open(str(path))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        server.close()
        assert path.is_socket()


def test_a_new_path_that_cannot_be_leaves_the_old_one(server: Control, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    server.open(str(path))
    with pytest.raises(ControlError):
        server.open(str(tmp_path / "no" / "such" / "directory.sock"))
    assert server.path == str(path)
    assert path.exists()


def settings(path: Path) -> Settings:
    return Settings(control_socket=str(path))


@pytest.mark.parametrize("reload", [True, False], ids=["reload", "by itself"])
@pytest.mark.parametrize("own_path", [True, False], ids=["own path", "default"])
def test_a_socket_whose_file_was_removed_comes_back(
    server: Control, reactor: Reactor, runtime: Path, tmp_path: Path, own_path: bool, reload: bool
) -> None:
    """Logind removes the runtime directory when a user logs out, systemd one that two units share."""
    wanted = settings(tmp_path / "own" / "a.sock") if own_path else Settings()
    (tmp_path / "own").mkdir()
    server.configuration_changed(wanted)
    path = Path(server.path)
    links = [] if not own_path else [Path(default_path(os.getpid()))]
    for _ in range(2):
        for removed in (path, *links):
            shutil.rmtree(removed.parent)
        if own_path:
            path.parent.mkdir()
        if reload:
            server.configuration_changed(wanted)
        else:
            reactor.wait(0)
        for name in (path, *links):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(name))


def test_a_link_that_was_removed_comes_back(server: Control, reactor: Reactor, runtime: Path, tmp_path: Path) -> None:
    server.configuration_changed(settings(tmp_path / "a.sock"))
    link = Path(default_path(os.getpid()))
    link.unlink()
    reactor.wait(0)
    assert link.readlink() == tmp_path / "a.sock"


def test_a_path_of_ones_own_has_a_link_where_the_command_looks(server: Control, runtime: Path, tmp_path: Path) -> None:
    link = runtime / "zdworker" / f"{os.getpid()}.sock"
    server.configuration_changed(settings(tmp_path / "a.sock"))
    assert link.readlink() == tmp_path / "a.sock"
    server.configuration_changed(settings(tmp_path / "b.sock"))
    assert link.readlink() == tmp_path / "b.sock"
    server.configuration_changed(Settings())
    assert link.is_socket()
    assert not link.is_symlink()
    server.configuration_changed(settings(tmp_path / "c.sock"))
    assert link.is_symlink()
    server.configuration_changed(Settings(control_socket="none"))
    assert list(link.parent.iterdir()) == []


def test_links_to_masters_that_were_killed_are_removed(server: Control, runtime: Path, tmp_path: Path) -> None:
    directory = Path(default_path(1)).parent
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    own = directory / f"{os.getpid()}.sock"
    for name, target in (("1.sock", "dead.sock"), ("2.sock", "gone.sock"), (own.name, "dead.sock")):
        (directory / name).symlink_to(tmp_path / target)
    server.configuration_changed(Settings())
    assert list(directory.iterdir()) == [own]
    assert own.is_socket()
    assert (tmp_path / "dead.sock").exists()
    server.configuration_changed(settings(tmp_path / "own.sock"))
    default_path(3)
    assert own.is_symlink(), "a process listens there"


class Client:
    """A client at the control socket, and the loop of the master."""

    def __init__(self, orders: Orders, control: Control, reactor: Reactor, connection: socket.socket) -> None:
        self.orders = orders
        self.control = control
        self._reactor = reactor
        self._connection = connection
        self._connection.setblocking(False)

    def order(self, command: str) -> None:
        """Give an order that is waited for, and let the master read it."""
        self._connection.sendall(encode(Order(command, wait=True)))
        for _ in range(10):
            self._reactor.wait(0)

    def finish(self, generation: int, result: Outcome, **facts: Any) -> None:
        """A reload ends."""
        self.control.reload_finished(Reload(generation, 0.0, 0.0, 1.0, result, **facts), Orders.fleet)

    def fleet(self, **facts: Any) -> Fleet:
        """Return the facts while reloads are under way."""
        return Fleet(Policy(workers=1), 1, Phase.ROLLING, current=[1], **facts)

    def message(self) -> messages.Message | None:
        """Return what has come, if something has."""
        try:
            return decode(self._connection.recv(65536))
        except BlockingIOError:
            return None

    def answer(self) -> messages.Outcome | None:
        """Return the outcome that has come, if one has."""
        answer = self.message()
        if answer is None:
            return None
        assert isinstance(answer, messages.Outcome)
        return answer


@pytest.fixture
def client(reactor: Reactor, tmp_path: Path) -> Iterator[Client]:
    orders = Orders()
    control = Control(orders, reactor, logging.getLogger())
    control.open(str(tmp_path / "control.sock"))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(tmp_path / "control.sock"))
        yield Client(orders, control, reactor, connection)
    control.close()


def test_an_order_says_which_process_has_given_it(client: Client) -> None:
    client.order("reload")
    (who,) = client.orders.asked
    assert (who.signal, who.uid, who.pid) == (None, os.geteuid(), os.getpid())
    assert who.command == Path("/proc/self/comm").read_text().strip()


def test_the_history_is_answered_at_once(client: Client) -> None:
    client.order("reload")
    client.order("history")
    assert client.message() == messages.History([{"kind": "reload"}])


def test_a_superseded_reload_ends_with_the_newer_one(client: Client) -> None:
    client.order("reload")
    client.finish(2, Outcome.SUPERSEDED)
    client.finish(3, Outcome.SUPERSEDED)
    assert client.answer() is None
    client.finish(4, Outcome.DONE)
    answer = client.answer()
    assert answer is not None
    assert (answer.result, answer.generation, answer.error) == (
        "superseded",
        2,
        "a newer reload took its place: its generation 4 serves",
    )
    client.order("reload")
    client.finish(5, Outcome.DONE)
    answer = client.answer()
    assert answer is not None
    assert (answer.result, answer.generation) == ("done", 5)


def test_a_superseded_reload_is_not_one_that_came_before_the_order(client: Client) -> None:
    """The client has ordered while generation 1 was loading."""
    client.order("reload")
    client.finish(1, Outcome.SUPERSEDED)
    client.finish(2, Outcome.DONE)
    answer = client.answer()
    assert answer is not None
    assert (answer.result, answer.generation) == ("done", 2)


def test_a_client_that_has_rolled_back_can_reload(client: Client) -> None:
    client.order("rollback")
    client.finish(2, Outcome.ROLLED_BACK)
    answer = client.answer()
    assert answer is not None
    assert answer.result == "done"
    client.order("reload")
    client.finish(3, Outcome.ROLLED_BACK, error="called off: a rollback was asked for")
    answer = client.answer()
    assert answer is not None
    assert answer.result == "rolled_back"


@pytest.mark.parametrize("result", [Outcome.FAILED, Outcome.ROLLED_BACK])
def test_the_end_of_a_newer_reload_is_not_that_of_one_that_goes_on(client: Client, result: Outcome) -> None:
    """Generation 2 is rolled out when generation 3 cannot be loaded, or is called off."""
    client.order("reload")
    reload = Reload(3, 0.0, 0.0, 1.0, result)
    client.control.reload_finished(reload, client.fleet(reloading=2))
    assert client.answer() is None
    client.finish(2, Outcome.DONE)
    answer = client.answer()
    assert answer is not None
    assert (answer.result, answer.generation) == ("done", 2)


def test_a_rollback_that_calls_a_newer_reload_off_is_done_although_an_older_one_goes_on(client: Client) -> None:
    client.order("rollback")
    reload = Reload(3, 0.0, 0.0, 1.0, Outcome.ROLLED_BACK)
    client.control.reload_finished(reload, client.fleet(reloading=2))
    answer = client.answer()
    assert answer is not None
    assert answer.result == "done"


@pytest.mark.parametrize("result", [Outcome.FAILED, Outcome.ROLLED_BACK])
def test_the_end_of_a_newer_reload_is_not_that_of_a_rollback_that_goes_on(client: Client, result: Outcome) -> None:
    """Workers of generation 1 are started once more when generation 3 fails, or another rollback calls it off."""
    client.order("rollback")
    client.control.reload_started(Reload.begin(1, Kind.ROLLBACK))
    client.control.reload_finished(Reload(3, 0.0, 0.0, 1.0, result), client.fleet(reloading=1))
    assert client.answer() is None
    client.finish(1, Outcome.DONE)
    answer = client.answer()
    assert answer is not None
    assert (answer.result, answer.generation) == ("done", 1)


def test_a_rollback_that_a_newer_reload_overtakes_says_so(client: Client) -> None:
    client.order("rollback")
    client.control.reload_started(Reload.begin(1, Kind.ROLLBACK))
    client.finish(1, Outcome.SUPERSEDED)
    client.finish(3, Outcome.DONE)
    answer = client.answer()
    assert answer is not None
    assert (answer.result, answer.generation) == ("superseded", 1)


def test_a_canary_is_not_to_blame_for_an_old_worker_that_cannot_boot(client: Client) -> None:
    client.order("reload")
    client.control.degraded("a worker failed to boot", "", client.fleet(reloading=2, newest_verified=False))
    assert client.answer() is None
    client.control.degraded("a worker failed to boot", "", client.fleet(reloading=2))
    answer = client.answer()
    assert answer is not None
    assert answer.result == "degraded"


def test_a_reload_that_makes_no_progress_is_not_the_newer_one(client: Client) -> None:
    """Generation 1 is rolled out and makes no progress when the next one is asked for, which repairs that."""
    client.order("reload")
    client.control.degraded("a worker failed to boot", "", client.fleet(reloading=1))
    assert client.answer() is None
    client.finish(2, Outcome.DONE)
    answer = client.answer()
    assert answer is not None
    assert (answer.result, answer.generation) == ("done", 2)


def test_a_client_learns_that_a_rollback_has_called_its_reload_off_before_it_began(client: Client) -> None:
    """It waits while a fork server is started in the place of one that died."""
    client.order("reload")
    client.control.reload_started(Reload.begin(1, Kind.ROLLBACK))
    answer = client.answer()
    assert answer is not None
    assert (answer.result, answer.error) == ("rolled_back", "called off: a rollback was asked for")


def test_a_client_that_has_rolled_back_waits_for_that(client: Client) -> None:
    client.order("rollback")
    client.control.reload_started(Reload.begin(1, Kind.ROLLBACK))
    assert client.answer() is None
    client.finish(1, Outcome.DONE)
    assert client.answer() is not None
