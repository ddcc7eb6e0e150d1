"""How far an implementation may be from the float64 truth, by the type of its inputs."""

import torch

# For sums of up to some hundred terms of size 1, rounded once to the type: 2^-8 and 2^-11 relative for halves.
TOLERANCE: dict[torch.dtype, float] = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    """Compare with the tolerance of `dtype`, by default that of `actual`."""
    tolerance = TOLERANCE[dtype or actual.dtype]
    torch.testing.assert_close(actual.double(), expected.double(), atol=tolerance, rtol=tolerance)
