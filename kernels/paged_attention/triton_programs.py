"""What a program of paged attention does on a GPU, in the Triton language.

A program takes a tile of query rows (tokens of one sequence times the G heads of one KV head, see `tiling`) and walks
the sequence's positions in its share with an online softmax (FlashAttention-2, arXiv 2307.08691, algorithm 1), in
powers of two: log2(e) is folded into the scale. Both products run on tensor cores and accumulate in fp32. Where tiles
are split, a second kernel weighs the parts by their sums (flash-decoding, Dao et al. 2023).

Masks: rows of other sequences or beyond the tile, channels beyond D, positions beyond the tile's last token or before
the window of its first: none of these is read. Blocks of positions lie at multiples of their size, so what a token gets
does not depend on the rest of its tile.

Quantized caches: keys and values are widened to the query's type, which holds all of int8 and float8; scores are
multiplied by the keys' scales and weights by the values'.
"""

import triton
import triton.language as tl

from kernels.dependent_launch import await_inputs
from kernels.triton_math import from_e4m3_bytes, tanh

MINUS_INFINITY = tl.constexpr(float("-inf"))
SEARCHED_AT_ONCE = tl.constexpr(256)


@triton.jit(do_not_specialize=["num_tokens", "tile_tokens", "is_single", "window", "table_stride"])
def attend(
    out,
    parts,
    log_sums,
    query,
    keys,
    values,
    key_scales,
    value_scales,
    tables,
    sequences,
    positions,
    sinks,
    num_tokens,
    tile_tokens,
    is_single,
    scale,
    cap,
    window,
    query_stride,
    query_head_stride,
    table_stride,
    block_stride,
    head_stride,
    GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    IS_WINDOWED: tl.constexpr,
    IS_CAPPED: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Write one tile's output for one KV head, [rows, D], or a split's share of it and the log2 of its sum."""
    await_inputs(DEPENDENT)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest, last in their prompts, go first
    kv_head, num_kv_heads = tl.program_id(1), tl.num_programs(1)
    split, num_splits = tl.program_id(2), tl.num_programs(2)
    first = tile
    if is_single == 0:
        first = _first_token(sequences, tile, num_tokens, tile_tokens)
        if first >= num_tokens:
            return
        if first // tile_tokens + tl.load(sequences + first) != tile:
            return
    sequence = tl.load(sequences + first)
    row = tl.arange(0, BLOCK_ROWS)
    token = first + row // GROUPS
    is_mine = (row < tile_tokens * GROUPS) & (token < num_tokens) & (token // tile_tokens == first // tile_tokens)
    is_mine = is_mine & (tl.load(sequences + token, mask=is_mine, other=-1) == sequence)
    head = kv_head * GROUPS + row % GROUPS
    dim = tl.arange(0, BLOCK_DIM)
    mask = is_mine[:, None] & (dim < HEAD_DIM)[None, :]
    query_at = token.to(tl.int64)[:, None] * query_stride + head[:, None] * query_head_stride + dim[None, :]
    q = tl.load(query + query_at, mask=mask, other=0.0)
    position = tl.load(positions + token, mask=is_mine, other=-1)

    begin = 0
    if IS_WINDOWED:
        begin = tl.maximum(0, tl.min(tl.where(is_mine, position, 2147483647), axis=0) - window + 1)
    end = tl.max(position, axis=0) + 1
    start = begin // BLOCK_POSITIONS * BLOCK_POSITIONS
    share = tl.cdiv(end - start, num_splits * BLOCK_POSITIONS) * BLOCK_POSITIONS
    start += split * share
    end = tl.minimum(end, start + share)

    top = tl.full((BLOCK_ROWS,), MINUS_INFINITY, tl.float32)  # largest score yet, times log2(e)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    if sinks is not None:  # noqa: SIM102 - decided by the compiler, the next one is not
        if split == 0:
            top = tl.load(sinks + head, mask=is_mine, other=0.0).to(tl.float32) * 1.4426950408889634
            total += 1.0
    acc = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
    table = tables + sequence.to(tl.int64) * table_stride
    # Brings weights times scales near the values' own size, below it: fp16 would not hold much smaller ones.
    gain: tl.constexpr = 64.0 if values.dtype.element_ty == tl.int8 else 256.0
    precision: tl.constexpr = "tf32x3" if q.dtype == tl.float32 else "tf32"
    for at in tl.range(start, end, BLOCK_POSITIONS):
        place = at + tl.arange(0, BLOCK_POSITIONS)
        is_read = (place >= begin) & (place < end)
        block = tl.load(table + place // BLOCK_SIZE, mask=is_read, other=0).to(tl.int64)
        slot = block * block_stride + kv_head * head_stride + place % BLOCK_SIZE * HEAD_DIM
        scale_slot = (block * num_kv_heads + kv_head) * BLOCK_SIZE + place % BLOCK_SIZE
        key_mask = (dim < HEAD_DIM)[:, None] & is_read[None, :]
        key = tl.load(keys + slot[None, :] + dim[:, None], mask=key_mask, other=0.0)
        scores = tl.dot(q, _widen(key, q.dtype), input_precision=precision)
        if key_scales is not None:
            scores *= tl.load(key_scales + scale_slot, mask=is_read, other=0.0)[None, :]
        scores *= scale
        if IS_CAPPED:
            scores = cap * tanh(scores)
        is_seen = is_read[None, :] & (place[None, :] <= position[:, None])
        if IS_WINDOWED:
            is_seen = is_seen & (place[None, :] > position[:, None] - window)
        scores = tl.where(is_seen, scores, MINUS_INFINITY)
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        base = tl.where(new_top == MINUS_INFINITY, 0.0, new_top)  # a row that has seen nothing yet stays at zero
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weights, axis=1)
        top = new_top
        if value_scales is not None:
            weights *= tl.load(value_scales + scale_slot, mask=is_read, other=0.0)[None, :] * gain
        value_mask = is_read[:, None] & (dim < HEAD_DIM)[None, :]
        value = tl.load(values + slot[:, None] + dim[None, :], mask=value_mask, other=0.0)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(q.dtype), _widen(value, q.dtype), acc, input_precision=precision)

    if value_scales is not None:
        acc *= 1.0 / gain
    item = token.to(tl.int64) * (num_kv_heads * GROUPS) + head
    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    if num_splits == 1:
        tl.store(out + item[:, None] * HEAD_DIM + dim[None, :], result.to(out.dtype.element_ty), mask=mask)
    else:
        item = item * num_splits + split
        tl.store(log_sums + item, tl.where(total == 0.0, MINUS_INFINITY, top + tl.log2(total)), mask=is_mine)
        tl.store(parts + item[:, None] * HEAD_DIM + dim[None, :], result, mask=mask & (start < end))


@triton.jit
def _first_token(sequences, tile, num_tokens, tile_tokens):
    """Return the first token whose tile's number is at least `tile`, or the number of tokens.

    A search that halves would wait for 13 loads, one after the other, among 8,192 tokens; this one for 2.
    """
    low, high = 0, num_tokens
    lane = tl.arange(0, SEARCHED_AT_ONCE)
    while low < high:
        step = tl.cdiv(high - low, SEARCHED_AT_ONCE)
        probe = low + (lane + 1) * step - 1
        is_before = probe // tile_tokens + tl.load(sequences + probe, mask=probe < high, other=0) < tile
        low += tl.sum(((probe < high) & is_before).to(tl.int32), axis=0) * step
        high = tl.minimum(high, low + step - 1)
    return low


@triton.jit
def _widen(x, kind: tl.constexpr):
    """Convert what a cache stores to the type it is multiplied in."""
    if x.dtype == tl.uint8:
        return from_e4m3_bytes(x).to(kind)
    else:
        return x.to(kind)


@triton.jit(do_not_specialize=["num_splits"])
def combine(
    out, parts, log_sums, num_splits,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_SPLITS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Write out[t, h] = sum_s 2^(log_sum_s - top) part_s / sum_s 2^(log_sum_s - top); empty parts are not read."""
    await_inputs(DEPENDENT)
    item = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    dim = tl.arange(0, BLOCK_DIM)
    acc = tl.zeros((BLOCK_DIM,), tl.float32)
    top = tl.full((1,), MINUS_INFINITY, tl.float32)
    total = tl.zeros((1,), tl.float32)
    for at in tl.range(0, num_splits, BLOCK_SPLITS):
        split = at + tl.arange(0, BLOCK_SPLITS)
        log_sum = tl.load(log_sums + item * num_splits + split, mask=split < num_splits, other=MINUS_INFINITY)
        is_full = log_sum > MINUS_INFINITY
        new_top = tl.maximum(top, tl.max(log_sum, axis=0, keep_dims=True))
        base = tl.where(new_top == MINUS_INFINITY, 0.0, new_top)
        weight = tl.exp2(log_sum - base)
        shrink = tl.exp2(top - base)
        part_at = (item * num_splits + split)[:, None] * HEAD_DIM + dim[None, :]
        part = tl.load(parts + part_at, mask=is_full[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)
        acc = acc * shrink + tl.sum(weight[:, None] * part, axis=0)
        total = total * shrink + tl.sum(weight, axis=0, keep_dims=True)
        top = new_top
    tl.store(out + item * HEAD_DIM + dim, (acc / total).to(out.dtype.element_ty), mask=dim < HEAD_DIM)
