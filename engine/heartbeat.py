"""A pulse that others can watch, and an eye on the parent process.

Knows functions to call, intervals and the parent's process id. Does not know what is called or who watches. The two
have a thread each: a beat may block for ever once the other side is dead.
"""

import logging
import os
import threading
from collections.abc import Callable
from typing import NoReturn

logger = logging.getLogger(__name__)


def exit_at_once() -> NoReturn:
    """End this process without any clean-up: nobody is left to answer."""
    os._exit(1)


def watch_parent(
    *,
    seconds: float = 0.5,
    parent: Callable[[], int] = os.getppid,
    on_orphaned: Callable[[], None] = exit_at_once,
) -> threading.Thread:
    """Call `on_orphaned` once when the parent process has died; a Triton stub would outlive its killed server.

    Args:
        seconds: time between two looks.
        parent: tells the parent's process id, which changes when the parent dies.
        on_orphaned: ends this process, unless a test says otherwise.
    """
    first = parent()
    pause = threading.Event()

    def watch() -> None:
        while parent() == first:
            pause.wait(seconds)
        on_orphaned()

    thread = threading.Thread(target=watch, name="parent-watch", daemon=True)
    thread.start()
    return thread


class Heartbeat:
    """Calls a function about every `seconds` from a thread of its own."""

    def __init__(self, beat: Callable[[], None], *, seconds: float = 0.25) -> None:
        """Start to beat; an exception of `beat` is logged and counts as a missed beat."""
        self._beat = beat
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Beat no more; returns when the last beat is over."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._beat()
            except Exception:  # whoever watches sees the missed beat
                logger.exception("a heartbeat failed")
