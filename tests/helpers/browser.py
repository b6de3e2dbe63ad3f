"""A page in a real headless Chromium, driven over a pipe by its DevTools protocol: no port, no driver, no network."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import time

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
MISSING = "no Chromium on this machine (Debian: apt-get install chromium-headless-shell)"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip
ZERO = b"\0"
DOMAINS = ("Page", "Runtime", "Network", "Log", "DOM")


class Page:
    """One page. `events` holds what the browser reported while it loaded and ran, in order."""

    def __init__(self, path, *, width=1200, height=900, watch="", seconds=120):
        """Loads the file at `path`, in a window of `width` CSS pixels; `watch` runs before anything of the page."""
        assert BROWSER is not None
        self.events, self._number, self._buffer, self._end = [], 0, b"", time.monotonic() + seconds
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        command = [BROWSER, *FLAGS, f"--user-data-dir={path.parent / 'profile'}"]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        # All other descriptors of this process are closed by exec.
        self._process = subprocess.Popen(command, preexec_fn=lambda: _connect(read, write), close_fds=False, **silent)
        os.close(read)
        os.close(write)
        target = self._ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self._ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in DOMAINS:
            self.ask(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", size)
        self.ask("Page.addScriptToEvaluateOnNewDocument", {"source": watch})
        self.events.clear()
        self.ask("Page.navigate", {"url": path.as_uri()})
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._receive()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def ask(self, method, parameters=None):
        """The result of one call of the protocol."""
        return self._ask(method, parameters or {}, self._session)

    def run(self, expression):
        """The value of a JavaScript expression in the page; the page's policy does not apply to it."""
        reply = self.ask("Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True})
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def wait(self, milliseconds=300):
        """Lets timers, images and frames of the page do what they want to."""
        self.run(f"new Promise(done => setTimeout(done, {milliseconds}))")

    def requests(self):
        """Addresses that the page asked for, without itself."""
        sent = [event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return sent[1:]

    def reported(self, *methods):
        """The parameters of the events of these methods."""
        return [event["params"] for event in self.events if event["method"] in methods]

    def _ask(self, method, parameters, session=None):
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(message).encode() + ZERO)
        while True:
            reply = self._receive()
            if reply.get("id") == number:
                assert "error" not in reply, (method, reply)
                return reply["result"]

    def _receive(self):
        while ZERO not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, self._end - time.monotonic()))
            assert ready, "the browser did not answer in time"
            part = os.read(self._read, 1 << 16)
            assert part, "the browser ended"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(ZERO)
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message


def _connect(read, write):
    """In the child: the browser reads from descriptor 3 and writes to descriptor 4."""
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (read, write)]
    for end, number in zip(ends, (3, 4), strict=True):
        os.dup2(end, number)


__all__ = ["BROWSER", "MISSING", "Page"]
