"""Passes over a built model for GPUs: streamed linears and joined activations compute what the plain modules do."""

from typing import TypeVar

import pytest
import torch
from torch import nn

from engine.layers.feed_forward import FeedForward
from engine.layers.streamed_linear import StreamedFeedForward, StreamedLinear, join_activations, stream_linears
from engine.models.gpt_oss import GptOssExpert
from kernels import dependent_launch

Layer = TypeVar("Layer", bound=nn.Module)


def frozen(model: Layer) -> Layer:
    return model.requires_grad_(requires_grad=False)


def test_streaming_reaches_every_linear_and_keeps_a_weight_shared() -> None:
    embedding = nn.Embedding(35, 8)
    head = nn.Linear(8, 35, bias=False)
    head.weight = embedding.weight
    model = frozen(nn.ModuleDict({"embedding": embedding, "block": nn.Sequential(nn.Linear(8, 8)), "head": head}))
    hidden = torch.randn(3, 8)
    expected = head(model["block"](hidden))
    stream_linears(model)
    assert not [module for module in model.modules() if type(module) is nn.Linear]
    assert torch.equal(model["head"](model["block"](hidden)), expected)
    assert model["head"].weight is embedding.weight


def test_answers_go_where_they_shall_be() -> None:
    layer = StreamedLinear(frozen(nn.Linear(8, 5)).bfloat16())
    hidden, target = torch.randn(3, 8).bfloat16(), torch.full((3, 5), torch.nan)
    expected = layer(hidden)
    layer.into = target
    assert layer(hidden) is target
    assert torch.equal(target, expected.float())


@pytest.mark.parametrize(
    ("block", "is_joined"),
    [
        (FeedForward(8, 12, "silu", bias=True), True),
        (FeedForward(8, 12, "gelu"), True),
        (GptOssExpert(8, 12, "silu"), False),
    ],
)
def test_only_usual_activations_are_joined(block: FeedForward, is_joined: bool) -> None:
    model, hidden = frozen(nn.ModuleList([block])), torch.randn(5, 8)
    expected = block(hidden)
    stream_linears(model)
    join_activations(model)
    assert isinstance(model[0], StreamedFeedForward) == is_joined
    torch.testing.assert_close(model[0](hidden), expected, atol=1e-6, rtol=1e-6)


def test_only_gpus_that_can_are_asked_to_launch_early(monkeypatch: pytest.MonkeyPatch) -> None:
    options = dependent_launch.launch_options.__wrapped__
    assert options(torch.device("cpu")) == {"DEPENDENT": False}
    for capability, can in (((8, 9), False), ((9, 0), True), ((10, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, given=capability: given)
        assert options(torch.device("cuda:0"))["DEPENDENT"] == can
