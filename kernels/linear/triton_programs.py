"""What a program of a linear layer of few rows does on a GPU, in the Triton language. Sums in fp32."""

import triton
import triton.language as tl

from kernels.dependent_launch import await_inputs, fetch_to_cache
from kernels.gated_activation.triton_kernel import activate
from kernels.split_sums import add_up, share_of


@triton.jit(do_not_specialize=["num_outputs"])
def multiply_row(
    x, weight, bias, out, num_outputs, width,
    BLOCK_OUTPUTS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, IS_EVEN: tl.constexpr, ACTIVATION: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Multiply one row by BLOCK_OUTPUTS rows of the weight; the next block of these is loaded while one is used.

    With an activation, the weight's first half gives what is activated and the other what that is multiplied by.
    """
    outputs = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    channels = tl.arange(0, BLOCK_CHANNELS)
    places = weight + tl.minimum(outputs, num_outputs - 1)[:, None].to(tl.int64) * width + channels[None, :]
    up_places = places + num_outputs.to(tl.int64) * width
    block = _load(places, channels[None, :], width, IS_EVEN)
    sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_CHANNELS), tl.float32)
    up_block, up_sums = block, sums
    if ACTIVATION != "":
        up_block = _load(up_places, channels[None, :], width, IS_EVEN)
    await_inputs(DEPENDENT)
    for at in tl.range(0, width, BLOCK_CHANNELS):
        row = _load(x + at + channels, at + channels, width, IS_EVEN).to(tl.float32)
        used = block
        following = at + BLOCK_CHANNELS + channels
        is_there = following[None, :] < width
        block = tl.load(places + at + BLOCK_CHANNELS, mask=is_there, other=0.0, eviction_policy="evict_first")
        sums += used.to(tl.float32) * row[None, :]
        if ACTIVATION != "":
            used = up_block
            up_block = tl.load(up_places + at + BLOCK_CHANNELS, mask=is_there, other=0.0, eviction_policy="evict_first")
            up_sums += used.to(tl.float32) * row[None, :]
    total = tl.sum(sums, axis=1)
    mask = outputs < num_outputs
    if bias is not None:
        total += tl.load(bias + outputs, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION != "":
        up = tl.sum(up_sums, axis=1)
        if bias is not None:
            up += tl.load(bias + num_outputs + outputs, mask=mask, other=0.0).to(tl.float32)
        total = activate(total, ACTIVATION) * up
    tl.store(out + outputs, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _load(pointers, channels, width, IS_EVEN: tl.constexpr):
    if IS_EVEN:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=channels < width, other=0.0)


@triton.jit(do_not_specialize=["num_outputs", "num_rows"])
def multiply_rows(
    x, weight, bias, out, parts, counters, num_rows, num_outputs, width, row_stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, SPLITS: tl.constexpr,
    IS_EVEN: tl.constexpr, ACTIVATION: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Multiply all rows by BLOCK_OUTPUTS rows of the weight, or by one of SPLITS shares of their channels.

    An activation is as in `multiply_row`, and not for shares.
    """
    rows = tl.arange(0, BLOCK_ROWS)
    outputs = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    channels = tl.arange(0, BLOCK_CHANNELS)
    start, end = share_of(width, BLOCK_CHANNELS, SPLITS)
    weights = weight + tl.minimum(outputs, num_outputs - 1).to(tl.int64) * width
    up_weights = weights + num_outputs.to(tl.int64) * width
    sums = tl.zeros((BLOCK_ROWS, BLOCK_OUTPUTS), tl.float32)
    up_sums = sums
    tl.static_assert(SPLITS == 1 or ACTIVATION == "")
    if DEPENDENT and IS_EVEN:
        fetch_to_cache(weights + start)
        if ACTIVATION != "":
            fetch_to_cache(up_weights)
    await_inputs(DEPENDENT)
    row_at = x + rows[:, None] * row_stride
    is_row = (rows < num_rows)[:, None]
    for at in tl.range(start, end, BLOCK_CHANNELS):
        here = at + channels
        block = _load(weights[None, :] + here[:, None], here[:, None], width, IS_EVEN)
        is_taken = is_row if IS_EVEN else is_row & (here < width)[None, :]
        taken = tl.load(row_at + here[None, :], mask=is_taken, other=0.0)
        sums = tl.dot(taken, block, sums)
        if ACTIVATION != "":
            block = _load(up_weights[None, :] + here[:, None], here[:, None], width, IS_EVEN)
            up_sums = tl.dot(taken, block, up_sums)
    mask = (rows < num_rows)[:, None] & (outputs < num_outputs)[None, :]
    is_last = True
    if SPLITS > 1:
        sums, is_last = add_up(sums, parts, counters, SPLITS)
    if is_last:
        if bias is not None:
            sums += tl.load(bias + outputs, mask=outputs < num_outputs, other=0.0).to(tl.float32)[None, :]
        if ACTIVATION != "":
            if bias is not None:
                up_bias = tl.load(bias + num_outputs + outputs, mask=outputs < num_outputs, other=0.0)
                up_sums += up_bias.to(tl.float32)[None, :]
            sums = activate(sums, ACTIVATION) * up_sums
        target = out + rows[:, None].to(tl.int64) * num_outputs + outputs[None, :]
        tl.store(target, sums.to(out.dtype.element_ty), mask=mask)
