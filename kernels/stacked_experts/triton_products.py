"""Sorting, grouped products and combining in Triton's language.

A product's program finds its expert from the counts, then multiplies up to `BLOCK_T` of that expert's rows with
`BLOCK_O` of its outputs. Rows, outputs and channels past the ends are loaded as 0 and add nothing. Sums in fp32.
"""

import triton
import triton.language as tl

from kernels.dependent_launch import await_inputs


@triton.jit(do_not_specialize=["num_pairs", "num_experts"])
def group_kernel(
    expert_ids, counts, pairs, num_pairs, num_experts,
    BLOCK: tl.constexpr, BLOCK_E: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Do what `count_kernel` and `sort_kernel` do, in one program, for pairs that fit in one block."""
    pair, experts = tl.arange(0, BLOCK), tl.arange(0, BLOCK_E)
    is_pair = pair < num_pairs
    await_inputs(DEPENDENT)
    expert = tl.load(expert_ids + pair, mask=is_pair, other=num_experts + 1).to(tl.int32)
    is_lower, is_same = expert[None, :] < expert[:, None], expert[None, :] == expert[:, None]
    is_first = is_lower | (is_same & (pair[None, :] < pair[:, None]))
    tl.store(pairs + tl.sum(is_first.to(tl.int32), axis=1), pair, mask=is_pair)
    count = tl.sum((expert[:, None] == experts[None, :]).to(tl.int32), axis=0)
    tl.store(counts + experts, count, mask=experts <= num_experts)


@triton.jit
def count_kernel(expert_ids, counts, ranks, num_pairs, BLOCK: tl.constexpr):
    """Count each expert's pairs; a pair's rank among them is what the count was before it."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = pair < num_pairs
    expert = tl.load(expert_ids + pair, mask=mask, other=0)
    rank = tl.atomic_add(counts + expert, 1, mask=mask)
    tl.store(ranks + pair, rank, mask=mask)


@triton.jit
def sort_kernel(expert_ids, counts, ranks, pairs, num_pairs, num_experts, BLOCK: tl.constexpr, BLOCK_E: tl.constexpr):
    """pairs[number of pairs of lower experts + rank] = pair."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = pair < num_pairs
    expert = tl.load(expert_ids + pair, mask=mask, other=0)
    experts = tl.arange(0, BLOCK_E)
    count = tl.load(counts + experts, mask=experts < num_experts, other=0)
    start = tl.sum(tl.where(experts[None, :] < expert[:, None], count[None, :], 0), axis=1)
    tl.store(pairs + start + tl.load(ranks + pair, mask=mask, other=0), pair, mask=mask)


@triton.jit
def expert_tile(
    pairs, counts, num_experts, num_outputs, num_chosen,
    BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Find this program's tile: expert by expert, and down each one's rows first.

    So what runs at a time shares an expert's rows, which stay in the cache, and each weight is read once.

    With `num_chosen` rows are those of tokens and the answers are in the order of `pairs`; with 0 it is the reverse:
    rows are in the order of `pairs`, answers in that of token and place.

    Returns:
        expert: whose weight it multiplies by.
        source, target, is_row: [BLOCK_T], rows that it reads and writes, and whether there is one.
        first_output: at least num_outputs where the program is past the last tile.
    """
    experts = tl.arange(0, BLOCK_E)
    count = tl.load(counts + experts, mask=experts < num_experts, other=0)
    row_tiles, blocks = tl.cdiv(count, BLOCK_T), tl.cdiv(num_outputs, BLOCK_O)
    until = tl.cumsum(row_tiles, axis=0) * blocks
    program = tl.program_id(0)
    expert = tl.sum((until <= program).to(tl.int32), axis=0)
    is_before = experts < expert
    tile = program - tl.sum(tl.where(is_before, row_tiles, 0), axis=0) * blocks  # of this expert's
    num_own = tl.maximum(tl.sum(tl.where(experts == expert, row_tiles, 0), axis=0), 1)
    first_output = tl.where(program < tl.max(until, axis=0), tile // num_own * BLOCK_O, num_outputs)
    within = tile % num_own * BLOCK_T + tl.arange(0, BLOCK_T)
    is_row = within < tl.sum(tl.where(experts == expert, count, 0), axis=0)
    place = tl.sum(tl.where(is_before, count, 0), axis=0) + within
    pair = tl.load(pairs + place, mask=is_row & (first_output < num_outputs), other=0)
    source = tl.where(num_chosen > 0, pair // tl.maximum(num_chosen, 1), place)
    target = tl.where(num_chosen > 0, place, pair)
    return expert, source, target, is_row, first_output


@triton.jit(do_not_specialize=["num_experts", "num_chosen"])
def multiply_kernel(
    rows, weight, bias, out, pairs, counts, num_experts, num_outputs, num_channels, num_chosen,
    BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Out = rows weight[expert]^T + bias[expert], a tile of one expert's."""
    await_inputs(DEPENDENT)
    expert, source, target, is_row, first_output = expert_tile(
        pairs, counts, num_experts, num_outputs, num_chosen, BLOCK_T, BLOCK_O, BLOCK_E
    )
    if first_output >= num_outputs:
        return
    o = first_output + tl.arange(0, BLOCK_O)
    c = tl.arange(0, BLOCK_C)
    x = rows + source.to(tl.int64)[:, None] * num_channels + c[None, :]
    w = weight + (expert.to(tl.int64) * num_outputs + o.to(tl.int64))[:, None] * num_channels + c[None, :]
    sums = tl.zeros((BLOCK_T, BLOCK_O), tl.float32)
    if bias is not None:  # first: on sm_100 its place, kept for the end, was spilled in the loop
        sums += tl.load(bias + expert * num_outputs + o, mask=o < num_outputs, other=0.0).to(tl.float32)[None, :]
    for start in range(0, num_channels, BLOCK_C):
        is_channel = (start + c < num_channels)[None, :]
        left = tl.load(x + start, mask=is_row[:, None] & is_channel, other=0.0)
        right = tl.load(w + start, mask=(o < num_outputs)[:, None] & is_channel, other=0.0)
        sums = tl.dot(left, tl.trans(right), sums, input_precision="ieee")
    targets = out + target.to(tl.int64)[:, None] * num_outputs + o[None, :]
    tl.store(targets, sums.to(out.dtype.element_ty), mask=is_row[:, None] & (o < num_outputs)[None, :])


@triton.jit
def combine_kernel(
    answers, expert_ids, weights, out, num_experts, width,
    CHOSEN: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """out[t] = sum_a weights[t, a] * answers[t, a], in the order of a."""
    await_inputs(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    lanes = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = lanes < width
    sums = tl.zeros((BLOCK,), tl.float32)
    for place in tl.static_range(CHOSEN):
        pair = token * CHOSEN + place
        is_somebody = tl.load(expert_ids + pair) < num_experts  # nobody has left no answer to read
        answer = tl.load(answers + pair * width + lanes, mask=mask & is_somebody, other=0.0).to(tl.float32)
        sums += tl.load(weights + pair).to(tl.float32) * answer
    tl.store(out + token * width + lanes, sums.to(out.dtype.element_ty), mask=mask)
