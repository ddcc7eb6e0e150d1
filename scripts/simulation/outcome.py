"""What a replay showed, request by request, and the figures made of it.

Knows times and counts. Does not know how they came about.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass(slots=True)
class Outcome:
    """Everything that one replay of a trace counted; times in seconds, simulated but for `scheduler_seconds`, CPU."""

    ttfts: dict[str, list[float]] = field(default_factory=dict)  # by tenant
    gaps: list[float] = field(default_factory=list)
    num_output_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_refused: int = 0
    num_steps: int = 0
    num_scheduled: int = 0
    seconds: float = 0.0
    scheduler_seconds: float = 0.0

    def figures(self) -> dict[str, float]:
        """Return the figures to show, by name and unit."""
        ttfts = [ttft for tenant in self.ttfts.values() for ttft in tenant]
        by_demand = sorted(self.ttfts.values(), key=len)
        return {
            "TTFT p50, s": _quantile(ttfts, 0.5),
            "TTFT p99, s": _quantile(ttfts, 0.99),
            "ITL p50, ms": 1e3 * _quantile(self.gaps, 0.5),
            "ITL p99, ms": 1e3 * _quantile(self.gaps, 0.99),
            "output tokens/s": self.num_output_tokens / self.seconds if self.seconds else 0.0,
            "preemptions": self.num_preemptions,
            "refused requests": self.num_refused,
            "cached prompt tokens, %": 100 * self.num_cached_tokens / max(self.num_prompt_tokens, 1),
            "TTFT p95, tenant of most requests, s": _quantile(by_demand[-1], 0.95) if by_demand else 0.0,
            "TTFT p95, tenant of fewest requests, s": _quantile(by_demand[0], 0.95) if by_demand else 0.0,
            "sequences a step": self.num_scheduled / max(self.num_steps, 1),
            "scheduling a step, us of CPU": 1e6 * self.scheduler_seconds / max(self.num_steps, 1),
        }


def _quantile(values: list[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else 0.0
