"""Quantized linear layers for CPUs, where torch has a fast way: products of 8-bit integers by oneDNN.

us on 2 threads of a Zen 4 against packed fp32 (`engine.layers.packed_linear`), `[out, in]` at 1 / 16 / 64 rows:
[3072, 576] 34 / 136 / 361 against 67 / 270 / 1191; [49152, 576] at 1 row 331 against 3531. torch's own weight-only
products (`_weight_int8pack_mm`, `_weight_int4pack_mm_for_cpu`) take 714 / 18026 / 53222 and twice that in fp32.
"""

from collections.abc import Callable
from typing import Any

import torch

from kernels.quantize_rows.reference import LARGEST
from kernels.quantized_linear.weights import Int8Weight


def int8_linear_cpu(inputs: torch.Tensor, weight: Int8Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply 8-bit integers, sums exact in int32; see the contract in `kernels.quantized_linear`."""
    scales = inputs.abs().amax(dim=1, keepdim=True).float().div_(LARGEST[torch.int8])
    scales.masked_fill_(scales == 0, 1.0)
    rows = (inputs / scales).round_().to(torch.int8)
    products = torch._int_mm(rows, weight.values.t())  # pyright: ignore[reportPrivateImportUsage]
    sums = products.to(torch.float32)
    sums.mul_(scales).mul_(weight.scales)
    return (sums if bias is None else sums.add_(bias)).to(inputs.dtype)


CPU_LINEARS: dict[str, Callable[[torch.Tensor, Any, torch.Tensor | None], torch.Tensor]] = {"int8": int8_linear_cpu}
