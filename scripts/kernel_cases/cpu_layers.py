"""Cases of operations that only CPUs have kernels for: linear layers and feed-forward blocks on packed weights."""

from typing import Any

import torch

from kernels.linear import Norm
from scripts.kernel_cases.case import Case, Size, normal

LINEARS: dict[Size, tuple[tuple[int, int, int], ...]] = {  # T, O, C
    "tiny": ((1, 5, 7), (3, 67, 41)),
    "cpu": ((1, 49152, 576), (1, 1536, 576), (64, 1536, 576)),
    "gpu": (),
}
BLOCKS: dict[Size, tuple[tuple[int, int, int], ...]] = {  # T, C, F
    "tiny": ((1, 7, 5), (3, 24, 67)),
    "cpu": ((1, 576, 1536), (64, 576, 1536)),
    "gpu": (),
}
EPS = 1e-5


def cases(size: Size) -> list[Case]:
    """Return the cases of that size."""
    return [*(_linear(shape) for shape in LINEARS[size]), *(_block(shape) for shape in BLOCKS[size])]


def _linear(shape: tuple[int, int, int]) -> Case:
    num_rows, num_outputs, num_channels = shape

    def make(device: torch.device) -> tuple[Any, ...]:
        weight = normal(1, num_outputs, num_channels, device=device, scale=num_channels**-0.5)
        return normal(2, num_rows, num_channels, device=device), weight, _pack(weight), _norm(num_channels, device)

    def run(implementation: Any, x: Any, weight: Any, packed: Any, norm: Norm) -> torch.Tensor:
        is_cpu = implementation.__name__ == "linear_cpu"
        return implementation(x, packed, norm) if is_cpu else implementation(x, weight, None, norm)

    num_bytes = 4.0 * (num_outputs * num_channels + num_rows * (num_outputs + num_channels))
    text = f"{num_rows} x {num_channels} -> {num_outputs}, normed"
    num_flops = 2.0 * num_rows * num_outputs * num_channels
    return Case("linear", "linear", text, torch.float32, make, run, num_bytes, num_flops)


def _block(shape: tuple[int, int, int]) -> Case:
    num_rows, width, inner = shape

    def make(device: torch.device) -> tuple[Any, ...]:
        gate_up = normal(1, 2 * inner, width, device=device, scale=width**-0.5)
        down = normal(2, width, inner, device=device, scale=inner**-0.5)
        x = normal(3, num_rows, width, device=device)
        return x, (gate_up, down), (_pack(gate_up), _pack(down)), _norm(width, device)

    def run(implementation: Any, x: Any, weights: Any, packed: Any, norm: Norm) -> torch.Tensor:
        is_cpu = implementation.__name__ == "gated_mlp_cpu"
        parts = packed if is_cpu else [(weight, None) for weight in weights]
        return implementation(x, *parts, "silu", norm)

    num_bytes = 4.0 * (3 * width * inner + 2 * num_rows * width)
    text = f"silu {num_rows} x {width} x {inner}, normed"
    num_flops = 6.0 * num_rows * width * inner
    return Case("gated_mlp", "gated_mlp", text, torch.float32, make, run, num_bytes, num_flops)


def _pack(weight: torch.Tensor) -> Any:
    from kernels.linear.packing import pack  # brings numba, which machines with a GPU may lack

    return pack(weight, None)


def _norm(width: int, device: torch.device) -> Norm:
    return Norm(normal(4, width, device=device), EPS, 1.0)
