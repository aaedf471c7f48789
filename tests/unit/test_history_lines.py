"""What a person reads of the history."""

from __future__ import annotations

import os
import pwd
from typing import Any

import pytest

from zdworker.command import history
from zdworker.core.history import Entry, Requester

AT = "2026-11-27T05:49:43.123+00:00"


def shown(*entries: Entry) -> list[str]:
    plain: list[dict[str, Any]] = [entry.to_plain() for entry in entries]
    return list(history.lines(plain, 80))


def test_of_nothing() -> None:
    assert shown() == [history.NOTHING]


def test_a_reload_with_who_has_asked_what_it_has_cost_and_why_it_failed() -> None:
    name = pwd.getpwuid(os.geteuid()).pw_name
    who = [Requester(signal="USR2"), Requester(uid=os.geteuid(), pid=4711, command="zdworker")]
    assert shown(
        Entry("reload", AT, 1, 2, who, "v2", "failed", 3.14, "ImportError: no", handed_over=1, cut_requests=2)
    ) == [
        "when (UTC)           what      result",
        "2026-11-27 05:49:43  reload    failed, generation 2 (v2), 3.1 s",
        f"    by signal USR2 and {name} (uid {os.geteuid()}) with zdworker (pid 4711)",
        "    1 connection handed over; 2 requests cut at graceful_timeout",
        "    ImportError: no",
    ]


def test_requests_that_were_cut_have_names_if_the_master_knows_them() -> None:
    entry = Entry("reload", AT, 1, 2, result="done", cut_requests=2, cut_paths=["GET /export", "POST /\x1b[2J"])
    assert shown(entry)[-1] == r"    2 requests cut at graceful_timeout (GET /export, POST /\x1b[2J)"
    of_older_master = entry.to_plain()
    del of_older_master["cut_paths"]
    assert history.cost(of_older_master) == ["2 requests cut at graceful_timeout"]


def test_one_that_goes_on_and_one_of_an_earlier_master() -> None:
    assert shown(Entry("reload", AT, 1, 2, [Requester()]), Entry("rollback", AT, 1, 1, result="unfinished"))[1:] == [
        "2026-11-27 05:49:43  reload    under way, generation 2",
        "    by an unknown process",
        "2026-11-27 05:49:43  rollback  unfinished, generation 1",
    ]


def test_crashes() -> None:
    one = Entry("crash", AT, 1, 2, duration_s=0.0, error="was killed by SIGKILL", slot=0, pid=4711)
    many = Entry("crash", AT, 1, 2, duration_s=61.2, error="exited with code 1", slot=1, pid=4712, times=3)
    assert shown(one, many)[1:] == [
        "2026-11-27 05:49:43  crash     generation 2, slot 0",
        "    worker 4711 was killed by SIGKILL",
        "2026-11-27 05:49:43  crash     generation 2, slot 1, 3 times in 61 s",
        "    worker 4712 exited with code 1",
    ]


@pytest.mark.parametrize("command", [None, "python3"])
def test_a_user_of_another_machine_and_a_process_of_another_container(command: str | None) -> None:
    line = shown(Entry("reload", AT, 1, 2, [Requester(uid=4_000_000_000, command=command)]))[2]
    assert line == f"    by uid 4000000000 with {command or 'an unknown command'}"


def test_nothing_is_wider_than_the_terminal_and_nothing_controls_it() -> None:
    label, error = "release \x1b[31m" + "of today " * 10, "words " * 100 + "\x07"
    lines = shown(Entry("reload", AT, 1, 2, [Requester(uid=0)], label, "failed", 1.0, error))
    assert max(map(len, lines)) <= 80
    assert all(line.isprintable() for line in lines)
