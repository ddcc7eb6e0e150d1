"""Cases of operations that only CPUs have kernels for: linear layers and feed-forward blocks, plain or of integers."""

from typing import Any

import torch

from kernels.linear import Norm
from kernels.quantized_linear import Int8Weight
from scripts.kernel_cases.accuracy import assert_close
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
INT8_TOLERANCE = 5e-3


def cases(size: Size) -> list[Case]:
    """Return the cases of that size."""
    layers = [
        case
        for is_int8 in (False, True)
        for case in (
            *(_linear(shape, is_int8=is_int8) for shape in LINEARS[size]),
            *(_block(shape, is_int8=is_int8) for shape in BLOCKS[size]),
        )
    ]
    return layers + [_sums(shape) for shape in LINEARS[size]]


def _linear(shape: tuple[int, int, int], *, is_int8: bool) -> Case:
    num_rows, num_outputs, num_channels = shape

    def make(device: torch.device) -> tuple[Any, ...]:
        weight = normal(1, num_outputs, num_channels, device=device, scale=num_channels**-0.5)
        plain, packed = _weights(weight, is_int8=is_int8)
        return normal(2, num_rows, num_channels, device=device), plain, packed, _norm(num_channels, device)

    def run(implementation: Any, x: Any, weight: Any, packed: Any, norm: Norm) -> torch.Tensor:
        is_cpu = implementation.__name__.endswith("_cpu")
        return implementation(x, packed, norm) if is_cpu else implementation(x, weight, None, norm)

    num_weights = num_outputs * num_channels
    num_bytes = num_weights * _bytes_each(is_int8=is_int8) + 4.0 * num_rows * (num_outputs + num_channels)
    text = f"{num_rows} x {num_channels} -> {num_outputs}, normed"
    sizes = {"num_bytes": num_bytes, "num_flops": 2.0 * num_rows * num_weights}
    return _case("linear", text, make, run, **sizes, is_int8=is_int8)


def _sums(shape: tuple[int, int, int]) -> Case:
    num_rows, num_outputs, num_channels = shape

    def make(device: torch.device) -> tuple[Any, ...]:
        from kernels.int8_sums.cpu_kernel import UnscaledWeight

        weight = normal(1, num_outputs, num_channels, device=device, scale=num_channels**-0.5)
        plain, packed = _weights(weight, is_int8=True)
        x = normal(2, num_rows, num_channels, device=device)
        return x, 1.25 * x.abs().amax(dim=1), plain, UnscaledWeight.of(packed)

    def run(implementation: Any, x: Any, tops: Any, weight: Any, unscaled: Any) -> torch.Tensor:
        is_cpu = implementation.__name__.endswith("_cpu")
        sums, row_scales = implementation(x, tops, unscaled if is_cpu else weight)
        return sums * row_scales.unsqueeze(1)

    num_weights = num_outputs * num_channels
    num_bytes = num_weights + 4.0 * num_rows * (num_outputs + num_channels)
    text = f"{num_rows} x {num_channels} -> {num_outputs}, a part of the depth"
    return _case("sums", text, make, run, num_bytes=num_bytes, num_flops=2.0 * num_rows * num_weights, is_int8=True)


def _block(shape: tuple[int, int, int], *, is_int8: bool) -> Case:
    num_rows, width, inner = shape

    def make(device: torch.device) -> tuple[Any, ...]:
        gate_up = _weights(normal(1, 2 * inner, width, device=device, scale=width**-0.5), is_int8=is_int8)
        down = _weights(normal(2, width, inner, device=device, scale=inner**-0.5), is_int8=is_int8)
        return normal(3, num_rows, width, device=device), *zip(gate_up, down, strict=True), _norm(width, device)

    def run(implementation: Any, x: Any, weights: Any, packed: Any, norm: Norm) -> torch.Tensor:
        is_cpu = implementation.__name__.endswith("_cpu")
        parts = packed if is_cpu else [(weight, None) for weight in weights]
        return implementation(x, *parts, "silu", norm)

    num_bytes = 3 * width * inner * _bytes_each(is_int8=is_int8) + 8.0 * num_rows * width
    text = f"silu {num_rows} x {width} x {inner}, normed"
    sizes = {"num_bytes": num_bytes, "num_flops": 6.0 * num_rows * width * inner}
    return _case("gated_mlp", text, make, run, **sizes, is_int8=is_int8)


def _case(name: str, text: str, make: Any, run: Any, *, num_bytes: float, num_flops: float, is_int8: bool) -> Case:
    op = f"int8_{name}" if is_int8 else name
    check = _is_near if is_int8 else assert_close
    return Case(op, op, text, torch.float32, make, run, num_bytes, num_flops, check=check)


def _weights(weight: torch.Tensor, *, is_int8: bool) -> tuple[Any, Any]:
    """Return a weight as references take it, and packed."""
    if is_int8:
        from kernels.int8_linear.packing import pack_int8  # brings numba, which machines with a GPU may lack

        quantized = Int8Weight.quantize(weight)
        return quantized, pack_int8(quantized.values, quantized.scales, None)
    from kernels.linear.packing import pack

    return weight, pack(weight, None)


def _bytes_each(*, is_int8: bool) -> float:
    return 1.0 if is_int8 else 4.0


def _is_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare as a whole: a value between two integers may be rounded either way."""
    distance, size = float((actual - expected).norm()), float(expected.norm())
    assert distance <= INT8_TOLERANCE * size, f"{distance / size:.1e} of the answer's size away"


def _norm(width: int, device: torch.device) -> Norm:
    return Norm(normal(4, width, device=device), EPS, 1.0)
