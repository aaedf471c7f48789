"""What becomes an entry of the history, and what is counted in one that is there."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zdworker.core.history import (
    ENTRIES_MAX,
    REQUESTERS_MAX,
    UNFINISHED,
    Death,
    End,
    Entry,
    History,
    Kind,
    Requester,
)

USR2 = Requester(signal="USR2")
DEPLOY = Requester(uid=1000, pid=4711, command="zdworker")
AT = "2026-11-27T05:49:43.000+00:00"
COST: dict[str, Any] = {
    "handed_over": 3,
    "told_to_close": 2,
    "cut_requests": 1,
    "closed_websockets": 4,
    "cut_paths": ["GET /export"],
}


def death(generation: int = 1, pid: int = 12, how: str = "was killed by SIGKILL") -> Death:
    return Death(generation, "v1", slot=0, pid=pid, how=how)


@pytest.fixture
def history() -> History:
    return History(master=10)


def test_a_reload_is_an_entry_from_its_beginning_on(history: History) -> None:
    history.requested(Kind.RELOAD, DEPLOY)
    assert history.entries == []
    history.started(Kind.RELOAD, 2, AT)
    assert history.entries == [Entry("reload", AT, 10, 2, [DEPLOY])]
    history.finished(2, End("failed", 3.1, "ImportError: no", "v2", COST))
    ended = Entry("reload", AT, 10, 2, [DEPLOY], "v2", "failed", 3.1, "ImportError: no", **COST)
    assert history.entries == [ended]


def test_all_that_have_asked_before_a_load_begins_are_its_reason(history: History) -> None:
    for who in (USR2, DEPLOY, USR2):
        history.requested(Kind.RELOAD, who)
    history.started(Kind.RELOAD, 2, AT)
    history.requested(Kind.RELOAD, DEPLOY)
    history.finished(2, End("superseded", 1.0))
    history.started(Kind.RELOAD, 3, AT)
    assert [(entry.by, entry.result) for entry in history.entries] == [([USR2, DEPLOY], "superseded"), ([DEPLOY], None)]


def test_an_upgrade_is_an_entry_that_the_next_program_ends(history: History) -> None:
    history.upgrade_started(DEPLOY, 2, "v2", AT)
    assert history.entries == [Entry("upgrade", AT, 10, 2, [DEPLOY], "v2")]
    again = History(master=10)
    again.adopt(history.entries)
    again.upgrade_ended(End("done", 1.5))
    assert again.entries == [Entry("upgrade", AT, 10, 2, [DEPLOY], "v2", "done", 1.5)]


def test_a_failed_upgrade_says_why_and_leaves_the_others_alone(history: History) -> None:
    history.upgrade_started(DEPLOY, 2, None, AT)
    history.upgrade_ended(End("failed", 0.5, "no"))
    history.upgrade_started(USR2, 2, None, AT)
    history.crashed(death(), AT, now=1.0)
    history.upgrade_ended(End("done", 1.5))
    history.upgrade_ended(End("done", 2.5))
    assert [(entry.kind, entry.result, entry.duration_s, entry.error) for entry in history.entries] == [
        ("upgrade", "failed", 0.5, "no"),
        ("upgrade", "done", 1.5, None),
        ("crash", None, 0.0, "was killed by SIGKILL"),
    ]


def test_what_was_under_way_is_ended_by_the_next_program(history: History) -> None:
    history.started(Kind.RELOAD, 2, AT)
    history.finished(2, End("failed", 1.0))
    history.started(Kind.ROLLBACK, 1, AT)
    history.crashed(death(), AT, now=1.0)
    again = History(master=10)
    again.adopt(history.entries)
    again.crashed(death(), AT, now=3.0)
    again.finished(2, End("done", 2.0))
    again.finished(1, End("done", 3.0))
    assert [(entry.kind, entry.result, entry.times) for entry in again.entries] == [
        ("reload", "failed", 1),
        ("rollback", "done", 1),
        ("crash", None, 2),
    ]


def test_a_storm_of_requests_does_not_grow(history: History) -> None:
    for pid in range(100):
        history.requested(Kind.RELOAD, Requester(uid=0, pid=pid))
    history.started(Kind.RELOAD, 2, AT)
    assert [who.pid for who in history.entries[0].by] == list(range(REQUESTERS_MAX))


def test_a_rollback_to_a_generation_that_is_kept(history: History) -> None:
    history.requested(Kind.ROLLBACK, DEPLOY)
    history.started(Kind.ROLLBACK, 1, AT)
    history.finished(1, End("done", 0.5))
    assert [(entry.kind, entry.by, entry.result) for entry in history.entries] == [("rollback", [DEPLOY], "done")]


def test_a_rollback_that_calls_a_reload_off_and_the_one_after_it(history: History) -> None:
    history.requested(Kind.RELOAD, USR2)
    history.started(Kind.RELOAD, 2, AT)
    history.requested(Kind.RELOAD, USR2)
    history.requested(Kind.ROLLBACK, DEPLOY)
    history.finished(2, End("failed", 1.0, "called off"))
    history.called_off(1, "v1", AT)
    rollback = Entry("rollback", AT, 10, 1, [DEPLOY], "v1", "done", 0.0)
    assert history.entries[1:] == [rollback]
    history.started(Kind.RELOAD, 3, AT)
    assert history.entries[-1].by == [], "what had been asked for before was called off"


def test_an_end_without_a_beginning_is_nothing(history: History) -> None:
    history.finished(7, End("done", 1.0))
    assert history.entries == []


def test_crashes_that_are_alike_are_one_entry(history: History) -> None:
    for number in range(3):
        history.crashed(death(pid=12 + number), AT, 100.0 + number)
    crash = Entry("crash", AT, 10, 1, [], "v1", None, 2.0, "was killed by SIGKILL", 0, 14, 3, began=100.0)
    assert history.entries == [crash]
    history.crashed(death(how="exited with code 1"), AT, 200.0)
    history.crashed(death(generation=2, how="exited with code 1"), AT, 201.0)
    assert [(entry.generation, entry.times, entry.duration_s) for entry in history.entries] == [
        (1, 3, 2.0),
        (1, 1, 0.0),
        (2, 1, 0.0),
    ]


def test_what_happens_in_between_begins_another_entry(history: History) -> None:
    history.crashed(death(), AT, 100.0)
    history.started(Kind.RELOAD, 2, AT)
    history.crashed(death(), AT, 101.0)
    assert [entry.kind for entry in history.entries] == ["crash", "reload", "crash"]


def test_the_oldest_are_dropped_and_one_that_is_under_way_still_ends(history: History) -> None:
    history.started(Kind.RELOAD, 1, AT)
    for number in range(ENTRIES_MAX):
        history.crashed(death(generation=number), AT, 100.0)
    assert len(history.entries) == ENTRIES_MAX
    history.finished(1, End("done", 1.0))
    assert {entry.kind for entry in history.entries} == {"crash"}


def test_what_an_earlier_master_has_not_ended_is_unfinished(history: History) -> None:
    history.crashed(death(), AT, 100.0)
    earlier = History(master=9)
    earlier.started(Kind.RELOAD, 2, AT)
    earlier.crashed(death(), AT, 100.0)
    history.recall([Entry.from_plain(entry.to_plain()) for entry in earlier.entries])
    assert [(entry.master, entry.result) for entry in history.entries] == [(9, UNFINISHED), (9, None), (10, None)]


def test_an_earlier_masters_crash_is_not_counted_on(history: History) -> None:
    earlier = History(master=9)
    earlier.crashed(death(), AT, 100.0)
    history.recall([Entry.from_plain(earlier.entries[0].to_plain())])
    history.crashed(death(), AT, 5.0)
    assert [entry.times for entry in history.entries] == [1, 1]


def test_with_earlier_ones_there_are_no_more_than_there_may_be(history: History) -> None:
    history.started(Kind.RELOAD, 1, AT)
    history.recall([Entry("reload", AT, 9, number) for number in range(ENTRIES_MAX)])
    assert len(history.entries) == ENTRIES_MAX
    assert [history.entries[0].generation, history.entries[-1].master] == [1, 10]


def test_there_and_back() -> None:
    entry = Entry("reload", AT, 10, 2, [USR2, DEPLOY], "v2", "done", 3.1, None, **COST)
    assert Entry.from_plain(json.loads(json.dumps(entry.to_plain()))) == entry


def test_another_version_has_other_fields() -> None:
    plain = {
        "kind": "upgrade",
        "at": AT,
        "master": 1,
        "generation": 2,
        "colour": "red",
        "by": [{"host": "a", "uid": 1}],
    }
    assert Entry.from_plain(plain) == Entry("upgrade", AT, 1, 2, [Requester(uid=1)])


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        {},
        {"kind": "reload"},
        {"kind": 1, "at": AT, "master": 1, "generation": 1},
        {"kind": "reload", "at": AT, "master": True, "generation": 1},
        {"kind": "reload", "at": AT, "master": 1, "generation": 1, "by": {}},
        {"kind": "reload", "at": AT, "master": 1, "generation": 1, "by": ["root"]},
        {"kind": "reload", "at": AT, "master": 1, "generation": 1, "by": [{"uid": "0"}]},
        {"kind": "reload", "at": AT, "master": 1, "generation": 1, "cut_paths": "GET /"},
        {"kind": "reload", "at": AT, "master": 1, "generation": 1, "cut_paths": ["GET /", 1]},
    ],
    ids=repr,
)
def test_what_is_no_entry(plain: object) -> None:
    with pytest.raises(ValueError, match=r"^(an entry lacks|no JSON object|\w+ (is|has) )"):
        Entry.from_plain(plain)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["by", "kind", "at"]), inner),
)


@given(json_values)
def test_whatever_a_file_has_is_an_entry_or_is_refused(plain: object) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(Entry.from_plain(plain), Entry)
