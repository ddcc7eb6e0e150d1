"""Quantized experts in stacks: the same answers as one expert at a time, by every scheme."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from kernels.quantized_experts import quantized_experts_reference
from kernels.quantized_experts.triton_kernel import quantized_experts_triton
from kernels.quantized_linear import Float8Weight, Int4Weight, Int8Weight, Weight
from kernels.quantized_linear.weights import stack, weight_of
from scripts.kernel_cases.accuracy import assert_rows_near
from scripts.kernel_cases.products import FLOAT8_EXPERTS_TOLERANCE

E, C, INNER = 5, 64, 96
SCHEMES: dict[str, tuple[str, Callable[[torch.Tensor], Weight]]] = {
    "int8": ("int8", Int8Weight.quantize),
    "int8_weight_only": ("int8_weight_only", Int8Weight.quantize),
    "float8 by outputs": ("float8", lambda weight: Float8Weight.quantize(weight, (1, weight.shape[1]))),
    "float8 in blocks": ("float8", lambda weight: Float8Weight.quantize(weight, (40, 32))),
    "int4": ("int4_weight_only", lambda weight: Int4Weight.quantize(weight, 32)),
}


def silu_and_multiply(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def float8_answers(dtype: torch.dtype, num_inner_used: int = 512) -> torch.Tensor:
    """Return the reference's answers to 32 tokens, with only so many of the 512 inner channels."""
    torch.manual_seed(1)
    gate_up, down = (torch.randn(4, 1024, 256) / 16, torch.randn(4, 256, 512) / 512**0.5)
    down[:, :, num_inner_used:] = 0
    stacks: list[Any] = [stack([Float8Weight.quantize(w, (1, w.shape[1])) for w in one]) for one in (gate_up, down)]
    hidden, ids, weights = torch.randn(32, 256), torch.rand(32, 4).argsort(dim=1)[:, :2], torch.rand(32, 2)
    rounded = hidden.to(torch.bfloat16).to(dtype)
    answer = quantized_experts_reference("float8", rounded, ids, weights, stacks[0], stacks[1], silu_and_multiply)
    return answer.float()


def test_the_check_of_float8_experts_takes_what_bf16_costs_and_no_planted_error() -> None:
    expected, answer = float8_answers(torch.float32), float8_answers(torch.bfloat16)
    one_wrong, one_nan = answer.clone(), answer.clone()
    one_wrong[3, 5] += 0.3 * answer[3].square().mean().sqrt()
    one_nan[3, 5] = torch.nan
    assert_rows_near(answer, expected, FLOAT8_EXPERTS_TOLERANCE)
    channels_missing = float8_answers(torch.bfloat16, num_inner_used=496)
    for wrong in (answer * 1.05, answer.roll(1, dims=0), one_wrong, one_nan, channels_missing):
        with pytest.raises(AssertionError):
            assert_rows_near(wrong, expected, FLOAT8_EXPERTS_TOLERANCE)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("num_tokens", [1, 37])
def test_every_scheme_answers_as_one_expert_at_a_time_does(name: str, num_tokens: int) -> None:
    torch.manual_seed(num_tokens)
    scheme, quantize = SCHEMES[name]
    gate_up, down = (
        stack([quantize(torch.randn(shape) / shape[1] ** 0.5) for _ in range(E)])
        for shape in ((2 * INNER, C), (C, INNER))
    )
    assert gate_up is not None
    assert down is not None
    ids = torch.stack([torch.randperm(E + 1)[:3] for _ in range(num_tokens)])  # E is nobody
    arguments = torch.randn(num_tokens, C), ids, torch.rand(num_tokens, 3), gate_up, down, silu_and_multiply
    biases = {"gate_up_bias": torch.randn(E, 2 * INNER), "down_bias": torch.randn(E, C)}
    expected = quantized_experts_reference(scheme, *arguments, **biases)
    out = quantized_experts_triton(scheme, *arguments, **biases)
    assert (out - expected).norm() <= 4e-3 * expected.norm()  # a value between two steps may be rounded either way


def test_no_tokens_have_no_answers() -> None:
    weights = stack([Int8Weight.quantize(torch.randn(8, 8)) for _ in range(2)])
    assert weights is not None
    none, ids = torch.empty(0, 8), torch.empty(0, 1, dtype=torch.int64)
    assert quantized_experts_triton("int8", none, ids, ids.float(), weights, weights, F.silu).shape == (0, 8)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_stack_holds_each_weight_and_refuses_another_kind(name: str) -> None:
    _, quantize = SCHEMES[name]
    weights = [quantize(torch.randn(40, 64)) for _ in range(3)]
    stacked = stack(weights)
    assert stacked is not None
    for index, weight in enumerate(weights):
        assert torch.equal(weight_of(stacked, index).dequantize(), weight.dequantize())
    assert stack([*weights, Int4Weight.quantize(torch.randn(40, 64), 16)]) is None
