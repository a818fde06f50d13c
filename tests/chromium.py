"""Opens a page in headless Chromium through its debugging pipe: no driver, no network port."""

import base64
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
]
PATIENCE = 300  # seconds for all pages of a browser
FAILED = {"Network.loadingFailed", "Runtime.exceptionThrown", "Log.entryAdded"}


class Page:
    """One tab. `complaints` holds each error it had, `requests` each address it asked for."""

    def __init__(self, send: Callable[[bytes], None], receive: Callable[[], bytes]) -> None:
        self._send, self._receive = send, receive
        self._count, self._session = 0, {}
        self.complaints: list[dict[str, Any]] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A method of the DevTools protocol; its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters, **self._session}
        self._send(json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        message = json.loads(self._receive())
        kind, facts = message.get("method"), message.get("params", {})
        if kind == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
        elif kind in FAILED or (kind == "Runtime.consoleAPICalled" and facts["type"] != "log"):
            self.complaints.append(message)
        return message

    def open(self, path: Path, *, width: int, scheme: str) -> None:
        """Load a file in a window of that width; scheme is "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        self.call("Page.navigate", url=path.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def point_at(self, x: float, y: float) -> None:
        """Move the pointer."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self) -> bytes:
        """A PNG of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(found["data"])


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page of a Chromium of its own, which ends with the block."""
    commands, to_here = os.pipe(), os.pipe()
    # Chromium reads commands from descriptor 3 and answers on 4.
    wiring = f'exec "$@" 3<&{commands[0]} 4>&{to_here[1]}'
    child = subprocess.Popen(
        ["bash", "-c", wiring, "bash", str(PROGRAM), *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(commands[0], to_here[1]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    os.close(commands[0])
    os.close(to_here[1])
    patience = threading.Timer(PATIENCE, child.kill)  # then reading its answers ends
    patience.start()
    with os.fdopen(commands[1], "wb", buffering=0) as send, os.fdopen(to_here[0], "rb") as answers:
        try:
            yield Page(send.write, lambda: _message(answers))
        finally:
            patience.cancel()
            child.terminate()
            child.wait(timeout=30)


def _message(stream: Any) -> bytes:
    """Read up to the next zero byte; an empty read means that Chromium has ended."""
    found = bytearray()
    while (byte := stream.read(1)) != b"\0":
        assert byte, "chromium ended"
        found += byte
    return bytes(found)
