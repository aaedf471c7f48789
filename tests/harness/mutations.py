"""Random messages, most of them with something wrong: what comes out of a process that means no good.

Rules: everything comes from one ``random.Random``, so that a seed brings the same bytes again.
"""

from __future__ import annotations

import json
import random
import typing
from collections.abc import Callable, Iterator
from typing import Any

from zdworker.ipc.messages import FIELD_TYPES, MESSAGE_TYPES, Message, encode

ODD: list[Any] = [
    None, True, -1, 0, 1, 1.5, 1e308, 10**30, "", "x", "\ud800", "\0", "\x1b]0;title\x07", "x" * 5000, [], [[]], {}
]  # fmt: skip


def value(chance: random.Random, hint: Any) -> Any:
    """Return a value that fits a field's annotation."""
    if hint is int:
        return chance.choice([0, 1, 2, 3, -1, 10**12, 10**30])
    if hint is str:
        return chance.choice(["status", "reload", "rollback", "restart", "", "a reason", "x" * chance.randrange(3000)])
    if hint is bool:
        return chance.random() < 0.2
    if hint is float:
        return chance.uniform(-1.0, 1e6)
    return [] if typing.get_origin(hint) is list else {}


def legal(chance: random.Random, kinds: list[type[Message]]) -> bytes:
    """Return a message that is well-formed, of any kind and direction."""
    kind = chance.choice(kinds)
    return encode(kind(**{name: value(chance, hint) for name, hint in FIELD_TYPES[kind].items()}))


def mutated(chance: random.Random, line: bytes) -> bytes:
    """Return a message with something wrong."""
    plain = json.loads(line)
    name = chance.choice(list(plain))
    at = chance.randrange(len(line))
    changes: list[Callable[[], bytes]] = [
        lambda: json.dumps({**plain, name: chance.choice(ODD)}).encode() + b"\n",
        lambda: json.dumps({**plain, "more": chance.choice(ODD)}).encode() + b"\n",
        lambda: json.dumps({key: plain[key] for key in plain if key != name}).encode() + b"\n",
        lambda: line[:at] + bytes([chance.randrange(256)]) + line[at + 1 :],
        lambda: line[:at] + line[at + chance.randrange(1, 20) :],
        lambda: line[:at],
        lambda: line * 2,
        lambda: line[:-1] + line,
        lambda: b"\n" * chance.randrange(1, 50) + line,
        lambda: b"[" * chance.randrange(1, 4000) + b"\n",
        lambda: b'{"type": "failed", "reason": ' + b"[" * chance.randrange(1, 90_000) + b"\n",
        lambda: json.dumps([plain] * chance.randrange(100)).encode() + b"\n",
        lambda: chance.randbytes(chance.randrange(200)) + b"\n",
        lambda: b"x" * chance.randrange(300_000),
        lambda: line.decode().encode("utf-16"),
    ]
    return chance.choice(changes)()


def messages(chance: random.Random, kinds: list[type[Message]], wrong: float) -> Iterator[bytes]:
    """Yield messages without end.

    :param kinds: the kinds that are legal here; others come, too, but seldom.
    :param wrong: the share of those with something wrong.
    """
    every = list(MESSAGE_TYPES.values())
    while True:
        line = legal(chance, every if chance.random() < wrong / 5 else kinds)
        yield mutated(chance, line) if chance.random() < wrong else line
