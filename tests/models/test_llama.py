"""Greedy tokens equal transformers', however the work is cut up and whoever shares the step."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import DEFAULT_MODEL
from engine.errors import ModelError, PromptTooLong, UnsupportedModel, WeightMismatch
from engine.models.config import ARCHITECTURES
from engine.models.registry import MODELS
from engine.offline import generate
from engine.outputs import FinishReason
from engine.sampling_params import SamplingParams
from tests.conftest import TinyModel
from tests.models.checks import NUM_TOKENS, check_greedy, check_logits, core_for, greedy, random_prompts

VARIANTS = {
    "grouped-query, untied": {},
    "multi-head, tied": {"num_key_value_heads": 4, "tie_word_embeddings": True, "seed": 1},
    "one kv head, odd sizes": {
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "hidden_size": 42,
        "head_dim": 14,
        "intermediate_size": 53,
        "vocab_size": 277,
        "num_hidden_layers": 2,
        "seed": 2,
    },
    "wide heads and biases": {"head_dim": 32, "attention_bias": True, "mlp_bias": True, "seed": 3},
    "llama 3.1 rope": {
        "seed": 4,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "yarn rope": {
        "seed": 8,
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "yarn rope with every option": {
        "seed": 9,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 5000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.5,
            "truncate": False,
        },
    },
    "dynamic rope": {"seed": 10, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
    "linear rope": {"seed": 6, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_says_what_transformers_says(make_llama: Callable[..., TinyModel], variant: str) -> None:
    model = make_llama(**VARIANTS[variant])
    check_logits(model)
    check_greedy(model)


def test_a_mixed_batch_says_what_transformers_generates(tiny_llama: TinyModel) -> None:
    prompts = random_prompts([1, 5, 17, 30, 8])
    core = core_for(tiny_llama.path, max_num_batched_tokens=16, max_num_seqs=8)
    for prompt, completion in zip(prompts, greedy(core, prompts), strict=True):
        assert completion.token_ids == tiny_llama.greedy(prompt, NUM_TOKENS)


@pytest.mark.parametrize("budget", [1, 3, 7, 64])
def test_the_chunk_size_changes_nothing(tiny_llama: TinyModel, budget: int) -> None:
    prompts = random_prompts([30, 9])
    core = core_for(tiny_llama.path, max_num_batched_tokens=budget, max_num_seqs=min(2, budget))
    for prompt, completion in zip(prompts, greedy(core, prompts), strict=True):
        assert completion.token_ids == tiny_llama.greedy(prompt, NUM_TOKENS)


def test_preemption_changes_nothing(tiny_llama: TinyModel) -> None:
    prompts = random_prompts([20, 21, 22, 23])
    core = core_for(tiny_llama.path, num_blocks=40, max_num_seqs=4)
    completions = greedy(core, prompts)
    assert core.read_stats().num_preemptions > 0
    for prompt, completion in zip(prompts, completions, strict=True):
        assert completion.token_ids == tiny_llama.greedy(prompt, NUM_TOKENS)


def test_prefix_hits_change_nothing_and_are_counted(tiny_llama: TinyModel) -> None:
    core = core_for(tiny_llama.path)
    shared = random_prompts([24])[0]
    prompts = [shared + tail for tail in random_prompts([3, 5, 1], seed=6)] + [shared]
    greedy(core, [shared], num_tokens=1)
    completions = greedy(core, prompts)
    assert [c.num_cached_tokens for c in completions] == [24, 24, 24, 20]
    for prompt, completion in zip(prompts, completions, strict=True):
        assert completion.token_ids == tiny_llama.greedy(prompt, NUM_TOKENS)


def test_without_the_prefix_cache_nothing_is_shared(tiny_llama: TinyModel) -> None:
    core = core_for(tiny_llama.path, enable_prefix_caching=False)
    prompt = random_prompts([24])[0]
    first, second = (greedy(core, [prompt])[0] for _ in range(2))
    assert first.token_ids == second.token_ids
    assert second.num_cached_tokens == 0
    assert core.scheduler.kv.pool.num_cached == 0


def test_the_demo_model_says_what_transformers_says() -> None:
    from transformers import AutoModelForCausalLM

    oracle = TinyModel(DEFAULT_MODEL, AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL, dtype=torch.float32).eval())
    core = core_for(DEFAULT_MODEL, block_size=16, max_num_batched_tokens=32, max_num_seqs=8)
    texts = [
        "Once upon a time",
        "The old king said to his daughter",
        "Alice",
        "Far out at sea, where the water is blue",
    ]
    prompts = [core.tokenizer.encode(text) for text in texts]
    for prompt, completion in zip(prompts, greedy(core, prompts), strict=True):
        assert completion.token_ids == oracle.greedy(prompt, NUM_TOKENS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sharded_half_precision_checkpoints_load(make_llama: Callable[..., TinyModel], dtype: torch.dtype) -> None:
    model = make_llama(seed=7, dtype=dtype, max_shard_size="100KB")
    assert len(list(model.path.glob("*.safetensors"))) > 1
    prompt = random_prompts([9])[0]
    assert greedy(core_for(model.path), [prompt])[0].token_ids == model.greedy(prompt, NUM_TOKENS)


DYNAMIC = {"max_position_embeddings": 32, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0}, "seed": 10}


def test_dynamic_rope_goes_past_what_the_model_was_trained_for(make_llama: Callable[..., TinyModel]) -> None:
    model = make_llama(**DYNAMIC)
    core = core_for(model.path, max_num_batched_tokens=16, max_num_seqs=8)
    assert core.info.max_model_len == 128
    prompts = [random_prompts([length])[0] for length in (8, 30, 33, 60)]
    params = [SamplingParams(max_tokens=n, temperature=0.0, ignore_eos=True) for n in (25, 20, 32, 68)]
    completions = generate(core, prompts, params)
    for prompt, completion, longest in zip(prompts, completions, (32, 64, 64, 128), strict=True):
        model.oracle.model.rotary_emb.__init__(model.oracle.config)  # forgets how far it was stretched
        model.logits(random_prompts([longest], seed=7)[0])  # stretches it as far as ours is for this sequence
        chosen = model.logits(prompt + completion.token_ids[:-1])[len(prompt) - 1 :].argmax(dim=-1)
        assert chosen.tolist() == completion.token_ids
    with pytest.raises(PromptTooLong, match="limit of 128 tokens"):
        core.add(9, [5] * 128, SamplingParams(max_tokens=1), 0.0)


def copy_with(model: TinyModel, path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(model.path, path)
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    return path


def remove_a_key_projection(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.1.self_attn.k_proj.weight"]


def test_a_missing_tensor_is_named(tiny_llama: TinyModel, tmp_path: Path) -> None:
    path = copy_with(tiny_llama, tmp_path / "m", remove_a_key_projection)
    with pytest.raises(WeightMismatch, match=r"1 tensors are missing.*model\.layers\.1\.self_attn\.k_proj\.weight"):
        core_for(path)


def test_an_unexpected_tensor_is_named(tiny_llama: TinyModel, tmp_path: Path) -> None:
    path = copy_with(tiny_llama, tmp_path / "m", lambda t: t.update({"model.extra": torch.zeros(2)}))
    with pytest.raises(WeightMismatch, match=r"unexpected tensor 'model\.extra'"):
        core_for(path)


def test_a_wrongly_shaped_tensor_is_named(tiny_llama: TinyModel, tmp_path: Path) -> None:
    path = copy_with(tiny_llama, tmp_path / "m", lambda t: t.update({"model.norm.weight": torch.zeros(3)}))
    with pytest.raises(WeightMismatch, match=r"'model\.norm\.weight' has shape \[3\], expected \[64\]"):
        core_for(path)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"architectures": ["BertModel"]}, UnsupportedModel, "is a BertModel; this engine serves: LlamaForCausalLM"),
        ({"hidden_act": "relu2"}, UnsupportedModel, "'relu2'"),
        ({"rope_parameters": {"rope_type": "mrope"}}, UnsupportedModel, "'mrope'"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [1]}}, UnsupportedModel, "'mrope_section'"),
        ({"partial_rotary_factor": 0.5}, UnsupportedModel, "partial_rotary_factor 0.5"),
        ({"quantization_config": {}}, UnsupportedModel, "quantized by None are not loaded; this engine has .*'awq'"),
        ({"vocab_size": None}, ModelError, "vocab_size"),
        ({"vocab_size": "many"}, ModelError, "holds a value that cannot be used"),
        ({"num_hidden_layers": 0}, ModelError, "gives 0 for num_layers"),
        ({"architectures": "LlamaForCausalLM"}, UnsupportedModel, "architectures 'LlamaForCausalLM'"),
        ({"rope_parameters": {"rope_type": "linear"}}, ModelError, "lacks the key 'factor of rope_scaling'"),
        ({"rope_parameters": "linear"}, ModelError, "holds a value that cannot be used"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    tiny_llama: TinyModel, tmp_path: Path, change: dict[str, object], error: type[ModelError], text: str
) -> None:
    shutil.copytree(tiny_llama.path, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text()) | change
    (tmp_path / "m" / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(error, match=text):
        core_for(tmp_path / "m")


def test_an_empty_folder_is_refused_with_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json does not exist"):
        core_for(tmp_path)


def test_the_list_of_architectures_is_the_registrys() -> None:
    assert set(ARCHITECTURES) == set(MODELS)


def test_other_safetensors_beside_the_single_file_are_left_alone(tiny_llama: TinyModel, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama.path, tmp_path / "m")
    save_file({"tok_embeddings.weight": torch.zeros(2)}, tmp_path / "m" / "consolidated.safetensors")
    assert core_for(tmp_path / "m").info.vocab_size == 300


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": []}'])
def test_an_index_that_is_none_is_refused(tiny_llama: TinyModel, tmp_path: Path, content: str) -> None:
    shutil.copytree(tiny_llama.path, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "other.safetensors")
    (tmp_path / "m" / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match="is no index of weights"):
        core_for(tmp_path / "m")


def test_the_tokenizers_own_end_of_sequence_counts_too(tiny_llama: TinyModel, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama.path, tmp_path / "m")
    (tmp_path / "m" / "tokenizer_config.json").write_text('{"eos_token": {"content": "<299>"}}')
    core = core_for(tmp_path / "m")
    assert core.info.eos_token_ids == (2, 299)
    (completion,) = generate(core, [[5, 6]], [SamplingParams(max_tokens=9, logit_bias=((299, 100.0),))])
    assert (completion.token_ids, completion.finish_reason) == ([299], FinishReason.STOP)


def test_ends_of_sequence_outside_the_vocabulary_do_not_count(tiny_llama: TinyModel, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama.path, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text('{"eos_token_id": [2, 128009, -1]}')
    core = core_for(tmp_path / "m")
    assert core.info.eos_token_ids == (2,)
    (completion,) = generate(core, [[5, 6]], [SamplingParams(min_tokens=3, max_tokens=3)])
    assert len(completion.token_ids) == 3
