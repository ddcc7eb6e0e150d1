"""Turn the signals that ask a program to end into one exception, once.

Knows signals. Does not know what there is to stop.
"""

import signal
from collections.abc import Callable
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(BaseException):
    """Somebody asked the program to end; not an error, so ordinary handlers let it pass."""


def raise_on_signals() -> None:
    """From now on the first ending signal raises `StopRequested` in the main thread; later ones do nothing."""
    for number in ENDING:
        signal.signal(number, _raise_once)


def call_on_signals(action: Callable[[], None]) -> None:
    """From now on every ending signal calls `action`."""
    for number in ENDING:
        signal.signal(number, lambda _number, _frame: action())


def _raise_once(_number: int, _frame: FrameType | None) -> None:
    call_on_signals(lambda: None)
    raise StopRequested
