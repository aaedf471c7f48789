"""The layout's lines of the design, kept true by walking the imports.

Rules: imports inside functions count, too. What stands under ``TYPE_CHECKING`` never runs, so it does not count where
the question is what a process loads; it counts where the question is what a reader has to know.
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

PURE = {"__future__", "collections", "dataclasses", "enum", "functools", "json", "math", "reprlib", "typing"}
"""What the core may use of the standard library: nothing that knows a clock, a process, a file or chance."""

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "exhaustive": set(),
    "roles": set(),
    "syscalls": set(),
    "descendants": set(),
    "texts": set(),
    "tracebacks": {"texts"},
    "printed": {"texts"},
    "log_files": {"texts"},
    "settings": {"errors"},
    "plain": set(),
    "versions": set(),
    "boot": {"descendants"},
    "core": {"errors", "exhaustive"},
    "ipc": {"errors", "syscalls", "texts"},
    "gunicorn_config": {"errors", "roles", "settings", "syscalls", "texts", "ipc"},
    "forkserver": {
        *("errors", "roles", "settings", "syscalls", "texts", "tracebacks", "printed", "versions"),
        *("descendants", "log_files", "ipc"),
        "gunicorn_config",
    },
    "master": {
        *("errors", "exhaustive", "settings", "syscalls", "texts", "descendants", "log_files"),
        *("boot", "plain", "versions", "core", "ipc", "gunicorn_config", "forkserver"),
    },
    "upgraded": {"boot", "plain", "syscalls", "gunicorn_config", "forkserver", "takeover"},
    "takeover": {"roles", "syscalls", "master"},
    "check": {
        *("errors", "roles", "settings", "syscalls", "texts", "descendants", "log_files"),
        *("core", "ipc", "gunicorn_config", "forkserver", "master", "takeover"),
    },
    "workers": {"errors", "roles", "settings", "syscalls", "texts", "tracebacks", "printed", "ipc", "takeover"},
    "command": {"errors", "settings", "syscalls", "texts", "ipc"},
    "__main__": {"command"},
    "__init__": {"workers"},
}
"""Which rooms (files and directories of the package) may import which others; none imports itself back."""

parametrize_files = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def imports(nodes: list[ast.stmt], deep: bool = True, typing: bool = False) -> Iterator[str]:
    """The modules imported by ``nodes``.

    :param deep: also those of functions; without it only those that importing the file imports.
    :param typing: also those that only a type checker imports.
    """
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports(node.orelse, deep, typing)
            yield from imports(node.body, deep, typing) if typing else ()
        elif deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports([n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)], deep, typing)
            for handler in getattr(node, "handlers", []):
                yield from imports(handler.body, deep, typing)


def imported(path: Path, deep: bool = True, typing: bool = False) -> set[str]:
    return set(imports(ast.parse(path.read_text()).body, deep, typing))


def module_of(path: Path) -> str:
    """The dotted name of a file of the package, within the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def known_to(path: Path) -> set[str]:
    """The files of the package that a file imports anywhere, types included, by their dotted names."""
    found = set()
    for name in imported(path, typing=True):
        words = name.split(".")[1:] if name.startswith("zdworker.") else []
        while words and ".".join(words) not in MODULES:
            words.pop()
        if words:
            found.add(".".join(words))
    return found - {module_of(path)}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """A circle in a graph, as the names on it; empty if there is none."""
    left = {name: set(targets) for name, targets in arrows.items()}
    while ends := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in ends:
            del left[name]
    way: list[str] = [min(left)] if left else []
    while way and way[-1] not in way[:-1]:
        way.append(min(left[way[-1]] & left.keys()))
    return way


def users_of(*packages: str, deep: bool = True) -> set[str]:
    """The files that import one of these packages."""
    return {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(name.split(".")[0] in packages for name in imported(path, deep))
    }


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_core_is_pure(path: Path) -> None:
    ours = ("zdworker.core.", "zdworker.errors.", "zdworker.exhaustive.")
    others = {name for name in imported(path) if not f"{name}.".startswith(ours)}
    assert {name.split(".")[0] for name in others} <= PURE


def test_the_facts_know_nothing_of_the_decisions() -> None:
    """The layers of the core, each of which may know those before it."""
    layers = ["backoff", "leftovers", "history", "events", "fleet", "plan", "steps", "rollout"]
    for number, layer in enumerate(layers):
        names = imported(PACKAGE / "core" / f"{layer}.py")
        known = {name for name in layers if any(f"{one}.".startswith(f"zdworker.core.{name}.") for one in names)}
        assert known <= set(layers[:number])


@parametrize_files
def test_no_import_goes_against_the_order_of_the_rooms(path: Path) -> None:
    room = module_of(path).split(".")[0]
    others = {name.split(".")[0] for name in known_to(path)} - {room}
    assert others <= MAY_IMPORT[room]


def test_the_order_of_the_rooms_has_no_circle() -> None:
    assert set(MAY_IMPORT) == {module_of(path).split(".")[0] for path in FILES}
    assert circle(MAY_IMPORT) == []


def test_files_import_each_other_in_no_circle() -> None:
    assert circle({module_of(path): known_to(path) for path in FILES}) == []


def test_packages_import_each_other_in_no_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        package = module_of(path) if path.parent == PACKAGE else str(path.parent.relative_to(PACKAGE))
        targets = {MODULES[name] for name in known_to(path)}
        names = {module_of(p) if p.parent == PACKAGE else str(p.parent.relative_to(PACKAGE)) for p in targets}
        arrows.setdefault(package, set()).update(names - {package})
    assert circle(arrows) == []


def test_the_walk_finds_circles() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["a", "b", "c", "b"]


def test_the_settings_need_only_the_standard_library() -> None:
    ours = {name for name in imported(PACKAGE / "settings.py") if name.startswith("zdworker")}
    assert all(name.startswith("zdworker.errors") for name in ours)
    assert not {name for name in imported(PACKAGE / "settings.py") if name.startswith("gunicorn")}


def test_only_the_command_needs_the_commands_libraries() -> None:
    assert users_of("click") <= {"command/cli.py", "command/completion.py"}
    assert users_of("rich") <= {"command/cli.py"}


@pytest.mark.parametrize("name", zdworker.__all__)
def test_the_master_stays_light(name: str) -> None:
    """The master imports a worker class by its public name; what serves is loaded where a worker boots."""
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
    assert imported(path, typing=True) == {"a.b", "c", "d", "e", "f", "g", "h.i"}
