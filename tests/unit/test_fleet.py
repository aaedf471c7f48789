"""The facts: their tables, what is illegal in them, and that they can be written out and read back."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.harness.core_stage import Stage, steady
from zdworker.core.events import (
    ConfigurationRefused,
    ConfigurationTaken,
    Event,
    GenerationFailed,
    GenerationGone,
    GenerationLoaded,
    KillReason,
    Policy,
    Reload,
    RestoreConfiguration,
    Scale,
    Start,
    Stop,
    WorkerFailed,
    WorkerForked,
    WorkerGone,
    WorkerLeaving,
    WorkerReady,
    WorkerReplacementRequested,
)
from zdworker.core.fleet import (
    GENERATIONS,
    PHASES,
    WORKERS,
    Cause,
    Fleet,
    Generation,
    GenerationCause,
    GenerationState,
    Loading,
    Phase,
    PhaseCause,
    Previous,
    Purpose,
    State,
    Trouble,
    Worker,
    WorkerCause,
    WorkerState,
    step,
)
from zdworker.core.rollout import Rollout
from zdworker.errors import IllegalEvent
from zdworker.plain import decode, encode

WORKER_EVENTS: dict[WorkerCause, Event] = {
    WorkerCause.FORKED: WorkerForked(1),
    WorkerCause.READY: WorkerReady(1),
    WorkerCause.FAILED: WorkerFailed(1, "lifespan failed"),
    WorkerCause.REPLACEMENT_REQUESTED: WorkerReplacementRequested(1),
    WorkerCause.LEAVING: WorkerLeaving(1),
    WorkerCause.GONE: WorkerGone(1, "exited with code 0", 0),
}
GENERATION_EVENTS: dict[GenerationCause, Event] = {
    GenerationCause.LOADED: GenerationLoaded(1, preloaded=False),
    GenerationCause.CONFIGURED: ConfigurationTaken(1, Policy(workers=0, configuration=1)),
    GenerationCause.FAILED: GenerationFailed(1, "ImportError"),
    GenerationCause.GONE: GenerationGone(1),
}
PHASE_EVENTS: dict[PhaseCause, Event] = {PhaseCause.START: Start(), PhaseCause.STOP: Stop()}


def tell(fleet: Fleet, event: Event, legal: bool) -> None:
    """Tell it; what is illegal must raise and change nothing."""
    before = encode(fleet)
    core = Rollout(fleet, lambda: 0.0)
    if legal:
        core.handle(event, 100.0)
        return
    with pytest.raises(IllegalEvent):
        core.handle(event, 100.0)
    assert encode(fleet) == before
    assert core.handle(Scale(fleet.size), 0.0) == Rollout(decode(before), lambda: 0.0).handle(Scale(fleet.size), 0.0), (
        "an order was left behind"
    )


@pytest.mark.parametrize(("state", "cause"), list(itertools.product(WorkerState, WORKER_EVENTS)))
def test_every_worker_state_with_every_event(state: WorkerState, cause: WorkerCause) -> None:
    fleet = Fleet(
        Policy(), size=1, phase=Phase.STEADY, current=[1], last_worker_id=1, last_generation=1, ever_ready=True
    )
    fleet.generations[1] = Generation(1, GenerationState.LOADED, None)
    settled = state is WorkerState.READY
    fleet.workers[1] = Worker(1, 0, 1, state, None if settled else 200.0, verified=settled)
    tell(fleet, WORKER_EVENTS[cause], (state, cause) in WORKERS)
    if (state, cause) in WORKERS and cause is not WorkerCause.GONE:
        assert fleet.workers[1].state is WORKERS[state, cause]


@pytest.mark.parametrize(("state", "cause"), list(itertools.product(GenerationState, GENERATION_EVENTS)))
def test_every_generation_state_with_every_event(state: GenerationState, cause: GenerationCause) -> None:
    fleet = Fleet(Policy(), size=0, phase=Phase.STEADY, current=[1], last_generation=1)
    fleet.restore_at = 1000.0
    waits = state in (GenerationState.LOADING, GenerationState.CONFIGURING)
    fleet.generations[1] = Generation(1, state, 200.0 if waits else None)
    if waits:
        fleet.loading = Loading(1, Purpose.RELOAD)
    tell(fleet, GENERATION_EVENTS[cause], (state, cause) in GENERATIONS)
    if (state, cause) in GENERATIONS:
        assert fleet.generations[1].state is GENERATIONS[state, cause]


@pytest.mark.parametrize(("phase", "cause"), list(itertools.product(Phase, PHASE_EVENTS)))
def test_every_phase_with_every_event(phase: Phase, cause: PhaseCause) -> None:
    fleet = Fleet(Policy(), size=0, phase=phase)
    legal = (phase, cause) in PHASES or (phase, cause) == (
        Phase.STOPPED,
        PhaseCause.STOP,
    )  # the second TERM comes too late
    tell(fleet, PHASE_EVENTS[cause], legal)


@pytest.mark.parametrize(
    "event",
    [
        Scale(-1),
        *(type(event)(*(99, *list(vars(event).values())[1:])) for event in WORKER_EVENTS.values()),
        *(type(event)(*(99, *list(vars(event).values())[1:])) for event in GENERATION_EVENTS.values()),
        WorkerReady(0),
        GenerationGone(0),
        GenerationGone(-1),
    ],
    ids=repr,
)
def test_what_never_was_is_illegal(event: Event) -> None:
    stage = steady(2)
    tell(stage.fleet, event, legal=False)


@pytest.mark.parametrize(
    "event", [*WORKER_EVENTS.values(), *GENERATION_EVENTS.values(), ConfigurationRefused(1, "too late")], ids=repr
)
def test_what_comes_too_late_is_nothing(event: Event) -> None:
    """Worker 1 and generation 1 were there, and have been removed."""
    stage = steady(1).reload().boot().gone()
    assert 1 not in stage.fleet.workers
    assert 1 not in stage.fleet.generations
    before = encode(stage.fleet)
    undone = [RestoreConfiguration(2)] if isinstance(event, ConfigurationTaken) else []
    assert stage.tell(event) == undone
    assert encode(stage.fleet) == before


def test_step_names_what_is_impossible() -> None:
    assert step(WORKERS, WorkerState.FORKING, WorkerCause.FORKED) is WorkerState.BOOTING
    with pytest.raises(IllegalEvent, match="'ready' is impossible in WorkerState 'forking'"):
        step(WORKERS, WorkerState.FORKING, WorkerCause.READY)


@pytest.mark.parametrize("table", [PHASES, WORKERS, GENERATIONS])
def test_every_state_can_be_reached(table: dict[tuple[State, Cause], State]) -> None:
    first = next(iter(table))[0]
    reached = {first}
    while more := {after for (state, _), after in table.items() if state in reached} - reached:
        reached |= more
    assert reached == set(type(first))


def begun(policy: Policy) -> Stage:
    stage = Stage(policy)
    stage.tell(Start())
    return stage.load()


def half_up(stage: Stage) -> Stage:
    stage.born().tell(WorkerReady(1))
    return stage.fail()


STORIES = {
    "new": lambda: Stage(Policy(workers=2)),
    "starting": lambda: begun(Policy(workers=2)).born(),
    "starting, one is up": lambda: half_up(begun(Policy(workers=2))),
    "steady": lambda: steady(3),
    "rolling": lambda: steady(3, preloaded=True, min_ready=5.0).reload().boot(),
    "verified": lambda: steady(3, surge=2).reload().boot(),
    "loading while rolling": lambda: steady(2).reload().born(),
    "failed": lambda: steady(2).reload().fail(),
    "canary": lambda: steady(2, canary=20.0).reload().boot(),
    "held": lambda: steady(2).reload(hold=600.0).boot(),
    "resumed": lambda: steady(2).reload(hold=600.0).boot().resume(),
    "given up": lambda: steady(2, canary=20.0).reload().boot().judge(),
    "stopping": lambda: steady(2).reload().stop(),
}


@pytest.mark.parametrize("story", STORIES)
def test_read_back_it_goes_on_identically(story: str) -> None:
    one, other = STORIES[story](), STORIES[story]()
    other.core = Rollout(decode(encode(other.fleet)), lambda: 0.0)
    assert other.fleet == one.fleet
    for stage in (one, other):
        stage.log = []
        if stage.fleet.phase is Phase.NEW:
            stage.start()
        if stage.fleet.phase is not Phase.STOPPED:
            stage.boot().reload() if stage.fleet.phase is Phase.ROLLING else stage.boot()
            stage.all_goes_well()
    assert other.log == one.log
    assert other.fleet == one.fleet


def test_trouble_and_loading_are_read_back() -> None:
    fleet = Fleet(Policy(), size=1, loading=Loading(2, Purpose.RELOAD), failure=Trouble("why", "where"))
    assert decode(encode(fleet)) == fleet


class TestState:
    """The word that ``status`` shows."""

    def test_of_each_phase(self) -> None:
        words = {phase: Fleet(Policy(), size=1, phase=phase).state for phase in Phase}
        assert words == {
            Phase.NEW: "starting",
            Phase.STARTING: "starting",
            Phase.STEADY: "steady",
            Phase.ROLLING: "rolling",
            Phase.STOPPING: "stopping",
            Phase.STOPPED: "stopping",
        }

    def test_a_start_ends_with_the_last_worker(self) -> None:
        stage = begun(Policy(workers=2)).born()
        stage.tell(WorkerReady(1))
        assert stage.fleet.state == "starting"
        assert stage.boot().fleet.state == "steady"

    def test_a_start_that_fails_in_part_is_degraded_and_newer_code_may_mend_it(self) -> None:
        stage = half_up(begun(Policy(workers=2)))
        assert stage.fleet.state == "degraded"
        stage.tell(Reload())
        assert stage.fleet.state == "rolling"

    def test_trouble_shows_where_nothing_is_under_way(self) -> None:
        fleet = Fleet(Policy(), size=1, phase=Phase.STEADY, failure=Trouble("why"))
        assert fleet.state == "failed"
        fleet.loading = Loading(2, Purpose.RELOAD)
        assert fleet.state == "rolling"

    def test_a_replaced_fork_server_is_no_reload(self) -> None:
        fleet = Fleet(Policy(), size=1, phase=Phase.STEADY, loading=Loading(2, Purpose.RESTORE))
        assert fleet.state == "steady"

    def test_degraded_shows_while_slots_are_still_tried(self) -> None:
        fleet = Fleet(Policy(), size=1, phase=Phase.ROLLING, degradation=Trouble("why"))
        assert fleet.state == "degraded"


def test_the_configurations_in_use_are_the_present_one_and_those_of_the_ways_back() -> None:
    fleet = Fleet(Policy(configuration=5), size=1)
    assert fleet.configurations() == {5}
    fleet.fallback_policy = Policy(configuration=4)
    fleet.previous = Previous(2, 100.0, Policy(configuration=2))
    assert fleet.configurations() == {2, 4, 5}


def test_the_wanted_number_of_workers_is_the_smaller_one_that_a_canary_brings() -> None:
    stage = steady(3).reload(policy=Policy(workers=1))
    assert (stage.fleet.size, stage.fleet.wanted_size) == (3, 1)
    stage.boot()
    assert (stage.fleet.size, stage.fleet.wanted_size) == (1, 1)


@pytest.mark.parametrize(
    ("share", "percentage", "workers", "surge", "unavailable"),
    [
        (25, True, 4, 1, 1),
        (25, True, 5, 2, 1),
        (25, True, 1, 1, 0),
        (1, True, 8, 1, 0),
        (100, True, 3, 3, 3),
        (2, False, 1, 2, 1),
        (25, True, 0, 0, 0),
    ],
)
def test_percentages_round_up_for_surge_and_down_for_unavailable(
    share: int, percentage: bool, workers: int, surge: int, unavailable: int
) -> None:
    policy = Policy(
        surge=share, unavailable=share, surge_is_percentage=percentage, unavailable_is_percentage=percentage
    )
    fleet = Fleet(policy, size=workers)
    assert (fleet.surge, fleet.unavailable) == (surge, unavailable)


def test_rounding_never_leaves_a_reload_without_a_move() -> None:
    assert Fleet(Policy(surge=0, unavailable=10, unavailable_is_percentage=True), size=4).unavailable == 1


@given(st.integers(0, 100), st.integers(0, 100), st.booleans(), st.booleans(), st.integers(1, 500))
def test_a_reload_can_always_move(surge: int, unavailable: int, percent: bool, other: bool, workers: int) -> None:
    assume(surge or unavailable)
    policy = Policy(surge=surge, unavailable=unavailable, surge_is_percentage=percent, unavailable_is_percentage=other)
    fleet = Fleet(policy, size=workers)
    assert fleet.surge >= 0
    assert 0 <= fleet.unavailable <= workers
    assert fleet.surge + fleet.unavailable >= 1


def test_words_are_shown_by_their_names() -> None:
    assert repr(KillReason.NOT_READY) == "KillReason.NOT_READY"
