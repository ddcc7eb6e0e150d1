"""Quantized linears: what rounding to a format costs, and every implementation against the reference."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from kernels.quantize_rows import LARGEST, quantize_rows_reference
from kernels.quantize_rows.triton_kernel import quantize_rows_triton
from kernels.quantized_linear import SCHEMES, Float8Weight, Int4Weight, Int8Weight, QuantizedLinear, Weight, select
from kernels.quantized_linear.reference import REFERENCES
from kernels.quantized_linear.triton_kernel import MOST_TILED_ROWS, TRITON_LINEARS
from kernels.quantized_linear.triton_widening import widen
from kernels.split_sums import choose_num_splits

MAKERS = {
    "int8": Int8Weight.quantize,
    "int8_weight_only": Int8Weight.quantize,
    "float8": lambda weight: Float8Weight.quantize(weight, (1, weight.shape[1])),
    "int4_weight_only": lambda weight: Int4Weight.quantize(weight, 32),
}
ERRORS = {"int8": 0.012, "int8_weight_only": 0.008, "float8": 0.05, "int4_weight_only": 0.1}  # of the output's norm


def quantized(weight: torch.Tensor, scheme: str) -> Weight:
    return MAKERS[scheme](weight)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantized_product_is_near_the_plain_one(scheme: str) -> None:
    torch.manual_seed(1)
    inputs, weight, bias = torch.randn(33, 256), torch.randn(127, 256), torch.randn(127)
    expected = F.linear(inputs, weight, bias)
    out = select(torch.device("cpu"), scheme)(inputs, quantized(weight, scheme), bias)
    assert (out - expected).norm() < ERRORS[scheme] * expected.norm()


@pytest.mark.parametrize("block", [(1, 300), (200, 300), (128, 128), (7, 32)])
def test_a_float8_weight_has_the_scale_of_its_block(block: tuple[int, int]) -> None:
    torch.manual_seed(2)
    weight = torch.randn(200, 300) * torch.logspace(-3, 3, 200).unsqueeze(1)
    packed = Float8Weight.quantize(weight, block)
    assert packed.scales.shape == (-(-200 // block[0]), -(-300 // block[1]))
    for row, column in ((0, 0), (127, 127), (128, 299), (199, 31)):
        tile = weight[row // block[0] * block[0] :, column // block[1] * block[1] :][: block[0], : block[1]]
        step = float(tile.abs().max()) / 448 * 2**-10  # half of the smallest subnormal's step
        error = float((packed.dequantize()[row, column] - weight[row, column]).abs())
        assert error <= abs(float(weight[row, column])) * 2**-4 + step


def test_int4_weights_hold_two_channels_a_byte_the_even_one_low() -> None:
    values = torch.tensor([[1, 2, 3, 15], [0, 9, 8, 7]], dtype=torch.uint8)
    scales, zeros = torch.tensor([[1.0, 2.0], [0.5, 1.0]]), torch.tensor([[0, 8], [9, 7]], dtype=torch.uint8)
    weight = Int4Weight.pack(values, scales, zeros, 2)
    assert weight.packed.tolist() == [[0x21, 0xF3], [0x90, 0x78]]
    assert torch.equal(weight.unpack(), values)
    assert weight.dequantize().tolist() == [[1.0, 2.0, -10.0, 14.0], [-4.5, 0.0, 1.0, 0.0]]


@pytest.mark.parametrize("group", [8, 32, 64])
def test_an_int4_weight_is_within_half_a_step_of_the_plain_one_and_keeps_zeros(group: int) -> None:
    torch.manual_seed(3)
    plain = torch.randn(16, 64)
    plain[3], plain[:, 5] = 0, 0
    weight = Int4Weight.quantize(plain, group)
    steps = weight.scales.repeat_interleave(group, dim=1)
    assert ((weight.dequantize() - plain).abs() <= 1.01 * steps).all()  # the zero point is rounded as well
    assert not weight.dequantize()[:, 5].any()
    assert not weight.dequantize()[3].any()


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize(("width", "group"), [(1, 1), (123, 123), (256, 128), (300, 128)])
def test_rows_are_quantized_to_within_half_a_step(dtype: torch.dtype, width: int, group: int) -> None:
    torch.manual_seed(4)
    x = torch.randn(7, width) * torch.logspace(-6, 6, 7).unsqueeze(1)
    x[5] = 0
    values, scales = quantize_rows_reference(x, dtype, group)
    steps = scales.repeat_interleave(group, dim=1)[:, :width]
    error = (values.float() * steps - x).abs()
    assert (error <= (0.501 * steps if dtype == torch.int8 else x.abs() * 2**-4 + steps * 2**-10)).all()
    assert not values[5].float().any()
    assert values.float().abs().amax() == LARGEST[dtype]


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("group", [123, 64])
def test_the_triton_kernel_quantizes_to_the_references_very_bits(dtype: torch.dtype, group: int) -> None:
    torch.manual_seed(6)
    x = torch.cat((torch.randn(9, 123) * torch.logspace(-9, 9, 9).unsqueeze(1), torch.arange(123.0).expand(1, -1)))
    values, scales = quantize_rows_triton(x, dtype, group)
    expected, expected_scales = quantize_rows_reference(x, dtype, group)
    assert torch.equal(values.float(), expected.float())
    assert torch.equal(scales, expected_scales)


@pytest.mark.parametrize("linears", [REFERENCES, TRITON_LINEARS], ids=["reference", "triton"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_comes_out_of_its_row_only(
    linears: dict[str, QuantizedLinear], scheme: str, value: float
) -> None:
    torch.manual_seed(5)
    inputs = torch.randn(3, 64)
    inputs[1, 7] = value
    out = linears[scheme](inputs, quantized(torch.randn(5, 64), scheme), None)
    assert not out[1].isfinite().any()
    assert out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("group", [16, 80])
def test_groups_that_the_matrix_units_cannot_take_are_refused(group: int) -> None:
    weight = Int4Weight.quantize(torch.randn(3, 160), group)
    with pytest.raises(ValueError, match=f"groups of {group} channels: on a GPU they must be a multiple of 32"):
        TRITON_LINEARS["int4_weight_only"](torch.randn(2, 160), weight, None)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_shares_of_the_channels_add_up(scheme: str) -> None:
    torch.manual_seed(8)
    inputs, weight, bias = torch.randn(5, 640), quantized(torch.randn(40, 640), scheme), torch.randn(40)
    assert choose_num_splits(1, 640 // 128, 1, inputs.device) == 4
    expected = REFERENCES[scheme](inputs, weight, bias)
    out = TRITON_LINEARS[scheme](inputs, weight, bias)
    assert (out - expected).norm() < 1e-5 * expected.norm()
    assert torch.equal(TRITON_LINEARS[scheme](inputs, weight, bias), out)  # and what they are counted by is zero again


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_row_is_the_same_alone_and_among_as_many_as_share_a_tile(scheme: str) -> None:
    torch.manual_seed(7)
    inputs, weight = torch.randn(16, 96), quantized(torch.randn(40, 96), scheme)
    together = TRITON_LINEARS[scheme](inputs, weight, None)
    for row in (0, 7, 15):
        assert torch.equal(TRITON_LINEARS[scheme](inputs[row : row + 1], weight, None), together[row : row + 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter cuts bf16 off
@pytest.mark.parametrize(
    "make", [Int8Weight.quantize, lambda w: Int4Weight.quantize(w, 32), lambda w: Int4Weight.quantize(w, 96)]
)
def test_a_widened_weight_is_the_dequantized_one_rounded_once(make: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(8)
    weight = make(torch.randn(5, 96))
    assert torch.equal(widen(weight, dtype), weight.dequantize().to(dtype))


@pytest.mark.parametrize("scheme", ["int8_weight_only", "int4_weight_only"])
def test_many_rows_are_multiplied_by_the_widened_weight(scheme: str) -> None:
    torch.manual_seed(9)
    inputs, bias = torch.randn(MOST_TILED_ROWS + 1, 64), torch.randn(7)
    weight: Any = quantized(torch.randn(7, 64), scheme)
    out, expected = TRITON_LINEARS[scheme](inputs, weight, bias), REFERENCES[scheme](inputs, weight, bias)
    torch.testing.assert_close(out, expected)
    assert torch.equal(out, F.linear(inputs, widen(weight, torch.float32), bias))
