"""The messages between master, fork server, worker and command.

Rules:

* A message is one line: a JSON object with ``type`` and the fields of one of the classes below, then a newline. JSON
  text holds no raw newline, so a line is a message and no length has to be trusted.
* Reading is incremental and bounded: a :class:`Decoder` takes bytes as they come, whole messages come out. Whatever
  arrives (garbage, an endless line, a wrong type) is a :class:`~zdworker.errors.MessageError`, never a crash, a hang or
  unbounded memory.
* Unknown fields are dropped and fields with a default may be missing: the two ends may be two versions of zdworker,
  since a generation imports the newest. :data:`PROTOCOL` changes when that is not enough.
* Descriptors travel beside a message (``SCM_RIGHTS``); the message says what they are by name, in ``descriptors``.
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from zdworker.errors import MessageError

PROTOCOL = 2
"""Version of the messages; a generation of another version is refused with the reason."""

LIMIT = 4 * 1024 * 1024
"""Bytes that one message may have: a configuration or a traceback fits many times over."""


# -- fork server to master ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """The generation is loaded: its configuration is valid and, when it preloads, its application is imported."""

    protocol: int
    preloaded: bool
    values: dict[str, Any]
    settings: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LoadFailed:
    """The generation failed; ``exit_code`` is what Gunicorn would have exited with."""

    reason: str
    traceback: str = ""
    exit_code: int = 3


@dataclass(frozen=True)
class Forked:
    """The worker ``age`` was forked, and its forking parent is gone: it is the master's child by now."""

    worker_id: int


@dataclass(frozen=True)
class NotForked:
    """The kernel refused to fork the worker ``age``."""

    worker_id: int
    reason: str


# -- master to fork server ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Init:
    """The first message to a fork server. ``descriptors`` names what comes with it: the master's own standard error.

    ``directory`` is the logical start directory, ``safe_path`` tells whether the master was started with ``-P``,
    ``configuration`` is the file that the master's configuration was read from, empty without one, ``started`` is when
    the master started, in nanoseconds since the epoch.
    """

    generation: int
    master: int
    directory: str
    safe_path: bool
    descriptors: list[str]
    configuration: str = ""
    started: int = 0


@dataclass(frozen=True)
class Spawn:
    """Fork a worker. ``descriptors`` names the descriptors that come with the message, in their order."""

    worker_id: int
    slot: int
    generation: int
    descriptors: list[str]
    environment: dict[str, str | None] = field(default_factory=dict)
    server_attributes: dict[str, Any] = field(default_factory=dict)
    worker_attributes: dict[str, Any] = field(default_factory=dict)
    workers: int = 1


# -- worker to master --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hello:
    """The first message of a worker; the kernel adds the pid of its sender."""

    worker_id: int


@dataclass(frozen=True)
class Ready:
    """The worker accepts connections."""


@dataclass(frozen=True)
class Draining:
    """The worker has stopped accepting."""


@dataclass(frozen=True)
class Failed:
    """The worker could not boot and is about to exit."""

    reason: str
    traceback: str = ""
    exit_code: int = 3


@dataclass(frozen=True)
class ReplacementRequested:
    """The worker asks to be replaced, and serves until it is."""

    reason: str


@dataclass(frozen=True)
class Counts:
    """Open connections, and requests answered since the worker's start."""

    connections: int
    requests: int


# -- master to worker --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """The master knows the worker's pid: it may boot."""


@dataclass(frozen=True)
class Stopping:
    """The master has to end. The worker does not read it: that it was sent is all (``zd_stopping()``)."""


@dataclass(frozen=True)
class Leave:
    """The ``TERM`` that follows is the master's: drain. Not read either; a ``TERM`` without it has another sender."""


# -- command to master -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """What a user wants: one of :data:`COMMANDS`. Without ``wait`` a report follows at once."""

    command: str
    wait: bool = False


COMMANDS = ("status", "reload", "rollback")


# -- master to command -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """How things are."""

    status: dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """How far a reload is: ``ready`` of ``workers`` are of ``generation`` and ready; 0 while that is loading."""

    state: str
    generation: int
    ready: int
    workers: int


@dataclass(frozen=True)
class Outcome:
    """How the awaited reload ended; ``serving`` is the generation that serves, after a failure the one before."""

    result: str
    generation: int
    duration_s: float
    serving: int
    error: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Refused:
    """An order cannot be carried out."""

    reason: str


ServerReport = Loaded | LoadFailed | Forked | NotForked
WorkerReport = Hello | Ready | Draining | Failed | ReplacementRequested | Counts
Message = (
    ServerReport
    | Init
    | Spawn
    | WorkerReport
    | Start
    | Stopping
    | Leave
    | Order
    | Report
    | Progress
    | Outcome
    | Refused
)

SERVER_REPORT_BYTES: dict[type[Message], int] = dict.fromkeys(typing.get_args(ServerReport), LIMIT)
"""Bytes that each kind of message from a fork server may have; it sends no others."""

REPORTED_TEXT_BYTES = 64 * 1024
"""Bytes that a text in a worker's report may have, as JSON."""

WORKER_REPORT_BYTES: dict[type[Message], int] = {
    **dict.fromkeys(typing.get_args(WorkerReport), 1024),
    ReplacementRequested: REPORTED_TEXT_BYTES + 1024,
    Failed: 2 * REPORTED_TEXT_BYTES + 1024,
}
"""Bytes that each kind of message from a worker may have; it sends no others."""

KINDS: dict[str, type[Message]] = {kind.__name__.lower(): kind for kind in typing.get_args(Message)}
HINTS: dict[type[Message], dict[str, Any]] = {kind: typing.get_type_hints(kind) for kind in KINDS.values()}


def encode(message: Message) -> bytes:
    """Return ``message`` as one line of JSON.

    :raises TypeError: a field holds what JSON has no form for.
    """
    fields = {f.name: getattr(message, f.name) for f in dataclasses.fields(message)}
    return json.dumps({"type": type(message).__name__.lower(), **fields}).encode() + b"\n"


def brief(message: Message) -> str:
    """Return ``message`` in one short line for the log: without what may be large, or secret (the environment)."""
    fields = {f.name: getattr(message, f.name) for f in dataclasses.fields(message)}
    shown = (f"{name}={reprlib.repr(v)}" for name, v in fields.items() if not isinstance(v, dict))
    return f"{type(message).__name__}({', '.join(shown)})"


def reported_text(text: str) -> str:
    """Return the end of ``text``, where the reason stands, as far as it fits into a worker's report."""
    text = text[-REPORTED_TEXT_BYTES:]
    while len(json.dumps(text)) > REPORTED_TEXT_BYTES + len('""'):
        text = text[len(text) // 8 + 1 :]
    return text


def decode(line: bytes) -> Message:
    """Return the message in ``line`` (without or with its newline).

    :raises MessageError: the line is not a message; the text says in what way.
    """
    try:
        plain = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"not JSON: {line[:80]!r}") from error
    if not isinstance(plain, dict):
        raise MessageError(f"not a JSON object: {line[:80]!r}")
    name = plain.get("type")
    if not isinstance(name, str) or name not in KINDS:
        raise MessageError(f"unknown type in {line[:80]!r}; known are {', '.join(sorted(KINDS))}")
    return _build(KINDS[name], plain)


def _build(kind: type[Message], plain: dict[str, Any]) -> Message:
    values = {}
    for name, hint in HINTS[kind].items():
        if name in plain:
            if not _fits(plain[name], hint):
                raise MessageError(f"{kind.__name__}.{name} is not a {hint}: {reprlib.repr(plain[name])}")
            values[name] = plain[name]
    try:
        return kind(**values)
    except TypeError as error:
        raise MessageError(f"{kind.__name__} lacks a field: {error}") from error


def _fits(value: object, hint: Any) -> bool:
    """Return whether a value out of JSON is what a field's annotation says (the kinds of annotation used above)."""
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
    """Turns a stream of bytes into messages, whatever the pieces in which it arrives.

    :param limit: the most bytes that one message may have, its newline not counted.
    :param accepts: the kinds of message that may come, with the most bytes of each; all kinds by default.
    """

    def __init__(self, limit: int = LIMIT, accepts: Mapping[type[Message], int] | None = None) -> None:
        self._limit = limit if accepts is None else max(accepts.values())
        self._accepts = accepts
        self._rest = bytearray()
        self._searched = 0  # bytes of the rest without a newline: a long message is not searched again and again
        self._overlong = False

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take ``data`` and yield the messages that are now whole.

        :raises MessageError: a line is no message, or has grown beyond the limit. That line is dropped, and the stream
            can be read on; messages behind it come with the next call, even one without data.
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
