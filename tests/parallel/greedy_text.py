"""What a core on several ranks must say, in all that happens to sequences."""

import time
from typing import Any

from engine.core import EngineCore
from engine.offline import generate
from engine.outputs import FinishReason
from engine.sampling_params import SamplingParams
from tests.conftest import TinyModel
from tests.models.checks import core_for, greedy, random_prompts

NUM_TOKENS = 32
OPTIONS: dict[str, Any] = {
    "num_blocks": 30,
    "max_num_batched_tokens": 16,
    "max_num_seqs": 8,
    "speculation": "draft",
    "draft_kv_cache_gib": 0.01,
    "rank_start_seconds": 90.0,
    "rank_timeout_seconds": 60.0,
}


def ranks_for(model: TinyModel, **grid: Any) -> EngineCore:
    """Return a core with a draft model, which is the model itself, on rank 0 alone."""
    return core_for(model.path, **OPTIONS, draft_model=model.path, **grid)


def check_greedy_text(model: TinyModel, core: EngineCore) -> None:
    """Assert transformers' tokens: preempted, in chunks, behind prefix hits, with drafts, after an aborted request.

    Drafts come from the draft model, and of the last prompt, which repeats itself, from its own text.
    """
    prompts = random_prompts([1, 5, 17, 30, 8], vocab_size=model.oracle.config.vocab_size)
    core.add(99, prompts[2], SamplingParams(max_tokens=100), time.monotonic())
    core.step()
    assert core.abort(99)[0].finish_reason is FinishReason.CANCELLED
    for prompt, completion in zip(prompts, greedy(core, prompts, NUM_TOKENS), strict=True):
        assert model.confirms(prompt, completion.token_ids)
    stats = core.read_stats()
    assert stats.num_preemptions > 0
    assert stats.num_accepted_draft_tokens > 0
    longer = [prompts[3] + [7, 8, 9], prompts[3] + [11]]
    for prompt, completion in zip(longer, greedy(core, longer, NUM_TOKENS), strict=True):
        assert completion.num_cached_tokens > 0
        assert model.confirms(prompt, completion.token_ids)
    repeated, drafted = prompts[1] * 6, core.read_stats().num_draft_tokens
    own = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True, speculation="ngram")
    assert model.confirms(repeated, generate(core, [repeated], [own])[0].token_ids)
    assert core.read_stats().num_draft_tokens > drafted
