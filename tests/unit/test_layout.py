"""The layout's lines of the design, kept true by walking the imports.

Rules: imports inside functions count, too; only what stands under ``TYPE_CHECKING`` does not, since it never runs.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import zdworker

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "zdworker"
FILES = sorted(PACKAGE.rglob("*.py"))
CORE = sorted((PACKAGE / "core").glob("*.py"))

PURE = {"__future__", "collections", "dataclasses", "enum", "functools", "json", "reprlib", "typing"}
"""What the core may use of the standard library: nothing that knows a clock, a process, a file or chance."""

parametrize_files = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def imports(nodes: list[ast.stmt], deep: bool = True) -> Iterator[str]:
    """The modules imported by ``nodes``; without ``deep`` only those that importing the file imports."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports(node.orelse, deep)
        elif deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports([n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)], deep)
            for handler in getattr(node, "handlers", []):
                yield from imports(handler.body, deep)


def imported(path: Path, deep: bool = True) -> set[str]:
    return set(imports(ast.parse(path.read_text()).body, deep))


def users_of(*packages: str, deep: bool = True) -> set[str]:
    """The files that import one of these packages."""
    return {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(name.split(".")[0] in packages for name in imported(path, deep))
    }


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_core_is_pure(path: Path) -> None:
    ours = ("zdworker.core.", "zdworker.errors.")
    others = {name for name in imported(path) if not f"{name}.".startswith(ours)}
    assert {name.split(".")[0] for name in others} <= PURE


def test_the_facts_know_nothing_of_the_decisions() -> None:
    """The layers of the core, each of which may know those before it."""
    layers = ["backoff", "events", "fleet", "plan", "steps", "rollout"]
    for number, layer in enumerate(layers):
        names = imported(PACKAGE / "core" / f"{layer}.py")
        known = {name for name in layers if any(f"{one}.".startswith(f"zdworker.core.{name}.") for one in names)}
        assert known <= set(layers[:number])


def test_the_settings_need_only_the_standard_library() -> None:
    ours = {name for name in imported(PACKAGE / "settings.py") if name.startswith("zdworker")}
    assert all(name.startswith("zdworker.errors") for name in ours)
    assert not {name for name in imported(PACKAGE / "settings.py") if name.startswith("gunicorn")}


def test_only_the_command_needs_the_commands_libraries() -> None:
    assert users_of("click", "rich") <= {"command/cli.py"}


@pytest.mark.parametrize("name", zdworker.__all__)
def test_the_master_stays_light(name: str) -> None:
    """The master imports a worker class by its public name; what serves is loaded where a worker is born."""
    heavy = {"asyncio", "gevent", "h2", "starlette", "tornado", "uvicorn", "uvloop"}
    code = f"import sys, zdworker; zdworker.{name}; print(*{heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


@parametrize_files
def test_names_say_what_is_in_a_file(path: Path) -> None:
    assert not {"manager", "managers", "helper", "helpers", "util", "utils", "common", "misc"} & set(
        path.stem.split("_")
    )


@parametrize_files
def test_a_file_opens_with_its_rules(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_walk_sees_what_it_must(tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    path.write_text(
        "import a.b\nif TYPE_CHECKING:\n    import c\nelse:\n    import d\ntry:\n    import e\nexcept ImportError:\n"
        "    import f\nclass A:\n    import g\n    def m(self):\n        from h import i\n"
    )
    assert imported(path) == {"a.b", "d", "e", "f", "g", "h.i"}
    assert imported(path, deep=False) == {"a.b", "d", "e", "f", "g"}
