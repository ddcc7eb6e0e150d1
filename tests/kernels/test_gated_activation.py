"""Gated activations: the fast path against torch."""

import pytest
import torch

from kernels.gated_activation import ACTIVATIONS, CPU_ACTIVATIONS, gated_activation_reference, select
from kernels.gated_activation.cpu_kernel import gated_activation_cpu


@pytest.mark.parametrize("activation", CPU_ACTIVATIONS)
@pytest.mark.parametrize(("num_tokens", "width"), [(1, 1), (3, 7), (5, 123), (64, 1536)])
def test_the_fast_path_equals_the_reference(activation: str, num_tokens: int, width: int) -> None:
    torch.manual_seed(width)
    gate_up = torch.randn(num_tokens, 2 * width) * 4
    expected = gated_activation_reference(activation, gate_up)
    torch.testing.assert_close(gated_activation_cpu(activation, gate_up), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", CPU_ACTIVATIONS)
def test_extreme_gates_stay_finite_and_a_nan_stays_a_nan(activation: str) -> None:
    gate_up = torch.tensor([[-1e4, -100.0, -88.0, 0.0, 88.0, 1e4, float("nan"), *[1.0] * 7]])
    out = gated_activation_cpu(activation, gate_up)
    torch.testing.assert_close(
        out, gated_activation_reference(activation, gate_up), atol=1e-6, rtol=1e-6, equal_nan=True
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_has_an_implementation_for_cpus(activation: str) -> None:
    gate_up = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    out = select(torch.device("cpu"), activation)(gate_up)
    torch.testing.assert_close(out, ACTIVATIONS[activation](gate_up[:, :3]) * gate_up[:, 3:], atol=1e-5, rtol=1e-5)
