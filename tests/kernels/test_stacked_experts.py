"""Experts as stacked weights: sorting, skewed routing, and the same answers as experts that are functions."""

import pytest
import torch
from torch.nn import functional as F

from kernels.expert_dispatch import expert_dispatch_reference
from kernels.expert_routing import expert_routing_reference
from kernels.expert_routing.triton_kernel import expert_routing_triton
from kernels.stacked_experts import StackedExperts, stacked_experts_reference
from kernels.stacked_experts.triton_kernel import sort_pairs, stacked_experts_triton
from tests.kernels.accuracy import assert_close

IMPLEMENTATIONS = [stacked_experts_reference, stacked_experts_triton]


def silu_and_multiply(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def make_weights(num_experts: int, width: int, inner: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(num_experts)
    scale = width**-0.5
    return torch.randn(num_experts, 2 * inner, width) * scale, torch.randn(num_experts, width, inner) * scale


@pytest.mark.parametrize("compute", IMPLEMENTATIONS)
def test_stacked_experts_answer_as_functions_do(compute: StackedExperts) -> None:
    gate_up, down = make_weights(6, 24, 20)
    hidden, weights = torch.randn(11, 24), torch.rand(11, 2)
    ids = torch.stack([torch.randperm(6)[:2] for _ in range(11)])
    functions = [
        lambda rows, expert=expert: silu_and_multiply(rows @ gate_up[expert].t()) @ down[expert].t()
        for expert in range(6)
    ]
    expected = expert_dispatch_reference(hidden, ids, weights, functions)
    assert_close(compute(hidden, ids, weights, gate_up, down, silu_and_multiply), expected)


@pytest.mark.parametrize("favourite", [0, 7, 15])
def test_one_expert_may_get_every_token(favourite: int) -> None:
    gate_up, down = make_weights(16, 32, 16)
    hidden, ids, weights = torch.randn(50, 32), torch.full((50, 1), favourite), torch.ones(50, 1)
    expected = silu_and_multiply(hidden @ gate_up[favourite].t()) @ down[favourite].t()
    assert_close(stacked_experts_triton(hidden, ids, weights, gate_up, down, silu_and_multiply), expected)


@pytest.mark.parametrize("compute", IMPLEMENTATIONS)
def test_nobody_answers_nothing(compute: StackedExperts) -> None:
    gate_up, down = make_weights(3, 16, 8)
    hidden, ids = torch.randn(5, 16), torch.tensor([[0, 3], [3, 3], [2, 1], [3, 2], [1, 3]])
    out = compute(hidden, ids, torch.ones(5, 2), gate_up, down, silu_and_multiply)
    alone = [silu_and_multiply(hidden @ gate_up[expert].t()) @ down[expert].t() for expert in range(3)]
    nothing = torch.zeros(16)
    expected = [alone[0][0], nothing, alone[2][2] + alone[1][2], alone[2][3], alone[1][4]]
    assert_close(out, torch.stack(expected))


def test_no_tokens_have_no_answers() -> None:
    gate_up, down = make_weights(2, 8, 4)
    none = torch.empty(0, 8)
    ids = torch.empty(0, 1, dtype=torch.int64)
    assert stacked_experts_triton(none, ids, ids.float(), gate_up, down, silu_and_multiply).shape == (0, 8)


@pytest.mark.parametrize(("num_tokens", "num_experts", "num_chosen"), [(1, 1, 1), (129, 60, 2), (5, 128, 8)])
def test_pairs_are_grouped_by_expert(num_tokens: int, num_experts: int, num_chosen: int) -> None:
    torch.manual_seed(num_tokens)
    ids = torch.stack([torch.randperm(num_experts)[:num_chosen] for _ in range(num_tokens)])
    pairs, counts = sort_pairs(ids, num_experts)
    assert sorted(pairs.tolist()) == list(range(ids.numel()))
    assert ids.flatten()[pairs].tolist() == sorted(ids.flatten().tolist())
    assert torch.equal(counts, ids.flatten().bincount(minlength=num_experts + 1))


@pytest.mark.parametrize("renormalize", [False, True])
def test_routing_survives_logits_that_are_not_finite(renormalize: bool) -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
    logits[1, 2], logits[2], logits[3, :4] = torch.nan, torch.nan, -torch.inf
    weights, ids = expert_routing_triton(logits, 3, renormalize=renormalize)
    assert ((ids >= 0) & (ids < 5)).all()
    assert weights[1:3].isnan().all()
    torch.testing.assert_close(weights[3], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(weights[0], expert_routing_reference(logits[:1], 3, renormalize=renormalize)[0][0])
