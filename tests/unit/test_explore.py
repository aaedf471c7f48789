"""A part of ``tox -e explore``: what a few disturbances lead to, and that the exploration would notice a fault."""

from __future__ import annotations

import random

import pytest

from tests.explore.exploration import Limits, explore, outcomes
from tests.explore.states import BEGIN, LATER, Policies, State, copied, new_stage, reduced, stage_of
from tests.explore.steps import LONG_AGO, steps
from tests.harness.core_stage import Stage
from zdworker.core import plan
from zdworker.core.events import Policy
from zdworker.core.fleet import Fleet, Generation, GenerationState, Worker
from zdworker.core.rollout import Rollout
from zdworker.core.steps import Steps


@pytest.mark.parametrize(
    ("policy", "disturbances", "states"),
    [
        (Policy(workers=1, surge=0, unavailable=1), None, 400),
        (Policy(workers=1, rollback_window=100.0), 2, 150),
        (Policy(workers=2), 2, 1000),
        (Policy(workers=1, canary=60.0), 3, 1000),
        (Policy(workers=0), None, 20),
    ],
    ids=[
        "1 worker, stop-first, without a limit",
        "1 worker",
        "2 workers",
        "1 worker, a canary",
        "no worker, without a limit",
    ],
)
def test_every_state_holds_the_invariant_and_leads_to_rest(
    policy: Policy, disturbances: int | None, states: int
) -> None:
    """``states``: an exploration that finds fewer has lost something."""
    found = explore(Limits((policy,), disturbances=disturbances))
    assert found.failures == []
    assert found.complete
    assert found.states > states


def postpone(stage: Stage) -> None:
    """Move everything that is to come to the same time, as an exploration does it."""
    fleet = stage.fleet
    owners: list[Worker | Generation] = [*fleet.workers.values(), *fleet.generations.values()]
    for owner in owners:
        owner.deadline = LATER if owner.deadline is not None else None
    for slot in fleet.slots.values():
        slot.retry_at = LATER if slot.retry_at > BEGIN else 0.0
    fleet.roll_at = LATER if fleet.roll_at > BEGIN else 0.0
    fleet.restore_at = LATER if fleet.restore_at > BEGIN else 0.0


def grow_old(fleet: Fleet) -> None:
    """Let everything that serves have done so for long."""
    for worker in fleet.workers.values():
        worker.ready_at = LONG_AGO if worker.ready_at is not None else None
    for generation in fleet.generations.values():
        generation.loaded_at = LONG_AGO if generation.loaded_at is not None else None


WALKS = 3
"""Ways for each of the fleets below; seconds."""

POLICIES = [
    ((Policy(workers=1),), ()),
    ((Policy(workers=2, surge=2, unavailable=1, min_ready=5.0, rollback_window=100.0),), (0, 1, 2, 3)),
    ((Policy(workers=2, surge=0, unavailable=1), Policy(workers=1, shutdown_delay=5.0)), (2,)),
    ((Policy(workers=2, canary=60.0), Policy(workers=1, canary=60.0)), (0, 3)),
    ((Policy(workers=3), Policy(workers=1, exit_on_crash=True), Policy(workers=2, development=True)), ()),
]


@pytest.mark.parametrize("seed", range(WALKS))
@pytest.mark.parametrize(("policies", "sizes"), POLICIES)
def test_what_a_state_leaves_out_does_not_matter(
    policies: tuple[Policy, ...], sizes: tuple[int, ...], seed: int
) -> None:
    """A fleet with a long history, and a stage that stands for its state: after each event they are in one state."""
    chance, known = random.Random(seed), Policies(policies)
    stage = new_stage(known)
    for _ in range(60):
        state = reduced(stage, known)
        assert State.unpacked(state.packed()) == state
        stands_for_it = stage_of(state, known)
        assert reduced(stands_for_it, known) == state
        if stage.loading_code() and stage.fleet.loading is not None:
            stage.fleet.generations[stage.fleet.loading.generation].preloaded = chance.random() < 0.5
        expected = {s.name: set(outcomes(stands_for_it, s, known)) for s in steps(stands_for_it, known, sizes)}
        possible = []
        for step in steps(stage, known, sizes):
            after = copied(stage)
            step.apply(after)
            postpone(after)
            if step.name != "all deadlines at once":  # of which the order of the workers' numbers decides
                assert reduced(after, known) in expected.get(step.name, {state}), step.name
            # Most ways would end soon, or wander about in failures.
            weight = 0.002 if step.name.startswith("stop") else 0.3 if step.disturbs else 1.0
            possible.append((weight, after))
        if not possible:
            return
        (stage,) = chance.choices([after for _, after in possible], [weight for weight, _ in possible])
        if chance.random() < 0.3:
            grow_old(stage.fleet)


def no_retry(_: object) -> float | None:
    return None


def never_ended(steps_: Steps, number: int) -> None:
    generation = steps_.fleet.generations[number]
    generation.state, generation.deadline = GenerationState.LOST, None


MISTAKES: list[tuple[object, str, object, str]] = [
    (plan, "_availability_allows", lambda *_: True, "would be ready"),
    (plan, "next_retry", no_retry, "without a deadline"),
    (plan, "_source_for", lambda facts, _: facts.source, "more than one worker tries the new code out"),
    (Rollout, "_lacks_source", lambda _: False, ""),
    (Rollout, "_load_next", lambda *_: None, ""),
    (Steps, "end", never_ended, ""),
    (Steps, "verify_newest", lambda *_: None, ""),
    (Steps, "restore_configuration", lambda _: None, "another configuration"),
]


@pytest.mark.parametrize(("where", "name", "mistake", "symptom"), MISTAKES, ids=[name for _, name, _, _ in MISTAKES])
def test_a_mistake_in_the_core_is_found(
    monkeypatch: pytest.MonkeyPatch, where: object, name: str, mistake: object, symptom: str
) -> None:
    monkeypatch.setattr(where, name, mistake)
    found = explore(Limits((Policy(workers=2), Policy(workers=1)), disturbances=2))
    (failure,) = found.failures
    assert failure.startswith("start > ")
    assert symptom in failure
