"""From logits to one token for each sequence.

Knows logits and arrays of options. Does not know the model, blocks or text, or what options mean (`sampling_inputs`).

The order is: the rules of `engine.logit_rules`, the guide's mask, (greedy ends here), temperature, top-k, top-p, min-p,
draw. Random numbers are a function of (seed, position). Log-probabilities are those of the model before any option.

Invariants:
1. What happens to one row depends on that row and its own sequence only, failures included.
2. Rows are handled together; what is done row by row costs a few microseconds and only for rows that ask for it.
3. `start_sampling` does not wait for the device; `PendingTokens.read` waits once.
"""

import math
from dataclasses import dataclass

import torch

from engine.device_link import DeviceLink, Download, HostLink
from engine.errors import EngineError, RequestFailed
from engine.log_probs import LoggedRows
from engine.sampling_inputs import SamplingInputs, collect_inputs
from engine.sequence import Sequence
from engine.top_tokens import TopTokens
from kernels import draw_token
from kernels.draw_token import Draws, Edits

HOST_LINK = HostLink()


@dataclass(slots=True)
class SampledTokens:
    """What each of the R sampling sequences got.

    Attributes:
        token_ids: the tokens; where there is an error, any number.
        log_probs: the token's log-probability, where the sequence asks for it.
        tops: the likeliest tokens, where the sequence asks for log-probabilities.
        errors: why a sequence has no token.
    """

    token_ids: list[int]
    log_probs: list[float | None]
    tops: list[TopTokens | None]
    errors: list[EngineError | None]

    @classmethod
    def failed(cls, error: EngineError, count: int) -> "SampledTokens":
        """Return that `count` sequences have no token."""
        return cls([0] * count, [None] * count, [None] * count, [error] * count)


@dataclass(slots=True)
class PendingTokens:
    """Tokens that are chosen, or are about to be, on the device.

    Attributes:
        token_ids: [R] int64, on the device.
        inputs: what was asked for.
        logged: the rows whose log-probabilities are wanted, None for no rows.
        download: brings token ids, largest logits and log-probabilities to the host.
    """

    token_ids: torch.Tensor
    inputs: SamplingInputs
    logged: LoggedRows | None
    download: Download

    def read(self) -> SampledTokens:
        """Wait for the tokens."""
        token_ids, maxima, *logged = self.download.wait()
        errors = [error or _explain(top) for error, top in zip(self.inputs.errors, maxima.tolist(), strict=True)]
        count = len(errors)
        sampled = SampledTokens(token_ids.tolist(), [None] * count, [None] * count, errors)
        if self.logged is not None:
            for row, log_prob, top in zip(self.inputs.log_rows, *self.logged.read(logged), strict=True):
                sampled.log_probs[row], sampled.tops[row] = log_prob, top
        return sampled


def sample(logits: torch.Tensor, sequences: list[Sequence], link: DeviceLink = HOST_LINK) -> SampledTokens:
    """Choose one token for each row of `logits` [R, V] fp32, which is changed in place, and wait for them."""
    return start_sampling(logits, sequences, link).read()


def start_sampling(logits: torch.Tensor, sequences: list[Sequence], link: DeviceLink = HOST_LINK) -> PendingTokens:
    """Begin to choose one token for each row of `logits` [R, V] fp32, which is changed in place."""
    inputs = collect_inputs(sequences, logits.shape[1])
    arrays = [inputs.log_rows, *inputs.draws, *inputs.edits]
    log_rows, *moved = link.upload([torch.from_numpy(array) for array in arrays])
    draws, edits = Draws(*moved[: len(inputs.draws)]), moved[len(inputs.draws) :]
    logged = LoggedRows(logits[log_rows], inputs.num_top) if inputs.num_top else None
    draw = draw_token.select(logits.device)
    token_ids, maxima = draw(logits, draws, Edits(*edits) if edits else None)
    log_probs = logged.of(token_ids[log_rows]) if logged is not None else []
    return PendingTokens(token_ids, inputs, logged, link.download([token_ids, maxima, *log_probs]))


def _explain(maximum: float) -> EngineError | None:
    """Return why a row of this largest logit has no token, if it has none."""
    if math.isfinite(maximum):
        return None
    if maximum == -math.inf:
        return RequestFailed("the request's options forbid every token")
    return RequestFailed(f"the model's logits are not finite: the largest is {maximum}")
