"""Quantized products in Triton's language; one program computes a tile of `BLOCK_T` rows and `BLOCK_O` outputs.

It walks over the channels, `BLOCK_C` at a time. Rows, outputs and channels past the ends are loaded as 0 and add
nothing. int8 sums are int32, all others fp32. Scales that are the same for all channels multiply the sums at the end;
those of groups of channels multiply each group's sum, so that what goes into the matrix units is exact: integers up to
127 in bf16 or fp16, and float8 as it is.

Where there are more outputs than rows sums are lying, [BLOCK_O, BLOCK_T], so that it is outputs that fill the 64 rows
that Hopper's matrix units take at least: for 16 rows the loop takes 1.4 instructions a weight and thread, not 1.8, in
int8, 1.5, not 3.5, in float8, 5.6, not 12.7, in int4 (sm_90, lying with 64 outputs, upright with 32).

With `parts` and `counters` a tile's channels are SPLITS programs' work (`kernels.split_sums`).

With `pairs` and `counts` weights, scales and bias are stacks, one of each expert, and a program's rows are those that
`kernels.stacked_experts` gives it; without them (None) they are one weight's.
"""

import triton
import triton.language as tl

from kernels.split_sums import add_up, share_of
from kernels.stacked_experts.triton_products import expert_tile
from kernels.triton_math import from_e4m3_bytes

ROWS_TOGETHER = tl.constexpr(8)  # tiles of rows that share a tile of outputs while it is in the cache


@triton.jit(do_not_specialize=["num_experts", "num_chosen"])
def int8_kernel(
    rows, row_scales, values, scales, bias, out, parts, counters, pairs, counts, num_rows, num_outputs,
    num_channels, num_experts, num_chosen, BLOCK_E: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Out = (rows values^T) * row_scales * scales + bias, summed in int32."""
    t, o, target, expert, end = _tile(
        pairs, counts, num_rows, num_outputs, num_channels, num_experts, num_chosen, BLOCK_E, BLOCK_T, BLOCK_O
    )
    weight = values + expert * num_outputs * num_channels
    sums = _zeros(BLOCK_T, BLOCK_O, tl.int32)
    first, is_last = 0, True
    if SPLITS > 1:
        first, end = share_of(end, BLOCK_C, SPLITS)
    for start in range(first, end, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        x = _load(rows, t, c, num_rows, num_channels)
        w = _load(weight, o, c, num_outputs, num_channels)
        sums = _dot(x, w, sums)
    if SPLITS > 1:
        sums, is_last = add_up(sums, parts, counters, SPLITS)
    if is_last:
        scaled = _upright(sums, BLOCK_T).to(tl.float32) * tl.load(row_scales + t, mask=t < num_rows, other=0.0)[:, None]
        scaled *= tl.load(scales + expert * num_outputs + o, mask=o < num_outputs, other=0.0)[None, :]
        _store(scaled, bias, out, t < num_rows, o, target, num_outputs, expert)


@triton.jit(do_not_specialize=["num_experts", "num_chosen"])
def int8_weight_only_kernel(
    inputs, values, scales, bias, out, parts, counters, pairs, counts, num_rows, num_outputs,
    num_channels, num_experts, num_chosen, BLOCK_E: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Out = (inputs values^T) * scales + bias."""
    t, o, target, expert, end = _tile(
        pairs, counts, num_rows, num_outputs, num_channels, num_experts, num_chosen, BLOCK_E, BLOCK_T, BLOCK_O
    )
    weight = values + expert * num_outputs * num_channels
    sums = tl.zeros((BLOCK_T, BLOCK_O), tl.float32)  # never lying: that took 6.6 instructions a weight, not 4.4
    first, is_last = 0, True
    if SPLITS > 1:
        first, end = share_of(end, BLOCK_C, SPLITS)
    for start in range(first, end, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        x = _load(inputs, t, c, num_rows, num_channels)
        w = _load(weight, o, c, num_outputs, num_channels).to(x.dtype)
        sums = _dot(x, w, sums)
    if SPLITS > 1:
        sums, is_last = add_up(sums, parts, counters, SPLITS)
    if is_last:
        scaled = sums * tl.load(scales + expert * num_outputs + o, mask=o < num_outputs, other=0.0)[None, :]
        _store(scaled, bias, out, t < num_rows, o, target, num_outputs, expert)


@triton.jit(do_not_specialize=["num_experts", "num_chosen"])
def float8_kernel(
    rows, row_scales, values, scales, bias, out, parts, counters, pairs, counts, num_rows, num_outputs,
    num_channels, num_experts, num_chosen, block_rows, group, num_groups, BLOCK_E: tl.constexpr,
    GROUPED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Out = sum over groups of (rows values^T) * row_scales * scales, + bias."""
    t, o, target, expert, end = _tile(
        pairs, counts, num_rows, num_outputs, num_channels, num_experts, num_chosen, BLOCK_E, BLOCK_T, BLOCK_O
    )
    weight = values + expert * num_outputs * num_channels
    sums = _zeros(BLOCK_T, BLOCK_O, tl.float32)
    row_scale = row_scales + t * num_groups
    scale = scales + (expert * tl.cdiv(num_outputs, block_rows) + o // block_rows) * num_groups
    first, is_last = 0, True
    if SPLITS > 1:
        first, end = share_of(end, BLOCK_C, SPLITS)
    for start in range(first, end, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        x = _as_float(_load(rows, t, c, num_rows, num_channels))
        w = _as_float(_load(weight, o, c, num_outputs, num_channels))
        part = _dot(x, w, _zeros(BLOCK_T, BLOCK_O, tl.float32))
        if GROUPED:
            of_rows = tl.load(row_scale + start // group, mask=t < num_rows, other=0.0)
            of_outputs = tl.load(scale + start // group, mask=o < num_outputs, other=0.0)
            part = _scaled(_scaled(part, of_rows, True, BLOCK_T), of_outputs, False, BLOCK_T)
        sums += part
    if SPLITS > 1:
        sums, is_last = add_up(sums, parts, counters, SPLITS)
    if is_last:
        scaled = _upright(sums, BLOCK_T)
        if not GROUPED:
            scaled *= tl.load(row_scale, mask=t < num_rows, other=0.0)[:, None]
            scaled *= tl.load(scale, mask=o < num_outputs, other=0.0)[None, :]
        _store(scaled, bias, out, t < num_rows, o, target, num_outputs, expert)


@triton.jit(do_not_specialize=["num_experts", "num_chosen"])
def int4_kernel(
    inputs, packed, scales, zeros, bias, out, parts, counters, pairs, counts, num_rows, num_outputs,
    num_channels, num_experts, num_chosen, group, BLOCK_E: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Out = sum over groups of (inputs (q - zeros)^T) * scales, + bias; even and odd channels are summed apart."""
    t, o, target, expert, end = _tile(
        pairs, counts, num_rows, num_outputs, num_channels, num_experts, num_chosen, BLOCK_E, BLOCK_T, BLOCK_O
    )
    weight = packed + expert * num_outputs * (num_channels // 2)
    sums = _zeros(BLOCK_T, BLOCK_O, tl.float32)
    num_groups = num_channels // group
    first, is_last = 0, True
    if SPLITS > 1:
        first, end = share_of(end, BLOCK_C, SPLITS)
    for start in range(first, end, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        x = _load(inputs, t, c, num_rows, num_channels)
        byte = _load(weight, o, start // 2 + tl.arange(0, BLOCK_C // 2), num_outputs, num_channels // 2)
        place = (expert * num_outputs + o) * num_groups + start // group
        zero = tl.load(zeros + place, mask=o < num_outputs, other=0)
        w = tl.reshape(tl.join(_level(byte & 15, x.dtype), _level(byte >> 4, x.dtype)), (BLOCK_O, BLOCK_C))
        part = _dot(x, w - _level(zero, x.dtype)[:, None], _zeros(BLOCK_T, BLOCK_O, tl.float32))
        scale = tl.load(scales + place, mask=o < num_outputs, other=0.0).to(tl.float32)
        sums += _scaled(part, scale, False, BLOCK_T)
    if SPLITS > 1:
        sums, is_last = add_up(sums, parts, counters, SPLITS)
    if is_last:
        _store(_upright(sums, BLOCK_T), bias, out, t < num_rows, o, target, num_outputs, expert)


@triton.jit
def _level(value, dtype: tl.constexpr):
    """Return 2^k + value for a byte below 16, in the type; in halves it is written where a sum of 2^k has such bits."""
    if dtype == tl.bfloat16:
        return (value.to(tl.uint16) | 0x4300).to(tl.bfloat16, bitcast=True)
    elif dtype == tl.float16:
        return (value.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True)
    else:
        return value.to(dtype)


@triton.jit
def _zeros(BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, dtype: tl.constexpr):
    """Return sums, [BLOCK_T, BLOCK_O]; or lying, [BLOCK_O, BLOCK_T], where there are more outputs than rows."""
    if BLOCK_O > BLOCK_T:
        return tl.zeros((BLOCK_O, BLOCK_T), dtype)
    else:
        return tl.zeros((BLOCK_T, BLOCK_O), dtype)


@triton.jit
def _dot(x, w, sums):
    """Add x w^T to sums, upright or lying."""
    if sums.shape[0] == x.shape[0]:
        return tl.dot(x, tl.trans(w), sums, input_precision="ieee", out_dtype=sums.dtype)
    else:
        return tl.dot(w, tl.trans(x), sums, input_precision="ieee", out_dtype=sums.dtype)


@triton.jit
def _scaled(sums, scales, OF_ROWS: tl.constexpr, BLOCK_T: tl.constexpr):
    """Multiply sums, upright or lying, by scales of rows or of outputs."""
    if (sums.shape[0] == BLOCK_T) == OF_ROWS:
        return sums * scales[:, None]
    else:
        return sums * scales[None, :]


@triton.jit
def _upright(sums, BLOCK_T: tl.constexpr):
    if sums.shape[0] == BLOCK_T:
        return sums
    else:
        return tl.trans(sums)


@triton.jit
def _tile(
    pairs, counts, num_rows, num_outputs, num_channels, num_experts, num_chosen,
    BLOCK_E: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Find this program's tile: of one weight, down a few tiles of rows, then to the next outputs; or of an expert's.

    Returns:
        t, o, target: rows of the inputs, outputs and rows of the answers, int64; where t is num_rows or more is no row.
        expert: whose weight it is, 0 without experts.
        end: the number of channels, 0 where there is nothing to do.
    """
    if pairs is None:
        tiles_down = tl.cdiv(num_rows, BLOCK_T)
        in_band = ROWS_TOGETHER * tl.cdiv(num_outputs, BLOCK_O)
        first = tl.program_id(0) // in_band * ROWS_TOGETHER
        height = tl.minimum(tiles_down - first, ROWS_TOGETHER)
        within = tl.program_id(0) % in_band
        t = ((first + within % height) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
        o = within // height * BLOCK_O + tl.arange(0, BLOCK_O)
        return t, o.to(tl.int64), t, 0, num_channels
    else:
        expert, source, target, is_row, first_output = expert_tile(
            pairs, counts, num_experts, num_outputs, num_chosen, BLOCK_T, BLOCK_O, BLOCK_E
        )
        t = tl.where(is_row, source, num_rows)
        o = first_output + tl.arange(0, BLOCK_O)
        end = tl.where(first_output < num_outputs, num_channels, 0)
        return t.to(tl.int64), o.to(tl.int64), target.to(tl.int64), expert.to(tl.int64), end


@triton.jit
def _load(matrix, rows, columns, num_rows, num_columns):
    """Return a tile of a contiguous [num_rows, num_columns]."""
    mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    return tl.load(matrix + rows[:, None] * num_columns + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _as_float(values):
    """Return float8 as it is, and bytes of float8, on GPUs that do not know it, as fp16."""
    if values.dtype == tl.uint8:
        return from_e4m3_bytes(values)
    else:
        return values


@triton.jit
def _store(sums, bias, out, is_row, o, target, num_outputs, expert):
    if bias is not None:
        sums += tl.load(bias + expert * num_outputs + o, mask=o < num_outputs, other=0.0).to(tl.float32)[None, :]
    mask = is_row[:, None] & (o < num_outputs)[None, :]
    tl.store(out + target[:, None] * num_outputs + o[None, :], sums.to(out.dtype.element_ty), mask=mask)
