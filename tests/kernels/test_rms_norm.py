"""RMSNorm: the fast path against the reference, and the reference against torch's own."""

import pytest
import torch

from kernels.rms_norm import add_rms_norm_reference, rms_norm_reference
from kernels.rms_norm.cpu_kernel import add_rms_norm_cpu, rms_norm_cpu
from kernels.rms_norm.triton_kernel import rms_norm_triton
from tests.kernels.accuracy import assert_close

SHAPES = [(1, 1), (3, 5), (7, 123), (64, 576), (2, 3, 4, 17)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_every_implementation_equals_torchs_norm(shape: tuple[int, ...], offset: float) -> None:
    torch.manual_seed(len(shape))
    x, weight = torch.randn(shape) * 3, torch.randn(shape[-1])
    expected = torch.rms_norm(x, (shape[-1],), weight + offset, 1e-5)
    torch.testing.assert_close(rms_norm_reference(x, weight, 1e-5, offset), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rms_norm_cpu(x, weight, 1e-5, offset), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 7, 16), (2, 3, 4, 17), (6, 40)])
def test_triton_takes_rows_as_they_lie(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    rows, weight = torch.randn(shape)[..., : shape[-1] - 3], torch.randn(shape[-1] - 3)
    assert_close(rms_norm_triton(rows, weight, 1e-6, 0.0), rms_norm_reference(rows, weight, 1e-6, 0.0))


@pytest.mark.parametrize("num_heads", [1, 4])
def test_heads_of_a_wider_row_are_normalized_as_they_lie(num_heads: int) -> None:
    torch.manual_seed(0)
    heads = torch.randn(5, 7, 16)[:, :num_heads]
    weight = torch.randn(16)
    torch.testing.assert_close(rms_norm_cpu(heads, weight, 1e-6, 0.0), rms_norm_reference(heads, weight, 1e-6, 0.0))


def test_a_row_of_zeros_stays_zero_and_a_nan_stays_in_its_row() -> None:
    x = torch.zeros(3, 8)
    x[1, 2] = float("nan")
    out = rms_norm_cpu(x, torch.ones(8), 1e-6, 0.0)
    assert out[1].isnan().all()
    assert not out[[0, 2]].any()


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_a_sum_is_kept_in_the_residual_and_normalized(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    residual, x, weight = torch.randn(shape), torch.randn(shape), torch.randn(shape[-1])
    for add_norm in (add_rms_norm_reference, add_rms_norm_cpu):
        kept = residual.clone()
        out = add_norm(kept, x, weight, 1e-5, 1.0)
        assert torch.equal(kept, residual + x)
        torch.testing.assert_close(out, rms_norm_reference(residual + x, weight, 1e-5, 1.0), atol=1e-5, rtol=1e-5)
