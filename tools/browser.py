"""Pages in a headless Chromium, asked through its debugging protocol over two pipes: no packages, no ports."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["Browser"]

#: A machine that is busy takes its time to start a browser.
_SECONDS = 120.0


class Browser:
    """A browser with one page.

    Attributes
    ----------
    requests : list of str
        Addresses that the page asked for, its own first.
    complaints : list of str
        What the browser's console said, and exceptions.
    """

    def __init__(self, program: str = "chromium") -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._profile = tempfile.mkdtemp(prefix="npumatmul-browser-")
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # the protocol wants descriptors 3 and 4, which a shell puts in place
        command = (
            f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}',
            program, "--headless", "--hide-scrollbars", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={self._profile}",
            "--remote-debugging-pipe", "about:blank",
        )  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", *command], pass_fds=(to_browser, from_browser), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._received, self._number, self._session, self._loaded = b"", 0, "", False
        target = next(t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, page: Path, width: int = 1280, height: int = 900) -> None:
        """Show a file, and wait until all of it is there."""
        self.requests.clear()
        self.complaints.clear()
        self.resize(width, height)
        self._loaded = False
        self._call("Page.navigate", url=page.resolve().as_uri())
        limit = time.monotonic() + _SECONDS
        while not self._loaded:
            self._take(limit)

    def resize(self, width: int, height: int) -> None:
        """Give the page another size."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is on the page."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        limit = time.monotonic() + _SECONDS
        while True:
            answer = self._take(limit)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _take(self, limit: float) -> dict[str, Any]:
        """The next message; events are noted."""
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._read], [], [], max(0.0, limit - time.monotonic()))
            if not ready:
                raise RuntimeError(f"the browser did not answer within {_SECONDS:.0f} s")
            got = os.read(self._read, 1 << 20)
            if not got:
                raise RuntimeError(f"the browser ended with {self._process.wait()}")
            self._received += got
        text, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        method, said = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(said["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(f"console.{said['type']}: {said['args']}")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(said["exceptionDetails"]))
        return message
