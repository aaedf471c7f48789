"""The versions of what zdworker works with, compared with those that its own metadata ask for."""

from __future__ import annotations

import platform
import re
from importlib import metadata

from zdworker.check.findings import Findings

COMPARED = {"gunicorn": "Gunicorn", "uvicorn": "uvicorn"}
"""What is compared, as it is called by its users."""


def check(findings: Findings) -> None:
    """Compare the installed versions with the required ones."""
    versions = {name: version_of(name) for name in ("zdworker", *COMPARED)}
    unfit = {name: wanted for name, wanted in required().items() if not fits(versions[name], wanted)}
    for name, wanted in unfit.items():
        findings.warning(
            f"{name} {versions[name]} is installed, and zdworker is made for {wanted}: pip install '{name}{wanted}'"
        )
    if not unfit:
        names = (COMPARED.get(name, name) for name in versions)
        shown = [f"Python {platform.python_version()}", *map(" ".join, zip(names, versions.values(), strict=True))]
        findings.ok(", ".join(shown))


def required() -> dict[str, str]:
    """Return the ranges of versions that zdworker's metadata ask for, by name; none where it is not installed."""
    try:
        lines = metadata.requires("zdworker") or []
    except metadata.PackageNotFoundError:
        return {}
    # Without a marker, which would be that of an extra. In two parts: a name, and the range (PEP 508).
    found = [re.fullmatch(r"([A-Za-z0-9._-]+?)((?:[<>=!~][^;]*)?)", line) for line in lines]
    return {match[1]: match[2] for match in found if match and match[1] in COMPARED}


def version_of(name: str) -> str:
    """Return the version of an installed package, "(none)" if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(none)"


def fits(version: str, wanted: str) -> bool:
    """Return whether a version is in a range of ``>=`` and ``<`` alone, the two that zdworker's metadata use."""
    number = _number(version)
    for operator, bound in re.findall(r"(>=|<)\s*([0-9.]+)", wanted):
        if (number < _number(bound)) is (operator == ">="):
            return False
    return bool(number)


def _number(version: str) -> tuple[int, ...]:
    """Return the release of a version, with which later ones compare as greater (PEP 440)."""
    release = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(map(int, release[0].split("."))) if release else ()
