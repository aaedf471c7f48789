"""When the master's program may be replaced, and what a rehearsal's end means."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.core_stage import Stage, steady
from zdworker.core.events import Policy
from zdworker.core.fleet import Fleet
from zdworker.master.upgrade import under_way

STORIES: dict[str, tuple[Callable[[], Stage], str]] = {
    "new": (lambda: Stage(Policy(workers=2)), "the master's start is not done yet"),
    "steady": (lambda: steady(2), ""),
    "loading": (lambda: steady(2).reload(), "a reload is under way"),
    "rolling": (lambda: steady(2, preloaded=True).reload().boot(), "a reload is under way"),
    "held": (lambda: steady(2).reload(hold=600.0).boot(), "a reload is held at its canary"),
    "resumed": (lambda: steady(2).reload(hold=600.0).boot().resume(), "a reload is under way"),
    "failed": (lambda: steady(2).reload().fail(), ""),
    "stopping": (lambda: steady(2).stop(), "the master is stopping"),
}


@pytest.mark.parametrize("story", STORIES)
def test_it_is_refused_while_something_else_is_under_way(story: str) -> None:
    make, expected = STORIES[story]
    fleet: Fleet = make().fleet
    assert under_way(fleet).partition(":")[0] == expected
