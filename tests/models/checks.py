"""What every family is checked for, with transformers as the oracle."""

from pathlib import Path

import torch

from engine.batch import build_batch
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.offline import Completion, generate
from engine.sampling_params import SamplingParams
from engine.sequence import Adapter, Sequence
from engine.step_plan import ScheduledSequence, StepPlan
from tests.conftest import TinyModel

NUM_TOKENS = 64
SMALL = {"block_size": 4, "num_blocks": 512, "num_threads": 1}
TOLERANCE = 2e-4  # fp32, relative to the largest logit


def core_for(path: Path, **options: object) -> EngineCore:
    return EngineCore(EngineConfig(model=path, **(SMALL | options)))  # pyright: ignore[reportArgumentType]


def greedy(core: EngineCore, prompts: list[list[int]], num_tokens: int = NUM_TOKENS) -> list[Completion]:
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    completions = generate(core, prompts, [params] * len(prompts))
    core.scheduler.check()
    assert core.scheduler.kv.pool.num_used == 0
    return completions


def random_prompts(lengths: list[int], vocab_size: int = 300, seed: int = 5) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab_size, (length,), generator=generator).tolist() for length in lengths]


@torch.inference_mode()
def engine_logits(core: EngineCore, token_ids: list[int], adapter: Adapter | None = None) -> torch.Tensor:
    """Return the logits after each token of one sequence computed in one step, [T, V]."""
    table = list(range(-(-len(token_ids) // core.runner.block_size)))
    params = SamplingParams(max_tokens=1)
    sequence = Sequence(0, token_ids, len(token_ids), params, len(token_ids) + 1, frozenset(), block_table=table)
    sequence.first_rope_row = core.runner.model.rope_tables.first_row(len(token_ids))
    batch = build_batch(StepPlan([ScheduledSequence(sequence, len(token_ids))], len(token_ids)), core.runner.block_size)
    batch.logits_indices = torch.arange(len(token_ids))
    core.runner.adapter_rows.assign([adapter], batch, core.runner.link)
    return core.runner.model(batch, core.runner.cache)


def check_logits(model: TinyModel, length: int = 50, tolerance: float = TOLERANCE, **options: object) -> None:
    """Assert that logits are transformers' at every position of a random sequence."""
    (token_ids,) = random_prompts([length], vocab_size=model.oracle.config.vocab_size, seed=9)
    ours, theirs = engine_logits(core_for(model.path, **options), token_ids), model.logits(token_ids)
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=tolerance * float(theirs.abs().max()))


def check_greedy(model: TinyModel, **options: object) -> None:
    """Assert 64 greedy tokens in a batch of mixed prompts, whose prompts come in chunks and which is preempted.

    Where every layer has a window its early blocks are given back, and what is left is enough. A second round finds
    the prompts' prefixes in the cache.
    """
    core = core_for(model.path, **({"num_blocks": 60, "max_num_batched_tokens": 16, "max_num_seqs": 8} | options))
    prompts = random_prompts([1, 5, 17, 30, 8], vocab_size=model.oracle.config.vocab_size)
    for prompt, completion in zip(prompts, greedy(core, prompts), strict=True):
        assert model.confirms(prompt, completion.token_ids)
    assert core.read_stats().num_preemptions > 0 or core.scheduler.kv.window is not None
    longer = [prompts[3] + [7, 8, 9], prompts[3] + [11]]
    greedy(core, longer[:1], num_tokens=1)
    for prompt, completion in zip(longer, greedy(core, longer), strict=True):
        assert completion.num_cached_tokens > 0
        assert model.confirms(prompt, completion.token_ids)
