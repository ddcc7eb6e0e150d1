"""Rows in 8 bits in plain torch: the truth that other implementations are tested against."""

import torch
from torch.nn import functional as F

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def quantize_rows_reference(x: torch.Tensor, dtype: torch.dtype, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize; see the contract in `kernels.quantize_rows`."""
    num_rows, width = x.shape
    groups = F.pad(x.float(), (0, -width % group)).view(num_rows, -1, group)
    top = groups.abs().amax(dim=-1)
    scales = top / torch.full_like(top, LARGEST[dtype])  # by a number, CUDA multiplies by a rounded reciprocal instead
    scales = scales.masked_fill(scales == 0, 1.0)
    scaled = (groups / scales.unsqueeze(-1)).clamp(-LARGEST[dtype], LARGEST[dtype])
    whole = scaled.round() if dtype == torch.int8 else scaled
    return whole.view(num_rows, -1)[:, :width].to(dtype).contiguous(), scales
