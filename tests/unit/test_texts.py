"""Whatever a text holds, a reader gets what is printable and bounded, and a program gets valid JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zdworker import texts

ANY = st.text(st.characters())
"""Texts with surrogates and controls, too."""


@settings(deadline=None)
@given(ANY, st.integers(100, 300))
def test_a_reader_gets_what_is_printable_and_bounded(text: str, longest: int) -> None:
    for found in (texts.lines(text * 5, longest), texts.line(text * 5, longest)):
        assert len(found) <= longest
        found.encode()
        assert not [char for char in found if ord(char) < 32 and char not in "\t\n"]
    assert "\n" not in texts.line(text, longest)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["C", "Z"])))
def test_what_is_printable_stays(text: str) -> None:
    assert texts.lines(text) == texts.printed(text) == text


@pytest.mark.parametrize(
    ("text", "fit"),
    [
        ("caf\udce9", r"caf\udce9"),
        ("\x1b]0;title\x07\x1b[2J\x9b", r"\x1b]0;title\x07\x1b[2J\x9b"),
        ("one\ttwo\nthree\r\n", "one\ttwo\nthree\\r\n"),
        ("\0 \u202e", r"\x00 \u202e"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
    ],
)
def test_what_controls_something_is_written_out(text: str, fit: str) -> None:
    assert texts.lines(text) == fit


def test_what_is_printed_keeps_its_colours_and_progress_bars() -> None:
    assert texts.printed("\x1b[1;31mred\x1b[m\r 10 %\n") == "\x1b[1;31mred\x1b[m\r 10 %\n"
    assert texts.printed("\x1b[2J\x1b\x1b[0m\x9b\udce9") == "\\x1b[2J\\x1b\x1b[0m\\x9b\\udce9"


def test_a_long_text_loses_its_middle() -> None:
    found = texts.lines("the place " + "x" * 5_000_000 + " the cause", 200)
    assert found.startswith("the place x")
    assert found.endswith("x the cause")
    assert " characters are left out " in found


def test_names_say_whether_they_are_all() -> None:
    assert texts.named(0, []) == texts.named(2, []) == ""
    assert texts.named(2, ["a", "b"]) == " (a, b)"
    assert texts.named(5, ["a", "b"]) == " (among them a, b)"


def test_an_exception_says_its_type_and_text() -> None:
    assert texts.reason(RuntimeError("broken\x1b")) == r"RuntimeError: broken\x1b"
    assert texts.reason(TimeoutError()) == "TimeoutError"


def test_an_exception_that_has_no_text() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert texts.reason(Silent()) == "Silent: (it has no text)"


@settings(deadline=None)
@given(st.recursive(ANY | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(ANY, inner)))
def test_a_program_gets_valid_json(value: object) -> None:
    fit = texts.for_json(value)
    assert json.loads(json.dumps(fit, ensure_ascii=False).encode()) == fit


# -- a screen ------------------------------------------------------------------------------------------------------


def test_what_fits_on_a_screen_stays() -> None:
    text = "\n".join(f"line {number}" for number in range(texts.SCREEN_ROWS))
    assert texts.screen(text) == text


@pytest.mark.parametrize("rows", [5, 14])
def test_a_screen_has_the_beginning_and_the_end(rows: int) -> None:
    lines = texts.screen("\n".join(f"line {number}" for number in range(1000)), rows).splitlines()
    assert len(lines) == rows
    assert (lines[0], lines[-1]) == ("line 0", "line 999")
    assert [line for line in lines if "left out" in line] == [f"[… {1000 - rows + 1} lines left out: see the log …]"]


def test_long_lines_count_as_their_rows() -> None:
    text = texts.screen("\n".join("x" * 100 for _ in range(10)), 7)
    assert sum(-(-len(line) // texts.COLUMNS) for line in text.splitlines()) <= 7
    assert "characters are left out" in texts.screen("x" * 10_000)
