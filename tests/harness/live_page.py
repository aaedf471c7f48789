"""The example as its README starts it, and its page in a browser; run as a program it takes the picture for the docs.

Rules:

* What the README tells its reader to type is read from there and typed.
* What the page has seen is asked of the page (``live``), not of the server.

``python -m tests.harness.live_page`` writes docs/live-page.png (a minute; needs Chromium).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.harness.application_site import Site
from tests.harness.browser import Browser
from tests.harness.documents import ROOT
from tests.harness.processes import wait_for
from tests.harness.server import Server

EXAMPLE = ROOT / "example_app"
README = (EXAMPLE / "README.md").read_text(encoding="utf-8")
START, DEPLOY, BREAK, MEND = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
"""What is typed, in the README's order."""
SLOW_MOTION = {"ZD_MIN_READY_SECONDS": "1"}
"""A deploy that takes a second for each worker, so that both versions answer for a while."""
PICTURE = ROOT / "docs" / "live-page.png"


class Example:
    """The example's server, not yet started, in a copy of its directory.

    :param make: makes the server, as :class:`Server` does.
    :param environment: settings in capitals, beside those of the example's own configuration.
    """

    def __init__(self, site: Site, make: Callable[..., Server], workers: int, environment: Mapping[str, str]) -> None:
        for file in EXAMPLE.iterdir():
            if file.is_file():
                shutil.copy(file, site.directory)
        runtime = site.directory / "run"
        runtime.mkdir()
        self.directory = site.directory
        self.server = make(workers=workers)
        self.url = "http://%s:%s/" % self.server.address
        self.server.environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "XDG_RUNTIME_DIR": str(runtime),  # this master is the only one that the command finds
            "WEB_CONCURRENCY": str(workers),
            "GUNICORN_CMD_ARGS": "--bind %s:%s" % self.server.address,
            **environment,
        }
        self.server.words = shlex.split(START)

    def start(self) -> None:
        """Start it, and wait until all its workers accept."""
        self.server.launch_as_is()
        self.server.wait_full()

    def label(self, label: str) -> None:
        """Set the label of the generations that are loaded from now on."""
        with (self.directory / "gunicorn.conf.py").open("a", encoding="utf-8") as configuration:
            configuration.write(f"zd_version = {label!r}\n")

    def type(self, commands: str) -> subprocess.CompletedProcess[str]:
        """Do what the README says, in a shell; the exit code is the last command's."""
        return subprocess.run(
            ["sh", "-c", commands],
            cwd=self.directory,
            env=self.server.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


class LivePage:
    """The page, open in ``browser``."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        browser.open(url)

    def seen(self) -> dict[str, Any]:
        """Return what the page has seen so far."""
        answer = self.browser.evaluate("live")
        assert isinstance(answer, dict)
        return answer

    def text(self, name: str) -> str:
        """Return what a person reads in the element with this id."""
        return str(self.browser.evaluate(f"document.getElementById({name!r}).innerText"))

    def wait_settled(self, version: str, answers: int = 40, deadline: float = 30) -> dict[str, Any]:
        """Wait until that many answers in a row from now on, and the WebSocket, are of ``version``.

        :returns: what was seen by then.
        """
        begun = self.seen()["now"]

        def settled() -> dict[str, Any]:
            seen = self.seen()
            latest = [dot["version"] for dot in seen["dots"] if dot["at"] > begun][-answers:]
            open_to = [life["version"] for life in seen["sockets"] if life["code"] is None]
            return seen if latest == [version] * answers and open_to == [version] else {}

        return wait_for(settled, deadline, f"only {version} answers, and the WebSocket is connected to it")


def take_picture() -> None:
    """Write the picture of a deploy with four workers."""
    with contextlib.ExitStack() as stack:
        site = Site()
        stack.callback(site.remove)
        example = Example(site, lambda **settings: stack.enter_context(Server(site, **settings)), 4, SLOW_MOTION)
        example.label("v1.0")
        example.start()
        browser = stack.enter_context(Browser(1000, 1030))
        browser.prefer("light")
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        page = LivePage(browser, example.url)
        time.sleep(30)
        example.label("v2.0")
        typed = example.type(DEPLOY)
        assert typed.returncode == 0, typed
        page.wait_settled("2.0")
        time.sleep(6)
        PICTURE.write_bytes(browser.screenshot())
        seen = page.seen()
        assert seen["failures"] == 0, seen["failed"]
        print({name: seen[name] for name in ("answers", "failures", "deploys", "reconnects")}, PICTURE.stat().st_size)


if __name__ == "__main__":
    take_picture()
