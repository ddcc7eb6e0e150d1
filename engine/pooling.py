"""One vector for a text, made of the hidden states of its tokens as they are computed.

Knows rows of numbers, in chunks. Does not know models, tensors or scheduling.

Invariant: how the text is cut into chunks, and whether it is computed again from its start, changes no more than the
last bits of the result. Sums are kept in double precision.
"""

from dataclasses import dataclass, field

import numpy as np

from engine.errors import RequestFailed

POOLINGS = ("mean", "last")


@dataclass(slots=True)
class Pooler:
    """Pools the states of one text.

    Attributes:
        kind: `mean` of all tokens' states, or that of the `last` token.
        normalize: scale the result to length 1; one without length stays as it is.
    """

    kind: str
    normalize: bool = True
    _sum: np.ndarray | None = field(default=None, init=False)
    _count: int = field(default=0, init=False)

    @property
    def needs_every_token(self) -> bool:
        """Whether the states of all tokens count, so that none may be left out because its KV is known."""
        return self.kind == "mean"

    def first_wanted(self, first: int, end: int, num_tokens: int) -> int:
        """Return the first of the tokens `first` .. `end` - 1, of `num_tokens`, whose states are wanted; else `end`."""
        if self.needs_every_token:
            return first
        return end - 1 if end == num_tokens else end

    def take(self, states: np.ndarray, position: int) -> None:
        """Take the states, [n, C], of the wanted tokens from `position` on; from 0 on begins anew."""
        if position == 0 or self._sum is None:
            self._sum, self._count = np.zeros(states.shape[1]), 0
        self._sum += states.sum(axis=0, dtype=np.float64)
        self._count += len(states)

    def result(self) -> np.ndarray:
        """Return the vector, [C] fp32, once all wanted states have been taken.

        Raises:
            RequestFailed: it is not finite.
        """
        assert self._sum is not None
        vector = self._sum / self._count
        if not np.isfinite(vector).all():
            raise RequestFailed("the model's hidden states are not finite")
        length = np.linalg.norm(vector)
        return (vector / length if self.normalize and length else vector).astype(np.float32)
