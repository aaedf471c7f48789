"""The core under arbitrary events, in arbitrary order, with time passing as it likes.

Rules: ``Stage`` holds the core to the invariant after every event; here the events are made up. At the end of every run
all goes well, and the fleet must converge, or halt when it was stopped.

``pytest tests/unit/test_core_machine.py --hypothesis-profile thorough`` takes minutes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.harness.core_stage import BOOTING, READY, UNBORN, Stage
from zdworker.core import plan
from zdworker.core.events import (
    ConfigurationRefused,
    ConfigurationTaken,
    Event,
    GenerationFailed,
    GenerationGone,
    GenerationJudged,
    GenerationLoaded,
    Policy,
    Reload,
    Resume,
    Rollback,
    Scale,
    Start,
    Stop,
    Tick,
    WorkerFailed,
    WorkerForked,
    WorkerGone,
    WorkerLeaving,
    WorkerReady,
    WorkerReplacementRequested,
)
from zdworker.core.fleet import GenerationState, Phase
from zdworker.core.rollout import Rollout
from zdworker.errors import IllegalEvent
from zdworker.plain import decode, encode


@pytest.fixture(scope="module", autouse=True)
def forks_at_a_time() -> Iterator[None]:
    """Fewer than there are workers, so that some of them wait their turn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "FORKS_AT_A_TIME", 2)
        yield


any_number = st.integers(-1, 40)
exit_codes = st.sampled_from([None, -9, 0, 1, 3, 4])
events: st.SearchStrategy[Event] = st.one_of(
    st.just(Start()),
    st.just(Rollback()),
    st.just(Resume()),
    st.builds(Scale, st.integers(-3, -1)),
    st.builds(GenerationLoaded, any_number, st.booleans()),
    st.builds(ConfigurationTaken, any_number, st.just(Policy())),
    st.builds(ConfigurationRefused, any_number, st.just("no reason")),
    st.builds(GenerationJudged, any_number, st.just("worse")),
    st.builds(WorkerForked, any_number),
    st.builds(WorkerReady, any_number),
    st.builds(WorkerFailed, any_number, st.just("no reason")),
    st.builds(WorkerReplacementRequested, any_number),
)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    surge, unavailable = draw(st.tuples(st.integers(0, 3), st.integers(0, 2)).filter(lambda pair: pair != (0, 0)))
    return Policy(
        workers=draw(st.integers(0, 4)),
        surge=surge,
        unavailable=unavailable,
        boot_timeout=draw(st.sampled_from([5.0, 60.0])),
        min_ready=draw(st.sampled_from([0.0, 0.0, 3.0, 15.0])),
        graceful_timeout=draw(st.sampled_from([1.0, 30.0])),
        shutdown_delay=draw(st.sampled_from([0.0, 0.0, 10.0])),
        rollback_window=draw(st.sampled_from([0.0, 20.0, 300.0])),
        exit_on_crash=draw(st.sampled_from([False, False, False, True])),
        canary=draw(st.sampled_from([0.0, 0.0, 10.0])),
    )


def written(stage: Stage) -> bytes:
    return encode(stage.fleet)


class FleetMachine(RuleBasedStateMachine):
    """Whatever can happen to a fleet."""

    @initialize(
        policy=policies(),
        may_stop=st.sampled_from([False, False, True]),
        serves=st.sampled_from([True, True, False]),
        takes_at_once=st.booleans(),
        locates_at_once=st.booleans(),
    )
    def begins(self, policy: Policy, may_stop: bool, serves: bool, takes_at_once: bool, locates_at_once: bool) -> None:
        self.stage = Stage(policy)
        self.stage.takes_at_once = takes_at_once
        self.stage.locates_at_once = locates_at_once
        self.may_stop = may_stop
        self.stage.tell(Start())
        if serves:
            self.stage.all_goes_well()

    def pick(self, data: st.DataObject, last_worker_id: list[int]) -> int:
        return data.draw(st.sampled_from(sorted(last_worker_id)))

    def having(self, *states: str) -> list[int]:
        return [worker_id for worker_id, state in self.stage.processes.items() if state in states]

    # -- what users do -------------------------------------------------------------------------------------------

    @rule(times=st.integers(1, 3), hold=st.sampled_from([None, None, 5.0, 600.0]))
    def reload(self, times: int, hold: float | None) -> None:
        for _ in range(times):
            self.stage.tell(Reload(hold))

    @precondition(lambda self: not self.stage.core.resume_refusal())
    @rule()
    def resume(self) -> None:
        self.stage.tell(Resume())

    @precondition(lambda self: self.stage.fleet.reloading)
    @rule()
    def is_judged(self) -> None:
        self.stage.judge()

    @precondition(lambda self: not self.stage.core.rollback_refusal())
    @rule()
    def roll_back(self) -> None:
        self.stage.tell(Rollback())

    @rule(workers=st.integers(0, 5), absolute=st.booleans())
    def scale(self, workers: int, absolute: bool) -> None:
        self.stage.tell(Scale(workers, absolute=absolute))

    @precondition(lambda self: self.may_stop)
    @rule(quick=st.booleans())
    def stop(self, quick: bool) -> None:
        self.stage.tell(Stop(quick))

    # -- what happens to generations -----------------------------------------------------------------------------

    @precondition(lambda self: self.stage.loading_code())
    @rule(preloaded=st.booleans(), policy=st.none() | policies())
    def loads(self, preloaded: bool, policy: Policy | None) -> None:
        self.stage.load(preloaded, policy)

    @precondition(lambda self: self.stage.taking)
    @rule(refused=st.booleans())
    def configuration_is_taken_or_refused(self, refused: bool) -> None:
        self.stage.refuse() if refused else self.stage.take()

    @precondition(lambda self: self.stage.fleet.loading)
    @rule()
    def does_not_load(self) -> None:
        self.stage.fail_load()

    @precondition(lambda self: self.stage.fleet.generations)
    @rule(data=st.data())
    def fork_server_dies(self, data: st.DataObject) -> None:
        """Also one that was ended: its death is reported, too."""
        self.stage.tell(GenerationGone(self.pick(data, list(self.stage.fleet.generations))))

    @precondition(lambda self: self.stage.fleet.generations)
    @rule(data=st.data())
    def ended_server_still_talks(self, data: st.DataObject) -> None:
        number = self.pick(data, list(self.stage.fleet.generations))
        if self.stage.fleet.generations[number].state is GenerationState.LOST:
            words: list[Event] = [GenerationLoaded(number, True), GenerationFailed(number, "")]
            self.stage.tell(data.draw(st.sampled_from(words)))

    # -- what happens to workers ---------------------------------------------------------------------------------

    @precondition(lambda self: self.having(UNBORN))
    @rule(data=st.data())
    def is_born(self, data: st.DataObject) -> None:
        self.stage.tell(WorkerForked(self.pick(data, self.having(UNBORN))))

    @precondition(lambda self: self.having(BOOTING))
    @rule(data=st.data())
    def gets_ready(self, data: st.DataObject) -> None:
        self.stage.tell(WorkerReady(self.pick(data, self.having(BOOTING))))

    @precondition(lambda self: self.having(BOOTING))
    @rule(data=st.data(), code=st.sampled_from([1, 3, 4]))
    def cannot_boot(self, data: st.DataObject, code: int) -> None:
        self.stage.tell(WorkerFailed(self.pick(data, self.having(BOOTING)), "lifespan failed", "Traceback ...", code))

    @precondition(lambda self: self.stage.processes)
    @rule(data=st.data(), code=exit_codes)
    def dies(self, data: st.DataObject, code: int | None) -> None:
        self.stage.tell(WorkerGone(self.pick(data, list(self.stage.processes)), "died", code))

    @precondition(lambda self: self.having(READY))
    @rule(data=st.data())
    def tires(self, data: st.DataObject) -> None:
        self.stage.tell(WorkerReplacementRequested(self.pick(data, self.having(READY))))

    @precondition(lambda self: self.having(BOOTING, READY))
    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        self.stage.tell(WorkerLeaving(self.pick(data, self.having(BOOTING, READY))))

    @rule()
    def all_boot(self) -> None:
        """One step for many, so that runs get far."""
        self.stage.boot()

    @rule()
    def all_leavers_are_gone(self) -> None:
        self.stage.gone()

    # -- time, hand-over, nonsense -------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 11.0, 31.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.stage.passes(seconds)

    @rule(seconds=st.sampled_from([2.0, 70.0]))
    def loop_was_late(self, seconds: float) -> None:
        """The machine slept: many deadlines are over at once."""
        self.stage.now += seconds
        self.stage.tell(Tick())

    @rule()
    def master_is_replaced(self) -> None:
        """All facts go through the state of an upgrade, and another core goes on with them."""
        before = self.stage.fleet
        self.stage.core = Rollout(decode(encode(before)), lambda: 0.0)
        assert self.stage.fleet == before

    @rule(event=events)
    def nonsense(self, event: Event) -> None:
        """What is illegal changes nothing; the rules above say what is legal."""
        before = written(self.stage)
        trial = Rollout(decode(before), lambda: 0.0)
        try:
            trial.handle(event, self.stage.now)
        except IllegalEvent:
            assert encode(trial.fleet) == before
            assert trial.handle(Tick(), self.stage.now) == self.stage.tell(Tick())

    @invariant()
    def at_rest_when_nothing_is_due(self) -> None:
        stage = self.stage
        if stage.core.next_deadline() is None:
            assert stage.fleet.phase in (Phase.STEADY, Phase.STOPPED)

    def teardown(self) -> None:
        if not hasattr(self, "stage"):
            return
        stage = self.stage
        stage.all_goes_well()
        fleet = stage.fleet
        if fleet.phase is Phase.STOPPED:
            assert stage.halted
            return
        assert fleet.phase is Phase.STEADY
        assert fleet.state in ("steady", "failed")
        assert len(stage.slots()) == len(stage.processes) == fleet.size
        assert sorted(w.slot for w in fleet.workers.values()) == list(range(fleet.size))
        assert fleet.facts().fresh == set(fleet.workers)
        assert list(stage.servers) == [fleet.source(fleet.current)]
        assert all(stage.reloads.values()), "a reload without an outcome"


TestFleet = FleetMachine.TestCase
TestFleet.settings = settings(max_examples=2 * settings().max_examples, deadline=None)
