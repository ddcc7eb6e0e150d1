"""Vector code for products of 8-bit integers: like `kernels.cpu_vectors`, on the dot products of four that CPUs have.

    out[r, c] = (sum_k u[r, k] w[c, k] - corrections[c]) row_scales[r] column_scales[c] + bias[c]

The instruction multiplies unsigned by signed bytes: u is a row of int8 plus 128, so corrections[c] = 128 sum_k w[c, k].
Sums are exact in 32 bits up to a depth of 60,000.

Source: AVX-512 VNNI's VPDPBUSD, Intel's Architecture Instruction Set Extensions reference.
"""

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils

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

QUAD = 4  # bytes that one lane multiplies and adds at once
STEP_BYTES = VECTORS * LANES * QUAD  # of a panel, for four of the depth
IS_AVAILABLE = bool(llvmlite.binding.get_host_cpu_features().get("avx512vnni"))
WHOLE = ir.VectorType(INT32, LANES)


@emitted
def multiply_int8_tile(
    _context, num_rows, x, x_stride, panel, depth, row_scales, corrections, column_scales, bias, out, out_stride
):
    """Compute 1 to TILE_ROWS rows from `depth` quads; `x_stride` counts bytes, `out_stride` floats."""

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
    kind = ir.FunctionType(WHOLE, [WHOLE] * 3)
    dot = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")
    rows = [builder.add(x, builder.mul(x_stride, ir.Constant(INT64, row))) for row in range(num_rows)]

    def step(k: Any, sums: list[Any]) -> list[Any]:
        quads = builder.add(panel, builder.mul(k, ir.Constant(INT64, STEP_BYTES)))
        weights = [
            builder.load(at(builder, quads, vector * LANES, QUAD, WHOLE), align=LANES * QUAD)
            for vector in range(VECTORS)
        ]
        inputs = [spread(builder, builder.load(at(builder, row, k, QUAD, INT32), align=1), LANES) for row in rows]
        return [
            builder.call(dot, [total, inputs[row], weights[vector]])
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
