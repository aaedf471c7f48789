"""What the master runs is compared with what a generation runs."""

from __future__ import annotations

import platform

import pytest

from zdworker.versions import NAMES, behind, versions

OWN = {"python": "3.11.7", "gunicorn": "26.0.0", "zdworker": "1.0"}


def test_each_has_one() -> None:
    assert versions().keys() == NAMES.keys()
    assert versions()["python"] == platform.python_version()


@pytest.mark.parametrize(
    ("newer", "expected"),
    [
        (OWN, ""),
        ({}, ""),
        ({**OWN, "gunicorn": "27.0.1"}, "Gunicorn 26.0.0"),
        ({**OWN, "gunicorn": "27.0.1", "python": "3.13.0"}, "Python 3.11.7, Gunicorn 26.0.0"),
        ({**OWN, "from another version": "1"}, ""),
    ],
)
def test_what_is_behind_is_named(newer: dict[str, str], expected: str) -> None:
    assert behind(OWN, newer) == expected
