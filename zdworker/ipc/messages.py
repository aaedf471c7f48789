"""The messages between master, fork server, worker and command.

Rules:

* A message is one line: a JSON object with ``type`` and the fields of one of the classes below, then a newline. JSON
  text has no raw newline, so each line is one message and no length field has to be trusted.
* Reading is incremental and bounded: a :class:`Decoder` takes bytes as they come and returns whole messages. Bad input
  (garbage, an endless line, a wrong type) raises :class:`~zdworker.errors.MessageError`. It never causes a crash, a
  hang or unbounded memory.
* Unknown fields are dropped and fields with a default may be missing, because the two ends may be two versions of
  zdworker: a generation imports the newest. :data:`PROTOCOL` changes when that is not enough.
* Descriptors are sent beside a message (``SCM_RIGHTS``); the message names them in its field ``descriptors``.
* The log shows a message by its ``repr``, which leaves out what is large or secret (the environment).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import reprlib
import sys
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from zdworker import texts
from zdworker.errors import MessageError

PROTOCOL = 2
"""Version of the messages. The master refuses a generation of another version and gives the reason."""

READABLE_PROTOCOLS = (PROTOCOL,)
"""The versions that a master understands: this one and the one before, once there is one. After an upgrade its fork
servers and workers are of an earlier zdworker, and a reload may go back to that."""

LATENCY_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The upper bounds of the buckets in which answers are counted by how long they took, those of Prometheus' client
libraries for the most part; one more bucket has the rest."""

NEWEST_FAILURES = 3
"""Failed requests that a worker names."""

FAILURE_TEXT_MAX = 200
"""Characters that the name of one has."""

CUT_PATHS_MAX = 3
"""Requests that were cut which a worker names."""

CUT_PATH_MAX = 200
"""Characters that the name of one has."""

CUT_PATH_BYTES = 240
"""Bytes that it has as JSON: with three of them a :class:`Drained` is no longer than a master without the field reads
(1024 bytes)."""

MESSAGE_MAX_BYTES = 4 * 1024 * 1024
"""Bytes that one message may have, many times the size of a configuration or a traceback."""


# -- fork server to master ---------------------------------------------------------------------------------------


class Place:
    """The kinds of places that a generation comes from."""

    DIRECTORY = "directory"
    """The start directory."""
    CHDIR = "chdir"
    """Gunicorn's setting: where the application is loaded."""
    SCRIPT = "script"
    CONFIGURATION = "configuration"
    INTERPRETER = "interpreter"
    PATH = "path"
    """The entries of ``sys.path`` before the application was imported."""
    APPLICATION = "application"
    """The file of the application's module."""


@dataclass(frozen=True)
class Loaded:
    """The generation is loaded: its configuration is valid and, when it preloads, its application is imported.

    ``values`` are Gunicorn's settings that are plain data, ``settings`` those of zdworker (``Settings.to_plain``).
    ``warnings`` are lines for the log. ``places`` has for each kind of :class:`Place` what each name led to when it was
    used; what is unknown is left out. ``not_preloaded`` says why ``zd_preload = "auto"`` has left the import to the
    workers, "" if it has not. ``label`` is the version of the application, "" if nothing tells, ``versions`` are those
    of what the generation runs.
    """

    protocol: int
    preloaded: bool
    values: dict[str, Any] = field(repr=False)
    settings: dict[str, Any] = field(repr=False)
    warnings: list[str] = field(default_factory=list)
    places: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    not_preloaded: str = ""
    label: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadFailed:
    """The generation could not be loaded; ``exit_code`` is the one that Gunicorn would have exited with.

    ``traceback`` is for users: the application's own frames. ``whole`` has all of them, for the log; it is empty
    where there are no others. ``printed`` is what the code has printed before it ended its interpreter.
    """

    reason: str
    traceback: str = field(default="", repr=False)
    exit_code: int = 3
    whole: str = field(default="", repr=False)
    printed: str = field(default="", repr=False)


@dataclass(frozen=True)
class Forked:
    """The worker was forked, and the process that forked it has ended, so the worker is the master's child."""

    worker_id: int


@dataclass(frozen=True)
class NotForked:
    """The kernel refused to fork the worker."""

    worker_id: int
    reason: str


# -- master to fork server ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Init:
    """The first message to a fork server.

    ``master`` is the master's pid. ``directory`` is the directory in which the master was started, by its logical path.
    ``safe_path`` means that the master was started with ``-P``. ``descriptors`` names the descriptor that comes with
    the message: the master's standard error. ``configuration`` is the file that the master's configuration was read
    from, empty without one. ``started`` is when the master started, in nanoseconds since the epoch. ``environment`` is
    what hooks in the master have set by now, None for a variable that they have removed. ``not_preloaded`` is not the
    master's: with it a fork server starts itself again that has found, after the import, why it should not preload.
    ``trial`` means that the generation is only tried (``zdworker check``): it leaves alone what a running site uses.
    """

    generation: int
    master: int
    directory: str
    safe_path: bool
    descriptors: list[str]
    configuration: str = ""
    started: int = 0
    environment: dict[str, str | None] = field(default_factory=dict, repr=False)
    not_preloaded: str = ""
    trial: bool = False


@dataclass(frozen=True)
class HookData:
    """What hooks in the master have set, for every worker that is ordered from now on. It is sent when it has changed.

    ``environment`` has None for the variables that hooks have removed.
    """

    environment: dict[str, str | None] = field(default_factory=dict, repr=False)
    server_attributes: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Spawn:
    """Fork a worker.

    ``descriptors`` names the descriptors that come with the message, in their order. ``environment``,
    ``server_attributes`` and ``worker_attributes`` are what hooks in the master have set; a variable that they have
    removed is None. ``workers`` is the number of workers, ``siblings`` what hooks see of the others,
    by their pids: ``age``, ``slot``, ``alive`` and what hooks in the master have set on them.
    """

    worker_id: int
    slot: int
    generation: int
    descriptors: list[str]
    worker_attributes: dict[str, Any] = field(default_factory=dict, repr=False)
    workers: int = 1
    siblings: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)


# -- worker to master --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hello:
    """The first message of a worker; the kernel adds the pid of its sender."""

    worker_id: int


@dataclass(frozen=True)
class Ready:
    """The worker accepts connections; ``takes`` means that it also takes over those of others in its slot.

    ``mismatch`` says why its class can hardly serve this application, "" if it can, or if that is not known.
    """

    takes: bool = False
    mismatch: str = ""


@dataclass(frozen=True)
class Draining:
    """The worker has stopped accepting."""


@dataclass(frozen=True)
class Drained:
    """The worker's drain is over: connections that it has handed over to its successor or announced to close, requests
    that were cut at ``graceful_timeout``, and WebSockets that were closed.

    ``cut_paths`` has the method and the path of some of the requests that were cut (:func:`request_name`).
    """

    handed_over: int = 0
    told_to_close: int = 0
    cut_requests: int = 0
    closed_websockets: int = 0
    cut_paths: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Return the numbers, by their names."""
        return {name: value for name, value in vars(self).items() if name != "cut_paths"}

    def plus(self, other: Drained) -> Drained:
        """Return the sum of both, with as many different paths as one report may have."""
        its, paths = other.counts(), dict.fromkeys([*self.cut_paths, *other.cut_paths])
        sums = {name: mine + its[name] for name, mine in self.counts().items()}
        return Drained(**sums, cut_paths=list(paths)[:CUT_PATHS_MAX])


@dataclass(frozen=True)
class Failed:
    """The worker could not boot and is about to exit."""

    reason: str
    traceback: str = field(default="", repr=False)
    exit_code: int = 3


@dataclass(frozen=True)
class ReplacementRequested:
    """The worker asks to be replaced, and keeps serving until its replacement is ready."""

    reason: str


@dataclass(frozen=True)
class Counts:
    """The number of open connections, and of requests answered since the worker's start; in a drain, and as long as a
    worker that counts has answered nothing, also what is under way: requests that are being answered, and WebSockets.
    """

    connections: int
    requests: int
    in_flight: int = 0
    websockets: int = 0


@dataclass(frozen=True)
class Answers:
    """What the worker has answered since it began to count.

    ``answers`` are all, of which ``errors`` had a status of 500 or above; for ``exceptions`` of them there was no
    answer, because the application has raised. ``latency`` has how many took how long (:data:`LATENCY_BOUNDS_S`),
    ``newest`` the newest failures, the newest one last: method, path, and status or exception. ``seconds`` is what all
    took together.
    """

    answers: int
    errors: int = 0
    exceptions: int = 0
    seconds: float = 0.0
    latency: list[int] = field(default_factory=list)
    newest: list[str] = field(default_factory=list)


# -- master to worker --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """The master knows the worker's pid, and the worker may boot."""


@dataclass(frozen=True)
class Stopping:
    """The master has to end. The worker does not read this; it only checks that it was sent (``zd_stopping()``)."""


@dataclass(frozen=True)
class Leave:
    """The master sends ``TERM`` next; a ``TERM`` without this message has another sender. Not read either."""


@dataclass(frozen=True)
class CountAnswers:
    """From now on the worker is to count its answers. Not read either."""


# -- command to master -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """An order of a user: one of :data:`COMMANDS`. Without ``wait`` the master answers at once with a report.

    ``workers`` is the number that ``scale`` asks for. ``hold_s`` has a reload stop at its canary, for so many seconds
    at the most; 0 if it is not to stop.
    """

    command: str
    wait: bool = False
    workers: int = 0
    hold_s: float = 0.0


COMMANDS = ("status", "history", "reload", "rollback", "scale", "resume", "probe", "upgrade")

HOLD_MAX_S = 7 * 24 * 3600.0
"""Seconds for which a reload may be held: a canary that is forgotten is not to stay forever."""

SCALE_MAX = 10_000
"""Workers that can be asked for: more than a machine has processes for is a slip of the finger."""


# -- master to command -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """The answer to an order that does not wait; ``status`` is what ``zdworker status --json`` prints."""

    status: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class History:
    """The answer to ``history``: ``entries`` is what ``zdworker history --json`` prints."""

    entries: list[dict[str, Any]] = field(repr=False)


@dataclass(frozen=True)
class Progress:
    """The progress of a reload: ``ready`` of ``workers`` workers are of ``generation`` and ready: these are replaced.

    ``waiting`` says for which old worker the reload waits, and what that still has to do, ``left_s`` how many seconds
    it has left for that; empty and None if the reload waits for none.
    """

    state: str
    generation: int
    ready: int
    workers: int
    waiting: str = ""
    left_s: int | None = None


@dataclass(frozen=True)
class Outcome:
    """The end of the awaited reload. ``serving`` is the generation that serves, after a failure the one before.

    ``label`` is the version of the application, "" if nothing tells. The five before it are what the reload has cost,
    see :class:`Drained`. ``judgement`` is what was found of the new code's answers, ``note`` what is left to do, both
    "" if there is nothing. The result ``held`` means that the canary serves, and that the reload waits for ``resume``
    or ``rollback``.
    """

    result: str
    generation: int
    duration_s: float
    serving: int
    error: str = ""
    traceback: str = field(default="", repr=False)
    handed_over: int = 0
    told_to_close: int = 0
    cut_requests: int = 0
    closed_websockets: int = 0
    cut_paths: list[str] = field(default_factory=list)
    label: str = ""
    judgement: str = ""
    note: str = ""


@dataclass(frozen=True)
class Probe:
    """The answer to ``probe``: a connection to the canary of ``generation``, a socket that ``descriptors`` names."""

    generation: int
    descriptors: list[str]


@dataclass(frozen=True)
class UpgradeStep:
    """An upgrade goes on: ``rehearsing``, then ``replacing``."""

    step: str


@dataclass(frozen=True)
class Upgraded:
    """The end of an upgrade, ``done`` or ``failed``; after a failure the program before goes on. ``before`` and
    ``after`` are the versions of what the master runs: ``python``, ``gunicorn`` and ``zdworker``.
    """

    result: str
    duration_s: float
    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    error: str = ""
    traceback: str = field(default="", repr=False)


@dataclass(frozen=True)
class Refused:
    """The master refuses an order."""

    reason: str


# -- check to command --------------------------------------------------------------------------------------------


NEXT_PART = "\x1e"
"""What the check prints before each :class:`Checking`, so that what is printed can be told apart: the separator of
records (ECMA-48)."""


@dataclass(frozen=True)
class Checking:
    """The check begins with something, and has ended with it, or has ended itself, ``limit_s`` seconds later."""

    about: str
    limit_s: float


@dataclass(frozen=True)
class Finding:
    """What the check has found: ``level`` is one of :data:`LEVELS`, ``about`` a word or two on what it is about.

    ``text`` is for a reader, and says what to do where something is to be done. ``details`` is a traceback, or what was
    printed. Where an error has none, the command takes what was printed meanwhile if ``printed`` is set.
    """

    level: str
    about: str
    text: str
    details: str = field(default="", repr=False)
    printed: bool = False


LEVELS = ("ok", "warning", "error", "skipped")
"""The levels of a :class:`Finding`."""


ServerReport = Loaded | LoadFailed | Forked | NotForked
WorkerReport = Hello | Ready | Draining | Drained | Failed | ReplacementRequested | Counts | Answers
Message = (
    ServerReport
    | Init
    | HookData
    | Spawn
    | WorkerReport
    | Start
    | Stopping
    | Leave
    | CountAnswers
    | Order
    | Report
    | History
    | Progress
    | Outcome
    | Probe
    | UpgradeStep
    | Upgraded
    | Refused
    | Checking
    | Finding
)

SERVER_REPORT_BYTES: dict[type[Message], int] = dict.fromkeys(typing.get_args(ServerReport), MESSAGE_MAX_BYTES)
"""Bytes that each kind of message from a fork server may have; it sends no others."""

REPORTED_TEXT_BYTES = 2 * texts.LINES_MAX
"""Bytes that a text in a worker's report may have, as JSON. A text for a reader fits if it is mostly ASCII, of which a
character takes one byte, or two where JSON needs a backslash."""

CHECK_REPORT_BYTES: dict[type[Message], int] = dict.fromkeys((Checking, Finding), MESSAGE_MAX_BYTES)
"""Bytes that each kind of message from the check may have; it sends no others."""

WORKER_REPORT_BYTES: dict[type[Message], int] = {
    **dict.fromkeys(typing.get_args(WorkerReport), 1024),
    ReplacementRequested: REPORTED_TEXT_BYTES + 1024,
    Failed: 2 * REPORTED_TEXT_BYTES + 1024,
    Answers: NEWEST_FAILURES * 6 * FAILURE_TEXT_MAX + 1024,  # JSON writes a character as \\uXXXX at the longest
}
"""Bytes that each kind of message from a worker may have; it sends no others."""

MESSAGE_TYPES: dict[str, type[Message]] = {kind.__name__.lower(): kind for kind in typing.get_args(Message)}


class _FieldTypes(dict[type[Message], dict[str, Any]]):
    """The types of the fields of each kind of message, found out when one is wanted: a process reads a few kinds."""

    def __missing__(self, kind: type[Message]) -> dict[str, Any]:
        self[kind] = types = typing.get_type_hints(kind)
        return types


FIELD_TYPES = _FieldTypes()


def encode(message: Message) -> bytes:
    """Return ``message`` as one line of JSON.

    An order leaves out what it does not ask for, so that a master of an older version has to know only what is used.

    :raises TypeError: JSON cannot represent the value of a field.
    """
    named = [(f, getattr(message, f.name)) for f in dataclasses.fields(message)]
    fields = {f.name: value for f, value in named if not isinstance(message, Order) or value != f.default}
    return json.dumps({"type": type(message).__name__.lower(), **fields}).encode() + b"\n"


def reported_text(text: str, longest: int = texts.LINES_MAX) -> str:
    """Return a text for a reader, in ``longest`` characters, as far as it fits into a worker's report: what does not is
    cut off its beginning, because the reason stands at the end.
    """
    text = texts.lines(text, longest)
    while len(json.dumps(text)) > REPORTED_TEXT_BYTES + len('""'):
        text = text[len(text) // 8 + 1 :]
    return text


_ORIGIN = re.compile(r"\A[a-z][a-z0-9+.-]*://[^/?#]*", re.IGNORECASE)


def request_name(method: str, target: str) -> str:
    """Return a request's method and path for a reader, as far as they fit into a worker's report.

    The query is left out, and so is the origin of a target in absolute form: they may hold secrets.
    """
    path = re.split("[?#]", _ORIGIN.sub("", target), maxsplit=1)[0] or "/"
    name, longest = " ".join(f"{method} {path}".split()), CUT_PATH_MAX
    while len(json.dumps(text := texts.lines(name, longest))) > CUT_PATH_BYTES:
        longest -= longest // 8
    return text


def decode(line: bytes) -> Message:
    """Return the message in ``line`` (without or with its newline).

    :raises MessageError: the line is not a message; the text says why.
    """
    try:
        plain = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"not JSON: {line[:80]!r}") from error
    if not isinstance(plain, dict):
        raise MessageError(f"not a JSON object: {line[:80]!r}")
    name = plain.get("type")
    if not isinstance(name, str) or name not in MESSAGE_TYPES:
        raise MessageError(f"unknown type in {line[:80]!r}; known are {', '.join(sorted(MESSAGE_TYPES))}")
    return _build(MESSAGE_TYPES[name], plain)


def _build(kind: type[Message], plain: dict[str, Any]) -> Message:
    values, hints = {}, FIELD_TYPES[kind]
    unknown = sorted(plain.keys() - hints.keys() - {"type"})
    if unknown and kind is Order:  # a user has written it, and means something by it
        raise MessageError(f"an order has no {reprlib.repr(unknown[0])}; it has {', '.join(hints)}")
    for name, hint in hints.items():
        if name in plain:
            value = plain[name]
            if hint is float and type(value) is int:  # JSON has one kind of number, and 600 is as good as 600.0
                value = float(value) if abs(value) < sys.maxsize else math.inf
            if not _fits(value, hint):
                wanted = _FOR_A_READER.get(hint, hint)
                raise MessageError(f"{name} of {kind.__name__.lower()} is not {wanted}: {reprlib.repr(value)}")
            values[name] = value
    try:
        return kind(**values)
    except TypeError as error:
        raise MessageError(f"{kind.__name__} lacks a field: {error}") from error


_FOR_A_READER: dict[Any, str] = {bool: "true or false", float: "a number", int: "a whole number", str: "a text"}


def _fits(value: object, hint: Any) -> bool:
    """Return whether a value from JSON fits a field's annotation (the kinds of annotation that are used above)."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:  # keys are strings: JSON has no others
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if inner:
        return any(_fits(value, one) for one in inner)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


class Decoder:
    """Turns a stream of bytes, in pieces of any size, into messages.

    :param limit: the most bytes that one message may have, its newline not counted.
    :param accepts: the kinds of message that may come, with the most bytes of each; all kinds by default.
    """

    def __init__(self, limit: int = MESSAGE_MAX_BYTES, accepts: Mapping[type[Message], int] | None = None) -> None:
        self._limit = limit if accepts is None else max(accepts.values())
        self._accepts = accepts
        self._rest = bytearray()
        self._searched = (
            0  # bytes of the rest that are known to have no newline, so that a long message is searched once
        )
        self._overlong = False

    def to_state(self) -> tuple[bytes, bool]:
        """Return what is read and not handed on yet, for another program of this process (an upgrade)."""
        return bytes(self._rest), self._overlong

    def resume(self, state: tuple[bytes, bool]) -> None:
        """Go on from what :meth:`to_state` has returned."""
        rest, self._overlong = state
        self._rest = bytearray(rest)

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take ``data`` and yield the messages that are complete.

        :raises MessageError: a line is no message, or is longer than the limit. That line is dropped and the stream can
            still be read: the messages after it come with the next call, even one without data.
        """
        self._rest += data
        return self._whole()

    def _whole(self) -> Iterator[Message]:
        while (end := self._rest.find(b"\n", self._searched)) >= 0:
            line = bytes(self._rest[:end])
            del self._rest[: end + 1]
            self._searched = 0
            skipped, self._overlong = self._overlong, False
            if skipped:
                continue
            if len(line) > self._limit:
                raise self._too_long()
            yield self._accepted(decode(line), len(line))
        self._searched = len(self._rest)
        if self._overlong or len(self._rest) > self._limit:
            first_seen, self._overlong = not self._overlong, True
            self._rest.clear()
            self._searched = 0
            if first_seen:
                raise self._too_long()

    def _accepted(self, message: Message, length: int) -> Message:
        if self._accepts is not None:
            name, limit = type(message).__name__, self._accepts.get(type(message))
            if limit is None:
                raise MessageError(f"{name} is not for this end of a channel")
            if length > limit:
                raise MessageError(f"{name} has {length} bytes, it may have {limit}")
        return message

    def _too_long(self) -> MessageError:
        return MessageError(f"a message is longer than {self._limit} bytes")
