"""The plan: from facts that are simply put down, who leaves next and which slot is filled next."""

from __future__ import annotations

import pytest

from zdworker.core.events import Policy
from zdworker.core.fleet import Fleet, Generation, GenerationState, Slot, Worker, WorkerState
from zdworker.core.plan import converged, next_retry, next_to_fill, next_to_leave

READY, SOAKING, BOOTING, DRAINING = "ready", "soaking", "booting", "draining"


def fleet(
    *workers: tuple[int, int, str],
    size: int = 4,
    surge: int = 1,
    unavailable: int = 0,
    current: int = 1,
    fallback: int | None = None,
    newest_verified: bool = True,
) -> Fleet:
    """Facts from (slot, generation, state) of each worker; generations up to ``current`` stand."""
    facts = Fleet(Policy(size, surge, unavailable), size=size, current=[current], newest_verified=newest_verified)
    facts.fallback = [] if fallback is None else [fallback]
    for number in range(1, current + 1):
        facts.generations[number] = Generation(number, GenerationState.LOADED, None)
    for worker_id, (slot, generation, word) in enumerate(workers, 1):
        state = WorkerState.READY if word == SOAKING else WorkerState(word)
        facts.workers[worker_id] = Worker(worker_id, slot, generation, state, 0.0, verified=word == READY)
    return facts


def old(*slots: int) -> list[tuple[int, int, str]]:
    return [(slot, 1, READY) for slot in slots]


def leaver(facts: Fleet) -> int | None:
    worker = next_to_leave(facts.facts())
    return None if worker is None else worker.worker_id


class TestLeaving:
    """Which workers get the order to leave."""

    def test_nobody_when_all_is_well(self) -> None:
        assert leaver(fleet(*old(0, 1, 2, 3))) is None

    def test_the_old_one_of_a_slot_whose_new_one_has_proved_itself(self) -> None:
        assert leaver(fleet(*old(0, 1, 2, 3), (0, 2, READY), current=2)) == 1

    @pytest.mark.parametrize("state", [BOOTING, SOAKING])
    def test_nobody_as_long_as_the_new_one_has_not(self, state: str) -> None:
        assert leaver(fleet(*old(0, 1, 2, 3), (0, 2, state), current=2)) is None

    def test_nobody_when_too_few_would_be_ready(self) -> None:
        assert leaver(fleet(*old(0, 1, 2), (0, 2, READY), current=2)) is None

    def test_one_that_soaks_is_not_counted_on(self) -> None:
        facts = fleet(
            (0, 1, READY), (0, 2, SOAKING), (2, 1, READY), size=2, current=2, fallback=1, newest_verified=False
        )
        assert leaver(facts) is None
        facts.workers[2].verified = True
        assert leaver(facts) == 1

    @pytest.mark.parametrize("newest_verified", [False, True])
    def test_old_ones_that_soak_leave_as_any_others(self, newest_verified: bool) -> None:
        workers = [(0, 1, SOAKING), *old(1, 2, 3), (0, 2, SOAKING)]
        facts = fleet(*workers, current=2, fallback=1, newest_verified=newest_verified)
        assert leaver(facts) is None
        facts.workers[5].verified = True
        assert leaver(facts) == 1

    def test_unavailable_lets_one_leave_first_once_proven(self) -> None:
        rolling = [(0, 2, READY), *old(1, 2, 3)]
        assert leaver(fleet(*rolling, current=2, surge=0, unavailable=1)) == 2
        assert leaver(fleet(*rolling, current=2, unavailable=1)) is None, "there is room"
        soaking = [(0, 2, SOAKING), *old(1, 2, 3)]
        assert leaver(fleet(*soaking, current=2, surge=0, unavailable=1, newest_verified=False)) is None

    def test_one_whose_successor_boots_makes_no_room(self) -> None:
        rolling = [(0, 2, READY), *old(1, 2, 3), (1, 2, BOOTING)]
        assert leaver(fleet(*rolling, current=2, unavailable=1)) == 3

    def test_stop_first_makes_room_for_the_one_on_trial(self) -> None:
        facts = fleet(*old(0, 1, 2, 3), current=2, fallback=1, surge=0, unavailable=2, newest_verified=False)
        assert leaver(facts) == 1
        facts.workers[1].state = WorkerState.DRAINING
        assert leaver(facts) is None, "one at a time"

    def test_nobody_leaves_first_when_nothing_can_come(self) -> None:
        facts = fleet(*old(0, 1, 2, 3), current=2, surge=0, unavailable=1)
        facts.generations[2].state = GenerationState.LOST
        assert leaver(facts) is None

    def test_a_slot_too_many(self) -> None:
        assert leaver(fleet(*old(0, 1, 2, 3, 4))) == 5

    def test_a_booting_one_of_unwanted_code_at_once(self) -> None:
        assert leaver(fleet(*old(0, 1), (2, 2, BOOTING), current=3, fallback=1, newest_verified=False)) == 3

    def test_a_stand_in_stays_as_long_as_the_new_code_is_on_trial(self) -> None:
        workers = [*old(0, 1, 2), (3, 1, BOOTING), (0, 2, BOOTING)]
        assert leaver(fleet(*workers, current=2, fallback=1, newest_verified=False)) is None
        assert leaver(fleet(*workers, current=2, fallback=1, newest_verified=True)) == 4

    def test_a_soaking_one_of_superseded_code_makes_room(self) -> None:
        facts = fleet(*old(0, 1, 2, 3), (0, 2, SOAKING), current=3, fallback=1, newest_verified=False)
        assert leaver(facts) == 5

    def test_where_all_serve_and_none_is_fresh_a_crowded_slot_makes_room(self) -> None:
        """Two stand in slot 2, as after a reload that came between a recycled worker and its replacement."""
        facts = fleet(*old(0, 1, 2, 3), (2, 1, READY), current=2, fallback=1, newest_verified=False)
        assert leaver(facts) == 3

    def test_the_useless_before_the_old(self) -> None:
        facts = fleet(*old(0, 1, 2, 3), (2, 2, READY), current=3, fallback=1, newest_verified=False)
        assert leaver(facts) == 5


class TestFilling:
    """Which slot gets a worker."""

    def test_none_when_all_is_well(self) -> None:
        assert next_to_fill(fleet(*old(0, 1, 2, 3)).facts(), 0.0) is None

    def test_slots_in_order(self) -> None:
        assert next_to_fill(fleet(*old(0, 1, 2, 3), current=2).facts(), 0.0) == (0, 2)
        assert next_to_fill(fleet((0, 2, READY), *old(1, 2, 3), current=2).facts(), 0.0) == (1, 2)

    def test_an_empty_slot_first(self) -> None:
        assert next_to_fill(fleet(*old(0, 1, 3), current=2).facts(), 0.0) == (2, 2)

    @pytest.mark.parametrize("state", [BOOTING, SOAKING, DRAINING])
    def test_not_above_size_and_surge(self, state: str) -> None:
        assert next_to_fill(fleet(*old(0, 1, 2, 3), (0, 2, state), current=2).facts(), 0.0) is None

    def test_the_surge_allows_more_once_proven(self) -> None:
        workers = [*old(0, 1, 2, 3), (0, 2, BOOTING)]
        assert next_to_fill(fleet(*workers, current=2, surge=3).facts(), 0.0) == (1, 2)
        assert next_to_fill(fleet(*workers, current=2, surge=3, newest_verified=False, fallback=1).facts(), 0.0) is None

    def test_a_crashed_slot_is_filled_from_before_while_on_trial(self) -> None:
        facts = fleet(*old(0, 1, 2), (0, 2, BOOTING), current=2, fallback=1, newest_verified=False)
        assert next_to_fill(facts.facts(), 0.0) == (3, 1)
        facts.generations[1].state = GenerationState.LOST
        assert next_to_fill(facts.facts(), 0.0) is None

    def test_a_slot_waits_out_its_backoff(self) -> None:
        facts = fleet(*old(0, 1, 3))
        facts.slots[2] = Slot(failures=2, retry_at=50.0)
        assert next_to_fill(facts.facts(), 49.0) is None
        assert next_retry(facts) == 50.0
        assert next_to_fill(facts.facts(), 50.0) == (2, 1)

    def test_a_retry_behind_one_that_waits_for_another_reason(self) -> None:
        """Slot 0 waits for the trial's outcome, slot 2 for its backoff: the second one's time is what is due."""
        facts = fleet(*old(0, 1), (3, 2, BOOTING), current=2, fallback=1, newest_verified=False)
        facts.slots[2] = Slot(failures=2, retry_at=50.0)
        assert next_retry(facts) == 50.0

    def test_no_retry_without_room(self) -> None:
        facts = fleet(*old(0, 1, 3), (0, 1, DRAINING), (1, 1, DRAINING))
        assert next_retry(facts) is None


class TestConverged:
    """When a rollout is over."""

    def test_leavers_do_not_count(self) -> None:
        assert converged(fleet(*old(0, 1, 2, 3), (0, 1, DRAINING)).facts())

    @pytest.mark.parametrize("other", [(3, 1, BOOTING), (3, 1, SOAKING), (3, 1, DRAINING)])
    def test_every_slot_must_be_proved(self, other: tuple[int, int, str]) -> None:
        assert not converged(fleet(*old(0, 1, 2), other).facts())

    def test_nobody_of_old_code_may_serve(self) -> None:
        assert not converged(fleet(*old(0, 1, 2, 3), current=2).facts())
        assert not converged(fleet(*[(n, 2, READY) for n in range(4)], (0, 1, READY), current=2).facts())
