"""The Git hook: a real push to a bare repository deploys; code that does not start is refused, with its traceback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.application_site import ENDPOINTS
from tests.harness.clients import Load
from tests.harness.processes import children, command, wait_for
from tests.harness.recipes import (
    DEPLOY,
    EXAMPLE,
    adapted,
    changed,
    commands,
    environment_of,
    find,
    find_master,
    path_with,
    run,
    versions,
)
from tests.harness.server import Server, Start
from tests.harness.virtual_environments import lend_pip, packages_as_a_wheel

PAGE = "git.md"
pytestmark = pytest.mark.skipif(find("git") is None, reason="git is not installed")


class Push:
    """A machine with the recipe's hook, and somebody who pushes to it.

    ``root`` is what /srv/app is in the recipe, ``work`` the pusher's own directory.
    """

    def __init__(self, server: Server) -> None:
        self.server, self.site = server, server.site
        self.root = self.site.directory / "srv"
        self.work = self.site.directory / "work"
        self.socket = self.root / "control.sock"
        self.quick: Path | None = None
        self.root.mkdir()
        self.work.mkdir()
        site_packages = next(entry for entry in sys.path if entry.endswith("site-packages"))
        self.wheel = packages_as_a_wheel(self.site.directory, site_packages)
        here = {"/srv/app": str(self.root)}
        self.shell(changed(commands(PAGE, "git init"), {"example_app/deploy/": f"{DEPLOY}/", **here}), self.root)
        activate = adapted("activate", {**here, "/run/app/control.sock": str(self.socket)})
        (self.root / "activate").write_text(activate)
        (self.root / "activate").chmod(0o755)
        (self.root / "repository.git" / "hooks" / "update").write_text(adapted("git/update", here))
        far = {"app@app.example.org:/srv/app/repository.git": str(self.root / "repository.git")}
        self.shell("git init -q -b main .", self.work)
        self.shell(changed(commands(PAGE, "git remote add"), far), self.work)

    def shell(self, script: str, directory: Path, code: int = 0) -> str:
        who = {f"GIT_{role}_{what}": "test" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "PIP_NO_INDEX": "1"}
        path = path_with(*([self.quick] if self.quick else []))
        done = run(["sh", "-ec", script], directory, {"PATH": path, **who, **quiet})
        assert done.returncode == code, done.stdout
        return done.stdout

    def commit(self, version: str, appendix: str = "") -> None:
        """Commit the application as ``version``, with the example's configuration."""
        self.site.deploy(version, extra=appendix)
        own = f"\ncontrol_socket = {str(self.site.directory / 'gunicorn.ctl')!r}\n"
        for name in ("app.py", ENDPOINTS):
            (self.work / name).write_text((self.site.directory / name).read_text())
        (self.work / "gunicorn.conf.py").write_text((EXAMPLE / "gunicorn.conf.py").read_text() + own)
        (self.work / "requirements.txt").write_text(f"{self.wheel}\n")
        self.shell(f"git add -A && git commit -q -m {version}", self.work)

    def borrow_pip(self) -> None:
        """From now on a new environment gets pip from that of these tests: to install it again takes seconds."""
        self.quick = self.site.directory / "quick"
        self.quick.mkdir()
        lend_pip(self.quick / "python3", sys.executable)

    def push(self, code: int = 0) -> str:
        return self.shell(commands(PAGE, "git push"), self.work, code)

    def start(self) -> None:
        """Start the server from ``current``, with the environment of the release."""
        current = self.root / "current"
        arguments = "--bind %s:%s" % self.server.address
        further = {"WEB_CONCURRENCY": "2", "GUNICORN_CMD_ARGS": arguments, "HOME": str(self.site.directory)}
        self.server.environment.update(environment_of(self.server, **further))
        self.server.environment.update(PWD=str(current), ZD_CONTROL_SOCKET=str(self.socket))
        command = [str(current / "venv/bin/gunicorn"), "-k", "zdworker.UvicornWorker", "app:app"]
        self.server.words = ["sh", "-c", 'cd "$0" && exec "$@"', str(current), *command]
        self.server.launch_as_is()
        find_master(self.server)

    def commit_served(self) -> str:
        return self.shell("git -C ../srv/repository.git rev-parse main", self.work).strip()


@pytest.fixture
def push(make_server: Start) -> Push:
    return Push(make_server())


def test_pushes_deploy(push: Push) -> None:
    """The first, before anything runs; a good one; a broken one; another branch; the way back."""
    push.commit("one")
    assert "nothing runs: start the service" in push.push()
    push.start()
    push.borrow_pip()
    assert versions(push.server.address) == {"one"}
    with Load(push.server.address, "new", clients=4, pause=0.02) as load:
        push.commit("two")
        assert re.search(r"reload done: generation 2 \([0-9a-f-]+\) serves", push.push()), "the release is named"
        assert versions(push.server.address) == {"two"}
        served, release = push.commit_served(), (push.root / "current").resolve()

        push.commit("three", "\nraise RuntimeError('three is broken')\n")
        refused = push.push(code=1)
        assert "remote: RuntimeError: three is broken" in refused
        assert "[remote rejected] HEAD -> main (hook declined)" in refused
        assert push.commit_served() == served
        assert (push.root / "current").resolve() == release
        assert len(list((push.root / "releases").iterdir())) == 2, "what was refused is not kept"

        push.shell("git push -q production HEAD:refs/heads/experiment", push.work)
        assert "deletion of the current branch prohibited" in push.shell("git push production :main", push.work, code=1)
        assert versions(push.server.address) == {"two"}
        assert load.stop().failures == []

    first, second = sorted(place.name for place in (push.root / "releases").iterdir())
    assert "reload done" in push.shell(way_back(push, first), push.root)
    assert versions(push.server.address) == {"one"}
    # The process that called it may go away.
    push.shell(f"{way_back(push, second)} | true", push.root)
    assert os.readlink(push.root / "current") == f"releases/{second}"
    assert versions(push.server.address) == {"two"}
    assert push.server.stop() == 0


def way_back(push: Push, release: str) -> str:
    places = {"/srv/app": str(push.root), "20261121-070000-1c2d3e4": release}
    return changed(commands("index.md", "/srv/app/activate"), places).strip()


def test_only_the_newest_releases_are_kept(push: Push) -> None:
    """Without a venv to be made: one is there. The one that runs stays, however old it is."""
    releases = push.root / "releases"
    for number in range(8):
        (releases / f"2026010{number}" / "venv").mkdir(parents=True)
        push.shell(f"./activate releases/2026010{number}", push.root)
    assert sorted(release.name for release in releases.iterdir()) == [f"2026010{number}" for number in range(3, 8)]
    push.shell("./activate releases/20260103", push.root)
    (releases / "20260108" / "venv").mkdir(parents=True)
    push.shell("./activate releases/20260103", push.root)
    assert (releases / "20260103").is_dir()
    assert os.readlink(push.root / "current") == "releases/20260103"


def test_two_pushes_at_once_wait_for_each_other(push: Push) -> None:
    for name in ("a", "b"):
        (push.root / "releases" / name / "venv").mkdir(parents=True)
    words = [str(push.root / "activate"), "releases/a"]
    with (push.root / ".lock").open("w") as lock:
        subprocess.run(["flock", str(lock.fileno())], pass_fds=[lock.fileno()], check=True)
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as waiting:
            wait_for(lambda: _runs(waiting.pid, "flock"), 30, "it waits for the lock")
            assert not (push.root / "current").exists()
            lock.close()
            waiting.communicate(timeout=20)
    assert waiting.returncode == 0
    assert os.readlink(push.root / "current") == "releases/a"


def _runs(pid: int, program: str) -> bool:
    return any(command(child.pid).startswith(program) for child in children(pid))
