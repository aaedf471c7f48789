"""A check that a ``match`` handles every case, by the type checker and at run time.

``typing.assert_never`` does the same from Python 3.11 on.
"""

from __future__ import annotations

from typing import NoReturn


def assert_never(value: NoReturn) -> NoReturn:
    """Refuse a value that no case has handled; mypy reports a call that can be reached.

    :raises AssertionError: always.
    """
    raise AssertionError(f"no case handles {value!r}")
