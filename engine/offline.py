"""Running prompts through an engine core in this process, to the end: for tests, benchmarks and scripts.

Knows a core and lists of prompts. Does not know processes or Triton.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.core import EngineCore
from engine.outputs import FinishReason, RequestOutput
from engine.sampling_params import SamplingParams
from engine.sequence import Adapter
from engine.top_tokens import TopTokens


@dataclass(slots=True)
class Completion:
    """All that one request produced."""

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top: TopTokens = field(default_factory=TopTokens)
    prompt_log_probs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    text: str = ""
    num_cached_tokens: int = 0

    def extend(self, output: RequestOutput) -> None:
        """Take the next output of the request."""
        self.token_ids += output.token_ids
        self.log_probs += output.log_probs or []
        self.top.extend(output.top or TopTokens())
        self.prompt_log_probs += output.prompt_log_probs or []
        self.finish_reason = output.finish_reason
        self.num_cached_tokens = output.num_cached_tokens


def generate(
    core: EngineCore,
    prompts: list[list[int]],
    params: list[SamplingParams],
    adapters: Sequence[Adapter | None] | None = None,
) -> list[Completion]:
    """Run all prompts at once, each with its adapter, and return their completions in order, `n` of each.

    Raises:
        EngineError: a prompt or its options cannot be served.
    """
    completions = {(i, index): Completion() for i, options in enumerate(params) for index in range(options.n)}
    chosen = adapters or [None] * len(prompts)
    for request_id, (prompt, options, adapter) in enumerate(zip(prompts, params, chosen, strict=True)):
        core.add(request_id, prompt, options, time.monotonic(), adapter=adapter)
    while core.has_work:
        for output in core.step():
            completion = completions[output.request_id, output.sequence_index]
            completion.extend(output)
            if output.finish_reason is not None:
                text = core.tokenizer.decode(completion.token_ids)
                completion.text = text[: len(text) - output.trim_chars]
    return list(completions.values())
