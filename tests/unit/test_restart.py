"""The restart of a fork server in its own process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from zdworker.forkserver import restart


@pytest.fixture
def inheritable() -> Iterator[tuple[int, int]]:
    """Two descriptors that ``execve`` would leave open."""
    pair = os.pipe()
    for number in pair:
        os.set_inheritable(number, True)
    yield pair
    for number in pair:
        os.close(number)


@pytest.mark.parametrize("proc", [True, False], ids=["proc", "no proc"])
def test_all_descriptors_but_the_kept_ones_are_closed(
    monkeypatch: pytest.MonkeyPatch, inheritable: tuple[int, int], proc: bool
) -> None:
    def missing(path: str) -> list[str]:
        raise FileNotFoundError(path)

    if not proc:
        monkeypatch.setattr(os, "listdir", missing)
    others = [number for number in range(100) if number not in inheritable and is_inheritable(number)]
    restart.keep_only({*others, inheritable[0]})
    assert [os.get_inheritable(number) for number in inheritable] == [True, False]


def is_inheritable(number: int) -> bool:
    try:
        return os.get_inheritable(number)
    except OSError:
        return False
