"""When there is room for one more sequence, and who gives way when there is none left.

Knows numbers of blocks, and sequences only as things in order. Does not know block tables, queues or time.

Invariants:
1. With nobody running, both policies admit whatever fits into the cache alone.
2. Under `GuaranteedNoEvict` the blocks that all running sequences may yet need are available at any time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from engine.sequence import Sequence


class CapacityPolicy(Protocol):
    """Decides about blocks."""

    def admits(self, num_needed: int, num_available: int, num_outstanding: Callable[[], int]) -> bool:
        """Whether a sequence may start.

        Args:
            num_needed: blocks it needs for the tokens it has.
            num_available: blocks that can be handed out, those of its cached prefix already taken.
            num_outstanding: counts the blocks that it and all running sequences may yet need until they end.
        """
        ...

    def victim(self, behind: list[Sequence]) -> Sequence | None:
        """Choose who gives its blocks back to a sequence that lacks one; None lets that sequence pause.

        Args:
            behind: running sequences that come after that one and are not in the step yet, the last in rank first.
        """
        ...


@dataclass(slots=True, frozen=True)
class MaxUtilization:
    """Use every block now; where they run out, the last in rank gives way and is computed again later."""

    def admits(self, num_needed: int, num_available: int, num_outstanding: Callable[[], int]) -> bool:  # noqa: ARG002
        """Admit whoever fits with the tokens it has."""
        return num_needed <= num_available

    def victim(self, behind: list[Sequence]) -> Sequence | None:
        """Choose the last in rank: the lowest priority and, within one, the youngest."""
        return behind[0] if behind else None


@dataclass(slots=True, frozen=True)
class GuaranteedNoEvict:
    """Start a sequence only where its worst case fits beside everybody else's; nobody ever gives way."""

    def admits(self, num_needed: int, num_available: int, num_outstanding: Callable[[], int]) -> bool:  # noqa: ARG002
        """Admit whoever can run to its longest end."""
        return num_outstanding() <= num_available

    def victim(self, behind: list[Sequence]) -> Sequence | None:
        """Refuse: what was admitted has its blocks.

        Raises:
            AssertionError: always; more has been admitted than fits.
        """
        raise AssertionError(f"a sequence lacks blocks under guaranteed_no_evict, {len(behind)} are behind it")


POLICIES: dict[str, type[MaxUtilization] | type[GuaranteedNoEvict]] = {
    "max_utilization": MaxUtilization,
    "guaranteed_no_evict": GuaranteedNoEvict,
}
