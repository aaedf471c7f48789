"""The documentation as data: its pages, their code blocks, their links.

Rules: a page is named by its path from the root of the project. Markdown is read as far as these pages use it: fenced
blocks, headings, links; no more.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
FOLLOWED = {
    "docs/first-deploy.md": (),
    "docs/migration.md": (),
    "docs/fork-safety.md": (),
    "docs/frameworks.md": ("django", "fastapi", "flask", "httpx", "sqlalchemy"),
    "docs/metrics.md": ("prometheus_client",),
}
"""The pages that a test follows to their end (``tests/integration/docs/test_pages.py``), and what each imports."""

FENCE = re.compile(r"^( *)(`{3,})([^`\n]*)\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^(#{1,6}) +(.+?) *#*$", re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
SPAN = re.compile(r"(`+)(.+?)\1", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: ``language`` and ``title`` are from its first line, as in ```` ```python title="app.py" ````."""

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def opening(self) -> str:
        """Its first line, by which a block is named."""
        return self.text.partition("\n")[0].strip()


def pages() -> list[str]:
    """Return the pages' names."""
    top = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
    found = [*top, *sorted((ROOT / "docs").rglob("*.md"))]
    return [str(path.relative_to(ROOT)) for path in found]


def text(page: str) -> str:
    """Return a page as it is."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page, in their order, without the indentation that they have in a list."""
    whole = text(page)
    for found in FENCE.finditer(whole):
        indent, _, information, body = found.groups()
        title = re.search(r'title="([^"]*)"', information)
        lines = [line.removeprefix(indent) for line in body.splitlines(keepends=True)]
        number = whole.count("\n", 0, found.start()) + 1
        language = information.split()[0] if information.split() else ""
        yield Block(page, number, language, title[1] if title else "", "".join(lines))


def prose(page: str) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", text(page))


def spans(page: str) -> list[str]:
    """Return what stands in backquotes in a page's prose."""
    return [" ".join(found[1].split()) for found in SPAN.findall(prose(page))]


def links(page: str) -> list[str]:
    """Return the targets of a page's links and pictures."""
    return LINK.findall(SPAN.sub("", prose(page)))


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings: those that both GitHub and MkDocs make, and no others."""
    found = set()
    for _, heading in HEADING.findall(prose(page)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        github = re.sub(r"[^\w\- ]", "", words).lower().replace(" ", "-")
        site = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", words).strip().lower())
        if github == site:
            found.add(site)
    return found


def script(name: str) -> ModuleType:
    """Return ``docs/<name>.py`` as a module; what writes the pages is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where a dataclass looks for its own
    spec.loader.exec_module(module)
    return module
