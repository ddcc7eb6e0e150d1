"""The model's own log-probabilities, before any option is applied: of chosen tokens and of the likeliest ones.

Knows logits and token ids. Does not know sequences or sampling.
"""

from dataclasses import dataclass

import numpy as np
import torch

from engine.top_tokens import TopTokens


@dataclass(slots=True)
class LoggedRows:
    """Some rows' logits, which nobody changes.

    Attributes:
        logits: [L, V] fp32.
        num_top: [L], how many of the likeliest tokens each row wants.
    """

    logits: torch.Tensor
    num_top: list[int]

    def of(self, token_ids: torch.Tensor) -> list[torch.Tensor]:
        """Return the log-probabilities of one token a row [L], and the likeliest tokens with theirs, [L, W] each."""
        totals = self.logits.logsumexp(dim=-1, keepdim=True)
        chosen = self.logits.gather(1, token_ids.unsqueeze(1)) - totals
        width = min(max(self.num_top, default=0), self.logits.shape[1])
        values, ids = self.logits.topk(width, dim=-1) if width else (totals[:, :0], totals[:, :0].long())
        return [chosen.squeeze(1), ids, values - totals]

    def read(self, arrays: list[np.ndarray]) -> tuple[list[float], list[TopTokens]]:
        """Return what `of` has computed, once it is on the host, as each row's own [L]."""
        chosen, ids, values = arrays
        rows = zip(self.num_top, ids.tolist(), values.tolist(), strict=True)
        width = ids.shape[1]
        tops = [TopTokens(min(num, width), row_ids[:num], row_values[:num]) for num, row_ids, row_values in rows]
        return chosen.tolist(), tops
