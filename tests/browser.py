"""A Chromium without a window, driven by its own protocol: real clicks, real keys, and pictures of what it shows."""
import base64
import contextlib
import json
import os
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
import websocket
from waiting import PATIENCE, wait_for

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PICTURES = os.environ.get("LLMLAB_SHOTS")  # a folder: the tests leave there what the browser showed
KEYS = {"Tab": 9, "Enter": 13, "End": 35, "Home": 36}  # with their numbers
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on the path: nothing is opened in a browser")


class Browser:
    """One tab: what is asked of it is done when it returns, or waited for."""

    def __init__(self, folder):
        arguments = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
                     f"--user-data-dir={folder}", "about:blank")
        self.process = subprocess.Popen(
            [CHROMIUM, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        place = folder / "DevToolsActivePort"
        port = wait_for(lambda: place.exists() and place.read_text().split(), "the browser")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            tab = next(each for each in json.load(answer) if each["type"] == "page")
        self.socket = websocket.create_connection(tab["webSocketDebuggerUrl"], suppress_origin=True, timeout=PATIENCE)
        self.calls = 0
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")
        self.screen()

    def call(self, method, **parameters):
        self.calls += 1
        self.socket.send(json.dumps({"id": self.calls, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("method") == "Page.javascriptDialogOpening":  # leave, with changes that were not saved?
                self.socket.send(json.dumps({"id": -1, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}))
            if message.get("id") == self.calls:
                assert "error" not in message, message
                return message["result"]

    def value(self, expression):
        """Return what an expression of JavaScript is worth in the page; it may be a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, address):
        """Go to a page, and wait until it has loaded."""
        self.value("window.isLeft = true")
        self.call("Page.navigate", url=str(address))

        def is_there():
            with contextlib.suppress(AssertionError):  # asked on the way from one page to the next
                return self.value("!window.isLeft && document.readyState == 'complete'")

        wait_for(is_there, address)

    def screen(self, width=1400, height=1000, dark=False):
        """Look with another screen, or in the dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def text(self):
        return self.value("document.body ? document.body.innerText : ''") or ""

    def wait_for_text(self, text):
        wait_for(lambda: text in self.text(), lambda: f"{text!r} in {self.text()[-3000:]}")

    def click(self, selector, text=""):
        """Click the first element that is seen, in its middle."""
        find = f"""(() => {{
            const found = [...document.querySelectorAll({json.dumps(selector)})].find(
                each => each.innerText.trim().startsWith({json.dumps(text)}) && each.getBoundingClientRect().width);
            if (!found) return null;
            found.scrollIntoView({{block: "nearest"}});
            const box = found.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""
        x, y = wait_for(lambda: self.value(find), lambda: f"{selector} {text!r} in {self.text()[-3000:]}")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key, shift=False):
        """Press a key that has a name, such as Tab."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, modifiers=8 * shift,
                      windowsVirtualKeyCode=KEYS[key], **text)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def picture(self, name):
        """Keep what is seen, where LLMLAB_SHOTS names a folder for it."""
        if PICTURES:
            data = self.call("Page.captureScreenshot", format="png")["data"]
            Path(PICTURES).mkdir(parents=True, exist_ok=True)
            (Path(PICTURES) / f"{name}.png").write_bytes(base64.b64decode(data))

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)
