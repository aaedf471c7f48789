"""A written-out state of each format is read, and a master could go on from it.

``states/<number>.json`` is what a master has written that has two workers, counts their answers and keeps a generation
for a rollback, with other paths and without its environment. For a new format: have a configuration write
``zdworker.boot.current.data`` to a file in the rehearsal of an upgrade.
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
import fcntl, os, socket, sys

# In the place of the descriptors others of their kind, under the same numbers: made first, moved out of the way.
state, answer = (fcntl.fcntl(number, fcntl.F_DUPFD, 300) for number in ({state}, {answer}))
made = {{}}
for name, number in {descriptors!r}.items():
    listens = name.startswith("listener")
    ends = [socket.create_server(("127.0.0.1", 0))] if listens else socket.socketpair()
    made[fcntl.fcntl(ends[0].fileno(), fcntl.F_DUPFD, 300)] = number
    for end in ends:
        end.close()
for source, number in made.items():
    os.dup2(source, number)
words = [str(state), str(answer), "--", "-m", "gunicorn", *{words!r}]
os.execv(sys.executable, [sys.executable, "-m", "zdworker.upgraded", *words])
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
def test_the_state_has_what_is_counted_and_remembered(number: int) -> None:
    state = plain.decode(STATES[number].read_bytes())
    assert state["answers"]["of_generation"][2].answers > 0
    assert [entry.kind for entry in state["history"]["entries"]] == ["reload", "upgrade"]


@pytest.mark.parametrize("number", boot.READ)
def test_a_master_could_go_on_from_it(number: int, tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("worker_class = 'zdworker.UvicornWorker'\n")
    state: dict[str, Any] = json.loads(STATES[number].read_text().replace("/srv/app", str(tmp_path)))
    state["master"] = os.getpid()
    memory = os.memfd_create("state")
    os.write(memory, json.dumps(state).encode())
    reading, answer = os.pipe()
    facts = {"descriptors": state["descriptors"], "state": memory, "answer": answer}
    words = ["-c", "gunicorn.conf.py", "app:app"]
    code = IN_PLACE.format(**facts, words=words)
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
