"""Passes over a built model: packed linears and fused blocks compute what the plain modules do."""

import pytest
import torch
from torch import nn

from engine.layers.feed_forward import FeedForward
from engine.layers.fused_layers import FusedFeedForward, fuse_layers
from engine.layers.packed_linear import pack_linears
from engine.models.gpt_oss import GptOssExpert


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


@pytest.mark.parametrize(
    ("block", "is_fused"),
    [
        (FeedForward(8, 12, "silu"), True),
        (FeedForward(8, 12, "gelu_pytorch_tanh", bias=True), True),
        (FeedForward(8, 12, "gelu"), False),
        (GptOssExpert(8, 12, "silu"), False),
    ],
)
def test_only_blocks_that_the_kernel_knows_are_fused(block: FeedForward, is_fused: bool) -> None:
    hidden = torch.randn(5, 8)
    model = nn.ModuleList([block]).requires_grad_(requires_grad=False)
    expected = block(hidden)
    pack_linears(model)
    fuse_layers(model)
    assert isinstance(model[0], FusedFeedForward) == is_fused
    torch.testing.assert_close(model[0](hidden), expected, atol=1e-5, rtol=1e-5)
