"""The documentation site, built and served on the loopback address; run as a program it saves a picture of each page.

Rules: the site is built as ``tox -e docs`` builds it. Its pages are those that the build has written, whatever their
names are.

``python -m tests.harness.built_site DIRECTORY`` writes a picture of each page there, for a phone and for a desktop,
light and dark (a minute; needs Chromium).
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.harness.browser import Browser
from tests.harness.documents import ROOT
from tests.harness.processes import wait_for

DESKTOP, PHONE = 1280, 375
"""Widths of a window, in CSS pixels."""
HEIGHT = 900
SCHEMES = {"light": "default", "dark": "slate"}
"""What a reader's system may prefer, and what Material calls the colours that go with it."""
TALLEST = 16000
"""The CSS pixels of a page that are shown in its picture; Chromium paints no more."""


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing."""


class BuiltSite:
    """The site in ``directory``, at ``url``."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory, self.url = directory, url

    def files(self, pattern: str) -> list[str]:
        """Return the files that match, by their paths in the site."""
        return sorted(str(path.relative_to(self.directory)) for path in self.directory.rglob(pattern) if path.is_file())


@contextlib.contextmanager
def built() -> Iterator[BuiltSite]:
    """Build the site, and serve it while the block lasts."""
    with tempfile.TemporaryDirectory(prefix="zd-site-") as name:
        words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", name]
        subprocess.run(words, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=True)
        with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=name)) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield BuiltSite(Path(name), f"http://127.0.0.1:{server.server_port}/")
            finally:
                server.shutdown()


def appearances(browser: Browser, url: str) -> Iterator[str]:
    """Show a page as it is on a desktop and on a phone, light and dark, and yield how it is shown."""
    for width in (DESKTOP, PHONE):
        browser.resize(width, HEIGHT, mobile=width == PHONE)
        if width == DESKTOP:
            browser.open(url)  # once: a phone's layout follows from the style alone
        for scheme in SCHEMES:
            _prefer(browser, scheme)
            yield f"{width}-{scheme}"


def _prefer(browser: Browser, scheme: str) -> None:
    """Let the page know what the reader's system prefers, and wait until it has taken these colours."""
    browser.prefer(scheme)
    taken = f"document.body.dataset.mdColorScheme === {SCHEMES[scheme]!r}"
    wait_for(lambda: browser.evaluate(taken), 10, f"the page is {scheme}")


def save_pictures(directory: Path) -> None:
    """Write a picture of each page in each of its appearances."""
    directory.mkdir(parents=True, exist_ok=True)
    with built() as site, Browser(DESKTOP, HEIGHT) as browser:
        for page in site.files("*.html"):
            for appearance in appearances(browser, site.url + page):
                name = page.removesuffix(".html").replace("/", "-")
                (directory / f"{name}-{appearance}.png").write_bytes(browser.screenshot(TALLEST))


if __name__ == "__main__":
    save_pictures(Path(sys.argv[1]))
