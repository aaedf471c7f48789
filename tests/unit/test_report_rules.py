"""Which reports of a worker count, which do not, and which end its channel."""

from __future__ import annotations

import pytest

from zdworker.errors import MessageError
from zdworker.ipc.messages import (
    CUT_PATH_MAX,
    CUT_PATHS_MAX,
    FAILURE_TEXT_MAX,
    LATENCY_BOUNDS_S,
    REPORTED_TEXT_BYTES,
    WORKER_REPORT_BYTES,
    Answers,
    Counts,
    Decoder,
    Drained,
    Draining,
    Failed,
    Hello,
    Message,
    Ready,
    ReplacementRequested,
    encode,
    reported_text,
    request_name,
)
from zdworker.master.report_rules import COUNT_MAX, REPORTS_MAX, REPORTS_PER_S, ReportRules

ONCE = [Ready(), Draining(), Failed("no"), ReplacementRequested("max_requests")]


@pytest.fixture
def rules() -> ReportRules:
    """The rules for a worker that has got its start order."""
    made = ReportRules(1)
    assert made.admit(Hello(1), 0.0, own=True)
    made.started = True
    return made


def test_a_life(rules: ReportRules) -> None:
    for message in (Counts(0, 0), Ready(), Counts(1, 1), Counts(1, 1), ReplacementRequested("x"), Draining()):
        assert rules.admit(message, 0.0, own=True)


@pytest.mark.parametrize("message", ONCE)
def test_once_is_enough(rules: ReportRules, message: Message) -> None:
    assert rules.admit(message, 0.0, own=True)
    with pytest.raises(MessageError, match=r"came after .*Hello"):
        rules.admit(message, 0.0, own=True)


@pytest.mark.parametrize(("first", "second"), [(Ready(), Failed("no")), (Failed("no"), Ready())])
def test_a_worker_is_ready_or_has_failed(rules: ReportRules, first: Message, second: Message) -> None:
    assert rules.admit(first, 0.0, own=True)
    with pytest.raises(MessageError, match="came after"):
        rules.admit(second, 0.0, own=True)


@pytest.mark.parametrize("message", [*ONCE, Counts(1, 1)])
def test_nothing_comes_before_the_start(message: Message) -> None:
    for rules in (ReportRules(1), greeted := ReportRules(1)):
        if rules is greeted:
            rules.admit(Hello(1), 0.0, own=True)
        with pytest.raises(MessageError, match="before the worker was started"):
            rules.admit(message, 0.0, own=True)


def test_a_second_hello_and_one_of_another_worker() -> None:
    rules = ReportRules(1)
    with pytest.raises(MessageError, match="says that it is 2"):
        rules.admit(Hello(2), 0.0, own=True)
    rules.admit(Hello(1), 0.0, own=True)
    with pytest.raises(MessageError, match="Hello came after Hello"):
        rules.admit(Hello(1), 0.0, own=True)


@pytest.mark.parametrize("message", [*ONCE, Counts(-1, -1), Hello(1), Hello(7)])
def test_a_child_of_the_application_reports_nothing(rules: ReportRules, message: Message) -> None:
    assert not rules.admit(message, 0.0, own=False)
    assert rules.admit(Ready(), 0.0, own=True)


@pytest.mark.parametrize("counts", [Counts(-1, 0), Counts(0, -1), Counts(COUNT_MAX + 1, 0), Counts(0, COUNT_MAX + 1)])
def test_counts_can_be_counted(rules: ReportRules, counts: Counts) -> None:
    assert rules.admit(Counts(COUNT_MAX, 0), 0.0, own=True)
    with pytest.raises(MessageError, match="counts"):
        rules.admit(counts, 0.0, own=True)


@pytest.mark.parametrize(
    "drained",
    [
        Drained(handed_over=-1),
        Drained(cut_requests=COUNT_MAX + 1),
        Drained(cut_paths=["GET /"] * (CUT_PATHS_MAX + 1)),
        Drained(cut_paths=["x" * (CUT_PATH_MAX + 1)]),
    ],
)
def test_the_cost_of_a_drain_is_bounded(rules: ReportRules, drained: Drained) -> None:
    with pytest.raises(MessageError, match=r"counts|cut are too many, or too long"):
        rules.admit(drained, 0.0, own=True)
    most = Drained(COUNT_MAX, COUNT_MAX, COUNT_MAX, COUNT_MAX, ["x" * CUT_PATH_MAX] * CUT_PATHS_MAX)
    assert rules.admit(most, 0.0, own=True)


@pytest.mark.parametrize(
    "path",
    ["/" + "x" * 100_000, "/" + '"' * 300, "/" + "\0" * 300, "/" + "\N{GRINNING FACE}" * 300, "/\ud800" * 300],
    ids=ascii,
)
def test_a_master_without_the_names_of_cut_requests_can_read_a_report_with_them(path: str) -> None:
    """It reads 1024 bytes, and drops the fields that it does not know."""
    name = request_name("GET", path)
    assert name.startswith("GET /")
    assert len(name) <= CUT_PATH_MAX
    message = Drained(COUNT_MAX, COUNT_MAX, COUNT_MAX, COUNT_MAX, [name] * CUT_PATHS_MAX)
    assert WORKER_REPORT_BYTES[Drained] == 1024
    assert list(Decoder(accepts=WORKER_REPORT_BYTES).feed(encode(message))) == [message]


@pytest.mark.parametrize("own", [True, False])
def test_reports_are_limited_together(rules: ReportRules, own: bool) -> None:
    for _ in range(REPORTS_MAX - 1):  # one was the hello
        rules.admit(Counts(1, 1), 0.0, own=own)
    with pytest.raises(MessageError, match="reports"):
        rules.admit(Counts(1, 1), 0.0, own=own)


def test_what_is_within_the_rate_may_go_on_for_ever(rules: ReportRules) -> None:
    for number in range(3 * REPORTS_MAX):
        assert rules.admit(Counts(1, 1), number / REPORTS_PER_S, own=True)


def test_time_without_reports_is_not_saved_up(rules: ReportRules) -> None:
    for _ in range(REPORTS_MAX):
        rules.admit(Counts(1, 1), 1e6, own=True)
    with pytest.raises(MessageError):
        rules.admit(Counts(1, 1), 1e6, own=True)


@pytest.mark.parametrize(
    "text", ["x" * (1 << 20), "\0" * (1 << 20), "\N{GRINNING FACE}" * (1 << 18), "\ud800" * 100_000]
)
def test_a_text_is_cut_so_that_its_report_is_accepted(text: str) -> None:
    message = Failed(reported_text(text), reported_text(text))
    assert REPORTED_TEXT_BYTES / 2 < len(encode(message)) / 2 <= REPORTED_TEXT_BYTES + 1024
    assert list(Decoder(accepts=WORKER_REPORT_BYTES).feed(encode(message))) == [message]


def test_each_kind_has_its_limit() -> None:
    line = b'{"type": "counts", "connections": 1, "requests": 1, "x": "%s"}\n' % (b"x" * 2000)
    with pytest.raises(MessageError, match="Counts has 2060 bytes, it may have 1024"):
        list(Decoder(accepts=WORKER_REPORT_BYTES).feed(line))
    with pytest.raises(MessageError, match="Order is not for this end"):
        list(Decoder(accepts=WORKER_REPORT_BYTES).feed(b'{"type": "order", "command": "reload"}\n'))
    with pytest.raises(MessageError, match="longer than"):
        list(Decoder(accepts=WORKER_REPORT_BYTES).feed(b"x" * 200_000))


BUCKETS = [0] * (len(LATENCY_BOUNDS_S) + 1)


def test_answers_may_come_again_and_again(rules: ReportRules) -> None:
    for number in range(3):
        assert rules.admit(Answers(number, 0, 0, 0.5, BUCKETS), 0.0, own=True)


@pytest.mark.parametrize(
    "message",
    [
        Answers(-1, 0, 0, 0.0, BUCKETS),
        Answers(COUNT_MAX + 1, 0, 0, 0.0, BUCKETS),
        Answers(1, 1, 1, 0.0, BUCKETS),
        Answers(1, 0, 0, -1.0, BUCKETS),
        Answers(1, 0, 0, float("nan"), BUCKETS),
        Answers(1, 0, 0, 0.0, []),
        Answers(1, 0, 0, 0.0, [*BUCKETS[1:], -1]),
        Answers(1, 1, 0, 0.0, BUCKETS, ["x"] * 4),
        Answers(1, 1, 0, 0.0, BUCKETS, ["x" * (FAILURE_TEXT_MAX + 1)]),
    ],
)
def test_answers_are_what_can_be_counted(rules: ReportRules, message: Answers) -> None:
    with pytest.raises(MessageError):
        rules.admit(message, 0.0, own=True)
