"""Chromium without a window, driven over its DevTools protocol: real clicks, keys and files."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

WORDS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         "--remote-debugging-port=0", "about:blank")  # fmt: skip
"""`--no-sandbox`: root may not run it otherwise, and it sees nothing but our own page."""
PATIENCE_S = 60.0


def found() -> str | None:
    """Where Chromium is on this machine."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Chromium:
    """The browser, with an empty profile in a folder of its own. `close` ends it and all that it started."""

    def __init__(self, program: str, home: Path) -> None:
        self._process = subprocess.Popen(
            [program, f"--user-data-dir={home}", *WORDS],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        told, until = home / "DevToolsActivePort", time.monotonic() + PATIENCE_S
        while not (told.exists() and told.read_text().count("\n")):
            if self._process.poll() is not None or time.monotonic() > until:
                self.close()
                raise RuntimeError(f"{program} did not start")
            time.sleep(0.05)
        port, path = told.read_text().split("\n")[:2]
        self._address = f"ws://127.0.0.1:{port}"
        self._browser = Tab(connect(self._address + path, max_size=None))

    def open(self, url: str, **emulated: Any) -> Tab:
        """A new tab with this page, once it has loaded, in a profile of its own."""
        context = self._browser.send("Target.createBrowserContext")["browserContextId"]
        target = self._browser.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        tab = Tab(connect(f"{self._address}/devtools/page/{target}", max_size=None))
        for domain in ("Page", "Runtime", "Log", "DOM"):
            tab.send(f"{domain}.enable")
        tab.look(**emulated)
        tab.send("Page.navigate", url=url)
        tab.until("document.readyState === 'complete' && location.href !== 'about:blank'")
        return tab

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Tab:
    """A page. `complaints` are what its console has of errors: exceptions, refused scripts, failed requests."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.complaints: list[str] = []

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol and its result. Raises RuntimeError where it fails."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if message.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(message["params"]["exceptionDetails"]["exception"]["description"])
            elif message.get("method") == "Log.entryAdded":
                self.complaints.append(message["params"]["entry"]["text"])
            elif message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        told = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(f"{expression}: {told['result'].get('description')}")
        return told["result"].get("value")

    def until(self, expression: str) -> None:
        """Return once an expression is true. Raises TimeoutError, with the page's text, where it stays false."""
        until = time.monotonic() + PATIENCE_S
        while not self.value(f"!!({expression})"):
            if time.monotonic() > until:
                raise TimeoutError(f"{expression} stays false: {self.value('document.body.innerText')}")
            time.sleep(0.02)

    def look(self, *, width: int = 1200, height: int = 900, scheme: str = "light") -> None:
        """Set the window's size in CSS pixels, and the colour scheme that the person prefers."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def place(self, selector: str, nth: int = 0) -> tuple[float, float]:
        """The middle of the nth element that matches, scrolled into view, once it stays where it is."""
        x, y = self.value(
            f"""(async () => {{
                const element = document.querySelectorAll({json.dumps(selector)})[{nth}];
                element.scrollIntoView({{block: 'center'}});
                for (let before = ''; ;) {{
                    const box = element.getBoundingClientRect(), now = [box.x + box.width / 2, box.y + box.height / 2];
                    if (String(now) === before) return now;
                    before = String(now);
                    await new Promise(done => setTimeout(done, 30));
                }}
            }})()"""
        )
        return x, y

    def click(self, selector: str, nth: int = 0) -> None:
        """Press and release the mouse in the middle of an element, whatever lies on top of it."""
        x, y = self.place(selector, nth)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, text: str = "") -> None:
        """A key of the keyboard: `Tab`, `Enter`, ` `."""
        codes = {"Tab": 9, "Enter": 13, " ": 32}
        for kind in ("keyDown", "keyUp"):
            told = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes[key], **told)

    def pick(self, selector: str, *files: Path) -> None:
        """Choose files in a file field."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(file) for file in files], nodeId=node)

    def drop(self, selector: str, *files: Path) -> None:
        """Drop files on an element."""
        x, y = self.place(selector)
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def close(self) -> None:
        self._socket.close()
