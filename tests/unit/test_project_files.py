"""The files that contributors and packagers read agree with each other.

Rules: the files are read as they are on disk. Nothing is installed or downloaded; that the pinned versions can be
installed together is shown by tox, which installs them.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import zdworker

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
"""The versions of Python that ``constraints.txt`` has to serve: those that the classifiers name."""

PROJECT: dict[str, Any] = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli").loads(
    (ROOT / "pyproject.toml").read_text()
)
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
PINS = [Requirement(line) for line in CONSTRAINTS.splitlines() if not line.startswith("#")]

GLOSSARY_TERMS = {
    "master",
    "fork server",
    "worker",
    "slot",
    "generation",
    "canary",
    "surge",
    "drain",
    "ready",
    "hand-over",
    "upgrade",
}
"""The terms on which the names in the code and the pages rest."""


def requirements() -> Iterator[tuple[str, Requirement]]:
    """Yield each requirement that ``pyproject.toml`` states, with the place where it stands."""
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    lists = {"dependencies": project["dependencies"], "build-system": PROJECT["build-system"]["requires"]}
    for place, texts in {**lists, **project["optional-dependencies"], **groups}.items():
        yield from ((place, Requirement(text)) for text in texts if isinstance(text, str))


def pins_of(name: str, python: str) -> list[Version]:
    """Return the versions of a package that ``constraints.txt`` names for a Python on Linux."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "platform_python_implementation": "CPython",
    }
    found = [pin for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(name)]
    pins = [pin for pin in found if pin.marker is None or pin.marker.evaluate(environment)]
    return [Version(str(pin.specifier).removeprefix("==")) for pin in pins]


# -- the version ---------------------------------------------------------------------------------------------------


def test_the_version_is_in_one_place() -> None:
    assert "version" not in PROJECT["project"]
    assert "version" in PROJECT["project"]["dynamic"]
    source = ROOT / PROJECT["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{zdworker.__version__}"' in source.read_text()
    others = ("pyproject.toml", "mkdocs.yml", "tox.ini", "README.md", "docs/index.md", "docs/first-deploy.md")
    for name in others:
        assert not re.search(rf"\bzdworker\b.*\b{re.escape(zdworker.__version__)}\b", (ROOT / name).read_text()), name


# -- constraints.txt -----------------------------------------------------------------------------------------------


def test_constraints_are_exact_and_name_no_host() -> None:
    assert not re.search(r"://|--|@|\.whl|file:", CONSTRAINTS)
    for pin in PINS:
        assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), pin
        assert not pin.extras, f"{pin}: pip takes no extras in constraints"


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_cover_each_requirement(python: str) -> None:
    uncovered = []
    for place, requirement in requirements():
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            pins = pins_of(requirement.name, python)
            if len(pins) != 1 or not requirement.specifier.contains(pins[0]):
                uncovered.append(f"{place}: {requirement}: {pins}")
    assert uncovered == [], "run `tox -e lock`"


def test_an_uncovered_requirement_is_noticed() -> None:
    assert ("test", "pytest") in {(place, requirement.name) for place, requirement in requirements()}
    assert pins_of("pytest", "3.10")
    assert pins_of("no-such-package", "3.10") == []


def test_constraints_are_for_the_pythons_that_the_project_names() -> None:
    prefix = "Programming Language :: Python :: "
    named = [line.removeprefix(prefix) for line in PROJECT["project"]["classifiers"] if line.startswith(f"{prefix}3.")]
    assert tuple(named) == PYTHONS


# -- what is shipped, and what is said in it -----------------------------------------------------------------------


def test_what_the_source_distribution_includes_exists() -> None:
    for path in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]:
        assert (ROOT / path.removeprefix("/")).exists(), path


def test_the_changelog_has_the_place_for_releases() -> None:
    towncrier = PROJECT["tool"]["towncrier"]
    assert (ROOT / towncrier["filename"]).read_text().count(towncrier["start_string"]) == 1


def test_the_glossary_defines_its_terms() -> None:
    rows = re.findall(r"^\| ([^|]+?) \| (.+) \|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    defined = [term for term, meaning in rows if len(meaning.split()) >= 5]
    assert set(defined) >= GLOSSARY_TERMS
    assert len(defined) == len(set(defined)), "a term is defined twice"
