"""What the site needs beside MkDocs: its version, tables for a phone, a check that no page loads from elsewhere.

Rules: a hook of MkDocs (``mkdocs.yml``); what it warns of ends a strict build.
"""

# ruff: noqa: INP001 (no package: MkDocs loads it by its path)

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

log = logging.getLogger("mkdocs.hooks.site_checks")

LOADED = re.compile(r"""<(?:script|img|iframe|source|link(?=[^>]*rel="?(?:stylesheet|preload|preconnect|icon)))\b[^>]*?
    (?:src|href)="?((?:https?:)?//[^"\s>]+)""", re.VERBOSE)  # fmt: skip

PROSE_MIN = 40
"""Characters of a cell from which on its table is one of prose."""
NAME_MIN = 26
"""Characters of code within a sentence or a table from which on a line may end within it, behind a ``_``, a ``/``…"""


def on_config(config: Any) -> None:
    """Show the version beside the site's name."""
    package = Path(config.config_file_path).parent / "zdworker" / "__init__.py"
    config.site_name += " " + re.findall(r'^__version__ = "(.+)"', package.read_text(encoding="utf-8"), re.MULTILINE)[0]


def on_page_content(html: str, **_: Any) -> str:
    """Say where a line may end within a name, and give the cells of a table of prose the headings of their columns."""
    html = re.sub(r"<code>([^<\n]+)(?=</code>)", lambda found: _name(found[1]), html)
    return re.sub(r"<table>.*?</table>", lambda found: _labelled(found[0]), html, flags=re.DOTALL)


def _name(text: str) -> str:
    if len(text) < NAME_MIN:
        return f'<code class="whole">{text}'
    return "<code>" + re.sub(r"([_/:.,=(])", r"\1<wbr>", text)


def _labelled(table: str) -> str:
    """Return a table of prose with the heading of its column in each cell; a phone shows that there (``site.css``)."""
    headings = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<th[^>]*>(.*?)</th>", table, re.DOTALL)]
    cells = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", table, re.DOTALL)]
    if len(headings) < 3 or max(map(len, cells), default=0) < PROSE_MIN:
        return table
    columns = iter([heading.replace('"', "&quot;") for heading in headings] * len(cells))
    return re.sub(r"<td", lambda _: f'<td data-column="{next(columns)}"', table)


def on_post_build(config: Any) -> None:
    """Remove the list of the pages' addresses: it is empty, since the site has no address of its own."""
    for name in ("sitemap.xml", "sitemap.xml.gz"):
        (Path(config.site_dir) / name).unlink(missing_ok=True)


def on_post_page(output: str, page: Any, **_: Any) -> None:
    """Warn of what the page would load from another host."""
    for address in LOADED.findall(output):
        log.warning("%s would load %s from elsewhere", page.file.src_uri, address)
