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


def assert_rows_near(actual: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    """Compare by rows [T, C]: within `share` of a row's norm, and each value within 5 `share` of its root mean square.

    For answers behind a second rounding to few bits: a value between two steps may be rounded either way, which moves
    every value of its row a little. With `share` above what rows lose, 5 times as much is beyond what chance gives one
    value of millions.
    """
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} for {tuple(expected.shape)}"
    distance, wide = actual.double() - expected.double(), expected.double()
    shares = distance.norm(dim=1) / wide.norm(dim=1)
    assert bool((shares <= share).all()), f"a row is {float(shares.max()):.1e} of its norm away, of {share:.1e}"
    most = (distance.abs().amax(dim=1) / wide.square().mean(dim=1).sqrt()).max()
    assert float(most) <= 5 * share, f"a value is {float(most):.1e} of its row's size away, of {5 * share:.1e}"
