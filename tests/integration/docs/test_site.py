"""The documentation site as a reader sees it, on a phone and on a desktop, light and dark."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.harness import browser as chromium
from tests.harness import built_site
from tests.harness.browser import Browser
from tests.harness.built_site import BuiltSite

pytest.importorskip("mkdocs", reason="the site is built where MkDocs is installed (dependency group docs)")

THEME = ("assets/", "search/")
"""What Material brings; the rest of the site is the project's."""

TOO_WIDE = """(() => {
  const page = document.scrollingElement, room = page.clientWidth;
  const found = page.scrollWidth > room ? [`the page: ${page.scrollWidth} > ${room}`] : [];
  for (const element of document.querySelectorAll(".md-content *")) {
    const { left, right, width } = element.getBoundingClientRect();
    const scrolls = element.parentElement.closest(".md-typeset__scrollwrap, pre, pre > code");
    if (width && !scrolls && (right > room + 1 || left < -1)) found.push(`${element.tagName}: ${element.innerText}`);
  }
  return found;
})()"""
"""What is wider than the page. Tables and code scroll within their own containers."""

COPIED = """[...document.querySelectorAll(".highlight")].map((block) => {
  const button = block.querySelector("button[data-md-type=copy]");
  return [block.className, !!block.querySelector(".filename"), !!button?.checkVisibility()];
})"""
"""The blocks of code: class, whether it is a file, whether there is a button that copies it."""

CROSSED = """(() => {
  const texts = [...document.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
  const whole = document.querySelector("svg").getBoundingClientRect(), found = [];
  const within = ({ x, y }, box) => x > box.left && x < box.right && y > box.top + 3 && y < box.bottom - 3;
  texts.forEach(([words, box], number) => {
    if (box.left < whole.left || box.right > whole.right) found.push(`${words} | the edge`);
    for (const [others, other] of texts.slice(number + 1)) {
      const width = Math.min(box.right, other.right) - Math.max(box.left, other.left);
      const height = Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top);
      if (width > 0 && height > 2) found.push(`${words} | ${others}`);
    }
  });
  for (const path of document.querySelectorAll("path:not(defs *)")) {
    const place = path.getScreenCTM(), crossed = new Set();
    for (let at = 0; at <= path.getTotalLength(); at += 2) {
      const point = path.getPointAtLength(at).matrixTransform(place);
      for (const [words, box] of texts) if (within(point, box)) crossed.add(words);
    }
    for (const words of crossed) found.push(`${words} | a line`);
  }
  return found;
})()"""
"""The texts of a picture that another one overlaps (by more than their line's leading), or a line, or its edge."""


@pytest.fixture(scope="module")
def site() -> Iterator[BuiltSite]:
    with built_site.built() as built:
        yield built


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if chromium.program() is None:
        pytest.skip("chromium is not installed")
    with Browser(built_site.DESKTOP, built_site.HEIGHT) as opened:
        yield opened


def test_every_page_fits_a_phone_and_a_desktop(site: BuiltSite, browser: Browser, tmp_path: Path) -> None:
    """The pictures of what does not fit stay in pytest's directory of this test."""
    found = []
    for page in site.files("*.html"):
        for appearance in built_site.appearances(browser, site.url + page):
            wide = browser.evaluate(TOO_WIDE)
            if wide:
                picture = tmp_path / f"{page.replace('/', '-')}-{appearance}.png"
                picture.write_bytes(browser.screenshot(built_site.TALLEST))
                found.append((page, appearance, wide, str(picture)))
        loaded = browser.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert [address for address in loaded if not address.startswith((site.url, "blob:"))] == [], page
        copied = browser.evaluate(COPIED)
        wrong = [block for block in copied if block[2] is not (block[1] or not re.search("-(text|json) ", block[0]))]
        assert wrong == [], f"{page}: commands and files have a button that copies them, output has none"
    assert found == []
    assert browser.complaints == []


def test_labels_of_pictures_are_not_crossed(site: BuiltSite, browser: Browser) -> None:
    crossed = {}
    for picture in site.files("*.svg"):
        browser.open(site.url + picture)
        crossed[picture] = browser.evaluate(CROSSED)
    assert len(crossed) > 10
    assert {picture: found for picture, found in crossed.items() if found} == {}


class Addresses(HTMLParser):
    """The addresses that a page links to or loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {str(value).partition("#")[0] for name, value in attrs if name in {"href", "src"} and value}


def test_there_is_no_file_that_no_page_uses(site: BuiltSite) -> None:
    used = {"404.html"}
    for page in site.files("*.html"):
        for address in Addresses((site.directory / page).read_text(encoding="utf-8")).found:
            used.add(posixpath.normpath(posixpath.join(posixpath.dirname(page), address)))
    assert {file for file in site.files("*") if not file.startswith(THEME)} - used == set()


def test_the_version_is_shown(site: BuiltSite) -> None:
    from zdworker import __version__

    assert f"<title>zdworker {__version__}</title>" in (site.directory / "index.html").read_text(encoding="utf-8")
