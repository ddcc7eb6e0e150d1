"""What the engine says about a request while and after it runs.

Knows plain values that cross process borders. Does not know tensors, text or Triton.

Invariants:
1. Outputs of one sequence of a request, joined in order, give its completion exactly once.
2. Exactly one output of a sequence has a `finish_reason`, and it is the sequence's last one. An error ends all of them.
3. Exactly one output of a request `ends_request`, and it is the last one.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from engine.top_tokens import TopTokens


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


@dataclass(slots=True)
class Timings:
    """When a request passed each station, in seconds of the machine's monotonic clock; 0.0 means not yet."""

    arrived: float = 0.0
    scheduled: float = 0.0
    first_token: float = 0.0
    finished: float = 0.0


@dataclass(slots=True)
class RequestOutput:
    """The tokens one request has gained since its previous output.

    Attributes:
        request_id: the engine-wide unique id given at submission.
        token_ids: new tokens, [T]; may be empty on the last output.
        log_probs: natural log-probability of each new token, [T]; None unless the request asked for them.
        finish_reason: set on the last output only.
        error: for `FinishReason.ERROR`, the message for the user.
        error_code: for `FinishReason.ERROR`, the gRPC status code name.
        num_prompt_tokens: length of the prompt in tokens.
        num_cached_tokens: prompt tokens whose KV came from the prefix cache.
        num_completion_tokens: tokens generated so far, these included.
        num_preemptions: how many times the request has given its KV blocks back to others.
        num_draft_tokens: tokens that were guessed for the sequence and computed with it.
        num_accepted_tokens: how many of them became part of the completion.
        sequence_index: which of the request's sequences has gained this.
        num_open_sequences: how many sequences of the request are open after this output.
        top: the likeliest tokens in the place of each new token; None unless asked for with `log_probs`.
        prompt_log_probs: of each prompt token but the first; on a sequence's first output, where asked for.
        prompt_top: the likeliest tokens in their places.
        trim_chars: characters to drop from the end of this output's text, because a stop string begins there.
        embedding: fp32 [C], where it was asked for; on the last output.
        adapters: answer to an `AdapterCommand`: the adapters in memory, JSON.
        timings: stations passed so far.
    """

    request_id: int
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    error_code: str | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_completion_tokens: int = 0
    num_preemptions: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    sequence_index: int = 0
    num_open_sequences: int = 0
    top: TopTokens | None = None
    prompt_log_probs: list[float] | None = None
    prompt_top: TopTokens | None = None
    trim_chars: int = 0
    embedding: np.ndarray | None = None
    adapters: str | None = None
    timings: Timings = field(default_factory=Timings)

    @property
    def ends_request(self) -> bool:
        """Whether the request is over with this output."""
        return self.finish_reason is not None and self.num_open_sequences == 0


@dataclass(slots=True)
class EngineStats:
    """One reading of the engine's load; counters only grow while one core process lives.

    Units: requests, blocks, tokens, seconds. `kv_usage` is 0..1; `heartbeat` counts turns of the core's loop.
    """

    num_waiting: int = 0
    num_waiting_tokens: int = 0
    num_running: int = 0
    kv_usage: float = 0.0
    num_blocks: int = 0
    block_size: int = 0
    heartbeat: int = 0
    num_steps: int = 0
    last_step_seconds: float = 0.0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_finished: int = 0
    num_expired: int = 0
    adapters: tuple[str, ...] = ()
    adapter_bytes: int = 0
    num_adapter_loads: int = 0
    num_pending: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
