"""What a worker may report, and when.

Rules:

* A worker may have dropped privileges, and nothing that it sends is believed to be in order. A report counts only where
  it is legal: ``Hello`` is the first one. The others follow when the worker has got its start order, each kind once,
  except counts and answers. A worker that was ready cannot fail to boot any more, and one that has failed does not get
  ready.
* A child of the application may hold a copy of the channel. Its reports do not count, but the rate of all reports on
  the channel is limited together.
* Nothing here reads or waits: a message and the time come in, a verdict goes out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from zdworker.errors import MessageError
from zdworker.ipc.messages import (
    CUT_PATH_MAX,
    CUT_PATHS_MAX,
    FAILURE_TEXT_MAX,
    LATENCY_BOUNDS_S,
    NEWEST_FAILURES,
    Answers,
    Counts,
    Drained,
    Failed,
    Hello,
    Message,
    Ready,
)

REPORTS_MAX = 1000
"""Reports that may come at once: those of a worker whose master was stopped until their channel was full, and more."""

REPORTS_PER_S = 50.0
"""Reports a second that may come all the time; a worker needs one, and four more where it counts its answers."""

COUNT_MAX = 1 << 53
"""The largest number that every reader of JSON can hold."""

EXCLUDES: dict[type[Message], type[Message]] = {Failed: Ready, Ready: Failed}


class ReportRules:
    """The rules for one worker's reports.

    :param worker_id: the worker's id, which its ``Hello`` has to name.
    """

    def __init__(self, worker_id: int) -> None:
        self.started = False
        """Whether the worker has got its start order."""
        self._worker_id = worker_id
        self._came: set[type[Message]] = set()
        self._allowance = float(REPORTS_MAX)
        self._counted_at: float | None = None

    def admit(self, message: Message, now: float, *, own: bool) -> bool:
        """Return whether a report counts: it was sent by the worker itself.

        :param own: whether it was, or was the first that came: the sender of that is the worker.
        :raises MessageError: it is illegal, or one too many; the channel is of no use any more.
        """
        self._take_allowance(now)
        if not own:
            return False
        kind = type(message)
        if isinstance(message, Hello):
            if message.worker_id != self._worker_id:
                raise MessageError(f"the worker {self._worker_id} says that it is {message.worker_id}")
        elif Hello not in self._came or not self.started:
            raise MessageError(f"{kind.__name__} came before the worker was started")
        _check_numbers(message)
        if isinstance(message, (Counts, Answers)):
            return True
        if kind in self._came or EXCLUDES.get(kind) in self._came:
            raise MessageError(f"{kind.__name__} came after {', '.join(sorted(kind.__name__ for kind in self._came))}")
        self._came.add(kind)
        return True

    def _take_allowance(self, now: float) -> None:
        passed = 0.0 if self._counted_at is None else now - self._counted_at
        self._counted_at = now
        self._allowance = min(self._allowance + passed * REPORTS_PER_S, float(REPORTS_MAX)) - 1.0
        if self._allowance < 0.0:
            raise MessageError(f"more than {REPORTS_MAX} reports at once, or {REPORTS_PER_S:g} a second")


def _check_numbers(message: Message) -> None:
    """Check that what a message counts can be counted, and that its texts are as short as a worker sends them.

    :raises MessageError: they are not.
    """
    if isinstance(message, Counts):
        _check_counts(dataclasses.astuple(message))
    elif isinstance(message, Drained):
        _check_counts(message.counts().values())
        if len(message.cut_paths) > CUT_PATHS_MAX or any(len(text) > CUT_PATH_MAX for text in message.cut_paths):
            raise MessageError("the requests that were cut are too many, or too long")
    elif isinstance(message, Answers):
        _check_answers(message)


def _check_counts(counts: Iterable[int]) -> None:
    if not all(0 <= count <= COUNT_MAX for count in counts):
        raise MessageError("counts are not what can be counted")


def _check_answers(message: Answers) -> None:
    counts = [message.answers, message.errors, message.exceptions, *message.latency]
    if not all(0 <= count <= COUNT_MAX for count in counts) or message.errors + message.exceptions > message.answers:
        raise MessageError("answers are not what can be counted")
    if not 0 <= message.seconds <= COUNT_MAX:
        raise MessageError("answers have taken a time that there is not")
    if len(message.latency) != len(LATENCY_BOUNDS_S) + 1:
        raise MessageError(f"latency has {len(message.latency)} buckets")
    if len(message.newest) > NEWEST_FAILURES or any(len(text) > FAILURE_TEXT_MAX for text in message.newest):
        raise MessageError("the newest failures are too many, or too long")
