"""Every layout over every concurrency, and from where on which one is best.

Knows layouts, memory and steady states. Does not know how they are shown.

Best is the layout of most tokens a second. Clients that ask again as soon as they are answered get, by Little's law,
`concurrency / (seconds of a request)` answers a second, so it is also the one whose answers end soonest.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from engine.models.config import ModelConfig
from scripts.planner.devices import Device, PlanError
from scripts.planner.kept import Types
from scripts.planner.layouts import Layout, all_layouts, refusal
from scripts.planner.load import Steady, Workload, steady
from scripts.planner.step import StepModel

GIB = 2**30
MEMORY_SHARE = 0.9  # the rest is for activations and the runtime
HIGHEST = 1024
CONCURRENCIES = tuple(sorted({round(2 ** (half / 2)) for half in range(2 * int(math.log2(HIGHEST)) + 1)}))


@dataclass(frozen=True, slots=True)
class Setting:
    """What is to be planned.

    Attributes:
        num_devices: all of them are used.
        kv_bytes: cache of each device; None for what memory the weights leave.
    """

    model: ModelConfig
    device: Device
    num_devices: int
    types: Types
    work: Workload
    kv_bytes: float | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """One layout that the model fits in.

    Attributes:
        kv_tokens: tokens that one replica can keep.
    """

    layout: Layout
    step: StepModel
    work: Workload
    kv_tokens: int

    @property
    def name(self) -> str:
        """The layout's name."""
        return self.layout.name

    @property
    def largest_batch(self) -> int:
        """Requests of full length that one replica can compute at once."""
        return min(self.kv_tokens // _kept_tokens(self.work, self.step.model), self.work.max_num_seqs)

    def steady(self, concurrency: int) -> Steady:
        """Return what one of the replicas in use does under its share of the requests."""
        return _steady(self, max(1.0, concurrency / self.layout.replicas))

    def tokens_per_s(self, concurrency: int) -> float:
        """Return what all replicas make together; below one request each, some are idle."""
        return self.steady(concurrency).tokens_per_s * min(concurrency, self.layout.replicas)


@dataclass(frozen=True, slots=True)
class Change:
    """From this concurrency on another layout is best, or better."""

    at: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What fits, what does not and why."""

    setting: Setting
    options: tuple[Option, ...]
    refused: tuple[tuple[Layout, str], ...]


def make_plan(setting: Setting) -> Plan:
    """Lay a model out in every way.

    Raises:
        PlanError: a step cannot hold the sequences it may, or the device cannot compute in the types.
    """
    _check(setting)
    model, work = setting.model, setting.work
    options: list[Option] = []
    refused: list[tuple[Layout, str]] = []
    for layout in all_layouts(setting.num_devices):
        if reason := refusal(layout, model):
            refused.append((layout, reason))
            continue
        step = StepModel(model, setting.device, layout, setting.types)
        option = Option(layout, step, work, _kv_tokens(step, setting.kv_bytes))
        if option.largest_batch:
            options.append(option)
        else:
            refused.append((layout, _no_room(option)))
    return Plan(setting, tuple(options), tuple(refused))


def best_changes(options: Sequence[Option], concurrencies: Sequence[int] = CONCURRENCIES) -> list[Change]:
    """Return each change of the best layout as concurrency rises; the first is from 1 on."""
    if not options:
        return []

    def best(concurrency: int) -> str:
        return max(options, key=lambda option: option.tokens_per_s(concurrency)).name

    changes = [Change(concurrencies[0], "", best(concurrencies[0]))]
    for low, high in pairwise(concurrencies):
        while (before := changes[-1].after) != best(high):
            at = _first(low, high, lambda number, before=before: best(number) != before)
            changes.append(Change(at, before, best(at)))
            low = at  # noqa: PLW2901 - the rest of the same interval
    return changes


def thresholds(options: Sequence[Option], concurrencies: Sequence[int] = CONCURRENCIES) -> Iterator[Change]:
    """Yield, of each two layouts of which one is better for few and the other for many, from where on it is."""
    for low in options:
        for high in options:
            ahead = [high.tokens_per_s(number) > low.tokens_per_s(number) for number in concurrencies]
            if ahead != sorted(ahead) or ahead[0] or not ahead[-1]:
                continue
            index = ahead.index(True)

            def is_ahead(number: int, low: Option = low, high: Option = high) -> bool:
                return high.tokens_per_s(number) > low.tokens_per_s(number)

            yield Change(_first(concurrencies[index - 1], concurrencies[index], is_ahead), low.name, high.name)


@lru_cache(maxsize=1 << 16)
def _steady(option: Option, in_flight: float) -> Steady:
    return steady(option.step, option.work, in_flight, option.largest_batch)


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the first number above `low` at which it holds, which it does at `high` and not at `low`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _check(setting: Setting) -> None:
    device, types, work = setting.device, setting.types, setting.work
    if types.operands(device) not in device.compute:
        raise PlanError(
            f"{device.name} has no rate for {types.weights} weights ({types.operands(device)} products); it has rates "
            f"for {', '.join(device.compute)}"
        )
    longest = setting.model.max_sequence_length
    if work.prompt + work.output > longest:
        raise PlanError(f"{work.prompt} tokens in and {work.output} out are more than the model's {longest} positions")
    if work.token_budget <= work.max_num_seqs:
        raise PlanError(
            f"a budget of {work.token_budget} tokens a step leaves nothing for prompts beside {work.max_num_seqs} "
            "sequences"
        )


def _kv_tokens(step: StepModel, kv_bytes: float | None) -> int:
    left = step.device.memory * MEMORY_SHARE - step.weight_bytes
    given = left if kv_bytes is None else min(left, kv_bytes)
    return max(0, int(given / step.kv_bytes_per_token))


def _kept_tokens(work: Workload, model: ModelConfig) -> int:
    """Return the tokens that a request keeps at its longest."""
    longest = work.prompt + work.output
    return longest if model.sliding_window is None else min(longest, model.sliding_window)


def _no_room(option: Option) -> str:
    weights, usable = (
        f"{size / GIB:.1f} GiB" for size in (option.step.weight_bytes, option.step.device.memory * MEMORY_SHARE)
    )
    kept = _kept_tokens(option.work, option.step.model)
    room = f"there is room for {option.kv_tokens:,} tokens, and one request keeps {kept:,}"
    return f"{weights} of weights in {usable} of a device; {room}"
