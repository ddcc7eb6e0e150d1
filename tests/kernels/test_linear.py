"""Linear layers and whole feed-forward blocks on packed weights: the fast path against the reference."""

import itertools

import pytest
import torch

from kernels.cpu_memory import ALIGNMENT
from kernels.cpu_vectors import COLUMNS, TILE_ROWS
from kernels.gated_activation import CPU_ACTIVATIONS
from kernels.gated_mlp.cpu_kernel import gated_mlp_cpu
from kernels.gated_mlp.reference import gated_mlp_reference
from kernels.linear import Norm
from kernels.linear.cpu_kernel import linear_cpu
from kernels.linear.lookup import lookup_cpu
from kernels.linear.packing import pack
from kernels.linear.reference import linear_reference
from kernels.linear.tiles import DEPTH_PER_PASS, ROWS_PER_ITEM

SHAPES = [(1, 1), (3, 5), (17, 123), (96, 64), (COLUMNS + 1, 127), (2 * COLUMNS, DEPTH_PER_PASS + 3)]
ROWS = (1, 2, TILE_ROWS - 1, TILE_ROWS + 1, ROWS_PER_ITEM + 3)


def make(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape) / shape[1] ** 0.5, torch.randn(shape[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [None, 0.0, 1.0])
def test_packed_weights_give_what_plain_ones_give(shape: tuple[int, int], offset: float | None) -> None:
    torch.manual_seed(shape[0])
    weight, bias = make(shape)
    norm = None if offset is None else Norm(torch.randn(shape[1]), 1e-5, offset)
    for num_rows in ROWS:
        x = torch.randn(num_rows, shape[1] + 3)[:, : shape[1]]  # as it lies in wider rows
        for added in (None, bias):
            out = linear_cpu(x, pack(weight, added), norm)
            torch.testing.assert_close(out, linear_reference(x, weight, added, norm), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("activation", CPU_ACTIVATIONS)
@pytest.mark.parametrize(("width", "inner"), [(1, 1), (24, 5), (COLUMNS, 77), (100, DEPTH_PER_PASS + 1)])
@pytest.mark.parametrize("has_norm", [False, True])
def test_a_fused_block_gives_what_its_parts_give(activation: str, width: int, inner: int, has_norm: bool) -> None:
    torch.manual_seed(width)
    gate_up, down = make((2 * inner, width)), make((width, inner))
    norm = Norm(torch.randn(width), 1e-6, 1.0) if has_norm else None
    for num_rows in ROWS:
        x = torch.randn(num_rows, width)
        out = gated_mlp_cpu(x, pack(*gate_up), pack(*down), activation, norm)
        torch.testing.assert_close(out, gated_mlp_reference(x, gate_up, down, activation, norm), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_stay_so_and_give_the_bits_of_wide_ones(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, bias = make(shape)
    weight = weight.to(dtype)
    short, wide = pack(weight, bias), pack(weight.float(), bias)
    assert (short.panels.dtype, wide.panels.dtype) == (dtype, torch.float32)
    assert torch.equal(lookup_cpu(torch.arange(shape[0]), short), weight.float())
    for num_rows in ROWS:
        x = torch.randn(num_rows, shape[1])
        assert torch.equal(linear_cpu(x, short), linear_cpu(x, wide))


@pytest.mark.parametrize("dtypes", list(itertools.permutations((torch.bfloat16, torch.float16, torch.float32), 2)))
def test_the_projections_of_a_block_may_differ_in_their_types(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    (gate_up, gate_up_bias), (down, down_bias) = make((24, 40)), make((40, 12))
    gate_up, down, x = gate_up.to(dtypes[0]), down.to(dtypes[1]), torch.randn(5, 40)
    out = gated_mlp_cpu(x, pack(gate_up, gate_up_bias), pack(down, down_bias), "silu")
    expected = gated_mlp_reference(x, (gate_up.float(), gate_up_bias), (down.float(), down_bias), "silu")
    torch.testing.assert_close(out, expected, atol=5e-5, rtol=1e-4)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    packed = pack(*make((960, 576)))
    x = torch.randn(ROWS_PER_ITEM + 1, 576)
    whole = linear_cpu(x, packed)
    for num_rows in (1, 2, 5, 16, 33):
        assert torch.equal(linear_cpu(x[:num_rows], packed), whole[:num_rows])


def test_a_nan_stays_in_its_row() -> None:
    x = torch.randn(TILE_ROWS + 2, 40)
    x[1, 3] = float("nan")
    out = linear_cpu(x, pack(*make((33, 40))), Norm(torch.ones(40), 1e-6, 0.0))
    assert out[1].isnan().all()
    assert not out[[0, *range(2, len(x))]].isnan().any()


def test_panels_are_aligned_and_filled_up_with_zeros() -> None:
    packed = pack(*make((COLUMNS + 3, 7)))
    assert packed.panels.shape == (2, 7, COLUMNS)
    assert packed.panels.data_ptr() % ALIGNMENT == 0
    assert not packed.panels[1, :, 3:].any()
    assert (packed.in_features, packed.out_features) == (7, COLUMNS + 3)
