"""The example's page in a browser: a deploy is seen on it, a broken one is not, and what fails is counted."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator

import pytest

from tests.harness import browser as chromium
from tests.harness.application_site import Site
from tests.harness.browser import Browser
from tests.harness.live_page import BREAK, DEPLOY, EXAMPLE, MEND, SLOW_MOTION, Example, LivePage
from tests.harness.processes import wait_for
from tests.harness.server import Start

MIXED_ENOUGH = 20
CLOCKS = 5.0
"""Seconds by which the page may hear of something later than it happened."""
BAR = """(() => {
  const line = new OffscreenCanvas(canvas.width, 1).getContext("2d", { willReadFrequently: true }), found = new Set();
  line.drawImage(canvas, 0, -(SOCKET.top + SOCKET.height / 2) * devicePixelRatio);
  const { data } = line.getImageData(0, 0, canvas.width, 1);
  const hex = (number) => number.toString(16).padStart(2, "0");
  for (let i = 0; i < data.length; i += 4) found.add("#" + [...data.slice(i, i + 3)].map(hex).join(""));
  return [...found];
})()"""
"""The colours that the WebSocket's bar is painted with, by its middle line."""
ORIGINS = "[...new Set(performance.getEntriesByType('resource').map((entry) => new URL(entry.name).origin))]"
"""Where anything was loaded from."""


@pytest.fixture
def browser() -> Iterator[Browser]:
    if chromium.program() is None:
        pytest.skip("chromium is not installed")
    with Browser() as opened:
        yield opened


@pytest.fixture
def example(site: Site, make_server: Start) -> Example:
    """Two workers, replaced slowly, that leave quickly."""
    made = Example(site, make_server, 2, {"ZD_WEBSOCKET_DRAIN": "1", **SLOW_MOTION})
    made.server.environment["GUNICORN_CMD_ARGS"] += " --keep-alive 1"
    made.start()
    return made


def palettes() -> list[dict[str, str]]:
    """Return the colours of the page by name, light and dark."""
    text = (EXAMPLE / "page.html").read_text(encoding="utf-8")
    found = [
        dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    ]
    assert len(found) == 2
    return found


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours (WCAG 2.2, "contrast ratio" and "relative luminance")."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    darker, lighter = sorted([luminance(one), luminance(other)])
    return (lighter + 0.05) / (darker + 0.05)


def wait_painted(browser: Browser, colours: set[str]) -> None:
    """Wait until the WebSocket's bar has all these colours."""
    wait_for(lambda: colours <= set(browser.evaluate(BAR)), 10, f"painted with {colours}")


def test_a_deploy_is_seen_on_the_live_page(example: Example, browser: Browser) -> None:
    page = LivePage(browser, example.url)
    page.wait_settled("1.0")
    before = time.time()
    typed = example.type(DEPLOY)
    after = time.time()
    assert typed.returncode == 0, typed
    seen = page.wait_settled("2.0")

    assert (seen["failures"], seen["failed"]) == (0, [])
    answered = {entry["version"]: entry["answers"] for entry in seen["versions"]}
    assert set(answered) == {"1.0", "2.0"}
    assert sum(answered.values()) == seen["answers"]
    assert MIXED_ENOUGH < seen["newConnections"] < seen["answers"] - MIXED_ENOUGH, "new and kept connections"

    (deploy,) = seen["deploys"]
    assert (deploy["from"], deploy["to"]) == ("1.0", "2.0")
    assert before < seen["opened"] + deploy["began"] < after + CLOCKS
    assert deploy["began"] <= deploy["ended"] < after - seen["opened"] + CLOCKS

    *closed, last = seen["sockets"]
    assert {life["code"] for life in closed} == {1012}
    assert (last["code"], last["version"]) == (None, "2.0")
    assert seen["reconnects"] == len(closed) >= 1

    wait_for(lambda: page.text("version") == "2.0", 10, "the version is shown")
    assert page.text("failures") == "0"
    assert page.text("reconnects") == str(len(closed))
    assert [row.split()[0] for row in page.text("versions").splitlines()] == ["2.0", "1.0"]
    light, dark = palettes()
    for scheme, colours in {"light": light, "dark": dark}.items():
        browser.prefer(scheme)
        wait_painted(browser, {colours["v0"], colours["v1"]})
    assert [f"{origin}/" for origin in browser.evaluate(ORIGINS)] == [example.url]
    assert browser.complaints == []


def test_a_broken_deploy_changes_nothing_and_a_signal_deploys_too(example: Example, browser: Browser) -> None:
    page = LivePage(browser, example.url)
    page.wait_settled("1.0")
    typed = example.type(BREAK)
    assert typed.returncode == 1, typed
    assert "no_such_module" in typed.stdout + typed.stderr
    assert page.wait_settled("1.0")["deploys"] == []
    assert example.type(MEND).returncode == 0
    example.type(DEPLOY.splitlines()[0])
    example.server.signal(signal.SIGUSR2)
    seen = page.wait_settled("2.0")
    assert [(deploy["from"], deploy["to"]) for deploy in seen["deploys"]] == [("1.0", "2.0")]
    assert seen["failures"] == 0, seen["failed"]
    assert browser.complaints == []


def test_failures_are_counted_and_shown(example: Example, browser: Browser) -> None:
    """A page that cannot count failures would prove nothing."""
    page = LivePage(browser, example.url)
    page.wait_settled("1.0")
    example.server.signal(signal.SIGTERM)
    assert example.server.wait_exit(30) == 0
    wait_for(lambda: {fault["what"] for fault in page.seen()["failed"]} >= {"/last", "WebSocket"}, 20, "failures")
    wait_for(lambda: page.text("failures") not in {"", "0"}, 10, "the failures are shown")
    example.start()
    seen = page.wait_settled("1.0")
    assert seen["failures"] >= len(seen["failed"]) > 1
    assert seen["deploys"] == []


@pytest.mark.parametrize("colours", palettes(), ids=["light", "dark"])
def test_colours_can_be_told_from_the_ground(colours: dict[str, str]) -> None:
    """What WCAG 2.2 asks of text (1.4.3), and of what is no text (1.4.11)."""
    assert {name for name in ("text", "quiet", "failed") if contrast(colours[name], colours["ground"]) < 4.5} == set()
    assert {name for name in colours if name[0] == "v" and contrast(colours[name], colours["ground"]) < 3} == set()
