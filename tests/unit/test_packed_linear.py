"""Linears with packed weights compute what torch's do, row by row."""

import pytest
import torch
from torch import nn

from engine.layers.packed_linear import PackedLinear, can_pack, pack_linears

pytestmark = pytest.mark.skipif(not can_pack(), reason="this build of torch has no oneDNN")
SHAPES = [(1, 1), (3, 5), (17, 123), (96, 64), (300, 127)]


def make(shape: tuple[int, int], *, bias: bool) -> nn.Linear:
    torch.manual_seed(shape[0])
    return nn.Linear(shape[1], shape[0], bias=bias).requires_grad_(False)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_linear_equals_the_plain_one(shape: tuple[int, int], bias: bool) -> None:
    linear = make(shape, bias=bias)
    packed = PackedLinear(linear)
    for num_rows in (1, 2, 7, 64, 130):
        inputs = torch.randn(num_rows, shape[1])
        torch.testing.assert_close(packed(inputs), linear(inputs), atol=1e-5, rtol=1e-5)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    packed = PackedLinear(make((960, 576), bias=False))
    inputs = torch.randn(64, 576)
    whole = packed(inputs)
    for num_rows in (1, 2, 5, 16, 33):
        assert torch.equal(packed(inputs[:num_rows].contiguous()), whole[:num_rows])


def test_rows_of_a_wider_tensor_are_read_as_they_lie() -> None:
    linear = make((17, 123), bias=True)
    inputs = torch.randn(5, 200)[:, :123]
    torch.testing.assert_close(PackedLinear(linear)(inputs), linear(inputs), atol=1e-5, rtol=1e-5)


def test_packing_reaches_every_linear_and_leaves_a_shared_embedding_alone() -> None:
    embedding = nn.Embedding(30, 8)
    head = nn.Linear(8, 30, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "block": nn.Sequential(nn.Linear(8, 8), nn.SiLU()), "head": head})
    hidden = torch.randn(3, 8)
    with torch.inference_mode():
        expected = head(model["block"](hidden))
        pack_linears(model)
        torch.testing.assert_close(model["head"](model["block"](hidden)), expected, atol=1e-5, rtol=1e-5)
    assert not [module for module in model.modules() if type(module) is nn.Linear]
    assert embedding.weight.shape == (30, 8)
