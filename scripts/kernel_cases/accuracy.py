"""How far an implementation may be from the truth, by the type of its answer."""

from typing import Any

import torch

# For sums of up to some hundred terms of size 1, rounded once to the type: 2^-8 and 2^-11 relative for halves.
TOLERANCE: dict[torch.dtype, float] = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def assert_close(actual: Any, expected: Any, dtype: torch.dtype | None = None) -> None:
    """Compare with the tolerance of `dtype`, by default that of `actual`; tuples part by part, integers exactly."""
    if isinstance(actual, tuple):
        for part, expected_part in zip(actual, expected, strict=True):
            assert_close(part, expected_part)
        return
    tolerance = TOLERANCE.get(dtype or actual.dtype, 0.0)
    torch.testing.assert_close(actual.double(), expected.double(), atol=tolerance, rtol=tolerance)
