"""Launching stacked experts: pairs of token and expert are sorted by expert, multiplied in groups, and combined.

Knows shapes. Does not know how a tile is computed (`triton_products`). Nothing here waits for the GPU: grids are bounds
that hold for any routing, and programs past the last tile end at once.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
import triton

from kernels.aot import Build
from kernels.stacked_experts import triton_products as products
from kernels.tuning import Choices

if TYPE_CHECKING:
    from kernels.stacked_experts import Activation


def _class(limit: float) -> str:
    return f"up to {limit} pairs an expert"


PAIRS_AT_ONCE = 128  # that one program counts or sorts
COMBINED_CHANNELS = 1024  # of one token, that one program adds up
TILES = (
    (4, (16, 32, 128, 4, 4)),
    (32, (32, 64, 64, 4, 4)),
    (128, (64, 128, 64, 4, 4)),
    (math.inf, (128, 128, 64, 8, 3)),
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
    if not hidden.numel():
        return torch.empty_like(hidden)
    pairs, counts = sort_pairs(expert_ids, len(gate_up))
    inner = activate(_multiply(hidden, gate_up, gate_up_bias, pairs, counts, expert_ids.shape[1]))
    answers = _multiply(inner, down, down_bias, pairs, counts, 0)
    return _combine(answers, expert_ids, weights, len(gate_up))


def sort_pairs(expert_ids: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pairs `token * A + place` [T A] int32, grouped by rising expert, and [E + 1] int32, how many each has.

    The last ones are nobody's. An expert's pairs come in any order: a row's answer does not depend on its neighbours.
    """
    num_pairs = expert_ids.numel()
    pairs, ranks = torch.empty(2, num_pairs, dtype=torch.int32, device=expert_ids.device)
    counts = torch.zeros(num_experts + 1, dtype=torch.int32, device=expert_ids.device)
    grid = (triton.cdiv(num_pairs, PAIRS_AT_ONCE),)
    options: dict[str, Any] = {"BLOCK": PAIRS_AT_ONCE}
    products.count_kernel[grid](expert_ids, counts, ranks, num_pairs, **options)
    options["BLOCK_E"] = triton.next_power_of_2(num_experts)
    products.sort_kernel[grid](expert_ids, counts, ranks, pairs, num_pairs, num_experts, **options)
    return pairs, counts


def launch_options(num_pairs: int, num_experts: int) -> dict[str, Any]:
    """Return what is constant in a product: narrow tiles while an expert has few rows on average."""
    share = num_pairs / num_experts
    block_t, block_o, block_c, warps, stages = CHOICES.of(_class(next(limit for limit, _ in TILES if share <= limit)))
    return {
        "BLOCK_T": block_t,
        "BLOCK_O": block_o,
        "BLOCK_C": block_c,
        "BLOCK_E": triton.next_power_of_2(num_experts),
        "num_warps": warps,
        "num_stages": stages,
    }


def _multiply(
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    pairs: torch.Tensor,
    counts: torch.Tensor,
    num_chosen: int,
) -> torch.Tensor:
    """Multiply each pair's row by its expert's weight [E, O, C]; returns [T A, O].

    With `num_chosen` rows are those of tokens and the answers are in the order of `pairs`; with 0 it is the reverse:
    rows are in the order of `pairs`, answers in that of token and place.
    """
    (num_experts, num_outputs, num_channels), num_pairs = weight.shape, len(pairs)
    out = torch.empty(num_pairs, num_outputs, dtype=rows.dtype, device=rows.device)
    options = launch_options(num_pairs, num_experts)
    num_tiles = num_pairs // options["BLOCK_T"] + min(num_experts, num_pairs)
    grid = (num_tiles * triton.cdiv(num_outputs, options["BLOCK_O"]),)
    products.multiply_kernel[grid](
        rows, weight, bias, out, pairs, counts, num_experts, num_outputs, num_channels, num_chosen,
        BY_TOKEN=num_chosen > 0, **options,
    )  # fmt: skip
    return out


def _combine(answers: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_experts: int) -> torch.Tensor:
    (num_tokens, num_chosen), width = weights.shape, answers.shape[1]
    out = torch.empty(num_tokens, width, dtype=answers.dtype, device=answers.device)
    grid = (num_tokens, triton.cdiv(width, COMBINED_CHANNELS))
    options: dict[str, Any] = {"CHOSEN": num_chosen, "BLOCK": COMBINED_CHANNELS}
    products.combine_kernel[grid](answers, expert_ids, weights, out, num_experts, width, **options)
    return out


def shipped() -> list[Build]:
    """Return sorting, every tile of both products, and combining, for the numbers of experts we serve."""
    sorting = [_count_build(), *(_sort_build(block_e) for block_e in (8, 32, 64, 128))]
    products_of_halves = [
        _multiply_build(element, block_e, share, by_token=by_token)
        for element in ("bf16", "fp16")
        for block_e in (8, 32, 64, 128)
        for share in (1, 32, 128, 1024)
        for by_token in (True, False)
    ]
    return (
        sorting + products_of_halves + [_combine_build(element, n) for element in ("bf16", "fp16") for n in (2, 4, 8)]
    )


def _count_build() -> Build:
    types = {"expert_ids": "*i64", "counts": "*i32", "ranks": "*i32", "num_pairs": "i32"}
    return Build("count", products.count_kernel, types, {"BLOCK": PAIRS_AT_ONCE})


def _sort_build(block_e: int) -> Build:
    types = {"expert_ids": "*i64", "counts": "*i32", "ranks": "*i32", "pairs": "*i32"}
    return Build(
        f"sort, {block_e} experts",
        products.sort_kernel,
        types | {"num_pairs": "i32", "num_experts": "i32"},
        {"BLOCK": PAIRS_AT_ONCE, "BLOCK_E": block_e},
        is_sampled=block_e == 128,
    )


def _multiply_build(element: str, block_e: int, share: int, *, by_token: bool) -> Build:
    options = launch_options(share * block_e, block_e)
    sizes = dict.fromkeys(("num_experts", "num_outputs", "num_channels", "num_chosen"), "i32")
    tile = f"{options['BLOCK_T']} x {options['BLOCK_O']}"
    return Build(
        f"{element}, {tile}, {block_e} experts, rows of {'tokens' if by_token else 'pairs'}",
        products.multiply_kernel,
        {
            "rows": f"*{element}",
            "weight": f"*{element}",
            "out": f"*{element}",
            "pairs": "*i32",
            "counts": "*i32",
            **sizes,
        },
        {key: value for key, value in options.items() if key.isupper()} | {"bias": None, "BY_TOKEN": by_token},
        frozenset({"num_outputs", "num_channels"}),
        num_warps=options["num_warps"],
        num_stages=options["num_stages"],
        is_sampled=element == "bf16" and block_e == 8 and share == 1024 and by_token,
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
