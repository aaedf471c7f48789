"""What new code prints is kept, goes where it went, and changes nothing of its streams."""

from __future__ import annotations

import io
import sys

import pytest

from zdworker.printed import KEPT_MAX, Printed, last_line


def streams(monkeypatch: pytest.MonkeyPatch) -> io.TextIOWrapper:
    """Put a stream in the place of both; not in a fixture, after which pytest puts its own there."""
    made = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", made)
    monkeypatch.setattr(sys, "stderr", made)
    return made


def written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()


def test_it_is_kept_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, printed = streams(monkeypatch), Printed()
    printed.begin()
    print("DATABASE_URL is not set")
    assert printed.text == "DATABASE_URL is not set"
    assert written(stream) == "DATABASE_URL is not set\n"


def test_after_the_end_the_stream_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, printed = streams(monkeypatch), Printed()
    printed.begin()
    printed.end()
    assert "write" not in vars(stream)
    print("serving")
    assert printed.text == ""


def test_what_the_application_has_put_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, printed = streams(monkeypatch), Printed()
    printed.begin()
    own = stream.write
    stream.write = lambda text: own(text.upper())  # type: ignore[method-assign]
    printed.end()
    print("kept")
    assert written(stream) == "KEPT\n"


def test_only_the_end_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    streams(monkeypatch)
    printed = Printed()
    printed.begin()
    print("x" * 100_000)
    print("the end")
    assert len(printed.text) <= KEPT_MAX
    assert last_line(printed.text) == "the end"


@pytest.mark.parametrize("broken", [None, object(), io.BytesIO()])
def test_streams_may_be_anything(monkeypatch: pytest.MonkeyPatch, broken: object) -> None:
    monkeypatch.setattr(sys, "stdout", broken)
    printed = Printed()
    printed.begin()
    printed.end()
