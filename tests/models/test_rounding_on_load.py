"""Plain checkpoints rounded as they are loaded, against transformers with the rounded weights."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.errors import ModelError
from engine.models.config import ModelConfig
from engine.models.registry import lay_out
from engine.quantization.config import LoadScheme
from engine.quantization.loading import round_on_load
from engine.quantization.slots import Slot, find_parts
from tests.conftest import TinyModel
from tests.models import rounding
from tests.models.adapters import load, make_adapter
from tests.models.checks import TOLERANCE, check_logits, core_for, engine_logits, greedy, random_prompts

EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "tied llama": ("Llama", {"tie_word_embeddings": True, "seed": 1}),
    "qwen2 with biases": ("Qwen2", {}),
    "phi3, which fuses projections itself": ("Phi3", {}),
    "mixtral": ("Mixtral", EXPERTS),
    "gpt-oss, which stacks experts": ("GptOss", EXPERTS | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}),
}
ROUTERS = ("gate", "router")


def nearest(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """A group spans its lowest to its highest value and 0, in 2^bits levels."""
    groups = weight.double().unflatten(1, (-1, group))
    low, high = groups.amin(dim=2, keepdim=True).clamp(max=0), groups.amax(dim=2, keepdim=True).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round()
    return (((groups / scale).round() + zero).clamp(0, 2**bits - 1) - zero).mul(scale).flatten(1).float()


ROUNDINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "int8": lambda weight: rounding.int8(weight).meaning,
    "fp8:tensor": lambda weight: rounding.float8(weight).meaning,
    "fp8": lambda weight: rounding.float8(weight, block=(1, weight.shape[1])).meaning,
    "fp8:block": lambda weight: rounding.float8(weight, block=(128, 128)).meaning,
    "int4:32": lambda weight: nearest(weight, 4, 32),
}


def rounded(model: TinyModel, round_weight: Callable[[torch.Tensor], torch.Tensor], *, head: bool) -> TinyModel:
    """Return the model with what its linear layers' weights become."""
    oracle = copy.deepcopy(model.oracle)
    oracle.lm_head.weight = nn.Parameter(oracle.lm_head.weight.detach().clone())  # no longer the embedding's
    for name, module in oracle.named_modules():
        if isinstance(module, nn.Linear) and name.split(".")[-1] not in ROUTERS and (head or name != "lm_head"):
            module.weight.data = round_weight(module.weight.data)
        for kind in ("gate_up_proj", "down_proj"):  # experts in one tensor, [E, O, C], or turned in gpt-oss
            stack = getattr(module, kind, None)
            if isinstance(stack, nn.Parameter):
                turned = hasattr(module, "gate_up_proj_bias")
                parts = [(w.t() if turned else w).contiguous() for w in stack.data]
                halves = [w.chunk(2) if kind == "gate_up_proj" and not turned else (w,) for w in parts]
                whole = [torch.cat([round_weight(half) for half in each]) for each in halves]
                stack.data = torch.stack([w.t() if turned else w for w in whole])
    return TinyModel(model.path, oracle)


@pytest.mark.parametrize("scheme", ROUNDINGS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_rounded_model_says_what_transformers_says_with_rounded_weights(
    make_model: Callable[..., TinyModel], kind: str, scheme: str
) -> None:
    family, options = MODELS[kind]
    model = make_model(family, **options)
    check_logits(rounded(model, ROUNDINGS[scheme], head=scheme == "int8"), quantization=scheme)


def round_rows(_module: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    scales = inputs[0].abs().amax(dim=-1, keepdim=True) / 127
    return (inputs[0] / scales).round() * scales


def test_rounded_inputs_say_what_transformers_says_with_rounded_inputs(make_llama: Callable[..., TinyModel]) -> None:
    model = rounded(make_llama(seed=3, attention_bias=True), ROUNDINGS["int8"], head=True)
    for module in model.oracle.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(round_rows)
    core = core_for(model.path, quantization="int8_dynamic")
    (token_ids,) = random_prompts([50])
    ours, theirs = engine_logits(core, token_ids), model.logits(token_ids)
    assert float((ours - theirs).norm()) < 0.01 * float(theirs.norm())  # an input near a half may round the other way
    assert float((ours - theirs).abs().median()) < TOLERANCE * float(theirs.abs().max())


def test_experts_and_the_head_are_rounded_and_routers_are_not(make_model: Callable[..., TinyModel]) -> None:
    model = lay_out(ModelConfig.from_dir(make_model("Mixtral", **EXPERTS).path), torch.device("cpu"), torch.float32)
    parts = find_parts(model, model.weight_views())
    round_on_load(model, parts, LoadScheme("int8_dynamic"), {}, torch.device("cpu"))
    kept = [name for name, module in model.named_modules() if isinstance(module, Slot)]
    assert len(kept) == 3 * (2 + 2 * 3) + 1  # in each layer qkv, output and two of each expert
    assert "lm_head" in kept
    assert not [name for name in kept if "router" in name]


def test_rounded_inputs_say_the_same_alone_and_in_a_batch(tiny_llama: TinyModel) -> None:
    prompts = random_prompts([1, 5, 17, 30, 8])
    options = {"quantization": "int8_dynamic", "max_num_batched_tokens": 16, "max_num_seqs": 8}
    together = greedy(core_for(tiny_llama.path, **options), prompts)
    for prompt, completion in zip(prompts, together, strict=True):
        (alone,) = greedy(core_for(tiny_llama.path, quantization="int8_dynamic"), [prompt])
        assert alone.token_ids == completion.token_ids


def test_an_odd_width_stays_plain_where_groups_must_be_even(make_llama: Callable[..., TinyModel]) -> None:
    model = make_llama(intermediate_size=53, seed=11)
    expected = rounded(model, lambda weight: nearest(weight, 4, 32) if weight.shape[1] % 2 == 0 else weight, head=False)
    check_logits(expected, quantization="int4:32")


def add_updates(oracle: Any, plain: Any, merged: Any, *, round_inputs: bool) -> None:
    """Let the oracle's linear layers add to their answers what merging changed in the plain model's weights."""

    def answer(update: torch.Tensor, linear: nn.Linear, inputs: tuple[torch.Tensor], _: torch.Tensor) -> torch.Tensor:
        (x,), of_base = inputs, round_rows(linear, inputs) if round_inputs else inputs[0]
        return F.linear(of_base, linear.weight, linear.bias) + F.linear(x, update)

    for name, module in oracle.named_modules():
        if isinstance(module, nn.Linear):
            update = merged.get_submodule(name).weight.data - plain.get_submodule(name).weight.data
            module.register_forward_hook(partial(answer, update))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT reads it
@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers.:UserWarning")
@pytest.mark.parametrize("scheme", ["int8", "int8_dynamic", "int4:32", "fp8"])
def test_adapters_are_added_to_a_rounded_base(
    make_model: Callable[..., TinyModel], tmp_path: Path, scheme: str
) -> None:
    plain = make_model("Qwen2", tie_word_embeddings=False)
    modules = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "lm_head"]
    adapter = make_adapter(plain, tmp_path, "a", target_modules=modules)
    core = core_for(plain.path, adapters=tmp_path, quantization=scheme)
    is_dynamic = scheme == "int8_dynamic"
    base = rounded(plain, ROUNDINGS["int8" if is_dynamic else scheme], head=scheme.startswith("int8"))
    add_updates(base.oracle, plain.oracle, adapter.merged.oracle, round_inputs=is_dynamic)
    (token_ids,) = random_prompts([40])
    ours, theirs = engine_logits(core, token_ids, load(core, adapter)), base.logits(token_ids)
    tolerance = 0.02 if is_dynamic else TOLERANCE  # an input near a half may round the other way
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize("text", ["int3", "int8:2", "fp8:row", "int4:7", "int4:0", "int4:x"])
def test_an_unknown_scheme_is_refused_with_those_there_are(tiny_llama: TinyModel, text: str) -> None:
    with pytest.raises(ModelError, match=rf"quantization must be one of int8, .* got '{text}'"):
        core_for(tiny_llama.path, quantization=text)
