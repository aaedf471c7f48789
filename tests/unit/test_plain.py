"""Whatever the state of an upgrade holds is written out and read back; other versions of a class are borne."""

from __future__ import annotations

import collections
import json
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zdworker import plain
from zdworker.core.events import Outcome, Policy
from zdworker.core.fleet import Fleet, Phase, Worker, WorkerState
from zdworker.descendants import Descendant
from zdworker.ipc.messages import Leave, Progress

keys = st.text() | st.integers() | st.tuples(st.integers(), st.text())
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.just("~")
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.lists(inner).map(collections.deque)
        | st.dictionaries(keys, inner)
        | st.dictionaries(st.sampled_from(["~", "is", "of"]), inner)
    ),
)


@given(value=values | st.frozensets(leaves) | st.sets(leaves))
def test_what_is_written_is_read_back(value: Any) -> None:
    again = plain.decode(plain.encode(value))
    assert again == value
    assert type(again) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        Policy(workers=3),
        Outcome.DONE,
        {Leave},
        Descendant(1, 2, "sh"),
        Progress("steady", 1, 2, 3, left_s=4),
        {1: Worker(1, 0, 1, WorkerState.READY, None)},
        [float("inf"), b"\xff", "\udcff"],
    ],
)
def test_the_classes_of_zdworker_are_read_back(value: Any) -> None:
    assert plain.decode(plain.encode(value)) == value


@pytest.mark.parametrize("most", [None, 0, 3])
def test_a_queue_stays_as_short_as_it_has_to_be(most: int | None) -> None:
    again = plain.decode(plain.encode(collections.deque([1, 2], most)))
    assert again.maxlen == most


def test_an_enumeration_is_one_again_and_not_its_value() -> None:
    assert plain.decode(plain.encode(Fleet(Policy(), 1, Phase.STEADY))).phase is Phase.STEADY


@dataclass
class Foreign:
    """A class of another package."""

    number: int = 1


class ForeignWord(str, Enum):
    """As well."""

    ONE = "one"


class ForeignNumber(IntEnum):
    """As well; ``ssl`` has some."""

    ONE = 1


@pytest.mark.parametrize("value", [Foreign(), ForeignWord.ONE, ForeignNumber.ONE, {Foreign}, object(), open])
def test_what_is_not_zdworkers_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        plain.encode([value])
    assert not plain.can_be_written({"in it": value})


def test_fields_of_another_version_are_dropped_and_missing_ones_get_their_default() -> None:
    written = json.loads(plain.encode(Policy(workers=3, surge=2)))
    del written["is"]["surge"]
    written["is"]["from_a_newer_version"] = {"~": "object", "of": "zdworker.core.events:NotHere", "is": {}}
    assert plain.decode(json.dumps(written).encode()) == Policy(workers=3)


@pytest.mark.parametrize(
    "written",
    [
        {"~": "object", "of": "zdworker.core.events:NotHere", "is": {}},
        {"~": "object", "of": "zdworker.not_here:Policy", "is": {}},
        {"~": "object", "of": "os:system", "is": {}},
        {"~": "class", "is": "zdworker.plain:decode"},
        {"~": "class", "is": "zdworker.plain:json.JSONDecoder"},
        {"~": "object", "of": "zdworker.core.fleet:Trouble", "is": {}},
        {"~": "from a newer version", "is": {}},
        {"~": "enum", "of": "zdworker.core.fleet:Phase", "is": "from a newer version"},
    ],
)
def test_what_is_not_here_is_an_error(written: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # its text is for a reader
        plain.decode(json.dumps(written).encode())


def test_attributes_of_another_version_are_left_alone() -> None:
    owner = Foreign()
    plain.set_attributes(owner, {"number": 2, "from_a_newer_version": 3})
    assert vars(owner) == {"number": 2}
    assert plain.attributes(owner, but=("number",)) == {}
