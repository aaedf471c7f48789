"""The file of a site's history: what is in it after a restart, and what it may be without harm."""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zdworker.core.events import Outcome, Policy
from zdworker.core.fleet import Fleet, Phase
from zdworker.core.history import Kind, Requester
from zdworker.ipc.messages import Upgraded
from zdworker.master.history import FILE_MAX_BYTES, FILES_MAX, Recorder, file_name
from zdworker.master.observers import Crash, Reload
from zdworker.master.reactor import Reactor
from zdworker.master.reconfiguration import Site
from zdworker.settings import Settings

FLEET = Fleet(Policy(), 1, Phase.STEADY, current=[1])


class Master:
    """A master that only notes what happens, with its loop."""

    def __init__(self) -> None:
        self.site = Site("/srv/shop/current", "app:app", ["http://127.0.0.1:8000"])
        self.reactor = Reactor()
        self.recorder = Recorder(self.reactor, logging.getLogger("test_history"), lambda: self.site, lambda _n: "v1")

    def start(self, control_socket: str = "") -> Master:
        self.recorder.configuration_changed(Settings(control_socket=control_socket))
        return self.rest()

    def rest(self) -> Master:
        """Run the loop until nothing is done in a thread any more."""
        end = time.monotonic() + 10
        while self.recorder.busy:
            assert time.monotonic() < end
            self.reactor.wait(0.1)
        return self

    def reload(self, generation: int, error: str | None = None) -> None:
        self.recorder.reload_requested(Kind.RELOAD, Requester(signal="USR2"))
        reload = Reload.begin(generation)
        self.recorder.reload_started(reload)
        reload.duration, reload.result, reload.error = 1.5, Outcome.FAILED if error else Outcome.DONE, error
        self.recorder.reload_finished(reload, FLEET)

    def crash(self) -> None:
        self.recorder.worker_crashed(Crash(1, 0, 4711, "was killed by SIGKILL"))

    def generations(self) -> list[int]:
        return [entry["generation"] for entry in self.recorder.to_plain()]


Make = Callable[[], Master]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "zdworker"


@pytest.fixture
def make_master(directory: Path) -> Iterator[Make]:
    made: list[Master] = []

    def make() -> Master:
        made.append(Master())
        return made[-1]

    yield make
    for master in made:
        master.reactor.close_in_child()


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def test_a_later_master_knows_what_happened_before(make_master: Make, directory: Path) -> None:
    first = make_master().start()
    first.reload(2)
    first.reload(3, error="ImportError:\n  no module")
    first.crash()
    first.rest()
    (path,) = files(directory)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [json.loads(line) for line in path.read_text().splitlines()] == first.recorder.to_plain()
    entries = make_master().start().recorder.to_plain()
    assert entries == first.recorder.to_plain()
    assert [(e["kind"], e["result"], e["error"], e["label"]) for e in entries] == [
        ("reload", "done", None, None),
        ("reload", "failed", "ImportError: no module", None),
        ("crash", None, "was killed by SIGKILL", "v1"),
    ]


def while_it_reads(make_master: Make) -> Master:
    """Return a second master, to which something has happened (generation 3) while it reads the file of the first."""
    first = make_master().start()
    first.reload(2)
    first.rest()
    second = make_master()
    second.recorder.configuration_changed(Settings())
    second.reload(3)
    return second


def test_what_happens_while_the_file_is_read_is_not_lost(make_master: Make, directory: Path) -> None:
    second = while_it_reads(make_master)
    assert second.rest().generations() == [2, 3]
    assert make_master().start().generations() == [2, 3]


def test_the_end_waits_for_the_file(make_master: Make, directory: Path) -> None:
    first = make_master().start()
    first.reload(2)
    first.reload(3)  # while the first one is being written
    first.recorder.close()
    assert make_master().start().generations() == [2, 3]


def test_an_end_while_the_file_is_read_keeps_it(make_master: Make, directory: Path) -> None:
    second = while_it_reads(make_master)
    second.recorder.close()  # what was read is not handled: the loop does not run any more
    assert make_master().start().generations() == [2]


def test_a_reload_that_wants_no_file_any_more_has_none_written(make_master: Make, directory: Path) -> None:
    master = make_master().start()
    master.reload(2)  # is being written
    master.recorder.configuration_changed(Settings(control_socket="none"))
    master.reload(3)
    master.rest()
    assert make_master().start().generations() == [2]


def test_sites_have_files_of_their_own(make_master: Make, directory: Path) -> None:
    one, other = make_master(), make_master()
    other.site = Site("/srv/shop/current", "app:app", ["http://127.0.0.1:9000"])
    one.start().reload(2)
    other.start().reload(7)
    one.rest()
    other.rest()
    assert make_master().start().generations() == [2]


def test_a_reload_that_changes_the_addresses_takes_the_file_along(make_master: Make, directory: Path) -> None:
    master = make_master().start()
    master.reload(2)
    master.rest()
    master.site = Site("/srv/shop/current", "app:app", ["http://127.0.0.1:9000"])
    master.reload(3)
    master.rest()
    assert files(directory) == [directory / file_name(master.site)]


def test_the_end_of_the_master_leaves_the_file_where_it_is(make_master: Make, directory: Path) -> None:
    """It closes its addresses first, and TERM may come in the middle of an upgrade's rehearsal, which is an entry."""
    master = make_master().start()
    master.reload(2)
    master.rest()
    master.site = Site("/srv/shop/current", "app:app", [])
    master.recorder.upgrade_ended(Upgraded("failed", 1.0, {}, {}, "the master is stopping"))
    master.rest()
    assert make_master().start().generations() == [2]


def in_its_place(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"\x00\xff{"),
    "half a line": lambda path: path.write_text(path.read_text()[:-20]),
    "no entry": lambda path: path.write_text("{}\n"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "large": lambda path: path.write_bytes(b"\n" * (FILE_MAX_BYTES + 1)),
    "a directory": in_its_place(Path.mkdir),
    "a FIFO": in_its_place(os.mkfifo),
    "a link": in_its_place(lambda path: path.symlink_to("/etc/passwd")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_warning_and_a_fresh_start(
    damage: str, make_master: Make, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = make_master().start()
    first.reload(2)
    first.rest()
    DAMAGES[damage](files(directory)[0])
    second = make_master().start()
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert "a new one is begun" in warning.getMessage()
    assert second.generations() == []
    second.reload(3)
    second.rest()
    assert second.generations() == [3]
    if damage != "a directory":  # which is not replaced by a file
        assert make_master().start().generations() == [3]


def test_a_disk_that_is_full_is_one_warning_until_it_is_not(
    make_master: Make,
    directory: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    master = make_master().start()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        for generation in (2, 3):
            master.reload(generation)
            master.rest()
    (warning,) = caplog.records
    assert "No space left on device" in warning.getMessage()
    assert files(directory) == []
    assert master.generations() == [2, 3]
    master.reload(4)
    master.rest()
    assert make_master().start().generations() == [2, 3, 4]


def test_without_a_control_socket_there_is_no_file(make_master: Make, directory: Path) -> None:
    master = make_master().start("none")
    master.reload(2)
    assert master.rest().generations() == [2]
    assert not directory.exists()


def test_where_others_may_enter_nothing_is_kept(
    make_master: Make, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    master = make_master().start()
    master.reload(2)
    assert master.rest().generations() == [2]
    assert files(directory) == []
    assert not caplog.records, "that there is no control socket has been said"


def test_of_the_files_that_are_left_behind_the_oldest_are_removed(make_master: Make, directory: Path) -> None:
    directory.mkdir(mode=0o700)
    for number in range(FILES_MAX + 3):
        path = directory / f"history-{number:016x}.jsonl"
        path.write_text("")
        os.utime(path, (number, number))
    (directory / "4711.sock").write_text("")
    make_master().start()
    left = [path.name for path in files(directory)]
    assert left == ["4711.sock", *(f"history-{number:016x}.jsonl" for number in range(3, FILES_MAX + 3))]


def test_a_rollback_that_has_called_a_reload_off_is_an_entry(make_master: Make) -> None:
    master = make_master()
    master.recorder.reload_requested(Kind.ROLLBACK, Requester(uid=0))
    reload = Reload(2, 0.0, 0.0, 1.0, Outcome.ROLLED_BACK, "called off")
    master.recorder.reload_started(reload)
    master.recorder.reload_finished(reload, FLEET)
    assert [(e["kind"], e["generation"], e["result"], len(e["by"])) for e in master.recorder.to_plain()] == [
        ("reload", 2, "rolled_back", 0),
        ("rollback", 1, "done", 1),
    ]
