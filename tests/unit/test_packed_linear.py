"""Passes over a built model: packed linears and fused blocks compute what the plain modules do."""

import pytest
import torch
from torch import nn

from engine.layers.feed_forward import FeedForward
from engine.layers.fused_layers import FusedFeedForward, fuse_layers
from engine.layers.packed_linear import pack_linears
from engine.models.gpt_oss import GptOssExpert
from kernels.cpu_memory import ALIGNMENT, WeightMemory
from kernels.linear.lookup import lookup_cpu
from kernels.linear.packing import pack


def test_packing_reaches_every_linear_and_a_shared_embedding_reads_the_head() -> None:
    embedding = nn.Embedding(35, 8)
    head = nn.Linear(8, 35, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "block": nn.Sequential(nn.Linear(8, 8), nn.SiLU()), "head": head})
    model["other"] = nn.Embedding(3, 8)
    hidden, token_ids = torch.randn(3, 8), torch.tensor([34, 0, 31, 32, 0])
    with torch.inference_mode():
        expected = head(model["block"](hidden))
        table = embedding.weight.clone()
        pack_linears(model)
        torch.testing.assert_close(model["head"](model["block"](hidden)), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(model["embedding"](token_ids), table[token_ids])
    assert not [module for module in model.modules() if type(module) is nn.Linear or module is embedding]
    assert type(model["other"]) is nn.Embedding


def test_a_table_of_16_bits_answers_in_fp32() -> None:
    embedding = nn.Embedding(5, 8).half().requires_grad_(requires_grad=False)
    model, table, token_ids = nn.ModuleDict({"embedding": embedding}), embedding.weight, torch.tensor([4, 0, 4])
    pack_linears(model)
    assert torch.equal(model["embedding"](token_ids), table.float()[token_ids])


def test_weights_of_many_sizes_lie_apart_in_one_memory_and_give_theirs_back() -> None:
    memory = WeightMemory()
    weights = [torch.randn(rows, depth) for rows, depth in ((33, 7), (1100, 1024), (64, 640), (5, 3), (2 * 2**15, 300))]
    copies = [weight.clone() for weight in weights]
    packed = [pack(weight, None, memory) for weight in weights]
    for weight, copy, one in zip(weights, copies, packed, strict=True):
        assert torch.equal(lookup_cpu(torch.arange(len(copy)), one), copy)
        assert one.panels.data_ptr() % ALIGNMENT == 0
        assert weight.nbytes < 2**20 or not weight[len(weight) // 2].any()  # its pages were given back


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
