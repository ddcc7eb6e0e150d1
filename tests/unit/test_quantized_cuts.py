"""Any part of a quantized weight, read from boxes of its tensors, is that part of what the whole weight means."""

from collections.abc import Callable, Iterator
from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.quantization.awq import AwqLayout
from engine.quantization.compressed_tensors import IntLayout, PackedLayout
from engine.quantization.config import LoadScheme, WeightFormat
from engine.quantization.float8 import Float8Layout
from engine.quantization.gptq import GptqLayout
from engine.quantization.layout import Cut, Layout
from engine.quantization.quantized_linear import QuantizedLinear
from engine.quantization.schemes import make_quantizer, round_cut
from kernels.quantized_linear import Int4Weight
from tests.models import rounding
from tests.models.rounding import Rounded, Rounding

NUM_OUTPUTS, NUM_INPUTS = 24, 64
LAYOUTS: dict[str, tuple[Layout, Rounding]] = {
    "awq": (AwqLayout(WeightFormat("awq", 4, 16, has_zeros=True)), rounding.awq),
    "gptq": (GptqLayout(WeightFormat("gptq", 4, 32, zero_offset=1)), partial(rounding.gptq, group=32)),
    "gptq, act-order": (
        GptqLayout(WeightFormat("gptq", 4, 16, zero_offset=1)),
        partial(rounding.gptq, symmetric=False, act_order=3),
    ),
    "gptq of 8 bits, act-order, small groups": (
        GptqLayout(WeightFormat("gptq", 8, 4, zero_offset=1)),
        partial(rounding.gptq, bits=8, group=4, act_order=3),
    ),
    "packed": (PackedLayout(WeightFormat("packed", 4, 16, has_zeros=True)), partial(rounding.packed, symmetric=False)),
    "packed rows of 8 bits": (PackedLayout(WeightFormat("packed", 8)), partial(rounding.packed, bits=8, group=0)),
    "int8": (IntLayout(WeightFormat("int")), rounding.int8),
    "fp8 of one scale": (Float8Layout(WeightFormat("float"), "weight_scale"), rounding.float8),
    "fp8 in blocks": (
        Float8Layout(WeightFormat("float", block=(10, 12)), "weight_scale"),
        partial(rounding.float8, block=(10, 12)),
    ),
}


@cache
def rounded(rounding_of: Callable[[torch.Tensor], Rounded]) -> Rounded:
    return rounding_of(torch.randn(NUM_OUTPUTS, NUM_INPUTS, generator=torch.Generator().manual_seed(1)))


def runs(size: int) -> st.SearchStrategy[range]:
    return (
        st.tuples(st.integers(0, size), st.integers(0, size))
        .filter(lambda ends: ends[0] < ends[1])
        .map(lambda e: range(*e))
    )


@pytest.mark.parametrize("kind", LAYOUTS)
@settings(deadline=None, max_examples=30)
@given(outputs=runs(NUM_OUTPUTS), inputs=runs(NUM_INPUTS))
def test_a_part_is_the_part_of_what_the_whole_means(kind: str, outputs: range, inputs: range) -> None:
    layout, rounding_of = LAYOUTS[kind]
    stored, cut = rounded(rounding_of), Cut((NUM_OUTPUTS, NUM_INPUTS), outputs, inputs)
    tensors: dict[str, torch.Tensor] = {}
    for name, expected in layout.tensors(*cut.shape).items():
        if name in stored.tensors:
            tensor = stored.tensors[name]
            box = expected.box(tuple(tensor.shape), cut)
            tensors[name] = tensor.reshape(tensor.shape or (1,))[tuple(slice(run.start, run.stop) for run in box)]
    part = layout.read(tensors, cut)
    meaning = stored.meaning[outputs.start : outputs.stop, inputs.start : inputs.stop]
    torch.testing.assert_close(part.dequantize(), meaning, rtol=1e-6, atol=1e-7)
    if not part.is_plain and part.scheme.endswith("weight_only"):
        rows = torch.randn(3, len(inputs), generator=torch.Generator().manual_seed(2))
        product = QuantizedLinear(part, None, torch.device("cpu"))(rows)
        torch.testing.assert_close(product, rows @ meaning.t(), rtol=1e-4, atol=1e-4)


def test_columns_of_act_order_are_filled_up_to_groups_that_kernels_take() -> None:
    layout, rounding_of = LAYOUTS["gptq, act-order"]
    stored, cut = rounded(rounding_of), Cut((NUM_OUTPUTS, NUM_INPUTS), range(NUM_OUTPUTS), range(32, 64))
    boxes = {name: one.box(tuple(stored.tensors[name].shape), cut) for name, one in layout.tensors(*cut.shape).items()}
    assert boxes["qweight"] == (range(4, 8), range(NUM_OUTPUTS))
    tensors = {name: stored.tensors[name][tuple(slice(r.start, r.stop) for r in box)] for name, box in boxes.items()}
    weight = layout.read(tensors, cut).weight
    assert isinstance(weight, Int4Weight)
    assert weight.group == 16


WIDE = (150, 300)  # of e4m3's blocks, 128 on a side
ROUNDED_ON_LOAD = {"int8": (24, 64), "fp8": (24, 64), "fp8:tensor": (24, 64), "int4:16": (24, 64), "fp8:block": WIDE}


@pytest.mark.parametrize("scheme", ROUNDED_ON_LOAD)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_a_part_that_is_rounded_on_its_rank_is_the_part_of_the_rounded_whole(scheme: str, data: st.DataObject) -> None:
    shape = ROUNDED_ON_LOAD[scheme]
    outputs, inputs = data.draw(runs(shape[0])), data.draw(runs(shape[1]))
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    quantizer = make_quantizer(LoadScheme.parse(scheme))

    def read(cut: Cut) -> Iterator[torch.Tensor]:
        yield from weight[cut.outputs.start : cut.outputs.stop, cut.inputs.start : cut.inputs.stop].split(7)

    whole = round_cut(quantizer, Cut.whole(*shape), read).dequantize()
    part = round_cut(quantizer, Cut(shape, outputs, inputs), read)
    meaning = whole[outputs.start : outputs.stop, inputs.start : inputs.stop]
    assert torch.equal(part.dequantize(), meaning)
    if part.scheme.endswith("weight_only"):
        rows = torch.randn(3, len(inputs), generator=torch.Generator().manual_seed(2))
        product = QuantizedLinear(part, None, torch.device("cpu"))(rows)
        torch.testing.assert_close(product, rows @ meaning.t(), rtol=1e-4, atol=1e-4)
