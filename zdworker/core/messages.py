"""What master, fork server and worker say to each other.

Rules:

* A message is one line: a JSON object with ``type`` and the fields of one of the classes below, then a newline. JSON
  text holds no raw newline, so a line is a message and no length has to be believed.
* Reading is incremental and bounded: a :class:`Decoder` takes bytes as they come, whole messages come out. Whatever
  arrives (garbage, half a line, an endless one, a wrong type) is a :class:`~zdworker.errors.MessageError`, never a
  crash, a hang or unbounded memory.
* Unknown fields are dropped and fields with a default may be missing: the two ends may be two versions of zdworker,
  since a generation imports the newest. :data:`PROTOCOL` changes when that is not enough.
* Descriptors travel beside a message (``SCM_RIGHTS``); the message says what they are by name, in ``descriptors``.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from zdworker.errors import MessageError

PROTOCOL = 1
"""Version of the conversation; a generation that speaks another one is refused with the reason."""

LIMIT = 4 * 1024 * 1024
"""Bytes that one message may have: a configuration or a traceback fits many times over."""


# -- fork server to master ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """The generation stands: its configuration is valid and, when it preloads, its application is imported."""

    protocol: int
    preloaded: bool
    values: dict[str, Any]
    settings: dict[str, Any]
    worker_class: str
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Unusable:
    """The generation failed; ``exit_code`` is what Gunicorn would have exited with."""

    reason: str
    traceback: str = ""
    exit_code: int = 3


@dataclass(frozen=True)
class Forked:
    """The worker ``age`` was forked, and its forking parent is gone: it is the master's child by now."""

    age: int


@dataclass(frozen=True)
class NotForked:
    """The kernel refused to fork the worker ``age``."""

    age: int
    reason: str


# -- master to fork server ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Begin:
    """The first word to a fork server. ``descriptors`` names what came along: the master's own standard error.

    ``directory`` is the logical start directory, ``safe_path`` tells whether the master was started with ``-P``.
    """

    generation: int
    master: int
    directory: str
    safe_path: bool
    descriptors: list[str]


@dataclass(frozen=True)
class Spawn:
    """Fork a worker. ``descriptors`` names the descriptors that came along, in their order."""

    age: int
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
    """The first word of a worker; the kernel adds who says it."""

    age: int


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
class Tired:
    """The worker asks to be replaced, and serves until it is."""

    reason: str


@dataclass(frozen=True)
class Counts:
    """Open connections, and requests answered since birth."""

    connections: int
    requests: int


# -- master to worker --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Go:
    """The master knows the worker's pid: it may become one."""


Message = (
    Loaded | Unusable | Forked | NotForked | Begin | Spawn | Hello | Ready | Draining | Failed | Tired | Counts | Go
)
KINDS: dict[str, type[Message]] = {kind.__name__.lower(): kind for kind in typing.get_args(Message)}


def encode(message: Message) -> bytes:
    """Return ``message`` as one line of JSON."""
    fields = {f.name: getattr(message, f.name) for f in dataclasses.fields(message)}
    return json.dumps({"type": type(message).__name__.lower(), **fields}).encode() + b"\n"


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
    kind = KINDS.get(str(plain.get("type")))
    if kind is None:
        raise MessageError(f"unknown type {str(plain.get('type'))[:80]!r}; known are {', '.join(sorted(KINDS))}")
    return _build(kind, plain)


def _build(kind: type[Message], plain: dict[str, Any]) -> Message:
    values = {}
    hints = typing.get_type_hints(kind)
    for f in dataclasses.fields(kind):
        if f.name in plain:
            expected = typing.get_origin(hints[f.name]) or hints[f.name]
            value = plain[f.name]
            if not isinstance(value, expected) or (isinstance(value, bool) and expected is int):
                raise MessageError(f"{kind.__name__}.{f.name} is a {type(value).__name__}, not a {expected.__name__}")
            values[f.name] = value
    try:
        return kind(**values)
    except TypeError as error:
        raise MessageError(f"{kind.__name__} lacks a field: {error}") from error


class Decoder:
    """Turns a stream of bytes into messages, whatever the pieces in which it arrives.

    :param limit: the most bytes that one message may have.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take ``data`` and yield the messages that are now whole.

        :raises MessageError: a line is no message, or has grown beyond the limit. The rest of that line is gone; the
            stream can be read on.
        """
        self._rest += data
        while (end := self._rest.find(b"\n")) >= 0:
            line = bytes(self._rest[:end])
            del self._rest[: end + 1]
            yield decode(line)
        if len(self._rest) > self._limit:
            self._rest.clear()
            raise MessageError(f"a message is longer than {self._limit} bytes")
