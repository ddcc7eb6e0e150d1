"""The replies of one sequence: its outputs cut into chunks, with the facts that belong to each chunk's tokens.

Knows outputs, chunks and what the client has already. Does not know threads, sinks or other sequences.

Invariants:
1. The replies' tokens are the prompt's, where it is echoed, and the sequence's, in order and once each, behind what the
   client has.
2. Log-probabilities and top tokens travel with their tokens.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.outputs import FinishReason, RequestOutput
from engine.text.detokenizer import Chunk, ChunkCutter
from engine.text.tokenizer import Tokenizer
from engine.top_tokens import TopTokens


@dataclass(slots=True, frozen=True)
class Reply:
    """One response: a chunk of a sequence and the facts known by now; the last output of those it covers.

    Attributes:
        chunk: tokens and their context.
        log_probs: [T], or empty; NaN for an echoed prompt's first token.
        token_index: how many tokens of the sequence the client had before.
        last: the newest output.
        num_completion_tokens: tokens of the completion that the client has with this reply.
        top: the likeliest tokens in the places of the T tokens, or none.
        prompt_log_probs: log-probability of each prompt token, NaN for the first; empty but for the first reply.
        detokenize_seconds: spent so far to find where the sequence's text may be cut.
    """

    chunk: Chunk
    log_probs: list[float]
    token_index: int
    last: RequestOutput
    num_completion_tokens: int = 0
    top: TopTokens = field(default_factory=TopTokens)
    prompt_log_probs: list[float] = field(default_factory=list)
    detokenize_seconds: float = 0.0

    @property
    def is_final(self) -> bool:
        """Whether this is the request's last reply."""
        return self.last.ends_request

    @property
    def is_error(self) -> bool:
        """Whether the request ended with an error and so has no more text."""
        return self.last.finish_reason is FinishReason.ERROR


@dataclass(slots=True, frozen=True)
class Delivery:
    """What the client of a request wants and has.

    Attributes:
        resume_ids: tokens that it has already, echoed ones included.
        echo_ids: the prompt, where it is to be echoed.
        prompt_log_probs: send those of the prompt with the first reply.
    """

    resume_ids: Sequence[int] = ()
    echo_ids: Sequence[int] = ()
    prompt_log_probs: bool = False


class ReplyStream:
    """Makes replies of one sequence's outputs."""

    def __init__(self, tokenizer: Tokenizer, delivery: Delivery) -> None:
        """Begin behind what the client has."""
        self._delivery = delivery
        self._num_sent = len(delivery.resume_ids)
        self._cutter = ChunkCutter(tokenizer)
        self._cutter.resume(delivery.resume_ids)
        self._cutter.push(delivery.echo_ids[self._num_sent :])
        self._log_probs: list[float] = []
        self._top = TopTokens()
        self._prompt_log_probs: list[float] = []
        self._detokenize_seconds = 0.0

    def take(self, outputs: Sequence[RequestOutput]) -> Reply:
        """Return a reply for all that may be sent of `outputs`, there is one at least, and of what was held back."""
        for output in outputs:
            if output.prompt_log_probs is not None:
                self._take_prompt(output, output.prompt_log_probs)
            self._cutter.push(output.token_ids)
            self._log_probs.extend(output.log_probs or ())
            self._top.extend(output.top or TopTokens())
        return self._cut(outputs[-1])

    def _take_prompt(self, output: RequestOutput, log_probs: list[float]) -> None:
        whole = [math.nan, *log_probs]
        if self._delivery.prompt_log_probs and not self._delivery.resume_ids:
            self._prompt_log_probs = whole
        if output.log_probs is not None and self._delivery.echo_ids:
            self._log_probs.extend(whole[self._num_sent :])
            top, num = output.prompt_top or TopTokens(), output.top.num if output.top else 0
            first = TopTokens(num, [0] * num, [math.nan] * num)
            first.extend(top)
            self._top.extend(first.places(self._num_sent))

    def _cut(self, last: RequestOutput) -> Reply:
        started = time.perf_counter()
        chunk = self._cutter.cut(final=last.finish_reason is not None)
        self._detokenize_seconds += time.perf_counter() - started
        count, index = len(chunk.token_ids), self._num_sent
        self._num_sent += count
        log_probs, self._log_probs = self._log_probs[:count], self._log_probs[count:]
        top, self._top = self._top.places(0, count), self._top.places(count)
        prompt_log_probs, self._prompt_log_probs = self._prompt_log_probs, []
        num_completion = max(self._num_sent - len(self._delivery.echo_ids), 0)
        return Reply(chunk, log_probs, index, last, num_completion, top, prompt_log_probs, self._detokenize_seconds)
