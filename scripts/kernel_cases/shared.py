"""Cases of operations that torch's own serve on every device, or that take functions: low-rank updates, dispatch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from kernels.lora import LowRankUpdate, RowGroup, UpdatePart
from scripts.kernel_cases.case import Case, Size, normal
from scripts.kernel_cases.rows import DTYPES

UPDATES: dict[Size, tuple[tuple[int, int, int, int, int], ...]] = {  # T, O, C, rank, adapters
    "tiny": ((1, 5, 7, 2, 1), (7, 33, 41, 3, 2)),
    "cpu": ((1, 960, 576, 16, 1), (64, 960, 576, 16, 4)),
    "gpu": ((1, 6144, 4096, 16, 1), (64, 6144, 4096, 16, 4), (8192, 6144, 4096, 16, 1)),
}
DISPATCHES: dict[Size, tuple[tuple[int, int, int, int], ...]] = {  # T, E, A, C
    "tiny": ((1, 3, 2, 7), (13, 5, 2, 24)),
    "cpu": ((64, 8, 2, 512),),
    "gpu": (),
}


def cases(size: Size) -> list[Case]:
    """Return the cases of that size."""
    updates = [_update(shape, dtype) for shape in UPDATES[size] for dtype in DTYPES[size]]
    return [*updates, *(_dispatch(shape) for shape in DISPATCHES[size])]


def _update(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> Case:
    num_rows, num_outputs, num_channels, rank, num_adapters = shape

    def make(device: torch.device) -> tuple[Any, ...]:
        draw = partial(normal, dtype=dtype, device=device)
        return (
            draw(1, num_rows, num_outputs),
            draw(2, num_rows, num_channels),
            tuple(draw(3 + index, rank, num_channels, scale=num_channels**-0.5) for index in range(num_adapters)),
            tuple(draw(9 + index, num_outputs, rank, scale=rank**-0.5) for index in range(num_adapters)),
        )

    def run(implementation: Any, out: torch.Tensor, inputs: torch.Tensor, downs: Any, ups: Any) -> torch.Tensor:
        rows = torch.arange(num_rows, device=out.device)
        updates = [LowRankUpdate(down, (UpdatePart(0, 0, up),)) for down, up in zip(downs, ups, strict=True)]
        implementation(out, inputs, [RowGroup(rows[index::num_adapters], each) for index, each in enumerate(updates)])
        return out

    moved = num_adapters * rank * (num_outputs + num_channels) + num_rows * (2 * num_outputs + num_channels)
    text = f"{num_rows} x {num_channels} -> {num_outputs}, {num_adapters} of rank {rank}"
    num_flops = 2.0 * num_rows * rank * (num_outputs + num_channels)
    num_bytes = float(moved * dtype.itemsize)
    return Case("lora", "lora", text, dtype, make, run, num_bytes, num_flops, everywhere="grouped")


def _dispatch(shape: tuple[int, int, int, int]) -> Case:
    num_rows, num_experts, num_chosen, width = shape

    def make(device: torch.device) -> tuple[Any, ...]:
        ids = normal(1, num_rows, num_experts, device=device).argsort(dim=1)[:, :num_chosen].contiguous()
        weights = normal(2, num_rows, num_chosen, device=device).softmax(dim=1)
        experts = [
            _expert(normal(3 + index, width, width, device=device, scale=width**-0.5)) for index in range(num_experts)
        ]
        return normal(0, num_rows, width, device=device), ids, weights, experts

    def run(implementation: Any, *inputs: Any) -> torch.Tensor:
        return implementation(*inputs)

    num_used = min(num_experts, num_rows * num_chosen)
    moved = 4.0 * (num_used * width * width + 2 * num_rows * width)
    text = f"{num_rows} tokens, {num_chosen} of {num_experts} of {width} x {width}"
    num_flops = 2.0 * num_rows * num_chosen * width * width
    return Case("expert_dispatch", "expert_dispatch", text, torch.float32, make, run, moved, num_flops)


def _expert(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda rows: rows @ weight.t()
