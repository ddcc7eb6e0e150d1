"""Adapters on several ranks say what the models say into whose weights they are merged."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.errors import RanksFailed
from engine.offline import generate
from engine.parallel.step_message import encode_step
from engine.sampling_params import SamplingParams
from tests.conftest import TinyModel
from tests.models.adapters import load, make_adapter
from tests.models.checks import core_for, random_prompts
from tests.parallel.test_sharded_models import QWEN2_MOE, UNEVEN
from tests.parallel.threads import ThreadLeader, whole_batch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # PEFT reads it
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers.:UserWarning"),
]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[str, dict[str, Any], list[str], dict[str, int]]] = {
    "every projection and the head, uneven": ("Llama", UNEVEN, [*ALL, "lm_head"], {"tensor_parallel": 3}),
    "key/value heads copied, biases": ("Qwen2", {}, ALL, {"tensor_parallel": 3}),
    "fused in the checkpoint": ("Phi3", {}, ["qkv_proj", "gate_up_proj", "o_proj"], {"tensor_parallel": 2}),
    "a shared expert": (
        "Qwen2Moe",
        QWEN2_MOE,
        [*ATTENTION, "shared_expert.gate_proj", "shared_expert.down_proj"],
        {"tensor_parallel": 2, "expert_parallel": 2},
    ),
}
PARAMS = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


@pytest.mark.parametrize("case", CASES)
def test_adapters_in_one_batch_say_what_merged_models_say(
    make_model: Callable[..., TinyModel], tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.core.RankLeader", ThreadLeader)
    family, sizes, modules, grid = CASES[case]
    model = make_model(family, **({"original_max_position_embeddings": 256} if family == "Phi3" else {}), **sizes)
    made = [make_adapter(model, tmp_path, name, seed=index, target_modules=modules) for index, name in enumerate("ab")]
    prompts = random_prompts([9, 1, 20, 7], vocab_size=model.oracle.config.vocab_size)
    with closing(core_for(model.path, adapters=tmp_path, max_num_batched_tokens=16, max_num_seqs=8, **grid)) as core:
        first, second = (load(core, adapter) for adapter in made)
        completions = generate(core, prompts, [PARAMS] * 4, [first, None, second, first])
    oracles = [made[0].merged, model, made[1].merged, made[0].merged]
    for prompt, oracle, completion in zip(prompts, oracles, completions, strict=True):
        assert oracle.confirms(prompt, completion.token_ids)


def test_a_rank_drops_what_rank_0_has_no_room_for_and_refuses_what_has_been_changed(
    tiny_llama: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaders: list[ThreadLeader] = []

    def lead(*arguments: Any, **options: Any) -> ThreadLeader:
        leaders.append(ThreadLeader(*arguments, **options))
        return leaders[0]

    monkeypatch.setattr("engine.core.RankLeader", lead)
    made = [make_adapter(tiny_llama, tmp_path, name, seed=index) for index, name in enumerate("abc")]
    (prompt,) = random_prompts([5])
    with closing(core_for(tiny_llama.path, adapters=tmp_path, max_adapters=1, tensor_parallel=2)) as core:
        loaded = [load(core, adapter) for adapter in made]
        for adapter, oracle in zip(loaded[:2], made, strict=False):
            (completion,) = generate(core, [prompt], [PARAMS], [adapter])
            assert oracle.merged.confirms(prompt, completion.token_ids)
        (follower,) = leaders[0].followers
        assert follower.num_adapters == 1
        make_adapter(tiny_llama, tmp_path, "c", seed=7)
        batch = replace(whole_batch(prompt, core.runner), adapters=[loaded[2]])
        with pytest.raises(RanksFailed, match="has it been changed"):
            follower.take(encode_step(batch, None))


def test_ranks_load_what_they_are_told_of_before_a_step_needs_it(
    tiny_llama: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where inputs are rounded the update comes behind the sum of whole numbers."""
    monkeypatch.setattr("engine.core.RankLeader", ThreadLeader)
    made = make_adapter(tiny_llama, tmp_path, "a", target_modules=ALL)
    (prompt,) = random_prompts([5])
    said: list[list[int]] = []
    for num_ranks in (1, 2):
        options: dict[str, Any] = {"tensor_parallel": num_ranks, "quantization": "int8_dynamic"}
        with closing(core_for(tiny_llama.path, adapters=tmp_path, **options)) as core:
            adapter = load(core, made)
            core.prepare_adapters([adapter])
            if isinstance(core.ranks, ThreadLeader):
                (follower,) = core.ranks.followers
                assert follower.num_adapters == 1
                monkeypatch.setattr("engine.parallel.follower.load_adapter", None)  # nothing is left to be read
            said.append(generate(core, [prompt], [PARAMS], [adapter])[0].token_ids)
    assert said[0] == said[1]
