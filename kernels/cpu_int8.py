"""Vector code for products of 8-bit integers: like `kernels.cpu_vectors`, on the widest instruction that the CPU has.

    out[r, c] = (sum_k u[r, k] w[c, k] - corrections[c]) row_scales[r] column_scales[c] + bias[c]

| instruction | where | a lane adds | weights are read as | u, a rounded row, is |
|---|---|---|---|---|
| VPDPBUSD | AVX-512 VNNI | 4 products | bytes | uint8: int8 plus 128, since it takes unsigned by signed |
| VPMADDWD | any other | 2 products | bytes, widened | int16, as it is |

corrections[c] = OFFSET sum_k w[c, k] undo what was added. Sums are exact in 32 bits up to a depth of 60,000.
VPMADDUBSW, which takes bytes and adds to 16 bits, would be as fast as VPMADDWD at best: its sums overflow unless signs
go from the rows to the weights first, and to widen them takes another multiplication.

Source: Intel's Software Developer's Manual, volume 2.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from kernels.cpu_target import has
from kernels.cpu_vectors import (
    FLOAT,
    FLOAT_BYTES,
    FUSED,
    INT32,
    INT64,
    LANES,
    VECTOR,
    VECTORS,
    at,
    emit_loop,
    emit_row_choice,
    emitted,
    spread,
)

HAS_DOT = LANES == 16 and has("avx512vnni")
GROUP = 4 if HAS_DOT else 2  # of the depth, that one lane multiplies and adds at once
OFFSET = 128 if HAS_DOT else 0
ROUNDED = np.uint8 if HAS_DOT else np.int16  # what a row is rounded to
ROUNDED_BYTES = 1 if HAS_DOT else 2
STEP_BYTES = VECTORS * LANES * GROUP  # of a panel, for one group of the depth
WHOLE = ir.VectorType(INT32, LANES)
BYTES, PAIRS = (ir.VectorType(ir.IntType(bits), GROUP * LANES) for bits in (8, 16))
PAIR_SUMS = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd", 4: "llvm.x86.sse2.pmadd.wd"}


@emitted
def multiply_int8_tile(
    _context, num_rows, x, x_stride, panel, depth, row_scales, corrections, column_scales, bias, out, out_stride
):
    """Compute 1 to TILE_ROWS rows from `depth` groups; `x_stride` counts bytes, `out_stride` floats."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        num_rows, *rest = args
        emit_row_choice(builder, num_rows, lambda rows: _emit_tile(builder, rows, *rest))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11), generate


def _emit_tile(
    builder: Any,
    num_rows: int,
    x: Any,
    x_stride: Any,
    panel: Any,
    depth: Any,
    row_scales: Any,
    corrections: Any,
    column_scales: Any,
    bias: Any,
    out: Any,
    out_stride: Any,
) -> None:
    cells = [(row, vector) for row in range(num_rows) for vector in range(VECTORS)]
    rows = [builder.add(x, builder.mul(x_stride, ir.Constant(INT64, row))) for row in range(num_rows)]

    def step(k: Any, sums: list[Any]) -> list[Any]:
        groups = builder.add(panel, builder.mul(k, ir.Constant(INT64, STEP_BYTES)))
        weights = [_load_weights(builder, groups, vector) for vector in range(VECTORS)]
        inputs = [_load_inputs(builder, row, k) for row in rows]
        return [
            _add_products(builder, total, inputs[row], weights[vector])
            for total, (row, vector) in zip(sums, cells, strict=True)
        ]

    def columns(address: Any, vector: int, kind: Any) -> Any:
        return builder.load(at(builder, address, vector * LANES, FLOAT_BYTES, kind), align=FLOAT_BYTES)

    sums = emit_loop(builder, depth, [ir.Constant(WHOLE, [0] * LANES)] * len(cells), step)
    for total, (row, vector) in zip(sums, cells, strict=True):
        whole = builder.sub(total, columns(corrections, vector, WHOLE))
        row_scale = spread(builder, builder.load(at(builder, row_scales, row, FLOAT_BYTES, FLOAT)), LANES)
        scaled = builder.fmul(builder.sitofp(whole, VECTOR), row_scale)
        scaled = builder.fmul(scaled, columns(column_scales, vector, VECTOR))
        answer = builder.fadd(scaled, columns(bias, vector, VECTOR), flags=FUSED)
        place = builder.add(builder.mul(out_stride, ir.Constant(INT64, row)), ir.Constant(INT64, vector * LANES))
        builder.store(answer, at(builder, out, place, FLOAT_BYTES, VECTOR), align=FLOAT_BYTES)


def _load_weights(builder: Any, groups: Any, vector: int) -> Any:
    """Return a group of each lane's weights, as what `_add_products` takes."""
    stored = builder.load(at(builder, groups, vector * LANES, GROUP, BYTES), align=LANES * GROUP)
    return builder.bitcast(stored, WHOLE) if HAS_DOT else builder.sext(stored, PAIRS)


def _load_inputs(builder: Any, row: Any, k: Any) -> Any:
    """Return the row's group of that index in every lane."""
    group = builder.load(at(builder, row, k, GROUP * ROUNDED_BYTES, INT32), align=1)
    everywhere = spread(builder, group, LANES)
    return everywhere if HAS_DOT else builder.bitcast(everywhere, PAIRS)


def _add_products(builder: Any, total: Any, inputs: Any, weights: Any) -> Any:
    if HAS_DOT:
        kind = ir.FunctionType(WHOLE, [WHOLE] * 3)
        dot = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")
        return builder.call(dot, [total, inputs, weights])
    kind = ir.FunctionType(WHOLE, [PAIRS] * 2)
    add_pairs = cgutils.get_or_insert_function(builder.module, kind, PAIR_SUMS[LANES])
    return builder.add(total, builder.call(add_pairs, [inputs, weights]))
