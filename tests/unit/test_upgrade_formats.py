"""A written-out state of each format is read, and a master could go on from it.

``states/<number>.json`` is what a master with two workers and a generation that is kept for a rollback has written,
with other paths and without its environment. For a new format: have a configuration write ``zdworker.boot.current.data``
to a file in the rehearsal of an upgrade.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zdworker import boot, plain
from zdworker.core.events import Tick
from zdworker.core.fleet import Fleet, Phase
from zdworker.core.rollout import Rollout

STATES = {int(path.stem): path for path in (Path(__file__).parent / "states").glob("*.json")}

IN_PLACE = """
import os, socket, sys

# The descriptors of the state, by other ones of their kind, under their numbers: above those that are open here.
for name, number in {descriptors!r}.items():
    if name.startswith("listener"):
        made = socket.create_server(("127.0.0.1", 0))
    else:
        made, _other = socket.socketpair()
    os.dup2(made.detach(), number)
os.dup2({state}, 900)
os.dup2({answer}, 901)
os.execv(sys.executable, [sys.executable, "-m", "zdworker.upgraded", "900", "901", "--", "-m", "gunicorn", *{words!r}])
"""


def test_each_format_that_is_read_has_a_state_here() -> None:
    assert set(boot.READ) <= STATES.keys()


@pytest.mark.parametrize("number", boot.READ)
def test_the_facts_are_read(number: int) -> None:
    fleet = plain.decode(STATES[number].read_bytes())["fleet"]
    assert isinstance(fleet, Fleet)
    assert fleet.phase is Phase.STEADY
    assert [worker.slot for worker in fleet.workers.values()] == [0, 1]
    assert fleet.previous is not None
    Rollout(fleet, lambda: 0.0).handle(Tick(), 0.0)


@pytest.mark.parametrize("number", boot.READ)
def test_a_master_could_go_on_from_it(number: int, tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("worker_class = 'zdworker.UvicornWorker'\n")
    state: dict[str, Any] = json.loads(STATES[number].read_text().replace("/srv/app", str(tmp_path)))
    state["master"] = os.getpid()
    memory = os.memfd_create("state")
    os.write(memory, json.dumps(state).encode())
    reading, answer = os.pipe()
    facts = {"descriptors": state["descriptors"], "state": 800, "answer": 801}
    words = ["-c", "gunicorn.conf.py", "app:app"]
    code = f"import os; os.dup2({memory}, 800); os.dup2({answer}, 801)\n" + IN_PLACE.format(**facts, words=words)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PWD": str(tmp_path)},
            pass_fds=(memory, answer),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        os.close(answer)
        said = os.read(reading, 1 << 20).decode()
    finally:
        os.close(memory)
        os.close(reading)
    found = json.loads(said) if said else {}
    assert found.get("can"), f"{found}\n{ended.stderr}"
    assert ended.returncode == 0
