"""Linear layers and feed-forward blocks of 8-bit integers on packed weights, against the quantized reference."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from kernels.cpu_vectors import COLUMNS, TILE_ROWS
from kernels.gated_activation import CPU_ACTIVATIONS, gated_activation_reference
from kernels.int8_gated_mlp.cpu_kernel import int8_gated_mlp_cpu
from kernels.int8_linear.cpu_kernel import int8_linear_cpu, pack_int8
from kernels.int8_sums.cpu_kernel import UnscaledWeight, int8_sums_cpu, largest_of_rows_cpu, scale_sums_cpu
from kernels.int8_sums.reference import int8_sums_reference
from kernels.linear import Norm
from kernels.linear.tiles import ROWS_PER_ITEM
from kernels.quantized_linear import Int8Weight
from kernels.quantized_linear.reference import int8_linear_reference
from kernels.rms_norm import rms_norm_reference

SHAPES = [(1, 1), (3, 5), (17, 123), (COLUMNS, 64), (COLUMNS + 1, 127), (2 * COLUMNS, 3001)]
ROWS = (1, 2, TILE_ROWS + 1, ROWS_PER_ITEM + 3)
NORM_EPS = 1e-5


def make(shape: tuple[int, int]) -> tuple[Int8Weight, torch.Tensor]:
    return Int8Weight.quantize(torch.randn(shape) / shape[1] ** 0.5), torch.randn(shape[0])


def packed(weight: Int8Weight, bias: torch.Tensor | None) -> Any:
    return pack_int8(weight.values, weight.scales, bias)


def test_products_are_the_references() -> None:
    for shape in SHAPES:
        torch.manual_seed(shape[0])
        weight, bias = make(shape)
        for num_rows in ROWS:
            x = torch.randn(num_rows, shape[1] + 3)[:, : shape[1]]
            for added in (None, bias):
                expected = int8_linear_reference(x, weight, added)
                torch.testing.assert_close(int8_linear_cpu(x, packed(weight, added)), expected, atol=1e-5, rtol=1e-5)


def test_a_norm_comes_first_where_there_is_one() -> None:
    torch.manual_seed(0)
    weight, bias = make((40, 96))
    norm, x = Norm(torch.randn(96), NORM_EPS, 1.0), torch.randn(9, 96)
    expected = int8_linear_reference(rms_norm_reference(x, *norm), weight, bias)
    out = int8_linear_cpu(x, packed(weight, bias), norm)
    assert (out - expected).norm() < 2e-3 * expected.norm()  # a value between two steps may be rounded either way


@pytest.mark.parametrize("activation", CPU_ACTIVATIONS)
@pytest.mark.parametrize(("width", "inner"), [(1, 1), (24, 5), (COLUMNS, 77)])
def test_a_fused_block_gives_what_its_parts_give(activation: str, width: int, inner: int) -> None:
    torch.manual_seed(width)
    gate_up, down = make((2 * inner, width)), make((width, inner))
    for num_rows in ROWS:
        x = torch.randn(num_rows, width)
        active = gated_activation_reference(activation, int8_linear_reference(x, *gate_up))
        expected = int8_linear_reference(active, *down)
        out = int8_gated_mlp_cpu(x, packed(*gate_up), packed(*down), activation)
        assert (out - expected).norm() <= 5e-3 * expected.norm()


def test_what_is_not_finite_stays_in_its_row_and_a_row_of_zeros_gives_the_bias() -> None:
    weight, bias = make((33, 40))
    x = torch.randn(TILE_ROWS + 2, 40)
    x[1, 3], x[2, 39], x[4] = float("nan"), float("inf"), 0.0
    out = int8_linear_cpu(x, packed(weight, bias))
    assert not out[1].isfinite().any()
    assert not out[2].isfinite().any()
    assert torch.equal(out[4], bias)
    assert out[[0, 3, *range(5, len(x))]].isfinite().all()


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    weight, _ = make((96, 576))
    x = torch.randn(ROWS_PER_ITEM + 1, 576)
    whole = int8_linear_cpu(x, packed(weight, None))
    for num_rows in (1, 5, 33):
        assert torch.equal(int8_linear_cpu(x[:num_rows], packed(weight, None)), whole[:num_rows])


@pytest.mark.parametrize(
    ("num_rows", "depth", "width", "cuts"), [(1, 40, 33, (7, 8)), (5, 300, 64, (1, 200)), (40, 96, 32, (32,))]
)
def test_sums_of_parts_of_the_depth_make_the_answer_of_the_whole_to_the_last_bit(
    num_rows: int, depth: int, width: int, cuts: tuple[int, ...]
) -> None:
    x, (weight, bias) = torch.randn(num_rows, depth), make((width, depth))
    tops, sums, row_scales = largest_of_rows_cpu(x), torch.zeros(num_rows, width), torch.empty(0)
    assert torch.equal(tops, x.abs().amax(dim=1))
    for start, stop in pairwise((0, *cuts, depth)):
        part = Int8Weight(weight.values[:, start:stop].contiguous(), weight.scales)
        unscaled = UnscaledWeight.of(packed(part, None))
        found, row_scales = int8_sums_cpu(x[:, start:stop].contiguous(), tops, unscaled)
        expected, scales = int8_sums_reference(x[:, start:stop], tops, part)
        torch.testing.assert_close(found, expected, atol=127.0, rtol=0.0)  # a number between two may go to either
        torch.testing.assert_close(row_scales, scales)
        sums += found
    assert torch.equal(scale_sums_cpu(sums, row_scales, weight.scales, bias), int8_linear_cpu(x, packed(weight, bias)))


def test_a_row_whose_largest_magnitude_is_no_number_has_none() -> None:
    x = torch.tensor([[1.0, float("nan")], [0.0, 0.0], [1.0, -float("inf")]])
    assert str(largest_of_rows_cpu(x).tolist()) == "[nan, 0.0, inf]"
