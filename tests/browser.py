"""A headless Chromium for tests, driven over DevTools' own pipe: no package is needed, no port is opened."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_CHROMIUM = "there is no Chromium here; apt-get install chromium"
_FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
_TIMEOUT_S = 60.0


class Page:
    """One page. Messages are JSON, each ended by a zero byte, on the file descriptors 3 and 4 of the browser."""

    def __init__(self, to_browser: BinaryIO, from_browser: BinaryIO) -> None:
        self._out, self._in = to_browser, from_browser
        self._number, self._rest, self._session = 0, b"", None
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params):
        """Send a command and wait for its answer."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._number, "method": method, "params": params, **session}
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def open(self, url: str, ready: str, width: int = 1200, height: int = 900) -> None:
        """Go to a page and wait until a JavaScript expression holds there."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=url)
        self.wait(ready)

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression holds."""
        end = time.monotonic() + _TIMEOUT_S
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"waited {_TIMEOUT_S:.0f} s for {condition}; {self.errors}"
            time.sleep(0.05)

    def run(self, script: str):
        """The value of a JavaScript expression, as JSON."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def point_at(self, x: float, y: float) -> None:
        """Move the mouse there, in pixels of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        """Press and release the left button there."""
        self.point_at(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, target: Path, **clip: float) -> None:
        """Save what is seen as a PNG; ``clip`` is x, y, width and height in pixels of the page."""
        more = {"clip": {**clip, "scale": 1}, "captureBeyondViewport": True} if clip else {}
        target.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **more)["data"]))

    def _next(self):
        while b"\0" not in self._rest:
            read = self._in.read(1 << 20)
            assert read, "the browser has ended"
            self._rest += read
        text, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(text)
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(message["params"]["exceptionDetails"]["exception"].get("description", "?"))
        return message


@contextlib.contextmanager
def page():
    """A new page of a new browser, both gone at the end."""
    to_browser, from_browser = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        # The browser reads its descriptor 3 and writes 4; a shell puts the pipes there.
        there = f'exec "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
        flags = [*_FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        browser = subprocess.Popen(
            ["bash", "-c", there, "chromium", CHROMIUM, *flags],
            pass_fds=(to_browser[0], from_browser[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        with os.fdopen(to_browser[1], "wb", 0) as out, os.fdopen(from_browser[0], "rb", 0) as back:
            try:
                yield Page(out, back)
            finally:
                browser.terminate()
                browser.wait(20)
