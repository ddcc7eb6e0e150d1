"""Keys and values in 8 bits: near what plain ones say, the same alone and in a batch, in less memory."""

from collections.abc import Callable

import pytest
import torch

from engine.errors import ModelError
from tests.conftest import TinyModel
from tests.models.checks import core_for, engine_logits, greedy, random_prompts

ERRORS = {"int8": 0.06, "fp8": 0.25}  # of the logits' norm; weights are spread wide, so that attention is sharp


@pytest.mark.parametrize("stored", ERRORS)
@pytest.mark.parametrize("family", ["Llama", "Gemma3"])
def test_logits_are_near_those_of_plain_keys_and_values(
    make_model: Callable[..., TinyModel], family: str, stored: str
) -> None:
    model = make_model(family)
    (token_ids,) = random_prompts([50], vocab_size=model.oracle.config.vocab_size)
    plain, theirs = (engine_logits(core_for(model.path, kv_cache_dtype=kind), token_ids) for kind in ("auto", stored))
    error = float((plain - theirs).norm() / plain.norm())
    assert 0 < error < ERRORS[stored]


@pytest.mark.parametrize("stored", ERRORS)
def test_a_batch_in_chunks_with_preemption_says_what_each_says_alone(tiny_llama: TinyModel, stored: str) -> None:
    prompts = random_prompts([1, 5, 17, 30, 8])
    core = core_for(tiny_llama.path, kv_cache_dtype=stored, num_blocks=60, max_num_batched_tokens=16, max_num_seqs=8)
    together = greedy(core, prompts)
    assert core.read_stats().num_preemptions > 0
    for prompt, completion in zip(prompts, together, strict=True):
        (alone,) = greedy(core_for(tiny_llama.path, kv_cache_dtype=stored), [prompt])
        assert alone.token_ids == completion.token_ids


def test_memory_holds_as_many_blocks_as_fit_with_their_scales(tiny_llama: TinyModel) -> None:
    memory = {"num_blocks": 0, "kv_cache_gib": 2**-10}
    per_block = 2 * 3 * 2 * 4  # keys and values of 3 layers, 2 heads, 4 tokens
    plain, quantized = (core_for(tiny_llama.path, kv_cache_dtype=kind, **memory).runner for kind in ("auto", "fp8"))
    assert plain.num_blocks == 2**20 // (per_block * 16 * 4)
    assert quantized.num_blocks == 2**20 // (per_block * (16 + 4))
    layer = quantized.cache.layers[0]
    assert layer.key_scales is not None
    assert (layer.keys.dtype, layer.key_scales.shape) == (torch.float8_e4m3fn, (quantized.num_blocks + 1, 2, 4))


def test_another_type_is_refused_with_those_there_are(tiny_llama: TinyModel) -> None:
    with pytest.raises(ModelError, match="kv_cache_dtype must be one of auto, int8, fp8, got 'int4'"):
        core_for(tiny_llama.path, kv_cache_dtype="int4")
