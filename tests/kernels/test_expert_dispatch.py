"""Expert dispatch: the grouped path against one token at a time."""

import pytest
import torch
from torch import nn

from kernels.expert_dispatch import expert_dispatch_reference
from kernels.expert_dispatch.cpu_kernel import expert_dispatch_cpu

SHAPES = [(1, 1, 1, 8), (1, 5, 2, 8), (64, 8, 2, 24), (13, 60, 4, 5), (3, 4, 4, 16)]  # T, E, A, C


@pytest.mark.parametrize(("num_tokens", "num_experts", "num_chosen", "width"), SHAPES)
def test_grouping_by_expert_changes_nothing(num_tokens: int, num_experts: int, num_chosen: int, width: int) -> None:
    torch.manual_seed(3)
    experts = [nn.Linear(width, width).requires_grad_(requires_grad=False) for _ in range(num_experts)]
    hidden, weights = torch.randn(num_tokens, width), torch.rand(num_tokens, num_chosen)
    ids = torch.stack([torch.randperm(num_experts)[:num_chosen] for _ in range(num_tokens)])
    expected = expert_dispatch_reference(hidden, ids, weights, experts)
    torch.testing.assert_close(expert_dispatch_cpu(hidden, ids, weights, experts), expected, atol=1e-5, rtol=1e-5)


def test_an_expert_is_called_once_for_all_its_tokens_and_not_without() -> None:
    calls: list[tuple[int, int]] = []

    def expert(index: int) -> nn.Module:
        module = nn.Identity()
        module.register_forward_hook(lambda _, inputs, __: calls.append((index, len(inputs[0]))))
        return module

    ids = torch.tensor([[2, 0], [0, 2], [2, 3]])
    expert_dispatch_cpu(torch.ones(3, 4), ids, torch.ones(3, 2), [expert(index) for index in range(4)])
    assert calls == [(0, 2), (2, 3), (3, 1)]
