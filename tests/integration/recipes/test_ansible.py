"""The playbook: one machine after the other, each with ``activate``, and broken code stops at the first."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.recipes import DEPLOY, adapted, commands, find, run

PLAYBOOK = DEPLOY / "ansible" / "deploy.yml"
ACTIVATE = """\
#!/bin/sh
echo "{name} $1" >> "{log}"
grep -q broken "$1/app.py" && echo "RuntimeError: broken" >&2 && exit 1
exit 0
"""

needs_ansible = pytest.mark.skipif(find("ansible-playbook") is None, reason="ansible-core is not installed")


def test_the_playbook_deploys_one_machine_after_the_other() -> None:
    plays: list[dict[str, Any]] = yaml.safe_load(PLAYBOOK.read_text())
    machines = next(play for play in plays if play["hosts"] == "app")
    assert machines["serial"] == 1
    assert machines["any_errors_fatal"]


@needs_ansible
def test_ansible_understands_the_playbook() -> None:
    words = ["ansible-playbook", "--syntax-check", "-i", "hosts.ini", "deploy.yml"]
    checked = run(words, PLAYBOOK.parent)
    assert checked.returncode == 0, checked.stdout


class Machines:
    """Two machines that are directories of this one, and a repository with the playbook."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.log = place / "log"
        lines = ["[app]"]
        for name in ("app1", "app2"):
            root = place / name
            root.mkdir()
            activate = root / "activate"
            activate.write_text(ACTIVATE.format(name=name, log=self.log))
            activate.chmod(0o755)
            lines.append(f"{name} ansible_connection=local ansible_python_interpreter={sys.executable} root={root}")
        self.repository = place / "repository"
        self.repository.mkdir()
        (self.repository / "hosts.ini").write_text("\n".join(lines) + "\n")

    def play(self, code: str) -> tuple[int, str]:
        """Commit ``code`` and run the playbook."""
        here = {"  vars:\n    root: /srv/app\n": ""}  # each machine has its own
        (self.repository / "deploy.yml").write_text(adapted("ansible/deploy.yml", here))
        (self.repository / "app.py").write_text(code)
        commit = "git init -q . && git add -A && git -c user.name=t -c user.email=t commit -q -m x"
        assert run(["sh", "-ec", commit], self.repository).returncode == 0
        words = shlex.split(commands("ansible.md", "ansible-playbook"))
        done = run(
            words, self.repository, {"HOME": str(self.place), "TMPDIR": str(self.place), "ANSIBLE_PIPELINING": "1"}
        )
        return done.returncode, done.stdout

    def activated(self) -> list[str]:
        return [line.split()[0] for line in self.log.read_text().splitlines()]


@needs_ansible
def test_a_machine_that_fails_keeps_the_others_as_they_are(tmp_path: Path) -> None:
    machines = Machines(tmp_path)
    code, output = machines.play("VERSION = 'two'\n")
    assert code == 0, output
    assert machines.activated() == ["app1", "app2"]
    code, output = machines.play("raise RuntimeError('broken')\n")
    assert code != 0
    assert "RuntimeError: broken" in output
    assert machines.activated() == ["app1", "app2", "app1"]
