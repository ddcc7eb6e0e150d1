"""A headless Chromium: one that is installed, else one of the npm registry, and a page in it.

Knows where a Chromium comes from and the DevTools protocol over a pair of pipes. Does not know what is on the page.
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import select
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import brotli
import pytest

from tests.gateway.process import ROOT

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Chromium's headless shell as it is built for machines that have nothing installed: it brings its libraries and a font.
PACKAGE_URL = "https://registry.npmjs.org/@sparticuz/chromium/-/chromium-153.0.0.tgz"
PACKAGE_SHA512 = "jiGWqSvPMdu4+P9TilYqAR7yEGPEHINx+lCvE/NqNO/EHYzF/x1hUiI5T6ioVIt7dEy7n88byyT0vk+dnsgQwA=="
KEPT = ROOT / ".serve" / "chromium-153"
FLAGS = ["--headless", "--no-sandbox", "--no-zygote", "--disable-gpu", "--disable-dev-shm-usage"]
# The protocol's pipes are descriptors 3 and 4, which nobody but the child itself can make of others.
START = "import os, sys; [os.dup2(int(sys.argv[i]), i + 2) for i in (1, 2)]; os.execv(sys.argv[3], sys.argv[3:])"
FONTS = f"<fontconfig><dir>{KEPT / 'fonts'}</dir><cachedir>{KEPT / 'cache'}</cachedir></fontconfig>"
SECONDS = 60.0  # for all that a test does with a page
LOUD = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}


def chromium() -> tuple[str, dict[str, str]]:
    """Return a Chromium and the environment to start it in; skip the test where there is none to be had."""
    installed = next(filter(None, map(shutil.which, NAMES)), None)
    if installed is not None:
        return installed, dict(os.environ)
    if not KEPT.is_dir():
        try:
            _fetch()
        except urllib.error.URLError as error:
            pytest.skip(f"no Chromium is installed (Debian: apt install chromium), and {PACKAGE_URL}: {error}")
    return str(KEPT / "chromium"), {**os.environ, "LD_LIBRARY_PATH": str(KEPT / "lib"), "FONTCONFIG_PATH": str(KEPT)}


def _fetch() -> None:
    with urllib.request.urlopen(PACKAGE_URL, timeout=SECONDS) as answer:
        packed = answer.read()
    assert base64.b64encode(hashlib.sha512(packed).digest()).decode() == PACKAGE_SHA512
    KEPT.parent.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=KEPT.parent, prefix=".chromium-") as scratch,
        tarfile.open(fileobj=io.BytesIO(packed)) as package,
    ):
        folder = Path(scratch) / "whole"
        folder.mkdir()
        for name in ("al2023", "fonts"):
            with tarfile.open(fileobj=io.BytesIO(_member(package, f"{name}.tar.br"))) as part:
                part.extractall(folder, filter="data")
        (folder / "fonts.conf").write_text(FONTS, encoding="utf-8")
        (folder / "chromium").write_bytes(_member(package, "chromium.br"))
        (folder / "chromium").chmod(0o755)
        with contextlib.suppress(OSError):  # another run of the tests was faster
            folder.rename(KEPT)


def _member(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(f"package/bin/{name}")
    assert file is not None
    return brotli.decompress(file.read())


class Page:
    """One page; `said` is what it wrote to its console, errors included."""

    def __init__(self, write_fd: int, read_fd: int) -> None:
        self.said: list[dict[str, Any]] = []
        self._write_fd, self._read_fd = write_fd, read_fd
        self._buffer = b""
        self._number = 0
        self._deadline = time.monotonic() + SECONDS
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Go to `url`."""
        assert "errorText" not in self.call("Page.navigate", url=url)

    def wait_for(self, condition: str) -> None:
        """Wait until an expression of JavaScript is true."""
        looks = f"new Promise(done => {{ const look = () => ({condition}) ? done() : setTimeout(look, 20); look(); }})"
        while "exceptionDetails" in self.call("Runtime.evaluate", expression=looks, awaitPromise=True):
            pass  # the page went elsewhere meanwhile

    def value(self, expression: str) -> Any:
        """Return what an expression of JavaScript is now."""
        return self.call("Runtime.evaluate", expression=expression)["result"]["value"]

    def screenshot(self) -> bytes:
        """Return a picture of the page, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return what a method of the DevTools protocol returns."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            if answer["method"] in LOUD:
                self.said.append(answer)
        if "error" in answer and "navigated" in answer["error"]["message"]:
            return {"exceptionDetails": answer["error"]}
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = self._deadline - time.monotonic()
            assert left > 0, "the browser took too long"
            if select.select([self._read_fd], [], [], left)[0]:
                piece = os.read(self._read_fd, 65536)
                assert piece, "the browser has ended"
                self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def page(folder: Path, width: int, height: int) -> Iterator[Page]:
    """Start a browser with an empty page of that size; its profile lies in `folder`."""
    program, environment = chromium()
    commands, commands_end = os.pipe()
    answers, answers_end = os.pipe()
    flags = [*FLAGS, "--remote-debugging-pipe", f"--window-size={width},{height}", f"--user-data-dir={folder}"]
    command = [sys.executable, "-c", START, str(commands), str(answers_end), program, *flags]
    ours = (commands, answers_end)
    with subprocess.Popen(command, env=environment, pass_fds=ours, stderr=subprocess.DEVNULL) as process:
        os.close(commands)
        os.close(answers_end)
        try:
            shown = Page(commands_end, answers)
            yield shown
            shown.call("Browser.close")
            process.wait(SECONDS)
        finally:
            process.kill()
            os.close(commands_end)
            os.close(answers)
