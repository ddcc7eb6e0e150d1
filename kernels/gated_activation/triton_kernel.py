"""Gated activations in Triton's language; one program takes `BLOCK` channels of one row, in fp32.

The tanh form of gelu is v * sigmoid(2 sqrt(2 / pi) (v + 0.044715 v^3)), since (1 + tanh(u)) / 2 = sigmoid(2 u).
"""

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.aot import Build
from kernels.dependent_launch import await_inputs, launch_options
from kernels.gated_activation.reference import ACTIVATIONS

BLOCK = 1024


def gated_activation_triton(activation: str, gate_up: torch.Tensor) -> torch.Tensor:
    """Activate and multiply; see the contract in `kernels.gated_activation`."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(num_rows, width, dtype=gate_up.dtype, device=gate_up.device)
    options: dict[str, Any] = {"ACTIVATION": activation, "BLOCK": BLOCK}
    if out.numel():
        gated_activation_kernel[(num_rows, triton.cdiv(width, BLOCK))](
            gate_up, out, width, **options, **launch_options(out.device)
        )
    return out


@triton.jit
def gated_activation_kernel(
    gate_up, out, width, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr
):
    """Activate channels of the first half of a row of [T, 2 F] and multiply by those of the second."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = lanes < width
    await_inputs(DEPENDENT)
    gate = tl.load(gate_up + row * 2 * width + lanes, mask=mask).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + lanes, mask=mask).to(tl.float32)
    tl.store(out + row * width + lanes, (activate(gate, ACTIVATION) * up).to(out.dtype.element_ty), mask=mask)


@triton.jit
def activate(gate, ACTIVATION: tl.constexpr):
    """Return the activation of fp32."""
    if ACTIVATION == "silu":
        return gate * tl.sigmoid(gate)
    elif ACTIVATION == "gelu":
        return gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    else:
        tl.static_assert(ACTIVATION == "gelu_pytorch_tanh")
        return gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))


def shipped() -> list[Build]:
    """Return every activation and type."""
    return [
        Build(
            f"{activation}, {element}",
            gated_activation_kernel,
            {"gate_up": f"*{element}", "out": f"*{element}", "width": "i32"},
            {"ACTIVATION": activation, "BLOCK": BLOCK},
            frozenset({"width"}),
            is_sampled=element == "bf16" and activation == "gelu",
        )
        for activation in ACTIVATIONS
        for element in ("bf16", "fp16", "fp32")
    ]
