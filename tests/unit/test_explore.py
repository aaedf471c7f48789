"""A small part of ``tox -e explore``: the first states of the core, with every legal event in each of them."""

from __future__ import annotations

import pytest

from tests.explore.exploration import Limits, explore
from zdworker.core import plan
from zdworker.core.events import Policy

STATES = 300
"""A second or two; ``tox -e explore`` does not stop here."""


@pytest.mark.parametrize(
    "policy",
    [Policy(workers=1), Policy(workers=2), Policy(workers=1, surge=0, unavailable=1), Policy(rollback_window=100.0)],
    ids=["1 worker", "2 workers", "stop-first", "rollback window"],
)
def test_the_first_states_hold_the_invariant_and_lead_to_rest(policy: Policy) -> None:
    found = explore(Limits((policy,), states=STATES))
    assert found.failures == []
    assert found.states == STATES
    assert found.events > STATES


def test_a_small_fleet_is_explored_to_its_end() -> None:
    """A fleet without workers, which is never asked for any, nor for a reload."""
    found = explore(Limits((Policy(workers=0),), generations=1))
    assert found.failures == []
    assert found.complete


def test_a_fault_is_found_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_availability_allows", lambda *_: True)
    found = explore(Limits((Policy(workers=2, surge=2),), states=5_000))
    (failure,) = found.failures
    assert failure.startswith("start > ")
    assert "would be ready" in failure
