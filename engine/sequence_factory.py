"""From a checked request to the sequences that serve it.

Knows options, the model's limits and the tokenizer. Does not know scheduling, blocks or tensors.
"""

import secrets
from dataclasses import dataclass

from engine.logit_rules import bad_sequences
from engine.models.rope_config import RopeTables
from engine.pooling import Pooler
from engine.sampling_params import MAX_SEED, SamplingParams
from engine.scheduling_params import SchedulingParams
from engine.sequence import Adapter, Guide, Sequence
from engine.task_params import TaskParams
from engine.text.stop_strings import StopStringChecker
from engine.text.tokenizer import Tokenizer


@dataclass(slots=True, frozen=True)
class SequenceFactory:
    """Makes sequences for one model, of at most `max_model_len` tokens."""

    eos_token_ids: tuple[int, ...]
    tokenizer: Tokenizer
    max_model_len: int
    rope_tables: RopeTables

    def make(
        self,
        request_id: int,
        prompt_ids: list[int],
        params: SamplingParams,
        arrived: float,
        *,
        scheduling: SchedulingParams,
        task: TaskParams,
        guide: Guide | None,
        adapter: Adapter | None,
    ) -> list[Sequence]:
        """Return the request's `n` sequences; each gets a copy of the guide."""
        eos = () if params.ignore_eos else self.eos_token_ids
        seed = secrets.randbits(64) if params.seed is None else params.seed
        bad_words = bad_sequences(params.bad_words, self.tokenizer.encode_part)
        max_total_tokens = self._max_total_tokens(len(prompt_ids), params, task)
        num_computed = max_total_tokens if task.embed else max_total_tokens - 1  # nothing follows the last token
        sequences = [
            Sequence(
                request_id=request_id,
                token_ids=list(prompt_ids),
                num_prompt_tokens=len(prompt_ids),
                params=params,
                max_total_tokens=max_total_tokens,
                first_rope_row=self.rope_tables.first_row(num_computed),
                stop_token_ids=frozenset((*params.stop_token_ids, *eos)),
                seed=(seed + index) % (MAX_SEED + 1),
                stop_checker=StopStringChecker(self.tokenizer, params.stop) if params.stop else None,
                bad_sequences=bad_words,
                guide=guide.copy() if guide is not None else None,
                adapter=adapter,
                pooler=Pooler(task.embed, task.normalize_embedding) if task.embed else None,
                index=index,
                scheduling=scheduling,
                deadline=scheduling.deadline(arrived),
            )
            for index in range(params.n)
        ]
        for sequence in sequences:
            sequence.timings.arrived = arrived
        return sequences

    def _max_total_tokens(self, num_prompt_tokens: int, params: SamplingParams, task: TaskParams) -> int:
        if task.embed:
            return num_prompt_tokens
        if params.max_tokens is None:
            return self.max_model_len
        return min(self.max_model_len, num_prompt_tokens + params.max_tokens)
