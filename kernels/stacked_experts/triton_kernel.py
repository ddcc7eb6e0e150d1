"""Launching stacked experts: pairs of token and expert are sorted by expert, multiplied in groups, and combined.

Knows shapes. Does not know how a tile is computed (`triton_products`). Nothing here waits for the GPU: grids are bounds
that hold for any routing, and programs past the last tile end at once.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton

from kernels.aot import Build, constants_among
from kernels.dependent_launch import launch_options as dependent
from kernels.stacked_experts import triton_products as products
from kernels.tuning import Choices

if TYPE_CHECKING:
    from kernels.stacked_experts import Activation


def _class(limit: float) -> str:
    return f"up to {limit} pairs an expert"


PAIRS_AT_ONCE = 128  # that one program counts or sorts
MOST_EXPERTS = 128  # that one compilation serves; programs look through a table of that many
COMBINED_CHANNELS = 1024  # of one token, that one program adds up
TILES = (
    (4, (16, 32, 256, 2, 3)),
    (32, (32, 128, 128, 4, 3)),
    (128, (64, 128, 64, 4, 4)),
    (math.inf, (128, 256, 64, 8, 3)),
)  # up to so many pairs an expert: rows, outputs, channels, warps, stages
CHOICES = Choices({_class(limit): (tile, *(other for _, other in TILES if other != tile)) for limit, tile in TILES})


def stacked_experts_triton(
    hidden: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    activate: "Activation",
    *,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute; see the contract in `kernels.stacked_experts`."""
    first = partial(_multiply, weight=gate_up, bias=gate_up_bias)
    second = partial(_multiply, weight=down, bias=down_bias)
    return compute_experts(hidden, expert_ids, weights, len(gate_up), first, activate, second)


class Grouped(NamedTuple):
    """Pairs of token and expert, sorted by expert, and what a product's rows are.

    Attributes:
        pairs: [T A] int32, see `sort_pairs`.
        counts: [E + 1] int32, how many each expert has.
        num_experts: E.
        num_chosen: A, where rows are those of tokens and answers come in the order of `pairs`; 0 for the reverse.
    """

    pairs: torch.Tensor
    counts: torch.Tensor
    num_experts: int
    num_chosen: int

    def back(self) -> "Grouped":
        """Return the same for the product that takes the answers of this one."""
        return self._replace(num_chosen=0)

    @property
    def arguments(self) -> dict[str, Any]:
        """What a kernel that calls `expert_tile` is told."""
        return self._asdict() | {"BLOCK_E": block_of(self.num_experts)}

    @property
    def share(self) -> float:
        """Pairs an expert has on average."""
        return len(self.pairs) / self.num_experts

    def num_tiles(self, num_rows: int) -> int:
        """Return how many tiles of so many rows there are at most."""
        return len(self.pairs) // num_rows + min(self.num_experts, len(self.pairs))


def compute_experts(
    hidden: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    num_experts: int,
    first: Callable[..., torch.Tensor],
    activate: "Activation",
    second: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Sort pairs, multiply twice and add up, whatever form the experts' weights have.

    Both products map rows, and `grouped`, to the answer of each pair.
    """
    if not hidden.numel():
        return torch.empty_like(hidden)
    grouped = group_pairs(expert_ids, num_experts)
    answers = second(activate(first(hidden, grouped=grouped)), grouped=grouped.back())
    return combine(answers, expert_ids, weights, num_experts)


def group_pairs(expert_ids: torch.Tensor, num_experts: int) -> Grouped:
    """Sort tokens' choices, [T, A], for the first product."""
    return Grouped(*sort_pairs(expert_ids, num_experts), num_experts, expert_ids.shape[1])


def block_of(num_experts: int) -> int:
    """Return the width of the table of experts."""
    return max(MOST_EXPERTS, triton.next_power_of_2(num_experts))


def sort_pairs(expert_ids: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pairs `token * A + place` [T A] int32, grouped by rising expert, and [E + 1] int32, how many each has.

    The last ones are nobody's. Many pairs of an expert come in any order: a row's answer does not depend on the others.
    """
    num_pairs = expert_ids.numel()
    if num_pairs <= PAIRS_AT_ONCE:
        return _group_few(expert_ids, num_experts)
    pairs, ranks = torch.empty(2, num_pairs, dtype=torch.int32, device=expert_ids.device)
    counts = torch.zeros(num_experts + 1, dtype=torch.int32, device=expert_ids.device)
    grid = (triton.cdiv(num_pairs, PAIRS_AT_ONCE),)
    options: dict[str, Any] = {"BLOCK": PAIRS_AT_ONCE}
    products.count_kernel[grid](expert_ids, counts, ranks, num_pairs, **options)
    options["BLOCK_E"] = block_of(num_experts)
    products.sort_kernel[grid](expert_ids, counts, ranks, pairs, num_pairs, num_experts, **options)
    return pairs, counts


def _group_few(expert_ids: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    num_pairs, device = expert_ids.numel(), expert_ids.device
    pairs = torch.empty(num_pairs, dtype=torch.int32, device=device)
    counts = torch.empty(num_experts + 1, dtype=torch.int32, device=device)
    options: dict[str, Any] = {"BLOCK": PAIRS_AT_ONCE, "BLOCK_E": triton.next_power_of_2(num_experts + 1)}
    products.group_kernel[(1,)](expert_ids, counts, pairs, num_pairs, num_experts, **options, **dependent(device))
    return pairs, counts


def launch_options(share: float) -> dict[str, Any]:
    """Return what is constant in a product: narrow tiles while an expert has few rows on average."""
    block_t, block_o, block_c, warps, stages = CHOICES.of(_class(next(limit for limit, _ in TILES if share <= limit)))
    return {"BLOCK_T": block_t, "BLOCK_O": block_o, "BLOCK_C": block_c, "num_warps": warps, "num_stages": stages}


def _multiply(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, grouped: Grouped) -> torch.Tensor:
    """Multiply each pair's row by its expert's weight [E, O, C]; returns [T A, O]."""
    _, num_outputs, num_channels = weight.shape
    out = torch.empty(len(grouped.pairs), num_outputs, dtype=rows.dtype, device=rows.device)
    options = launch_options(grouped.share)
    grid = (grouped.num_tiles(options["BLOCK_T"]) * triton.cdiv(num_outputs, options["BLOCK_O"]),)
    sizes = {"num_outputs": num_outputs, "num_channels": num_channels}
    products.multiply_kernel[grid](
        rows, weight, bias, out, **grouped.arguments, **sizes, **options, **dependent(out.device)
    )
    return out


def combine(answers: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Add up each token's answers, [T A, C] in the order of token and place, by its weights; returns [T, C]."""
    (num_tokens, num_chosen), width = weights.shape, answers.shape[1]
    out = torch.empty(num_tokens, width, dtype=answers.dtype, device=answers.device)
    grid = (num_tokens, triton.cdiv(width, COMBINED_CHANNELS))
    options: dict[str, Any] = {"CHOSEN": num_chosen, "BLOCK": COMBINED_CHANNELS}
    more = dependent(out.device)
    products.combine_kernel[grid](answers, expert_ids, weights, out, num_experts, width, **options, **more)
    return out


def shipped() -> list[Build]:
    """Return sorting, every tile of a product, and combining, in the types that experts come in."""
    multiplying = [
        _multiply_build(element, share, has_bias=has_bias)
        for element in ("bf16", "fp16")
        for share in (1, 32, 128, 1024)
        for has_bias in (False, True)
    ]
    return [
        *_sort_builds(),
        *multiplying,
        *(_combine_build(element, n) for element in ("bf16", "fp16") for n in (2, 4, 8)),
    ]


def _sort_builds() -> list[Build]:
    types = {"expert_ids": "*i64", "counts": "*i32", "ranks": "*i32", "num_pairs": "i32"}
    sizes: dict[str, Any] = {"BLOCK": PAIRS_AT_ONCE}
    return [
        Build(
            "group",
            products.group_kernel,
            {"expert_ids": "*i64", "counts": "*i32", "pairs": "*i32", "num_pairs": "i32", "num_experts": "i32"},
            sizes | {"BLOCK_E": MOST_EXPERTS},
        ),
        Build("count", products.count_kernel, types, sizes),
        Build(
            "sort",
            products.sort_kernel,
            types | {"pairs": "*i32", "num_experts": "i32"},
            sizes | {"BLOCK_E": MOST_EXPERTS},
            is_sampled=True,
        ),
    ]


def _multiply_build(element: str, share: int, *, has_bias: bool) -> Build:
    options = launch_options(share)
    elements = dict.fromkeys(("rows", "weight", "out", *(("bias",) if has_bias else ())), f"*{element}")
    sizes = dict.fromkeys(("num_experts", "num_outputs", "num_channels", "num_chosen"), "i32")
    constants = constants_among(options) | {"BLOCK_E": MOST_EXPERTS}
    return Build(
        f"{element}, {options['BLOCK_T']} x {options['BLOCK_O']}{', bias' if has_bias else ''}",
        products.multiply_kernel,
        elements | {"pairs": "*i32", "counts": "*i32"} | sizes,
        constants if has_bias else constants | {"bias": None},
        frozenset({"num_outputs", "num_channels"}),
        num_warps=options["num_warps"],
        num_stages=options["num_stages"],
        is_sampled=element == "bf16" and share == 1024 and not has_bias,
    )


def _combine_build(element: str, num_chosen: int) -> Build:
    return Build(
        f"{element}, combine {num_chosen}",
        products.combine_kernel,
        dict.fromkeys(("answers", "weights", "out"), f"*{element}")
        | {"expert_ids": "*i64", "num_experts": "i32", "width": "i32"},
        {"CHOSEN": num_chosen, "BLOCK": COMBINED_CHANNELS},
        frozenset({"width"}),
    )
