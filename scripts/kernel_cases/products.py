"""Cases of products with weights: quantized linear layers, experts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from kernels.quantized_linear import Float8Weight, Int4Weight, Int8Weight
from kernels.quantized_linear.weights import stack
from scripts.kernel_cases.accuracy import assert_close, assert_rows_near
from scripts.kernel_cases.case import Case, Size, normal
from scripts.kernel_cases.rows import DTYPES

LINEARS: dict[Size, tuple[tuple[int, int, int], ...]] = {  # T, O, C
    "tiny": ((1, 1, 32), (7, 33, 96), (35, 67, 320)),
    "cpu": ((1, 1536, 576), (64, 1536, 576)),
    "gpu": ((1, 28672, 4096), (16, 28672, 4096), (64, 28672, 4096), (8192, 6144, 4096)),
}
STREAMED: dict[Size, tuple[tuple[int, int, int], ...]] = {  # T, O, C
    "tiny": ((1, 1, 16), (1, 37, 1040), (5, 33, 144), (19, 67, 272)),
    "cpu": (),
    "gpu": ((1, 4096, 4096), (1, 28672, 4096), (64, 4096, 14336), (64, 6144, 4096), (64, 28672, 4096)),
}
EXPERTS: dict[Size, tuple[tuple[int, int, int, int, int], ...]] = {  # T, E, A, C, F
    "tiny": ((1, 8, 2, 32, 48), (37, 5, 2, 40, 24), (3, 20, 3, 16, 17)),
    "cpu": ((1, 8, 2, 512, 1024), (64, 8, 2, 512, 1024)),
    "gpu": ((1, 8, 2, 4096, 14336), (64, 8, 2, 4096, 14336), (4096, 8, 2, 4096, 14336), (64, 128, 8, 2048, 768)),
}
WEIGHTS: dict[str, tuple[Callable[[torch.Tensor], Any], float]] = {  # scheme: maker, bytes a weight
    "int8": (Int8Weight.quantize, 1.0),
    "int8_weight_only": (Int8Weight.quantize, 1.0),
    "float8": (lambda weight: Float8Weight.quantize(weight, (1, weight.shape[1])), 1.0),
    "float8 in blocks": (lambda weight: Float8Weight.quantize(weight, (64, 32)), 1.01),
    "float8 in blocks of 128": (lambda weight: Float8Weight.quantize(weight, (128, 128)), 1.0),
    "int4_weight_only": (lambda weight: Int4Weight.quantize(weight, 32), 0.66),
    "int4_weight_only by 128": (lambda weight: Int4Weight.quantize(weight, 128), 0.54),
}
SCHEMES: dict[Size, tuple[str, ...]] = {
    "tiny": ("int8", "int8_weight_only", "float8", "float8 in blocks", "int4_weight_only"),
    "cpu": ("int8", "int8_weight_only", "float8", "int4_weight_only"),
    "gpu": ("int8", "int8_weight_only", "float8", "float8 in blocks of 128", "int4_weight_only by 128"),
}
EXPERT_SCHEMES: dict[Size, tuple[str, ...]] = {
    "tiny": ("", "int8_weight_only"),
    "cpu": ("",),
    "gpu": ("", "int8_weight_only", "float8", "int4_weight_only by 128"),
}
# bf16 between two products moves 2 % of the inner values by a step of float8. The reference's answers in bf16 and fp32
# differ by 1.4 % of their norm, by 2.0 % in the worst of 64 rows (1,024 x 2,048 channels), values by 8 % of their size.
FLOAT8_EXPERTS_TOLERANCE = 0.03


def cases(size: Size) -> list[Case]:
    """Return the cases of that size."""
    linears = [
        _linear(scheme, shape, dtype) for shape in LINEARS[size] for dtype in DTYPES[size] for scheme in SCHEMES[size]
    ]
    streamed = [case for shape in STREAMED[size] for dtype in DTYPES[size] for case in _streamed(shape, dtype)]
    shapes = [(shape, dtype) for shape in EXPERTS[size] for dtype in DTYPES[size]]
    routing = [_routing(*shape) for shape in shapes]
    experts = [_experts(*shape, scheme) for shape in shapes for scheme in EXPERT_SCHEMES[size]]
    return linears + streamed + routing + experts


def _streamed(shape: tuple[int, int, int], dtype: torch.dtype) -> list[Case]:
    """Return a plain product, and one of half as many outputs that are activated."""
    num_rows, num_outputs, num_channels = shape

    def make(device: torch.device) -> tuple[Any, ...]:
        x = normal(1, num_rows, num_channels, dtype=dtype, device=device)
        weight = normal(2, 2 * num_outputs, num_channels, dtype=dtype, device=device, scale=num_channels**-0.5)
        return x, weight, normal(3, 2 * num_outputs, dtype=dtype, device=device)

    def run(implementation: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return implementation(x, weight[:num_outputs], bias[:num_outputs])

    def run_gated(implementation: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return implementation(x, weight, bias, "silu")

    text = f"{num_rows} x {num_channels} -> {num_outputs}"
    weights, flops = num_outputs * num_channels * dtype.itemsize, 2.0 * num_rows * num_outputs * num_channels
    moved = (num_channels + num_outputs) * num_rows * dtype.itemsize
    return [
        Case("linear", "streamed_linear", text, dtype, make, run, weights + moved, flops),
        Case("linear", "gated_linear", text, dtype, make, run_gated, 2 * weights + moved, 2 * flops),
    ]


def _linear(scheme: str, shape: tuple[int, int, int], dtype: torch.dtype) -> Case:
    num_rows, num_outputs, num_channels = shape
    quantize, bytes_each = WEIGHTS[scheme]

    def make(device: torch.device) -> tuple[Any, ...]:
        weight = quantize(normal(1, num_outputs, num_channels, device=device, scale=num_channels**-0.5))
        bias = normal(2, num_outputs, dtype=dtype, device=device) if num_rows > 1 else None
        return normal(3, num_rows, num_channels, dtype=dtype, device=device), weight, bias

    def run(implementation: Any, inputs: torch.Tensor, weight: Any, bias: torch.Tensor | None) -> torch.Tensor:
        return implementation(inputs, weight, bias)

    moved = num_outputs * num_channels * bytes_each + num_rows * (num_outputs + num_channels) * dtype.itemsize
    text = " ".join((*scheme.split()[1:], f"{num_rows} x {num_channels} -> {num_outputs}"))
    function = f"{scheme.split(maxsplit=1)[0]}_linear"
    num_flops = 2.0 * num_rows * num_outputs * num_channels
    return Case("quantized_linear", function, text, dtype, make, run, moved, num_flops)


def _routing(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> Case:
    num_rows, num_experts, num_chosen = shape[:3]

    def make(device: torch.device) -> tuple[Any, ...]:
        return (normal(4, num_rows, num_experts, dtype=dtype, device=device),)

    def run(implementation: Any, logits: torch.Tensor) -> Any:
        weights, ids = implementation(logits, num_chosen, renormalize=True)
        return weights, logits.float().gather(1, ids)  # equal logits may come in any order

    text = f"{num_rows} tokens, {num_chosen} of {num_experts}"
    moved = num_rows * (num_experts * dtype.itemsize + 12 * num_chosen)
    return Case("expert_routing", "expert_routing", text, dtype, make, run, moved)


def _experts(shape: tuple[int, int, int, int, int], dtype: torch.dtype, scheme: str) -> Case:
    """Return a case of stacked experts, quantized ones where a scheme is named."""
    num_rows, num_experts, num_chosen, width, inner = shape
    num_used = min(num_experts, num_rows * num_chosen)
    quantize, bytes_each = WEIGHTS.get(scheme, (None, float(dtype.itemsize)))
    names = scheme.split()
    op = "quantized_experts" if scheme else "stacked_experts"

    def make_stack(seed: int, num_outputs: int, num_inputs: int, device: torch.device) -> Any:
        sizes, scale = (num_experts, num_outputs, num_inputs), num_inputs**-0.5
        if quantize is None:
            return normal(seed, *sizes, dtype=dtype, device=device, scale=scale)
        return stack([quantize(weight) for weight in normal(seed, *sizes, device=device, scale=scale)])

    def make(device: torch.device) -> tuple[Any, ...]:
        ids = normal(5, num_rows, num_experts, device=device).argsort(dim=1)[:, :num_chosen].contiguous()
        weights = normal(6, num_rows, num_chosen, device=device).softmax(dim=1)
        return (
            normal(7, num_rows, width, dtype=dtype, device=device, scale=0.7),
            ids,
            weights,
            make_stack(8, 2 * inner, width, device),
            make_stack(9, width, inner, device),
            normal(10, num_experts, 2 * inner, dtype=dtype, device=device, scale=0.3),
            normal(11, num_experts, width, dtype=dtype, device=device, scale=0.3),
        )

    def run(implementation: Any, *inputs: Any) -> torch.Tensor:
        of_scheme = partial(implementation, names[0]) if names else implementation
        return of_scheme(*inputs[:5], _silu_and_multiply, gate_up_bias=inputs[5], down_bias=inputs[6])

    moved = 3 * num_used * width * inner * bytes_each + 2 * num_rows * width * dtype.itemsize
    text = " ".join((*names, f"{num_rows} tokens, {num_chosen} of {num_experts} of {width} x {inner}"))
    num_flops = 6.0 * num_rows * num_chosen * width * inner
    is_rounded_twice = "float8" in names and dtype != torch.float32
    check = partial(assert_rows_near, share=FLOAT8_EXPERTS_TOLERANCE) if is_rounded_twice else assert_close
    return Case(op, op, text, dtype, make, run, moved, num_flops, check=check)


def _silu_and_multiply(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
