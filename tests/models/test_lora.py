"""Adapters against PEFT: what the engine says with one is what the model says with its weights merged in."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engine.errors import ModelError, UnsupportedModel, WeightMismatch
from engine.guided_options import Guided
from engine.offline import generate
from engine.sampling_params import SamplingParams
from tests.conftest import TinyModel
from tests.models.adapters import MAX_RANK, TinyAdapter, load, make_adapter
from tests.models.checks import TOLERANCE, core_for, engine_logits, greedy, random_prompts

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # PEFT reads it
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers.:UserWarning"),
]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ODD = {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 42, "head_dim": 14, "intermediate_size": 53}
QWEN_MOE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", {}, {}),
    "llama, every projection": ("Llama", {"seed": 1}, {"target_modules": ALL, "r": 8, "lora_alpha": 4}),
    "llama, odd sizes, rank-stabilized, rank 1, all linear": (
        "Llama",
        ODD | {"seed": 2},
        {"target_modules": "all-linear", "use_rslora": True, "r": 1},
    ),
    "llama, a pattern, ranks and scales by module, some layers": (
        "Llama",
        {"seed": 1},
        {
            "target_modules": r".*\.(k_proj|up_proj|down_proj)",
            "exclude_modules": ["layers.2.mlp.up_proj"],
            "rank_pattern": {"k_proj": 2, "layers.1.mlp.down_proj": 7},
            "alpha_pattern": {"up_proj": 3},
        },
    ),
    "llama, two layers of three": (
        "Llama",
        {},
        {"target_modules": ["k_proj", "gate_proj"], "layers_to_transform": [0, 2]},
    ),
    "phi3, fused in the checkpoint": ("Phi3", {}, {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
    "qwen3, norms on heads": ("Qwen3", {}, {"target_modules": ALL}),
    "gemma3": ("Gemma3", {"head_dim": 16}, {"target_modules": ALL}),
    "mixtral, attention": ("Mixtral", {"num_local_experts": 3}, {"target_modules": ALL[:4]}),
    "llama, the head too": ("Llama", {}, {"target_modules": ["lm_head", "q_proj", "down_proj"], "r": 6}),
    "llama, the head alone": ("Llama", {"vocab_size": 277}, {"target_modules": ["lm_head"], "lora_alpha": 3}),
    "qwen2-moe, attention and shared expert": (
        "Qwen2Moe",
        QWEN_MOE | {"shared_expert_intermediate_size": 37},
        {"target_modules": ["q_proj", "k_proj", "shared_expert.gate_proj", "down_proj"]},
    ),
}  # fmt: skip


@pytest.fixture
def adapter_of(tmp_path: Path) -> Callable[..., TinyAdapter]:
    def make(model: TinyModel, name: str = "a", **options: Any) -> TinyAdapter:
        return make_adapter(model, tmp_path, name, **options)

    return make


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_with_an_adapter_are_those_of_merged_weights(
    make_model: Callable[..., TinyModel], adapter_of: Callable[..., TinyAdapter], tmp_path: Path, variant: str
) -> None:
    family, sizes, options = VARIANTS[variant]
    model = make_model(family, **({"original_max_position_embeddings": 256} if family == "Phi3" else {}), **sizes)
    adapter = adapter_of(model, **options)
    core = core_for(model.path, adapters=tmp_path)
    (token_ids,) = random_prompts([40], vocab_size=model.oracle.config.vocab_size, seed=9)
    theirs, plain = adapter.merged.logits(token_ids), model.logits(token_ids)
    ours = engine_logits(core, token_ids, load(core, adapter))
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=TOLERANCE * float(theirs.abs().max()))
    assert float((theirs - plain).abs().max()) > 0.1 * float(plain.abs().max())
    without = engine_logits(core, token_ids)
    torch.testing.assert_close(without, plain, rtol=0.0, atol=TOLERANCE * float(plain.abs().max()))


def test_a_tied_heads_update_leaves_the_embedding_alone(
    make_model: Callable[..., TinyModel], adapter_of: Callable[..., TinyAdapter], tmp_path: Path
) -> None:
    model = make_model("Llama", tie_word_embeddings=True, seed=1)
    untied = copy.deepcopy(model.oracle)
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    adapter = adapter_of(TinyModel(model.path, untied), target_modules=["lm_head", "v_proj"])
    core = core_for(model.path, adapters=tmp_path)
    prompts = random_prompts([9, 9, 4])
    params = [SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True, prompt_logprobs=True)] * 3
    loaded = load(core, adapter)
    completions = generate(core, prompts, params, [loaded, None, loaded])
    for prompt, oracle, completion in zip(prompts, (adapter.merged, model, adapter.merged), completions, strict=True):
        assert oracle.confirms(prompt, completion.token_ids)
        theirs = oracle.logits(prompt)[:-1].log_softmax(dim=-1).gather(1, torch.tensor(prompt[1:]).unsqueeze(1))
        assert completion.prompt_log_probs == pytest.approx(theirs.flatten().tolist(), abs=1e-3)


def test_peft_and_plain_torch_merge_alike(tiny_llama: TinyModel, adapter_of: Callable[..., TinyAdapter]) -> None:
    adapter = adapter_of(tiny_llama, use_rslora=True)
    tensors = load_file(adapter.path / "adapter_model.safetensors")
    for name in ("q_proj", "v_proj"):
        module = f"model.layers.1.self_attn.{name}"
        down, up = (tensors[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
        weight = tiny_llama.oracle.get_submodule(module).weight + 8 / 4**0.5 * (up @ down)
        torch.testing.assert_close(adapter.merged.oracle.get_submodule(module).weight, weight)


def test_a_mixed_batch_with_chunks_and_preemption_says_what_each_merged_model_says(
    tiny_llama: TinyModel, adapter_of: Callable[..., TinyAdapter], tmp_path: Path
) -> None:
    made = [
        adapter_of(tiny_llama, "a", seed=1),
        adapter_of(tiny_llama, "b", seed=2, target_modules=ALL, r=8),
        adapter_of(tiny_llama, "c", seed=3, target_modules=["down_proj", "k_proj"], r=2),
    ]
    core = core_for(tiny_llama.path, adapters=tmp_path, num_blocks=60, max_num_batched_tokens=16, max_num_seqs=8)
    loaded = [load(core, adapter) for adapter in made]
    prompts = random_prompts([1, 5, 17, 30, 8, 17, 3])
    chosen = [0, None, 1, 2, 0, None, 1]
    params = [SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)] * len(prompts)
    adapters = [None if index is None else loaded[index] for index in chosen]
    for _ in range(2):  # the second time prefixes are found
        completions = generate(core, prompts, params, adapters)
        for prompt, index, completion in zip(prompts, chosen, completions, strict=True):
            oracle = tiny_llama if index is None else made[index].merged
            assert oracle.confirms(prompt, completion.token_ids)
    assert core.read_stats().num_preemptions > 0
    core.scheduler.check()


def test_prefixes_are_found_under_the_same_adapter_only(
    tiny_llama: TinyModel, adapter_of: Callable[..., TinyAdapter], tmp_path: Path
) -> None:
    core = core_for(tiny_llama.path, adapters=tmp_path)
    first = adapter_of(tiny_llama, "a", seed=1)
    a, b = load(core, first), load(core, adapter_of(tiny_llama, "b", seed=2))
    copied = TinyAdapter(tmp_path / "again", first.merged)
    shutil.copytree(first.path, copied.path)
    (prompt,) = random_prompts([33])
    params = [SamplingParams(max_tokens=1)]
    found = [
        generate(core, [prompt], params, [adapter])[0].num_cached_tokens
        for adapter in (a, b, None, a, b, None, load(core, copied))
    ]
    assert found == [0, 0, 0, 32, 32, 32, 32]


def test_several_sequences_of_a_request_share_its_adapter(
    tiny_llama: TinyModel, adapter_of: Callable[..., TinyAdapter], tmp_path: Path
) -> None:
    adapter = adapter_of(tiny_llama)
    core = core_for(tiny_llama.path, adapters=tmp_path)
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, n=3)
    completions = generate(core, [[5, 6, 7]], [params], [load(core, adapter)])
    assert len(completions) == 3
    assert all(adapter.merged.confirms([5, 6, 7], completion.token_ids) for completion in completions)


def test_drafts_guides_and_prefixes_leave_what_is_said_with_adapters(
    tiny_llama: TinyModel, adapter_of: Callable[..., TinyAdapter], tmp_path: Path
) -> None:
    made = [adapter_of(tiny_llama, "a", seed=1), adapter_of(tiny_llama, "b", seed=2, target_modules=ALL, r=8)]
    sizes = {"max_num_seqs": 12, "max_speculating_seqs": 12, "max_num_batched_tokens": 48}
    core = core_for(tiny_llama.path, adapters=tmp_path, draft_model=tiny_llama.path, **sizes)
    loaded = [load(core, adapter) for adapter in made]
    options: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8, "seed": 3, "top_k": 20},
        {"guided": Guided("regex", "(ab|[x-z]{2,3}){9,}"), "temperature": 0.7, "seed": 4},
        {"repetition_penalty": 1.2, "stop": ("q", "A")},
    ]
    chosen = [loaded[0], loaded[1], None] * len(options)
    prompts = [random_prompts([21])[0]] * len(chosen)
    said: list[list[tuple[list[int], str]]] = []
    for speculation in ("off", "ngram", "draft", 3):
        params = [
            SamplingParams(max_tokens=24, ignore_eos=True, speculation=speculation, **given)
            for given in options
            for _ in range(3)
        ]
        completions = generate(core, prompts, params, chosen)
        said.append([(completion.token_ids, completion.text) for completion in completions])
    assert said == [said[0]] * 4
    assert made[0].merged.confirms(prompts[0], said[0][0][0])
    assert made[1].merged.confirms(prompts[1], said[0][1][0])
    assert core.read_stats().num_accepted_draft_tokens > 0
    core.scheduler.check()


def test_an_engine_without_a_folder_of_adapters_wraps_nothing(tiny_llama: TinyModel) -> None:
    core = core_for(tiny_llama.path)
    assert not core.runner.adapter_targets
    assert not [module for module in core.runner.model.modules() if type(module).__name__ == "LoraLinear"]
    assert greedy(core, [[5, 6, 7]], num_tokens=4)


def edited(adapter: TinyAdapter, config: dict[str, Any], **tensors: torch.Tensor | None) -> None:
    """Change fields of the adapter's configuration and tensors of layer 0's q_proj, or of a whole name."""
    path = adapter.path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    weights = load_file(adapter.path / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        key = name if "." in name else f"base_model.model.model.layers.0.self_attn.q_proj.{name}.weight"
        weights.pop(key, None)
        if tensor is not None:
            weights[key] = tensor
    save_file(weights, adapter.path / "adapter_model.safetensors")


EXPERT = "base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_A.weight"
EMBEDDING = "base_model.model.model.embed_tokens.lora_embedding_A"
COPY = "base_model.model.model.embed_tokens.weight"
PROJECTOR = "base_model.model.multi_modal_projector.linear.lora_A.weight"
REFUSED: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor | None], type[ModelError], str]] = {
    "dora": ({"use_dora": True}, {}, UnsupportedModel, "sets use_dora to True"),
    "modules to save": ({"modules_to_save": ["lm_head"]}, {}, UnsupportedModel, "sets modules_to_save to"),
    "bias": ({"bias": "all"}, {}, UnsupportedModel, "sets bias to 'all'"),
    "tokens": ({"trainable_token_indices": [1]}, {}, UnsupportedModel, "sets trainable_token_indices"),
    "transposed": ({"fan_in_fan_out": True}, {}, UnsupportedModel, "sets fan_in_fan_out"),
    "another base": ({"init_lora_weights": "pissa"}, {}, UnsupportedModel, "sets init_lora_weights to 'pissa'"),
    "an option of the future": ({"use_magic": 3}, {}, UnsupportedModel, "sets use_magic to 3"),
    "another method": ({"peft_type": "IA3"}, {}, UnsupportedModel, "peft_type 'IA3'"),
    "too large a rank": ({"r": 65}, {}, ModelError, "rank 65; max_lora_rank is 64"),
    "no rank": ({"r": 0}, {}, ModelError, "rank must be at least 1, got 0"),
    "a bad pattern": ({"target_modules": "("}, {}, ModelError, "cannot be used"),
    "no targets": ({"target_modules": None}, {}, ModelError, "names of modules must be"),
    "a rank that is not the tensors'": ({"r": 3}, {}, WeightMismatch, r"has shape \[4, 64\], expected \[3, 64\]"),
    "a lonely tensor": ({}, {"lora_B": None}, WeightMismatch, "lacks .*q_proj.lora_B.weight"),
    "a module without tensors": (
        {"target_modules": ["q_proj", "v_proj", "o_proj"]}, {}, WeightMismatch, "lacks .*layers.0.self_attn.o_proj",
    ),
    "magnitudes": ({}, {"lora_magnitude_vector": torch.ones(64)}, UnsupportedModel, "holds the tensor .*magnitude"),
    "embeddings": (
        {}, {EMBEDDING: torch.ones(4, 300)}, UnsupportedModel, "holds the tensor .*embed_tokens",
    ),
    "experts": ({}, {EXPERT: torch.ones(4, 64)}, UnsupportedModel, "changes 'model.layers.0.mlp.experts.0.up_proj'"),
    "a larger vocabulary": (
        {}, {COPY: torch.ones(303, 64)}, WeightMismatch, r"embed_tokens.weight' has shape \[303, 64\], expected \[300",
    ),
    "something else": (
        {}, {PROJECTOR: torch.ones(4, 64)}, UnsupportedModel, "changes 'multi_modal_projector.linear'; here",
    ),
    "the head without tensors": (
        {"target_modules": ["q_proj", "v_proj", "lm_head"]}, {}, WeightMismatch, "lacks .*model.lm_head.lora_A",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_adapters_cannot_do_here_is_refused_by_name(
    tiny_llama: TinyModel, adapter_of: Callable[..., TinyAdapter], tmp_path: Path, case: str
) -> None:
    config, tensors, error, message = REFUSED[case]
    adapter = adapter_of(tiny_llama)
    edited(adapter, config, **tensors)
    core = core_for(tiny_llama.path, adapters=tmp_path)
    with pytest.raises(error, match=message):
        load(core, adapter, MAX_RANK)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_one_of_the_files_is_refused(
    tiny_llama: TinyModel, adapter_of: Callable[..., TinyAdapter], tmp_path: Path, name: str
) -> None:
    adapter = adapter_of(tiny_llama)
    (adapter.path / name).unlink()
    with pytest.raises(ModelError, match=name):
        load(core_for(tiny_llama.path, adapters=tmp_path), adapter)


def test_half_precision_adapters_are_computed_in_fp32(
    tiny_llama: TinyModel, adapter_of: Callable[..., TinyAdapter], tmp_path: Path
) -> None:
    adapter = adapter_of(tiny_llama)
    core = core_for(tiny_llama.path, adapters=tmp_path)
    whole = load(core, adapter)
    path = adapter.path / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    half = load(core, adapter)
    assert whole.digest != half.digest
    assert whole.num_bytes == half.num_bytes
    for name, update in half.updates.items():
        assert update.down.dtype is torch.float32
        torch.testing.assert_close(update.down, whole.updates[name].down, rtol=0.01, atol=0.0)
