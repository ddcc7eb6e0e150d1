"""A pulse that others can watch: as long as this process lives and its threads run, a number grows.

Knows a function to call and an interval. Does not know what is called or who watches.
"""

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Heartbeat:
    """Calls a function about every `seconds` from a thread of its own."""

    def __init__(self, beat: Callable[[], None], *, seconds: float = 0.25) -> None:
        """Start to beat at once."""
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
            except Exception:  # a failed beat is a missed beat: whoever watches sees it
                logger.exception("a heartbeat failed")
