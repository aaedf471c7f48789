"""The example's page in a browser: a deploy is seen on it, a broken one is not, and what fails is counted."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from example_app import demo
from tests.harness import browser as chromium
from tests.harness.application_site import Site
from tests.harness.browser import Browser
from tests.harness.live_page import BREAK, DEPLOY, EXAMPLE, MEND, SLOW_MOTION, Example, LivePage
from tests.harness.processes import stand_still, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Start

MIXED_ENOUGH = 20
CLOCKS = 30.0
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
IDLE = 4
"""Keep-alive connections that are handed over."""


@pytest.fixture
def browser() -> Iterator[Browser]:
    if chromium.program() is None:
        pytest.skip("chromium is not installed")
    with Browser() as opened:
        yield opened


@pytest.fixture
def example(site: Site, make_server: Start) -> Example:
    """Two workers, replaced slowly, that leave quickly."""
    made = unstarted(site, make_server)
    made.server.environment["GUNICORN_CMD_ARGS"] += " --keep-alive 1"
    made.start()
    return made


def unstarted(site: Site, make_server: Start, workers: int = 2) -> Example:
    return Example(site, make_server, workers, {"ZD_WEBSOCKET_DRAIN": "1", **SLOW_MOTION})


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
    wait_for(lambda: colours <= set(browser.evaluate(BAR)), BOOT_TIMEOUT_S, f"painted with {colours}")


def test_a_deploy_is_seen_on_the_live_page(example: Example, browser: Browser) -> None:
    page = LivePage(browser, example.url)
    page.wait_settled("1.0", deadline=BOOT_TIMEOUT_S)
    before = time.time()
    typed = example.type(DEPLOY)
    after = time.time()
    assert typed.returncode == 0, typed
    seen = page.wait_settled("2.0", deadline=BOOT_TIMEOUT_S)

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

    wait_for(lambda: page.text("version") == "2.0", BOOT_TIMEOUT_S, "the version is shown")
    wait_for(lambda: page.text("reconnects") == str(len(closed)), BOOT_TIMEOUT_S, "the reconnects are shown")
    rows = ["2.0", "1.0"]
    wait_for(lambda: [row.split()[0] for row in page.text("versions").splitlines()] == rows, BOOT_TIMEOUT_S, "rows")
    assert page.text("failures") == "0"
    light, dark = palettes()
    for scheme, colours in {"light": light, "dark": dark}.items():
        browser.prefer(scheme)
        wait_painted(browser, {colours["v0"], colours["v1"]})
    assert [f"{origin}/" for origin in browser.evaluate(ORIGINS)] == [example.url]
    assert browser.complaints == []


def test_a_broken_deploy_changes_nothing_and_a_signal_deploys_too(example: Example, browser: Browser) -> None:
    page = LivePage(browser, example.url)
    page.wait_settled("1.0", deadline=BOOT_TIMEOUT_S)
    typed = example.type(BREAK)
    assert typed.returncode == 1, typed
    assert "no_such_module" in typed.stdout + typed.stderr
    assert page.wait_settled("1.0", deadline=BOOT_TIMEOUT_S)["deploys"] == []
    assert example.type(MEND).returncode == 0
    example.type(DEPLOY.splitlines()[0])
    example.server.signal(signal.SIGUSR2)
    seen = page.wait_settled("2.0", deadline=BOOT_TIMEOUT_S)
    assert [(deploy["from"], deploy["to"]) for deploy in seen["deploys"]] == [("1.0", "2.0")]
    assert seen["failures"] == 0, seen["failed"]
    assert browser.complaints == []


def test_failures_are_counted_and_shown(example: Example, browser: Browser) -> None:
    """A page that cannot count failures would prove nothing."""
    page = LivePage(browser, example.url)
    page.wait_settled("1.0", deadline=BOOT_TIMEOUT_S)
    example.server.signal(signal.SIGTERM)
    assert example.server.wait_exit(BOOT_TIMEOUT_S) == 0
    wait_for(
        lambda: {fault["what"] for fault in page.seen()["failed"]} >= {"/last", "WebSocket"}, BOOT_TIMEOUT_S, "failures"
    )
    wait_for(lambda: page.text("failures") not in {"", "0"}, BOOT_TIMEOUT_S, "the failures are shown")
    example.start()
    seen = page.wait_settled("1.0", deadline=BOOT_TIMEOUT_S)
    assert seen["failures"] >= len(seen["failed"]) > 1
    assert seen["deploys"] == []


@pytest.mark.parametrize("colours", palettes(), ids=["light", "dark"])
def test_colours_can_be_told_from_the_ground(colours: dict[str, str]) -> None:
    """What WCAG 2.2 asks of text (1.4.3), and of what is no text (1.4.11)."""
    assert {name for name in ("text", "quiet", "failed") if contrast(colours[name], colours["ground"]) < 4.5} == set()
    assert {name for name in colours if name[0] == "v" and contrast(colours[name], colours["ground"]) < 3} == set()


# -- what the master reports ------------------------------------------------------------------------------------------


def generations(page: LivePage) -> dict[str, list[str]]:
    """Return the table of generations: by the first cell of each row the others."""
    rows = "[...document.getElementById('generations').rows]"
    cells = page.browser.evaluate(f"{rows}.map((row) => [...row.cells].map((cell) => cell.innerText))")
    return {name: others for name, *others in cells}


def _answers(example: Example) -> bool:
    try:
        return httpx.get(f"{example.url}version", timeout=30, trust_env=False).is_success
    except httpx.TransportError:
        return False


def overtaken(example: Example) -> bool:
    """Whether another request is answered while the worker waits for the master."""

    async def both() -> bool:
        async with httpx.AsyncClient(base_url=example.url, timeout=30, trust_env=False) as client:
            status = asyncio.create_task(client.get("status"))
            await asyncio.sleep(0.1)
            assert (await client.get("version")).is_success
            first = not status.done()
            assert (await status).json() is None
            return first

    return asyncio.run(both())


def asked(example: Example) -> Any:
    """Return what the master reports, as the page gets it."""
    return httpx.get(f"{example.url}status", timeout=30, trust_env=False).json()


def test_a_canary_and_what_was_handed_over_are_shown(site: Site, make_server: Start, browser: Browser) -> None:
    example = unstarted(site, make_server)
    example.server.environment["GUNICORN_CMD_ARGS"] += " --keep-alive 75"
    example.label("first")
    example.start()
    page = LivePage(browser, example.url)
    page.wait_settled("1.0", deadline=BOOT_TIMEOUT_S)
    wait_for(
        lambda: generations(page).get("1 (1.0)", [])[:2] == ["first", "2 ready"],
        BOOT_TIMEOUT_S,
        "the generation is shown",
    )
    wait_for(
        lambda: page.text("state") == "steady", BOOT_TIMEOUT_S, "the page has asked again since the start was over"
    )

    code = example.directory / "app.py"
    sound = code.read_text(encoding="utf-8").replace('VERSION = "1.0"', 'VERSION = "2.0"')
    code.write_text(sound + demo.FAILS, encoding="utf-8")
    example.label("second")
    typed = example.type("zdworker reload --hold 120")
    assert typed.returncode == 0, typed

    def failed() -> bool:
        label, workers, _answers, errors = generations(page).get("2 (2.0)", [""] * 4)
        return (label, workers) == ("second", "1 ready") and errors.isdecimal() and int(errors) > 0

    wait_for(failed, BOOT_TIMEOUT_S, "the canary's label and errors are shown")
    label, workers, _answers, errors = generations(page)["1 (1.0)"]
    assert (label, workers, errors) == ("first", "2 ready", "0")
    held = r"rolling: generation 2 is the canary, held, \d+ s left"
    wait_for(lambda: re.fullmatch(held, page.text("state")), BOOT_TIMEOUT_S, "that it is held is shown")

    for width in (375, 1280):
        browser.resize(width, 900)
        room = browser.evaluate("document.scrollingElement.clientWidth")
        assert browser.evaluate("document.scrollingElement.scrollWidth") <= room, "the page fits"

    typed = example.type("zdworker rollback")
    assert typed.returncode == 0, typed
    wait_for(
        lambda: "2 (2.0)" not in generations(page) and page.text("state") == "steady",
        BOOT_TIMEOUT_S,
        "the canary is gone",
    )
    code.write_text(sound, encoding="utf-8")
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE):
            connection = http.client.HTTPConnection(httpx.URL(example.url).netloc.decode(), timeout=30)
            stack.callback(connection.close)
            connection.request("GET", "/version")
            connection.getresponse().read()
        typed = example.type("zdworker reload --json")
        assert typed.returncode == 0, typed
        handed_over = json.loads(typed.stdout)["handed_over"]
        assert handed_over >= IDLE
        wait_for(lambda: int(page.text("handed-over")) >= handed_over, BOOT_TIMEOUT_S, "what was handed over is shown")
    wait_for(
        lambda: f"done; connections handed over: {handed_over}," in page.text("events"),
        BOOT_TIMEOUT_S,
        "the page shows the reload",
    )
    wait_for(
        lambda: generations(page).get("3 (2.0)", [""])[0] == "second", BOOT_TIMEOUT_S, "the new generation is shown"
    )
    assert [complaint for complaint in browser.complaints if "status of 500" not in complaint] == []


def test_without_a_master_the_page_goes_on(site: Site, make_server: Start, browser: Browser) -> None:
    example = unstarted(site, make_server)
    example.server.words = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(httpx.URL(example.url).port)]
    example.server.launch_as_is()
    wait_for(lambda: _answers(example), BOOT_TIMEOUT_S, "uvicorn answers")
    page = LivePage(browser, example.url)
    page.wait_settled("1.0", deadline=BOOT_TIMEOUT_S)
    assert wait_for(lambda: "there is none" in page.text("state"), BOOT_TIMEOUT_S, "no master")
    assert asked(example) is None
    assert page.seen()["failures"] == 0
    assert browser.complaints == []


@pytest.mark.parametrize("worker_class", ["UvicornWorker", "UvicornH11Worker", "ASGIWorker"])
def test_the_status_is_bounded_and_holds_up_nothing(site: Site, make_server: Start, worker_class: str) -> None:
    example = unstarted(site, make_server, workers=1)
    example.server.words[example.server.words.index("-k") + 1] = f"zdworker.{worker_class}"
    example.start()
    wait_for(lambda: asked(example)["state"] == "steady", BOOT_TIMEOUT_S, "the master answers")
    typed = example.type("zdworker upgrade")
    assert typed.returncode == 0, typed
    wait_for(
        lambda: (asked(example) or {}).get("state") == "steady", BOOT_TIMEOUT_S, "the master's next program answers"
    )

    stand_still(example.server.master)
    try:
        wait_for(lambda: asked(example) is None, BOOT_TIMEOUT_S, "a master that is stopped is not waited for")
        wait_for(lambda: overtaken(example), BOOT_TIMEOUT_S, "a request is answered meanwhile")
    finally:
        example.server.signal(signal.SIGCONT)
    wait_for(lambda: asked(example), BOOT_TIMEOUT_S, "it answers again")
