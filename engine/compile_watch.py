"""Counts kernels that are compiled once everything has been warmed up, and says so: somebody waits for each of them.

Knows the hooks of numba and of Triton's language. Does not know which kernels there are. Counted are numba's real
compilations, and what Triton meets for the first time in this process, its cache on disk included.
"""

import logging
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

logger = logging.getLogger(__name__)


class CompileWatch:
    """Counts from when it is made until it is closed."""

    def __init__(self) -> None:
        """Listen to numba and to Triton, where kernels have imported them."""
        self.num_compiled = 0
        self._triton: Any = sys.modules.get("triton")
        self._stop_numba = _watch_numba(self._see) if "numba" in sys.modules else _do_nothing
        if self._triton is not None:
            self._triton.knobs.runtime.jit_post_compile_hook = self._on_triton

    def close(self) -> None:
        """Listen no more."""
        self._stop_numba()
        if self._triton is not None:
            self._triton.knobs.runtime.jit_post_compile_hook = None

    def _on_triton(self, **facts: Any) -> None:
        self._see(f"triton, {facts['repr']}")

    def _see(self, name: str) -> None:
        self.num_compiled += 1
        logger.warning("a kernel is compiled while requests wait: %s", name)


def _watch_numba(see: Callable[[str], None]) -> Callable[[], None]:
    """Call `see` for what numba begins to compile; return what ends that."""
    from numba.core import event as numba_event

    class Listener(numba_event.Listener):
        def on_start(self, event: numba_event.Event) -> None:
            see(f"numba, {(event.data or {}).get('dispatcher')}")

        def on_end(self, event: numba_event.Event) -> None:
            pass

    listener = Listener()
    numba_event.register("numba:compile", listener)
    return partial(numba_event.unregister, "numba:compile", listener)


def _do_nothing() -> None:
    pass
