"""How long a step would take.

Knows token counts. Does not know machines: the three costs stand for one.
"""

from dataclasses import dataclass

from engine.step_plan import StepPlan


@dataclass(slots=True, frozen=True)
class CostModel:
    """A step costs something fixed, something for each token it computes, and something for each key it reads.

    The defaults are arithmetic, not a measurement: about an 8B model in 16 bits on one GPU with 2 TB/s and 300 TFLOP/s
    in use (16 GB of weights read a step, 16 GFLOP a token, 128 KiB of keys and values a token of context).
    """

    fixed_ms: float = 8.0
    token_us: float = 55.0
    kv_token_us: float = 0.065

    def seconds(self, plan: StepPlan) -> float:
        """Return the duration of a step; a chunk of a prompt reads the keys before it once."""
        num_keys = sum(item.sequence.num_computed_tokens + item.num_tokens for item in plan.scheduled)
        return self.fixed_ms / 1e3 + plan.num_tokens * self.token_us / 1e6 + num_keys * self.kv_token_us / 1e6
