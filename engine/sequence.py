"""One request inside the engine: its tokens, its blocks and how far it has been computed.

Knows token ids, block ids and options. Does not know tensors, memory or other sequences.

Invariants:
1. 0 <= num_computed_tokens <= num_tokens; the KV of the computed tokens lies in `block_table`, in order, but for the
   first `num_dropped_blocks` entries, which a sliding window has passed by.
2. A sequence whose uncomputed rest is one token is in its decode state; a longer rest is prefill. That is all there is.
3. num_emitted <= num_output_tokens: what has been sent on is never taken back.
4. Tokens that a step in flight will give have their places at the end of `token_ids` already, with any number in them:
   they count as tokens, but neither as known nor as output.
"""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

import numpy as np

from engine.logit_rules import LogitRules
from engine.outputs import FinishReason, Timings
from engine.pooling import Pooler
from engine.sampling_params import SamplingParams
from engine.scheduling_params import DEFAULT_SCHEDULING, SchedulingParams
from engine.top_tokens import TopTokens


class StopResult(Protocol):
    """What a stop checker says after each token; see `engine.text.stop_strings`."""

    @property
    def releasable(self) -> int:
        """How many of the completion's tokens may be sent on."""
        ...

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        ...

    @property
    def trim_chars(self) -> int:
        """Characters to drop from the end of the text."""
        ...


class StopChecker(Protocol):
    """Watches a completion's text for stop strings."""

    def push(self, token_ids: list[int], *, armed: bool = True) -> StopResult:
        """Take the next tokens; matches count only while `armed`."""
        ...


class Guide(Protocol):
    """Keeps a completion to a grammar; see `engine.guides`."""

    @property
    def is_over(self) -> bool:
        """Whether the text is complete and nothing can follow."""
        ...

    def accept(self, token_id: int) -> None:
        """Take the token that came next."""
        ...

    def allowed(self, vocab_size: int, stop_token_ids: frozenset[int]) -> np.ndarray:
        """Return which tokens may come next, bool [vocab_size]."""
        ...

    def copy(self) -> "Guide":
        """Return another guide at the same place."""
        ...


class Adapter(Protocol):
    """What the model computes with besides its own weights; see `engine.lora`."""

    @property
    def name(self) -> str:
        """As requests say it."""
        ...

    @property
    def digest(self) -> bytes:
        """Names what it computes: KV of equal digests is the same."""
        ...


class SequenceStatus(Enum):
    """Where a sequence is."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """A request's tokens and progress.

    Attributes:
        token_ids: prompt and output in one list.
        max_total_tokens: prompt plus output may not grow past this.
        stop_token_ids: ids that end the sequence once `min_tokens` are out, end-of-sequence tokens included.
        seed: resolved seed; random numbers are keyed by it and the position.
        bad_sequences: runs of tokens of which the last may never come.
        logit_rules: what the options do to the logits.
        guide: keeps the output to a grammar.
        top_tokens: the likeliest tokens in the place of each output token but the resumed ones.
        prompt_log_probs: log-probability of each prompt token but the first, as far as known; `prompt_top` likewise.
        adapter: what it is computed with.
        pooler: makes a vector of its tokens' states, instead of more tokens.
        first_rope_row: where the angles of its positions begin in the model's tables.
        index: which of the sequences of its request this is.
        num_resumed: output tokens that another engine made and somebody has delivered; they come with the request.
        scheduling: for whom, how urgently and with which cache it is served.
        rank: where it stands among others, lower first, and a ticket that makes it unique; see `engine.ageing`.
        deadline: time of the machine's monotonic clock, in seconds, at which it ends with what it has; None is never.
        block_hashes: names of its full blocks as far as known, see `engine.prefix_cache`.
        num_named_blocks: blocks of its table whose content has been made known to the pool, or came from there.
        num_draft_tokens: tokens that were guessed and computed with it; `num_accepted_tokens` of them were right.
        num_expected_tokens: last tokens that are not known yet.
        num_releasable: output tokens that may be sent on; behind the rest a stop string may be forming.
    """

    request_id: int
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    max_total_tokens: int
    stop_token_ids: frozenset[int]
    seed: int = 0
    num_resumed: int = 0
    scheduling: SchedulingParams = DEFAULT_SCHEDULING
    rank: tuple[float, int] = (0.0, 0)
    deadline: float | None = None
    stop_checker: StopChecker | None = None
    bad_sequences: tuple[tuple[int, ...], ...] = ()
    guide: Guide | None = None
    adapter: Adapter | None = None
    pooler: Pooler | None = None
    first_rope_row: int = 0
    index: int = 0
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    num_named_blocks: int = 0
    num_dropped_blocks: int = 0
    log_probs: list[float] = field(default_factory=list)
    top_tokens: TopTokens = field(default_factory=TopTokens)
    prompt_log_probs: list[float] = field(default_factory=list)
    prompt_top: TopTokens = field(default_factory=TopTokens)
    num_releasable: int = 0
    num_emitted: int = 0
    trim_chars: int = 0
    num_preemptions: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_expected_tokens: int = 0
    finish_reason: FinishReason | None = None
    timings: Timings = field(default_factory=Timings)
    logit_rules: LogitRules = field(init=False)

    def __post_init__(self) -> None:
        self.logit_rules = LogitRules(self.params, self.stop_token_ids, self.bad_sequences)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output, expected ones included."""
        return len(self.token_ids)

    @property
    def num_known_tokens(self) -> int:
        """Tokens of prompt and output whose ids are known."""
        return len(self.token_ids) - self.num_expected_tokens

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far, and known."""
        return len(self.token_ids) - self.num_expected_tokens - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose KV is still to be computed; one in the decode state."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def wants_prompt_log_probs(self) -> bool:
        """Whether log-probabilities of the prompt are asked for and not yet all known."""
        asked = self.params.prompt_logprobs or (self.params.echo and self.params.logprobs)
        return asked and len(self.prompt_log_probs) < self.num_prompt_tokens - 1

    @property
    def computes_every_token(self) -> bool:
        """Whether no token may be left out because its KV is in the prefix cache."""
        return self.wants_prompt_log_probs or (self.pooler is not None and self.pooler.needs_every_token)

    @property
    def is_predictable(self) -> bool:
        """Whether its next step can be laid out before the token of the last one is known."""
        needs_tokens = self.guide is not None or self.logit_rules.needs_tokens
        return not (needs_tokens or self.pooler is not None or self.wants_prompt_log_probs)

    @property
    def is_full(self) -> bool:
        """Whether an expected token will end it, whichever it is."""
        return self.num_expected_tokens > 0 and len(self.token_ids) >= self.max_total_tokens

    def expect_token(self) -> None:
        """Make a place for a token that is on its way."""
        self.token_ids.append(0)
        self.num_expected_tokens += 1

    def add_token(self, token_id: int) -> None:
        """Put the next token into the first place that is kept for one, else behind the others."""
        if self.num_expected_tokens:
            self.token_ids[self.num_known_tokens] = token_id
            self.num_expected_tokens -= 1
        else:
            self.token_ids.append(token_id)

    def expect_nothing(self) -> None:
        """Give up the places of tokens that are not known."""
        del self.token_ids[self.num_known_tokens :]
        self.num_expected_tokens = 0

    @property
    def is_finished(self) -> bool:
        """Whether the sequence has ended."""
        return self.status is SequenceStatus.FINISHED
