"""Messages: there and back, in any pieces; and whatever else arrives is a MessageError."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zdworker.errors import MessageError
from zdworker.ipc.messages import (
    FIELD_TYPES,
    MESSAGE_TYPES,
    PROTOCOL,
    Counts,
    Decoder,
    Drained,
    Failed,
    Hello,
    HookData,
    Loaded,
    LoadFailed,
    Message,
    Order,
    Ready,
    Spawn,
    Start,
    decode,
    encode,
    request_name,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
by_hint = {
    "int": st.integers(),
    "str": st.text(),
    "bool": st.booleans(),
    "int | None": st.none() | st.integers(),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "list[str]": st.lists(st.text()),
    "list[dict[str, typing.Any]]": st.lists(st.dictionaries(st.text(), json_values)),
    "list[int]": st.lists(st.integers()),
    "dict[str, typing.Any]": st.dictionaries(st.text(), json_values),
    "dict[str, str]": st.dictionaries(st.text(), st.text()),
    "dict[str, str | None]": st.dictionaries(st.text(), st.none() | st.text()),
    "dict[str, dict[str, str]]": st.dictionaries(st.text(), st.dictionaries(st.text(), st.text())),
    "dict[str, dict[str, typing.Any]]": st.dictionaries(st.text(), st.dictionaries(st.text(), json_values)),
}


def field_values(hint: Any) -> st.SearchStrategy[Any]:
    return by_hint[hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)]


messages: st.SearchStrategy[Message] = st.one_of(
    [
        st.builds(kind, **{name: field_values(hint) for name, hint in FIELD_TYPES[kind].items()})
        for kind in MESSAGE_TYPES.values()
    ]
)


def refusal(line: bytes) -> str:
    with pytest.raises(MessageError) as caught:
        decode(line)
    return str(caught.value)


@given(messages)
def test_there_and_back(message: Message) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line) == message


@given(st.lists(messages, max_size=4), st.data())
def test_any_pieces_make_the_same_messages(sent: list[Message], data: st.DataObject) -> None:
    stream = b"".join(map(encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    decoder = Decoder()
    got: list[Message] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    assert got == sent


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_garbage_is_a_message_error_and_nothing_else(pieces: list[bytes]) -> None:
    decoder = Decoder(limit=20)
    for piece in pieces:
        try:
            assert all(isinstance(message, tuple(MESSAGE_TYPES.values())) for message in decoder.feed(piece))
        except MessageError:
            continue


@given(json_values)
def test_any_other_json_is_a_message_error(value: Any) -> None:
    assert refusal(json.dumps(value).encode())


def test_fields_of_another_version() -> None:
    assert decode(b'{"type": "failed", "reason": "no", "colour": "red"}') == Failed("no")
    assert decode(b'{"type": "ready", "since": 3}') == Ready()
    assert decode(b'{"type": "drained", "handed_over": 1, "cut_requests": 2}') == Drained(1, cut_requests=2)


def test_costs_are_added_and_their_paths_are_different_ones() -> None:
    first = Drained(1, 2, 3, 4, ["GET /a", "GET /b"])
    second = Drained(10, 20, 30, 40, ["GET /b", "GET /c", "GET /d"])
    assert first.plus(second) == Drained(11, 22, 33, 44, ["GET /a", "GET /b", "GET /c"])
    assert first.counts() == {"handed_over": 1, "told_to_close": 2, "cut_requests": 3, "closed_websockets": 4}


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("/export", "GET /export"),
        ("/export?token=secret", "GET /export"),
        ("/export#token=secret", "GET /export"),
        ("http://user:secret@host/export?token=secret", "GET /export"),
        ("http://user:secret@host?token=secret", "GET /"),
        ("/http://host/", "GET /http://host/"),
        ("", "GET /"),
        ("*", "GET *"),
        ("/a\x1b[2J\n\tb\udce9", "GET /a\\x1b[2J b\\udce9"),
    ],
)
def test_the_name_of_a_request_is_for_a_reader_and_has_no_secret(target: str, name: str) -> None:
    assert request_name("GET", target) == name


def test_what_is_wrong_is_said() -> None:
    assert "not JSON" in refusal(b"{")
    assert "not JSON" in refusal(b"\xff\xfe\xfd")
    assert "not JSON" in refusal(b"[" * 100_000)
    assert "not a JSON object" in refusal(b"[1]")
    assert "known are" in refusal(b'{"type": "coffee"}')
    assert "known are" in refusal(b'{"type": ["ready"]}')
    assert "known are" in refusal(b"{}")
    assert "Hello lacks a field" in refusal(b'{"type": "hello"}')
    assert refusal(b'{"type": "hello", "worker_id": "1"}') == "worker_id of hello is not a whole number: '1'"


def test_an_order_is_taken_as_users_write_it_and_nothing_of_it_is_ignored() -> None:
    reload = b'{"type": "order", "command": "reload", %s}'
    assert decode(reload % b'"hold_s": 600') == Order("reload", hold_s=600.0)
    assert decode(reload % (b'"hold_s": ' + b"9" * 999)) == Order("reload", hold_s=math.inf)
    assert refusal(reload % b'"hold": 600') == "an order has no 'hold'; it has command, wait, workers, hold_s"
    assert refusal(reload % b'"hold_s": true') == "hold_s of order is not a number: True"
    assert json.loads(encode(Order("reload"))) == {"type": "order", "command": "reload"}


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (Hello(1), "worker_id", True),
        (Hello(1), "worker_id", 1.5),
        (LoadFailed("no"), "reason", None),
        (Loaded(PROTOCOL, True, {}, {}), "preloaded", 1),
        (Loaded(PROTOCOL, True, {}, {}), "values", []),
        (Loaded(PROTOCOL, True, {}, {}), "warnings", [1]),
        (Loaded(PROTOCOL, True, {}, {}), "warnings", "text"),
        (Loaded(PROTOCOL, True, {}, {}), "places", {"path": {"/srv": None}}),
        (HookData(), "environment", {"A": 1}),
        (HookData(), "environment", ["A"]),
        (Spawn(1, 0, 1, []), "descriptors", {}),
    ],
)
def test_wrong_types_are_refused(message: Message, field: str, value: Any) -> None:
    plain = json.loads(encode(message)) | {field: value}
    assert f"{field} of {type(message).__name__.lower()} is not " in refusal(json.dumps(plain).encode())


def test_a_variable_that_was_unset_is_none() -> None:
    message = HookData(environment={"A": None, "B": "x"})
    assert decode(encode(message)) == message


def test_what_json_cannot_hold_is_told_to_the_sender() -> None:
    with pytest.raises(TypeError):
        encode(HookData(server_attributes={"lock": object()}))


class TestTooLong:
    """A message beyond the limit: bounded memory, one error, and the stream goes on."""

    def test_a_whole_line(self) -> None:
        decoder = Decoder(limit=40)
        with pytest.raises(MessageError, match="longer than 40"):
            list(decoder.feed(b"x" * 41 + b"\n" + encode(Start())))
        assert list(decoder.feed(b"")) == [Start()]

    def test_an_endless_line(self) -> None:
        decoder = Decoder(limit=40)
        with pytest.raises(MessageError, match="longer than 40"):
            list(decoder.feed(b"x" * 41))
        for _ in range(3):
            assert list(decoder.feed(b"x" * 100)) == []
        assert list(decoder.feed(b"x\n" + encode(Start()))) == [Start()]

    def test_the_limit_itself_is_allowed(self) -> None:
        line = encode(Counts(1, 2))
        assert list(Decoder(limit=len(line) - 1).feed(line)) == [Counts(1, 2)]


def test_a_bad_line_loses_no_other() -> None:
    decoder = Decoder()
    got: list[Message] = []
    with pytest.raises(MessageError):
        got.extend(decoder.feed(encode(Ready()) + b"nonsense\n" + encode(Start())))
    got.extend(decoder.feed(b""))
    assert got == [Ready(), Start()]


def test_every_kind_is_known_by_its_name() -> None:
    assert all(kind.__name__.lower() == name for name, kind in MESSAGE_TYPES.items())
    assert all(dataclasses.is_dataclass(kind) for kind in MESSAGE_TYPES.values())
