"""What ``mkdocs build --strict`` cannot know: a page must not load anything from elsewhere when it is looked at.

Rules: a hook of MkDocs (``mkdocs.yml``); what it warns of ends a strict build.
"""

# ruff: noqa: INP001 (no package: MkDocs loads it by its path)

from __future__ import annotations

import logging
import re
from typing import Any

log = logging.getLogger("mkdocs.hooks.site_checks")

LOADED = re.compile(r"""<(?:script|img|iframe|source|link(?=[^>]*rel="?(?:stylesheet|preload|preconnect|icon)))\b[^>]*?
    (?:src|href)="?((?:https?:)?//[^"\s>]+)""", re.VERBOSE)  # fmt: skip


def on_post_page(output: str, page: Any, **_: Any) -> None:
    """Warn of what the page would load from another host."""
    for address in LOADED.findall(output):
        log.warning("%s would load %s from elsewhere", page.file.src_uri, address)
