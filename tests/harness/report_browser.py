"""A headless Chromium to open reports with: driven over its debugging pipe, so nothing but the browser is needed."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

__all__ = ["FLAGS", "Browser", "Page", "chromium", "open_browser"]

DEADLINE_S: Final = 60.0
FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
# Its pipe is at the descriptors 3 and 4, wherever ours are.
_AT_3_AND_4: Final = """
import os, sys
ours = [os.dup(int(sys.argv[1])), os.dup(int(sys.argv[2]))]
for number, descriptor in zip((3, 4), ours):
    os.dup2(descriptor, number)
    os.set_inheritable(number, True)
os.execv(sys.argv[3], sys.argv[3:])
"""


def chromium() -> str:
    """The browser's path. Without it the test fails: a report that nobody has opened is not tested."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found is not None:
            return found
    pytest.fail("no Chromium to open the report with: run `apt-get install chromium` (the Debian package)")


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """Start one with an empty `profile`; it is gone afterwards with everything that it has started."""
    to_read, to_write = os.pipe(), os.pipe()
    command = [
        *(sys.executable, "-c", _AT_3_AND_4, str(to_read[0]), str(to_write[1])),
        *(chromium(), *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"),
    ]
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            pass_fds=(to_read[0], to_write[1]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    os.close(to_read[0])
    os.close(to_write[1])
    try:
        yield Browser(to_read[1], to_write[0])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(DEADLINE_S)
        os.close(to_read[1])
        os.close(to_write[0])


class Browser:
    """Made by `open_browser`."""

    def __init__(self, orders: int, answers: int) -> None:
        self._orders = orders
        self._answers = answers
        self._numbers = itertools.count(1)
        self._rest = b""
        self.pages: dict[str, Page] = {}

    def open(self, url: str, *, width: int = 1440, height: int = 900, dark: bool = False) -> Page:
        """Open a page of its own, and wait until its script has run."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self.pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.size(width, height)
        scheme = "dark" if dark else "light"
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        page.call("Emulation.setEmulatedMedia", {"features": features})
        page.call("Page.navigate", {"url": url})
        page.wait("(d => d && (d.dataset.ready || d.dataset.error))(document.documentElement)")
        return page

    def call(self, method: str, params: Mapping[str, Any] | None = None, session: str | None = None) -> Any:
        """Send one command and wait for its answer; what happens meanwhile goes to the pages."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params or {}}
        if session is not None:
            message["sessionId"] = session
        os.write(self._orders, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + DEADLINE_S
        while True:
            heard = self._read(deadline)
            if heard.get("id") == number:
                assert "error" not in heard, f"{method}: {heard['error']}"
                return heard["result"]
            page = self.pages.get(heard.get("sessionId", ""))
            if page is not None:
                page.hear(heard["method"], heard["params"])

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"the browser has said nothing for {DEADLINE_S:g} s"
            chunk = os.read(self._answers, 1 << 20)
            assert chunk, "the browser has ended"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


class Page:
    """An open page. `errors` is what its console complained of, `requests` every address it asked for."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.errors: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """Send a command to this page."""
        return self._browser.call(method, params, self._session)

    def hear(self, method: str, params: Mapping[str, Any]) -> None:
        """Take note of what it does."""
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def size(self, width: int, height: int) -> None:
        """Give the window another size, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def js(self, expression: str) -> Any:
        """The value of an expression."""
        answer = self.call("Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True})
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Return the expression's value once it is true."""
        deadline = time.monotonic() + DEADLINE_S
        while not (value := self.js(expression)):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.02)
        return value

    def frame(self) -> None:
        """Return when what was changed is drawn."""
        self.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def centre(self, selector: str, nth: int = 0) -> tuple[float, float]:
        """Where an element is, scrolled into view."""
        self.js(f"document.querySelectorAll({json.dumps(selector)})[{nth}].scrollIntoView({{block: 'center'}})")
        self.frame()
        box = self.js(
            f"(() => {{ const b = document.querySelectorAll({json.dumps(selector)})[{nth}].getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        return box[0], box[1]

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """One event of a real mouse: mouseMoved, mousePressed, mouseReleased, mouseWheel."""
        self.call("Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y, **more})

    def hover(self, selector: str, nth: int = 0) -> tuple[float, float]:
        """Move the mouse over an element."""
        x, y = self.centre(selector, nth)
        self.mouse("mouseMoved", x, y)
        self.frame()
        return x, y

    def click(self, selector: str, nth: int = 0) -> None:
        """Click an element with the mouse."""
        x, y = self.hover(selector, nth)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)
        self.frame()

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", {"text": text})
        self.frame()

    def press(self, key: str) -> None:
        """Press and release a key."""
        text = key if len(key) == 1 else ""
        self.call("Input.dispatchKeyEvent", {"type": "keyDown", "key": key, "text": text})
        self.call("Input.dispatchKeyEvent", {"type": "keyUp", "key": key})
        self.frame()

    def screenshot(self, to: Path, *, full: bool = False) -> None:
        """Save what is seen, or the whole page, as a PNG."""
        self.frame()
        answer = self.call("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": full})
        to.write_bytes(base64.b64decode(answer["data"]))
