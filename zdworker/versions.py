"""The versions of what a process runs: Python, Gunicorn and zdworker.

Rules: the master and each generation tell theirs, and these may differ: a generation gets what is installed when it is
loaded, the master keeps what it was started with, until an upgrade.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping

NAMES = {"python": "Python", "gunicorn": "Gunicorn", "zdworker": "zdworker"}


def versions() -> dict[str, str]:
    """Return the versions of what this process runs, by the keys of :data:`NAMES`."""
    import gunicorn

    import zdworker

    return {
        "python": platform.python_version(),
        "gunicorn": gunicorn.__version__,
        "zdworker": zdworker.__version__,
    }


def behind(own: Mapping[str, str], newer: Mapping[str, str]) -> str:
    """Return what of ``own`` has another version in ``newer``, for a reader; "" if nothing has."""
    differing = [name for name in NAMES if name in newer and own.get(name) != newer[name]]
    return ", ".join(f"{NAMES[name]} {own.get(name, '?')}" for name in differing)
