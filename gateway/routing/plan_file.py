"""Thresholds between workload levels, read from a plan that `scripts/plan --json` has written.

Knows the file's form. Does not know how a plan comes about, or which instances have which layout.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, model_validator

from gateway.strict import ExistingFile, Strict


class PlanConfig(Strict):
    """A plan's threshold: the number of requests in flight from which one layout is better than another."""

    reads_files = ("file",)
    file: ExistingFile = Field(description="what `scripts/plan --json` has written")
    low: str = Field(description="layout of low_pool, by its name in the plan, such as tp8")
    high: str = Field(description="layout of high_pool, such as 4 x tp2")
    _threshold: float = PrivateAttr(default=0.0)

    @model_validator(mode="after")
    def _read(self) -> "PlanConfig":
        self._threshold = read_threshold(self.file, self.low, self.high)
        return self

    @property
    def threshold(self) -> float:
        """Requests in flight from which `high` is better."""
        return self._threshold


def read_threshold(file: Path, low: str, high: str) -> float:
    """Return the plan's threshold between two layouts.

    Raises:
        ValueError: the file is no plan, or has no threshold from the one to the other.
    """
    try:
        document: Any = json.loads(file.read_text(encoding="utf-8"))
        found = {(each["low"], each["high"]): float(each["in_flight"]) for each in document["thresholds"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no plan of `scripts/plan --json`: {error!r}") from error
    if (low, high) not in found:
        has = ", ".join(f"{one!r} to {other!r}" for one, other in found) or "none"
        raise ValueError(f"{file} has no threshold from {low!r} to {high!r}; it has {has}")
    if not found[low, high] > 0:
        raise ValueError(f"{file} has the threshold {found[low, high]:g}, which is not above 0")
    return found[low, high]
