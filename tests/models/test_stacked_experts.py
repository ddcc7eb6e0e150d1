"""Stacking a block's experts changes where its weights lie, and nothing else."""

import pytest
import torch
from torch import nn

from engine.layers.moe import MixtureOfExperts, SharedMixtureOfExperts
from engine.layers.stacked_experts import StackedDispatch, stack_experts
from engine.models.gpt_oss import GptOssExperts
from engine.models.moe_config import MoEConfig
from engine.quantization.config import LoadScheme
from engine.quantization.quantized_linear import QuantizedLinear
from engine.quantization.schemes import make_quantizer
from kernels.stacked_experts.triton_kernel import stacked_experts_triton

CPU = torch.device("cpu")


def make_block(block_class: type[MixtureOfExperts]) -> MixtureOfExperts:
    moe = MoEConfig(5, 2, 24, norm_topk=True, sparse_layers=frozenset({0}), shared_intermediate_size=20)
    torch.manual_seed(1)
    block = block_class(32, "silu", moe, CPU).requires_grad_(requires_grad=False)
    for parameter in block.parameters():
        parameter.normal_(std=0.3)
    return block


@pytest.mark.parametrize("block_class", [MixtureOfExperts, SharedMixtureOfExperts, GptOssExperts])
@pytest.mark.parametrize("is_triton", [False, True])
def test_a_stacked_block_answers_as_before(
    block_class: type[MixtureOfExperts], is_triton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_triton:
        monkeypatch.setattr("kernels.stacked_experts.select", lambda device: stacked_experts_triton)
    block, hidden = make_block(block_class), torch.randn(9, 32)
    expected = block(hidden)
    stack_experts(nn.ModuleList([block]))
    assert isinstance(block.dispatch, StackedDispatch)
    torch.testing.assert_close(block(hidden), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scheme", ["int8", "int8_dynamic", "fp8", "fp8:block", "int4:16"])
def test_a_block_of_quantized_experts_answers_as_before_stacked(scheme: str) -> None:
    block, hidden = make_block(MixtureOfExperts), torch.randn(9, 32)
    quantizer = make_quantizer(LoadScheme.parse(scheme))
    for expert in block.experts:
        for name in ("gate_up", "down"):
            plain = expert.get_submodule(name).get_parameter("weight")
            rounded = quantizer.quantize(plain, quantizer.block(*plain.shape))
            setattr(expert, name, QuantizedLinear(rounded, None, CPU))
    expected = block(hidden)
    stack_experts(nn.ModuleList([block]))
    assert isinstance(block.dispatch, StackedDispatch)
    torch.testing.assert_close(block(hidden), expected, atol=1e-4, rtol=1e-4)
    last = block.experts[4].get_submodule("down")
    assert isinstance(last, QuantizedLinear)
    assert last.weight.scales.untyped_storage().data_ptr() == block.dispatch.down.scales.untyped_storage().data_ptr()


def test_weights_are_held_once_and_are_still_what_the_checkpoint_names() -> None:
    block = make_block(MixtureOfExperts)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    stack_experts(nn.ModuleList([block]))
    assert isinstance(block.dispatch, StackedDispatch)
    after = block.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    memory = block.dispatch.gate_up.untyped_storage().data_ptr()
    assert all(after[f"experts.{index}.gate_up.weight"].untyped_storage().data_ptr() == memory for index in range(5))


def test_experts_that_are_no_plain_layers_stay_apart() -> None:
    block = make_block(MixtureOfExperts)
    expert = block.experts[3]
    expert.down = nn.Sequential(expert.get_submodule("down"))
    stack_experts(nn.ModuleList([block]))
    assert not isinstance(block.dispatch, StackedDispatch)
