"""The model's own log-probabilities, before any option is applied: of chosen tokens and of the likeliest ones.

Knows logits and token ids. Does not know sequences or sampling.
"""

from dataclasses import dataclass

import numpy as np
import torch

from engine.top_tokens import TopTokens


@dataclass(slots=True)
class LoggedRows:
    """Copies of the logits of some rows, taken before the rows are changed.

    Attributes:
        logits: [L, V] fp32.
        num_top: [L], how many of the likeliest tokens each row wants.
    """

    logits: torch.Tensor
    num_top: list[int]

    def read(self, token_ids: np.ndarray) -> tuple[list[float], list[TopTokens]]:
        """Return each row's log-probability of its token [L], and its likeliest tokens."""
        if not self.num_top:
            return [], []
        totals = self.logits.logsumexp(dim=-1, keepdim=True)
        chosen = self.logits.gather(1, torch.from_numpy(token_ids).unsqueeze(1)) - totals
        width = min(max(self.num_top), self.logits.shape[1])
        values, ids = self.logits.topk(width, dim=-1) if width else (totals[:, :0], totals[:, :0].long())
        rows = zip(self.num_top, ids.tolist(), (values - totals).tolist(), strict=True)
        tops = [TopTokens(min(num, width), row_ids[:num], row_values[:num]) for num, row_ids, row_values in rows]
        return chosen.squeeze(1).tolist(), tops
