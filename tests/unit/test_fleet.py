"""The facts: their tables, what is illegal in them, and that they can be written out and read back."""

from __future__ import annotations

import itertools
import json

import pytest

from tests.harness.core_stage import Stage, steady
from zdworker.core.events import (
    Event,
    GenerationFailed,
    GenerationGone,
    GenerationLoaded,
    Policy,
    Scale,
    Start,
    Stop,
    WorkerBorn,
    WorkerFailed,
    WorkerGone,
    WorkerLeaving,
    WorkerReady,
    WorkerTired,
)
from zdworker.core.fleet import (
    GENERATIONS,
    PHASES,
    WORKERS,
    Fleet,
    Generation,
    GenerationState,
    Loading,
    Phase,
    State,
    Trouble,
    Worker,
    WorkerState,
    step,
)
from zdworker.core.rollout import Rollout
from zdworker.errors import IllegalEvent

WORKER_EVENTS: dict[str, Event] = {
    "born": WorkerBorn(1, 4711),
    "ready": WorkerReady(1),
    "failed": WorkerFailed(1, "lifespan failed"),
    "tired": WorkerTired(1),
    "leaving": WorkerLeaving(1),
    "gone": WorkerGone(1, "exited with code 0", 0),
}
GENERATION_EVENTS: dict[str, Event] = {
    "loaded": GenerationLoaded(1, preloaded=False),
    "failed": GenerationFailed(1, "ImportError"),
    "gone": GenerationGone(1),
}
PHASE_EVENTS: dict[str, Event] = {"start": Start(), "stop": Stop()}


def tell(fleet: Fleet, event: Event, legal: bool) -> None:
    """Tell it; what is illegal must raise and change nothing."""
    before = fleet.to_plain()
    core = Rollout(fleet, lambda: 0.0)
    if legal:
        core.handle(event, 100.0)
        return
    with pytest.raises(IllegalEvent):
        core.handle(event, 100.0)
    assert fleet.to_plain() == before
    assert core.handle(Scale(fleet.size), 0.0) == Rollout(Fleet.from_plain(before), lambda: 0.0).handle(
        Scale(fleet.size), 0.0
    ), "an order was left behind"


@pytest.mark.parametrize(("state", "cause"), list(itertools.product(WorkerState, WORKER_EVENTS)))
def test_every_worker_state_with_every_event(state: WorkerState, cause: str) -> None:
    fleet = Fleet(Policy(), size=1, phase=Phase.STEADY, current=[1], ages=1, numbers=1, ever_ready=True)
    fleet.generations[1] = Generation(1, GenerationState.LOADED, None)
    settled = state is WorkerState.READY
    fleet.workers[1] = Worker(1, 0, 1, state, None if settled else 200.0, proved=settled)
    tell(fleet, WORKER_EVENTS[cause], (state, cause) in WORKERS)
    if (state, cause) in WORKERS and cause != "gone":
        assert fleet.workers[1].state is WORKERS[state, cause]


@pytest.mark.parametrize(("state", "cause"), list(itertools.product(GenerationState, GENERATION_EVENTS)))
def test_every_generation_state_with_every_event(state: GenerationState, cause: str) -> None:
    fleet = Fleet(Policy(), size=0, phase=Phase.STEADY, current=[1], numbers=1)
    fleet.restore_at = 1000.0
    fleet.generations[1] = Generation(1, state, 200.0 if state is GenerationState.LOADING else None)
    if state is GenerationState.LOADING:
        fleet.loading = Loading(1, "restore")
    tell(fleet, GENERATION_EVENTS[cause], (state, cause) in GENERATIONS)
    if (state, cause) in GENERATIONS:
        assert fleet.generations[1].state is GENERATIONS[state, cause]


@pytest.mark.parametrize(("phase", "cause"), list(itertools.product(Phase, PHASE_EVENTS)))
def test_every_phase_with_every_event(phase: Phase, cause: str) -> None:
    fleet = Fleet(Policy(), size=0, phase=phase)
    legal = (phase, cause) in PHASES or (phase, cause) == (Phase.STOPPED, "stop")  # the second TERM comes too late
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


@pytest.mark.parametrize("event", [*WORKER_EVENTS.values(), *GENERATION_EVENTS.values()], ids=repr)
def test_what_comes_too_late_is_nothing(event: Event) -> None:
    """Worker 1 and generation 1 were there, and are struck off."""
    stage = steady(1).reload().boot().gone()
    assert 1 not in stage.fleet.workers
    assert 1 not in stage.fleet.generations
    before = stage.fleet.to_plain()
    assert stage.tell(event) == []
    assert stage.fleet.to_plain() == before


def test_step_names_what_is_impossible() -> None:
    assert step(WORKERS, WorkerState.FORKING, "born") is WorkerState.BOOTING
    with pytest.raises(IllegalEvent, match="'ready' is impossible in WorkerState 'forking'"):
        step(WORKERS, WorkerState.FORKING, "ready")


@pytest.mark.parametrize("table", [PHASES, WORKERS, GENERATIONS])
def test_every_state_can_be_reached(table: dict[tuple[State, str], State]) -> None:
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
    "proven": lambda: steady(3, surge=2).reload().boot(),
    "loading while rolling": lambda: steady(2).reload().born(),
    "failed": lambda: steady(2).reload().fail(),
    "stopping": lambda: steady(2).reload().stop(),
}


@pytest.mark.parametrize("story", STORIES)
def test_read_back_it_goes_on_identically(story: str) -> None:
    one, other = STORIES[story](), STORIES[story]()
    text = json.dumps(other.fleet.to_plain())
    other.core = Rollout(Fleet.from_plain(json.loads(text)), lambda: 0.0)
    assert other.fleet == one.fleet
    assert json.dumps(other.fleet.to_plain()) == text
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
    fleet = Fleet(Policy(), size=1, loading=Loading(2, "reload"), trouble=Trouble("failed", "why", "where"))
    assert Fleet.from_plain(json.loads(json.dumps(fleet.to_plain()))) == fleet


class TestState:
    """The word that ``status`` shows."""

    def test_of_each_phase(self) -> None:
        words = {phase: Fleet(Policy(), size=1, phase=phase).state for phase in Phase}
        assert words == {
            Phase.NEW: "rolling",
            Phase.STARTING: "rolling",
            Phase.STEADY: "steady",
            Phase.ROLLING: "rolling",
            Phase.STOPPING: "stopping",
            Phase.STOPPED: "stopping",
        }

    def test_trouble_shows_where_nothing_is_under_way(self) -> None:
        fleet = Fleet(Policy(), size=1, phase=Phase.STEADY, trouble=Trouble("failed", "why"))
        assert fleet.state == "failed"
        fleet.loading = Loading(2, "reload")
        assert fleet.state == "rolling"

    def test_a_replaced_fork_server_is_no_reload(self) -> None:
        fleet = Fleet(Policy(), size=1, phase=Phase.STEADY, loading=Loading(2, "restore"))
        assert fleet.state == "steady"

    def test_degraded_shows_while_slots_are_still_tried(self) -> None:
        fleet = Fleet(Policy(), size=1, phase=Phase.ROLLING, trouble=Trouble("degraded", "why"))
        assert fleet.state == "degraded"
