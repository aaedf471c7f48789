"""The master gets the versions that a fresh generation would run, and goes back to older ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import gunicorn
import pytest

import zdworker
from tests.harness import control_client, processes
from tests.harness.clients import Load
from tests.harness.releases import Releases
from tests.harness.server import BOOT_TIMEOUT_S
from zdworker.command import cli

FLEET_BEFORE, FLEET_AFTER = '    exit_reason: str = ""\n', '    exit_reason: str = ""\n    from_the_future: int = 7\n'


def newer_zdworker(releases: Releases, version: str) -> None:
    """Add a release with another zdworker, whose facts have a field more, and one less of those with a default."""
    releases.add(version)
    package = releases.own_package(version, Path(zdworker.__file__).parent)
    text = (package / "__init__.py").read_text()
    (package / "__init__.py").write_text(text.replace(f'"{zdworker.__version__}"', '"9.9.9"'))
    text = (package / "core" / "fleet.py").read_text()
    assert FLEET_BEFORE in text
    (package / "core" / "fleet.py").write_text(text.replace(FLEET_BEFORE, FLEET_AFTER))


def newer_gunicorn(releases: Releases, version: str) -> None:
    """Add a release with another Gunicorn."""
    releases.add(version)
    package = releases.own_package(version, Path(gunicorn.__file__).parent)
    shutil.copytree(Path(zdworker.__file__).parent, package.parent / "zdworker")
    text = (package / "__init__.py").read_text()
    (package / "__init__.py").write_text(text + '\n__version__ = "27.9.9"\n')


@pytest.mark.parametrize(
    ("make", "name", "version"),
    [(newer_zdworker, "zdworker", "9.9.9"), (newer_gunicorn, "gunicorn", "27.9.9")],
    ids=["zdworker", "Gunicorn"],
)
def test_there_and_back(releases: Releases, make: Callable[[Releases, str], None], name: str, version: str) -> None:
    server = releases.server
    own = control_client.status(server)["versions"]
    make(releases, "two")
    with Load(server.address, "kept", clients=4, pause=0.05) as load:
        workers = server.workers()
        outcome = control_client.upgrade(server)
        assert outcome.result == "done", outcome.error
        assert (outcome.before[name], outcome.after[name]) == (own[name], version)
        assert control_client.status(server)["versions"] == {**own, name: version}
        assert server.workers() == workers
        releases.add("three")
        assert control_client.upgrade(server).after == own
        assert server.workers() == workers
    results = load.stop()
    assert results.failures == []
    assert (results.reopened, results.told_to_close) == (0, 0)


def test_a_reload_says_that_the_master_is_behind(releases: Releases) -> None:
    server = releases.server
    newer_zdworker(releases, "two")
    assert control_client.reload_error(server) is None
    found = control_client.status(server)
    assert (found["versions"]["zdworker"], found["generations"][-1]["versions"]["zdworker"]) == (
        zdworker.__version__,
        "9.9.9",
    )
    releases.add("three")
    newer_zdworker(releases, "four")
    outcome = control_client.order_and_wait(server, "reload")
    assert outcome.note == f"the master still runs zdworker {zdworker.__version__}: zdworker upgrade"
    assert control_client.upgrade(server).result == "done"
    releases.add("five")
    assert (
        control_client.order_and_wait(server, "reload").note == "the master still runs zdworker 9.9.9: zdworker upgrade"
    )


def test_reload_and_upgrade_in_one(releases: Releases, capsys: pytest.CaptureFixture[str]) -> None:
    server = releases.server
    newer_zdworker(releases, "two")
    with pytest.raises(SystemExit) as ended:
        cli.main(["reload", "--upgrade", "--socket", control_client.control_socket(server), "--quiet"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "reload done: generation 2" in printed
    assert f"zdworker 9.9.9 (before: {zdworker.__version__})" in printed
    assert "zdworker.upgraded" in processes.command(server.master)
    server.wait_only("two", BOOT_TIMEOUT_S)


def test_reload_and_upgrade_where_the_reload_fails(releases: Releases, capsys: pytest.CaptureFixture[str]) -> None:
    server = releases.server
    release = releases.add("two")
    (release / "app.py").write_text("def broken(:\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["reload", "--upgrade", "--socket", control_client.control_socket(server), "--json"])
    assert ended.value.code == 1
    assert '"upgrade": null' in capsys.readouterr().out
    assert "zdworker.upgraded" not in processes.command(server.master)
