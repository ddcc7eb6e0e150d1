"""Drafts by a second, smaller model of the same vocabulary, with a KV cache of its own.

Knows its model and a shadow of each sequence that it drafts for. Does not know the model that it guesses at.

A shadow is a sequence whose prompt is all the tokens known by now and whose output is the draft. It has the seed of the
sequence that it follows and so draws the same random numbers at the same positions: where both models agree about the
distribution, they mostly draw the same token, at any temperature.

Invariants:
1. Shadows hold blocks only while their sequences speculate; full blocks of known tokens stay in the prefix cache.
2. One call computes at most the token budget for the parts that shadows lack; whoever is not caught up gets no draft.
"""

from dataclasses import replace
from itertools import takewhile

from engine.config import EngineConfig
from engine.errors import ModelError
from engine.kv_manager import make_kv_manager
from engine.model_runner import ModelRunner
from engine.models.config import ModelConfig
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from engine.step_plan import StepPlan
from engine.text.tokenizer import Tokenizer


class DraftModel:
    """A small model that goes ahead of a large one."""

    def __init__(self, config: EngineConfig, vocab_size: int, tokenizer: Tokenizer) -> None:
        """Load the model in `config.draft_model`; vocabulary and tokenizer are those of the large one.

        Raises:
            ModelError: it cannot be served, or its tokenizer is another one.
        """
        assert config.draft_model is not None
        if Tokenizer.from_dir(config.draft_model).backend.get_vocab() != tokenizer.backend.get_vocab():
            raise ModelError(f"draft_model {config.draft_model} has another vocabulary than the model {config.model}")
        own = replace(
            config,
            model=config.draft_model,
            num_blocks=0,
            kv_cache_gib=config.draft_kv_cache_gib,
            adapters=None,
            tensor_parallel=1,  # all of it on rank 0
            expert_parallel=1,
            quantization="",
            kv_cache_dtype="auto",
        )
        model_config = ModelConfig.from_dir(own.model)
        self._runner = ModelRunner(own, model_config)
        self._runner.warm_up()
        self._kv = make_kv_manager(own, self._runner.num_blocks, model_config.sliding_window)
        self._max_model_len = self._runner.max_model_len
        self._max_tokens = own.max_num_batched_tokens
        self._num_shared_ids = min(vocab_size, model_config.vocab_size)  # padding of the two may differ
        self._shadows: dict[Sequence, Sequence] = {}

    def propose(self, wishes: list[tuple[Sequence, int]]) -> list[list[int]]:
        """Return a draft of at most so many tokens for each sequence; shadows of others give their blocks back."""
        self._drop_all_but({sequence for sequence, _ in wishes})
        shadows = [self._follow(sequence) for sequence, _ in wishes]
        lengths = {shadow: shadow.num_tokens + number for shadow, (_, number) in zip(shadows, wishes, strict=True)}
        pending = [shadow for shadow in shadows if self._can_compute(shadow)]
        while pending:
            drafted = self._draft_one(pending)
            pending = [shadow for shadow in drafted if shadow.num_tokens < min(lengths[shadow], self._max_model_len)]
        return [self._draft_of(shadow) for shadow in shadows]

    def _drop_all_but(self, sequences: set[Sequence]) -> None:
        for sequence in self._shadows.keys() - sequences:
            self._kv.release(self._shadows.pop(sequence))

    def _follow(self, sequence: Sequence) -> Sequence:
        """Return the sequence's shadow with the sequence's tokens; what was computed of right guesses stays."""
        shadow = self._shadows.get(sequence)
        if shadow is None:
            first_rope_row = self._runner.model.rope_tables.first_row(sequence.max_total_tokens - 1)
            shadow = self._shadows[sequence] = _shadow_of(sequence, first_rope_row)
            self._kv.take_prefix(shadow)
        same = shadow.num_prompt_tokens
        while same < min(shadow.num_tokens, sequence.num_tokens) and shadow.token_ids[same] == sequence.token_ids[same]:
            same += 1
        shadow.token_ids[same:] = sequence.token_ids[same:]
        shadow.num_prompt_tokens = shadow.num_tokens
        shadow.num_computed_tokens = min(shadow.num_computed_tokens, same, shadow.num_tokens - 1)
        self._kv.register(shadow)
        return shadow

    def _can_compute(self, shadow: Sequence) -> bool:
        has_room = shadow.num_tokens < self._max_model_len
        return has_room and max(shadow.token_ids[shadow.num_computed_tokens :]) < self._num_shared_ids

    def _draft_one(self, shadows: list[Sequence]) -> list[Sequence]:
        """Compute what the shadows lack, within budget and blocks; return those that have one draft token more."""
        plan = StepPlan()
        for shadow in shadows:
            number = min(shadow.num_uncomputed_tokens, self._max_tokens - plan.num_tokens)
            if number and self._kv.reserve(shadow, shadow.num_computed_tokens + number):
                plan.add(shadow, number)
        if not plan.scheduled:
            return []
        run = self._runner.run(plan)
        for item in plan.scheduled:
            item.sequence.num_computed_tokens += item.num_tokens
        results = zip(run.items, run.sampled.token_ids, run.sampled.errors, strict=True)
        drafted = [(item.sequence, token_id) for item, token_id, error in results if error is None]
        for shadow, token_id in drafted:
            shadow.token_ids.append(token_id)
        return [shadow for shadow, _ in drafted]

    def _draft_of(self, shadow: Sequence) -> list[int]:
        draft = shadow.token_ids[shadow.num_prompt_tokens :]
        return list(takewhile(lambda token_id: token_id < self._num_shared_ids, draft))


def _shadow_of(sequence: Sequence, first_rope_row: int) -> Sequence:
    """Return a sequence with the same tokens and draws; penalties and the like are left to the check of the draft."""
    params = sequence.params
    return Sequence(
        request_id=sequence.request_id,
        token_ids=list(sequence.token_ids),
        num_prompt_tokens=sequence.num_tokens,
        params=SamplingParams(
            temperature=params.effective_temperature, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p
        ),
        max_total_tokens=sequence.max_total_tokens,
        stop_token_ids=frozenset(),
        seed=sequence.seed,
        scheduling=sequence.scheduling,
        first_rope_row=first_rope_row,
    )
