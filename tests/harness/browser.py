"""Chromium without a window, driven by the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/).

Rules:

* An ordinary child process with a profile of its own in a temporary directory; both are gone at the end.
* It knows the loopback address and nothing else: no name is resolved.
* Whatever a page complains of (errors and warnings on its console, exceptions that nobody caught, what could not be
  loaded or was forbidden) is kept, for the test to look at.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from websockets.sync.client import connect

from tests.harness import processes
from tests.harness.processes import wait_for

BROWSER_TIMEOUT_S = 30.0
"""Seconds for each order to the browser, on a machine with other work to do."""
SWITCHES = (
    "--headless",
    "--no-sandbox",  # as root, and in containers, there is none; the only page is our own
    "--disable-dev-shm-usage",  # /dev/shm of a container is small
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)


def program() -> str | None:
    """Return the path of Chromium, None if it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class PageError(Exception):
    """The browser refused an order, or an expression raised."""


class Browser:
    """A browser with one page, from entering to leaving.

    :param width: of the page, in CSS pixels.
    :param height: likewise.
    """

    def __init__(self, width: int = 1120, height: int = 900) -> None:
        self.size = (width, height)
        self.complaints: list[str] = []
        self._numbers = itertools.count(1)

    def __enter__(self) -> Browser:
        with contextlib.ExitStack() as stack:
            self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zd-chromium-")))
            self._launch()
            stack.callback(self._end)
            url = wait_for(self._page_address, BROWSER_TIMEOUT_S, "the browser has opened its page")
            self._socket = stack.enter_context(connect(url, proxy=None, max_size=None, compression=None))
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
            self.resize(*self.size)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            print("---- browser ----", *self.complaints, self._log()[-5000:], sep="\n")
        self._stack.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give an order and return the answer; what the page says meanwhile is taken note of.

        :raises PageError: it was refused.
        :raises TimeoutError: no answer came.
        """
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(BROWSER_TIMEOUT_S))
            if message.get("id") == number:
                break
            self._note(message.get("method", ""), message.get("params", {}))
        if "error" in message:
            raise PageError(f"{method}: {message['error']}")
        answer: dict[str, Any] = message["result"]
        return answer

    def open(self, url: str) -> None:
        """Show the page at ``url``, and wait until it is loaded.

        :raises PageError: it cannot be loaded.
        """
        answer = self.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise PageError(f"{url}: {answer['errorText']}")
        wait_for(lambda: self.evaluate("document.readyState") == "complete", BROWSER_TIMEOUT_S, f"{url} is loaded")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, as plain data.

        :raises PageError: it raised.
        """
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise PageError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def prefer(self, scheme: str) -> None:
        """Let the page know that the user likes it ``light``, or ``dark``."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def resize(self, width: int, height: int, *, mobile: bool = False) -> None:
        """Give the page another size, in CSS pixels; a mobile browser's scrollbars take no room."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def screenshot(self, tallest: int = 0) -> bytes:
        """Return a picture of the page, PNG.

        :param tallest: show that many pixels of the page's height, not only those in the window.
        """
        if not tallest:
            return base64.b64decode(self.call("Page.captureScreenshot")["data"])
        width, height = self.evaluate("[innerWidth, document.scrollingElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, tallest), "scale": 1}
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"])

    def _note(self, event: str, facts: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            details = facts["exceptionDetails"]
            self.complaints.append(str(details.get("exception", {}).get("description", details["text"])))
        elif event == "Runtime.consoleAPICalled" and facts["type"] in {"error", "warning", "assert"}:
            self.complaints.append(str([argument.get("value") for argument in facts["args"]]))
        elif event == "Log.entryAdded" and facts["entry"]["level"] in {"error", "warning"}:
            self.complaints.append(f"{facts['entry']['text']} {facts['entry'].get('url', '')}")

    def _launch(self) -> None:
        words = [program() or "chromium", *SWITCHES, f"--user-data-dir={self._directory}/profile", "about:blank"]
        # HOME: where it would look for certificates and settings of the user's own.
        environment = {**os.environ, "HOME": str(self._directory)}
        # A file for what it says, not a pipe: its own processes may outlive it by moments and hold a pipe open.
        with (self._directory / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # by which its own processes are found at the end
            )

    def _page_address(self) -> str:
        """Return the address at which the page takes orders, empty while it has none.

        The browser writes the port it was given into its profile.
        """
        assert self._process.poll() is None, f"the browser has ended\n{self._log()}"
        try:
            port = int((self._directory / "profile/DevToolsActivePort").read_text().split()[0])
            targets = httpx.get(f"http://127.0.0.1:{port}/json/list", trust_env=False).json()
        except (OSError, IndexError, httpx.HTTPError):
            return ""
        pages = [str(target["webSocketDebuggerUrl"]) for target in targets if target["type"] == "page"]
        return pages[0] if pages else ""

    def _log(self) -> str:
        return (self._directory / "log.txt").read_text(errors="replace")

    def _end(self) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(BROWSER_TIMEOUT_S)
        # Its own processes end with it, but moments later, and until then they write into the profile.
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not self._left(), BROWSER_TIMEOUT_S, "the browser has ended")
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _left(self) -> list[int]:
        return processes.belonging(self._directory, self._process.pid)
