"""Counts kernels that are compiled once everything has been warmed up, and says so: somebody waits for each of them.

Knows the hooks of numba and of Triton's language. Does not know which kernels there are. Counted are numba's real
compilations, and what Triton meets for the first time in this process, its cache on disk included.
"""

import logging
import sys
from typing import Any

from numba.core import event as numba_event

logger = logging.getLogger(__name__)


class CompileWatch(numba_event.Listener):
    """Counts from when it is made until it is closed."""

    def __init__(self) -> None:
        """Listen to numba, and to Triton where kernels have imported it."""
        self.num_compiled = 0
        self._triton: Any = sys.modules.get("triton")
        numba_event.register("numba:compile", self)
        if self._triton is not None:
            self._triton.knobs.runtime.jit_post_compile_hook = self._on_triton

    def close(self) -> None:
        """Listen no more."""
        numba_event.unregister("numba:compile", self)
        if self._triton is not None:
            self._triton.knobs.runtime.jit_post_compile_hook = None

    def on_start(self, event: numba_event.Event) -> None:
        """Count what numba begins to compile."""
        self._see(f"numba, {(event.data or {}).get('dispatcher')}")

    def on_end(self, event: numba_event.Event) -> None:
        """Do nothing when it has ended."""

    def _on_triton(self, **facts: Any) -> None:
        self._see(f"triton, {facts['repr']}")

    def _see(self, name: str) -> None:
        self.num_compiled += 1
        logger.warning("a kernel is compiled while requests wait: %s", name)
