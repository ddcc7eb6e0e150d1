"""What is asked of a server: prompts of random tokens and how many tokens to answer with.

Knows token counts and a random seed. Does not know how requests are sent.
"""

import random
from dataclasses import dataclass

FIRST_ORDINARY_TOKEN = 5


@dataclass(slots=True, frozen=True)
class Workload:
    """Requests that are all sent at once.

    Attributes:
        num_requests: how many.
        num_shared: prompt tokens that all requests have in common, at the start.
        num_own: prompt tokens of each request's own.
        num_output: tokens to generate, end-of-sequence ignored.
    """

    num_requests: int
    num_shared: int
    num_own: int
    num_output: int

    @property
    def total_output(self) -> int:
        """Tokens that all requests generate together."""
        return self.num_requests * self.num_output

    def prompts(self, vocab_size: int, seed: int) -> list[list[int]]:
        """Return the prompts; another seed gives others, so that no run finds the last one's prefixes."""
        rng = random.Random(seed)  # noqa: S311 - not for secrets

        def draw(count: int) -> list[int]:
            return [rng.randrange(FIRST_ORDINARY_TOKEN, vocab_size) for _ in range(count)]

        shared = draw(self.num_shared)
        return [shared + draw(self.num_own) for _ in range(self.num_requests)]


BATCH = Workload(num_requests=64, num_shared=0, num_own=128, num_output=64)
SINGLE = Workload(num_requests=1, num_shared=0, num_own=128, num_output=64)
SHARED_PREFIX = Workload(num_requests=64, num_shared=512, num_own=16, num_output=16)
