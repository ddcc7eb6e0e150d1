"""A linear layer, after a norm where it has one.

    y[t, n] = sum_k norm(x)[t, k] W[n, k] + b[n]

Contract, kept by every implementation: sums in fp32 or wider; a row's result does not depend on what the rows beside it
hold, and on a CPU not on how many there are. On a GPU one row, up to 64 and more are summed each in their own order.
A CPU multiplies packed weights (`cpu_kernel`), a GPU plain ones: `select_streamed` and `select_gated` return what is
made for the few rows of decode steps there, and leaves many rows to torch's own product.
"""

from typing import NamedTuple, Protocol

import torch

from kernels import choice


class Norm(NamedTuple):
    """An RMSNorm in front of the layer; see `kernels.rms_norm`.

    Attributes:
        weight: [K].
        eps: keeps rows of zeros finite.
        offset: added to the weight.
    """

    weight: torch.Tensor
    eps: float
    offset: float


class Streamed(Protocol):
    """Signature of the operation on a plain weight."""

    def __call__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply.

        Args:
            x: [T, K], rows contiguous.
            weight: [N, K], contiguous.
            bias: [N].
            out: [T, N], contiguous, of any float type; None for a new one of `x`'s.

        Returns:
            `out`, or the new one.
        """
        ...


class Gated(Protocol):
    """Signature of the operation with a gated activation behind it."""

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
    ) -> torch.Tensor:
        """Map [T, K] by a weight [2 N, K] to a new [T, N]; see `kernels.gated_activation`."""
        ...


def select_streamed(device: torch.device) -> Streamed:
    """Return the implementation for plain weights on `device`."""
    if device.type == "cuda":
        return choice.triton_kernel("linear").streamed_linear_triton
    from kernels.linear.reference import streamed_linear_reference

    return streamed_linear_reference


def select_gated(device: torch.device) -> Gated:
    """Return the implementation with a gated activation for plain weights on `device`."""
    if device.type == "cuda":
        return choice.triton_kernel("linear").gated_linear_triton
    from kernels.linear.reference import gated_linear_reference

    return gated_linear_reference
