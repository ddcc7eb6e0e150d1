"""What can be set about routing.

Knows fields and limits. Does not know how they are used.
"""

from pydantic import Field, model_validator

from gateway.routing.levels import Level, LevelRule
from gateway.routing.outliers import OutliersConfig
from gateway.routing.plan_file import PlanConfig
from gateway.routing.policy import PolicyName
from gateway.strict import Strict


class LevelsConfig(Strict):
    """Two pools of instances, one for few requests in flight and one for many."""

    low_pool: str = Field(description="pool below the threshold")
    high_pool: str = Field(description="pool from it on")
    threshold: float = Field(default=64.0, gt=0, description="requests in flight")
    hysteresis: float = Field(default=0.1, ge=0, lt=1, description="share of the threshold by which it must be passed")
    window_s: float = Field(default=5.0, ge=0, description="seconds over which requests in flight are averaged")
    plan: PlanConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> "LevelsConfig":
        if self.plan is not None and "threshold" in self.model_fields_set:
            raise ValueError("both a threshold and a plan to take it from")
        if self.low_pool == self.high_pool:
            raise ValueError(f"low_pool and high_pool are both {self.low_pool!r}")
        return self

    def rule(self) -> LevelRule:
        """Return the rule."""
        pools = {Level.LOW: self.low_pool, Level.HIGH: self.high_pool}
        threshold = self.threshold if self.plan is None else self.plan.threshold
        return LevelRule(pools, threshold, self.hysteresis, self.window_s)


class RoutingConfig(Strict):
    """How instances are chosen."""

    policy: PolicyName = Field(default=PolicyName.QUEUE_DEPTH, description="how an instance is chosen")
    split: dict[str, float] = Field(
        default_factory=dict, description="weight of each group of instances, as for a canary"
    )
    levels: LevelsConfig | None = None
    slow_start_s: float = Field(
        default=10.0, ge=0, description="seconds in which a recovered instance gets less than its share"
    )
    outliers: OutliersConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> "RoutingConfig":
        if any(weight < 0 for weight in self.split.values()):
            raise ValueError("a weight in split is negative")
        if self.split and not any(self.split.values()):
            raise ValueError("every weight in split is 0")
        return self
