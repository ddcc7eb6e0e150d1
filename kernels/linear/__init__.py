"""A linear layer, after a norm where it has one.

    y[t, n] = sum_k norm(x)[t, k] W[n, k] + b[n]

Contract, kept by every implementation: sums in fp32 or wider; a row's result does not depend on the rows beside it.
This operation has no selection by device: elsewhere than on a CPU, torch's own is used.
"""

from typing import NamedTuple

import torch


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
