"""The command's connection to a master: how long each of its orders may take."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from zdworker.command import cli, client
from zdworker.ipc.messages import Order, Outcome, Progress, Refused, decode, encode


def _read_order(connection: socket.socket) -> Order:
    data = b""
    while not data.endswith(b"\n"):
        data += connection.recv(65536)
    order = decode(data[:-1])
    assert isinstance(order, Order)
    return order


class Master(threading.Thread):
    """Takes longer for a reload than a master has for an answer, and a moment to refuse the upgrade after it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(10)
        self.start()

    def run(self) -> None:
        with self._listener, self._listener.accept()[0] as connection:
            connection.settimeout(10)
            _read_order(connection)
            connection.sendall(encode(Progress("rolling", 2, 0, 4)))
            time.sleep(1.5 * client.ANSWER_TIMEOUT_S)
            connection.sendall(encode(Outcome("done", 2, 1.5, 2)))
            _read_order(connection)
            time.sleep(0.2 * client.ANSWER_TIMEOUT_S)
            connection.sendall(encode(Refused("it is too late")))


def test_an_order_after_a_long_reload_has_time_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "ANSWER_TIMEOUT_S", 1.0)
    path = tmp_path / "control.sock"
    master = Master(path)
    with pytest.raises(SystemExit) as end:
        cli.main(["reload", "--upgrade", "--timeout", "20", "--socket", str(path), "--quiet"])
    master.join()
    shown = capsys.readouterr()
    assert "it is too late" in shown.err
    assert end.value.code == cli.Exit.FAILED
    assert shown.out.startswith("reload done: generation 2"), "what was refused is the upgrade alone"
