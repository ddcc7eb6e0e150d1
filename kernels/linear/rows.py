"""What every kernel that may begin with a norm is told about its rows.

Knows tensors and the order of a kernel's first arguments: number of rows, their width, x and its stride in floats,
whether there is a norm, its weight, eps and offset, where normed rows go and their stride. Tensors are addresses.
"""

import numba
import torch

from kernels.linear import Norm

INTEGER, REAL = numba.int64, numba.float32
ROW_TYPES = (*[INTEGER] * 4, numba.boolean, INTEGER, REAL, REAL, INTEGER, INTEGER)
RowArguments = tuple[int, int, int, int, bool, int, float, float, int, int]


def row_arguments(x: torch.Tensor, norm: Norm | None) -> tuple[RowArguments, torch.Tensor]:
    """Return the arguments for x, [T, K], rows without gaps, and the memory of normed rows, to be held for the call."""
    if norm is None:
        scale, eps, offset, normed = x, 0.0, 0.0, x
    else:
        (scale, eps, offset), normed = norm, torch.empty(x.shape)
    arguments = (
        *(len(x), x.shape[1], x.data_ptr(), x.stride(0)),
        *(norm is not None, scale.data_ptr(), eps, offset, normed.data_ptr(), normed.stride(0)),
    )
    return arguments, normed
