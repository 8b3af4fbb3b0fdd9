"""A headless Chromium driven over its DevTools pipe (https://chromedevtools.github.io/devtools-protocol): real keys, widths and colour schemes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowRight": 39}


class Browser:
    """One page. `messages` holds what the console and the page's errors said, `requests` the address of everything that it asked for."""

    def __init__(self) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Chromium reads commands from descriptor 3 and writes to 4.
        command = 'exec 3<&%d 4>&%d; exec "$@"' % (theirs_in, theirs_out)  # noqa: UP031 - braces and redirections
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={self._profile.name}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", str(CHROMIUM), *options], pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._guard = threading.Timer(120, self._process.kill)
        self._guard.start()
        self._number, self._rest, self.messages, self.requests, self._seen = 0, b"", [], [], set()
        page = next(t for t in self._send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self._send("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._guard.cancel()
        os.close(self._out)
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        self._profile.cleanup()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._send(method, self._session, **parameters)

    def _send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._in, 1 << 20)
            assert piece, "Chromium ended, or did not answer within two minutes"
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        found = json.loads(text)
        method, of = found.get("method"), found.get("params", {})
        if method == "Runtime.consoleAPICalled":
            self.messages.append(str(of["args"]))
        elif method == "Runtime.exceptionThrown":
            self.messages.append(of["exceptionDetails"]["text"])
        elif method == "Log.entryAdded":
            self.messages.append(of["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(of["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.requests.append(of["url"])
        self._seen.add(method)
        return found

    def open(self, page: Path | str, width: int = 1400, height: int = 900, dark: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self._seen.discard("Page.loadEventFired")
        self.send("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while "Page.loadEventFired" not in self._seen:
            self._read()

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page; its policy holds for the page's own scripts all the while."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def becomes(self, expression: str, wanted: Any, seconds: float = 10) -> bool:
        """Whether the expression takes a value within some seconds: a dialog tells of its closing in a task after the key's own."""
        until = time.monotonic() + seconds
        while (found := self.ask(expression)) != wanted and time.monotonic() < until:
            time.sleep(0.02)
        return bool(found == wanted)

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element, which is scrolled to."""
        where = f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        x, y = self.ask(where)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, *keys: str) -> None:
        for key in keys:
            # A text of its own is what makes Enter press a button.
            text = {"Enter": "\r", " ": " "}.get(key)
            said = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": _KEYS[key]} | (
                {"text": text} if text else {}
            )
            self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **said)
            self.send("Input.dispatchKeyEvent", type="keyUp", **{k: v for k, v in said.items() if k != "text"})

    def picture(self, path: Path, whole: bool = True) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))
