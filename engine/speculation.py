"""Which sequences of a step also compute guesses at their next tokens, and how many.

Knows plans, options, budgets and blocks. Does not know how guesses are made, or how they are checked.

Speculative decoding (Leviathan et al., arXiv 2211.17192) without its rejection sampling: random numbers are keyed by
(seed, position), so the core samples each position as always, and a draft token is accepted if it is what was sampled.
So the output is the one without speculation, whatever the options, and its distribution is the model's.

Invariants:
1. Drafts take what the planned step leaves of its token budget and of the blocks. They delay and preempt nobody.
2. A sequence never computes more tokens than it may have.
3. A proposer that fails costs speed only: it is not asked again, and the log says so.
"""

import logging
from typing import Protocol

from engine.config import EngineConfig
from engine.kv_manager import KVManager
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from engine.step_plan import ScheduledSequence, StepPlan

logger = logging.getLogger(__name__)


class Proposer(Protocol):
    """Guesses how sequences go on."""

    def propose(self, wishes: list[tuple[Sequence, int]]) -> list[list[int]]:
        """Return a draft of at most so many tokens for each sequence; it is told of all that speculate in a step."""
        ...


class Speculation:
    """Adds drafts to planned steps."""

    def __init__(self, config: EngineConfig, kv: KVManager, proposers: dict[str, Proposer]) -> None:
        """Take the proposers by the names that requests give them."""
        self._default = config.speculation
        self._num_draft_tokens = config.num_draft_tokens
        self._max_seqs = config.max_speculating_seqs
        self._max_tokens = config.max_num_batched_tokens
        self._kv = kv
        self._proposers = proposers

    def extend(self, plan: StepPlan) -> int:
        """Give the step's sequences drafts, where the step is small enough; return how many tokens."""
        return sum(self._draft(plan, method, group) for method, group in self._groups(plan).items())

    def would_extend(self, plan: StepPlan) -> bool:
        """Whether any of the step's sequences may get a draft."""
        return bool(self._groups(plan))

    def _groups(self, plan: StepPlan) -> dict[str, list[tuple[ScheduledSequence, int]]]:
        """Return who wants how many draft tokens, by how they are made."""
        if len(plan.scheduled) > self._max_seqs:
            return {}
        groups: dict[str, list[tuple[ScheduledSequence, int]]] = {}
        left = self._max_tokens - plan.num_tokens
        for item in plan.scheduled:
            method, number = self._wish(item.sequence.params)
            number = min(number, left, item.sequence.max_total_tokens - item.sequence.num_tokens - 1)
            if item.samples and number > 0 and method in self._proposers:
                groups.setdefault(method, []).append((item, number))
                left -= number
        return groups

    def _wish(self, params: SamplingParams) -> tuple[str, int]:
        """Return how a request wants its drafts made, and how many tokens of them."""
        asked = params.speculation
        if asked is None:
            return self._default, self._num_draft_tokens
        if isinstance(asked, str):
            return asked, self._num_draft_tokens
        fallback = "draft" if "draft" in self._proposers else "ngram"
        return (fallback if self._default == "off" else self._default), asked

    def _draft(self, plan: StepPlan, method: str, group: list[tuple[ScheduledSequence, int]]) -> int:
        try:
            drafts = self._proposers[method].propose([(item.sequence, number) for item, number in group])
        except Exception:
            logger.exception("speculation by %s has failed and is off from now on", method)
            del self._proposers[method]
            return 0
        num_before = plan.num_tokens
        for (item, _), draft in zip(group, drafts, strict=True):
            if draft and self._kv.reserve(item.sequence, item.sequence.num_tokens + len(draft)):
                plan.draft(item, draft)
                item.sequence.num_draft_tokens += len(draft)
        return plan.num_tokens - num_before
