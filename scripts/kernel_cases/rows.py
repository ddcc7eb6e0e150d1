"""Cases of operations on single rows: norms, activations, quantizing."""

from functools import partial
from typing import Any

import torch

from scripts.kernel_cases.case import Case, Size, normal

HALF_BYTES = 2
SHAPES: dict[Size, tuple[tuple[int, int], ...]] = {
    "tiny": ((1, 1), (7, 123), (2, 1031)),
    "cpu": ((1, 576), (64, 576), (512, 2048)),
    "gpu": ((1, 4096), (64, 4096), (8192, 4096)),
}
DTYPES: dict[Size, tuple[torch.dtype, ...]] = {
    "tiny": (torch.float32, torch.float16, torch.bfloat16),
    "cpu": (torch.float32,),
    "gpu": (torch.bfloat16,),
}
EPS = 1e-5


def cases(size: Size) -> list[Case]:
    """Return the cases of that size."""
    return [
        case
        for rows, width in SHAPES[size]
        for dtype in DTYPES[size]
        for case in (*_norms(rows, width, dtype), *_activations(rows, width, dtype), *_quantizing(rows, width, dtype))
    ]


def _norms(rows: int, width: int, dtype: torch.dtype) -> list[Case]:
    def make(device: torch.device) -> tuple[Any, ...]:
        x = normal(1, rows, width, dtype=dtype, device=device, scale=3.0)
        return x, normal(2, rows, width, dtype=dtype, device=device), normal(3, width, dtype=dtype, device=device)

    shape, moved = f"{rows} x {width}", rows * width * dtype.itemsize
    return [
        Case("rms_norm", "rms_norm", shape, dtype, make, _normalize, 2 * moved),
        Case("rms_norm", "add_rms_norm", shape, dtype, make, _add_and_normalize, 4 * moved),
    ]


def _normalize(implementation: Any, x: torch.Tensor, _: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return implementation(x, weight, EPS, 1.0)


def _add_and_normalize(implementation: Any, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Any:
    return implementation(residual, x, weight, EPS, 0.0), residual


def _activations(rows: int, width: int, dtype: torch.dtype) -> list[Case]:
    def make(device: torch.device) -> tuple[Any, ...]:
        return (normal(4, rows, 2 * width, dtype=dtype, device=device, scale=2.0),)

    def run(activation: str, implementation: Any, gate_up: torch.Tensor) -> torch.Tensor:
        return implementation(activation, gate_up)

    moved = 3 * rows * width * dtype.itemsize
    names = ("silu", "gelu_pytorch_tanh") if dtype == torch.float32 else ("silu", "gelu", "gelu_pytorch_tanh")
    return [
        Case("gated_activation", "gated_activation", f"{name} {rows} x {width}", dtype, make, partial(run, name), moved)
        for name in names
    ]


def _quantizing(rows: int, width: int, dtype: torch.dtype) -> list[Case]:
    def make(device: torch.device) -> tuple[Any, ...]:
        return (normal(5, rows, width, dtype=dtype, device=device, scale=5.0),)

    def run(stored: torch.dtype, group: int, implementation: Any, x: torch.Tensor) -> Any:
        values, scales = implementation(x, stored, group)
        return values.float(), scales

    return [
        Case(
            "quantize_rows",
            "quantize_rows",
            f"{rows} x {width} by {group} to {str(stored).removeprefix('torch.')}",
            dtype,
            make,
            partial(run, stored, group),
            rows * width * (dtype.itemsize + 1) + 4 * rows * -(-width // group),
        )
        for stored in (torch.int8, torch.float8_e4m3fn)
        for group in dict.fromkeys((width, min(width, 64 if width < 128 else 128)))
    ]
