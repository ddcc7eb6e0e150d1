"""Vector code that numba cannot express: the inside of a matrix product, written as LLVM's intermediate language.

Knows registers and addresses. Does not know threads or layers. A tile is a few rows of `x` times one panel of packed
weights; its sums stay in vector registers while it walks the depth K, one element of each row at a time:

    out[r, c] = start[r, c] + sum_k x[r, k] w[k, c],   r < number of rows, c < COLUMNS

Every sum is added up in the same order whatever the number of rows: a row's result does not depend on its neighbours.

Source: the register blocking of BLIS, Van Zee and van de Geijn, ACM Transactions on Mathematical Software 41 (2015).
"""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import (
    carray,  # pyright: ignore[reportPrivateImportUsage]
    types,
)
from numba.extending import intrinsic

from kernels.cpu_target import has

INT32, INT64, FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
HALF = ir.HalfType()
FLOAT_BYTES, SHORT_BYTES = 4, 2  # of a number in fp32, and in bf16 or fp16
FLOATS, BFLOATS, HALVES = 0, 1, 2  # kinds of weights: of numbers in fp32, bf16 and fp16
CACHE_LINE = 64  # bytes
PREFETCHED_BYTES = 3072  # how far ahead of a row its panel is asked for; 3 KiB to 6 KiB are alike
UPPER_HALF = 0xFFFF0000  # of 32 bits
FUSED = ("contract",)


def emitted(generator: Callable[..., Any]) -> Callable[..., Any]:
    """Return numba's intrinsic of that generator; callers leave the first argument out."""
    return intrinsic(generator)


def _register_shape() -> tuple[int, int, int]:
    """Return floats in a vector, vectors in a panel's row, and rows in a tile, so that all sums fit in registers."""
    if has("avx512f", "avx512bw"):
        return 16, 2, 8
    return (8, 2, 6) if has("avx2", "fma") else (4, 2, 6)


LANES, VECTORS, TILE_ROWS = _register_shape()
COLUMNS = LANES * VECTORS  # of a panel
VECTOR, WORDS, HALF_VECTOR = (ir.VectorType(kind, LANES) for kind in (FLOAT, INT32, HALF))


def at(builder: Any, address: Any, index: Any, size: int, kind: ir.Type) -> Any:
    """Return a pointer to the element of that index behind `address`."""
    number = ir.Constant(INT64, index) if isinstance(index, int) else index
    offset = builder.mul(number, ir.Constant(INT64, size))
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def spread(builder: Any, value: Any, lanes: int) -> Any:
    """Return a vector with `value` in every lane."""
    kind = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(INT32, 0))
    zeros = ir.Constant(ir.VectorType(INT32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)


def emit_loop(builder: Any, count: Any, starts: list[Any], body: Any) -> list[Any]:
    """Emit a loop over 0 .. count - 1, at least once; `body(index, values)` returns the next values, kept in registers.

    Returns:
        The values after the last round.
    """
    before, loop = builder.block, builder.function.append_basic_block("loop")
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(INT64)
    index.add_incoming(ir.Constant(INT64, 0), before)
    values = [builder.phi(start.type) for start in starts]
    for value, start in zip(values, starts, strict=True):
        value.add_incoming(start, before)
    following = body(index, values)
    next_index = builder.add(index, ir.Constant(INT64, 1))
    index.add_incoming(next_index, builder.block)
    for value, new in zip(values, following, strict=True):
        value.add_incoming(new, builder.block)
    done = builder.function.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", next_index, count), loop, done)
    builder.position_at_end(done)
    return following


def emit_row_choice(builder: Any, num_rows: Any, body: Callable[[int], None]) -> None:
    """Emit `body(rows)` for each of 1 to TILE_ROWS, and the choice between them at run time."""
    done = builder.function.append_basic_block("tile.done")
    choice = builder.switch(num_rows, done)
    for rows in range(1, TILE_ROWS + 1):
        block = builder.function.append_basic_block(f"tile.{rows}")
        choice.add_case(ir.Constant(INT64, rows), block)
        builder.position_at_end(block)
        body(rows)
        builder.branch(done)
    builder.position_at_end(done)


@emitted
def multiply_tile(_context, num_rows, x, x_stride, weights, depth, start, start_stride, out, out_stride):
    """Compute 1 to TILE_ROWS rows of `out` from `depth` rows of a panel; strides count floats."""
    return types.void(*[types.int64] * 9), _tile_generator(_load_floats, FLOAT_BYTES)


@emitted
def multiply_bfloat_tile(_context, num_rows, x, x_stride, weights, depth, start, start_stride, out, out_stride):
    """Compute the same from a panel in bf16: of a row, word c holds column c below and column c + LANES above."""
    return types.void(*[types.int64] * 9), _tile_generator(_load_bfloats, SHORT_BYTES)


@emitted
def multiply_half_tile(_context, num_rows, x, x_stride, weights, depth, start, start_stride, out, out_stride):
    """Compute the same from a panel in fp16, columns in order; only where `has_halves`."""
    return types.void(*[types.int64] * 9), _tile_generator(_load_halves, SHORT_BYTES)


def has_halves() -> bool:
    """Whether the CPU widens vectors of fp16."""
    return has("f16c") and has("avx2", "fma")


def _tile_generator(load: Callable[..., Any], number_bytes: int) -> Callable[..., Any]:
    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        num_rows, *rest = args
        emit_row_choice(builder, num_rows, lambda rows: _emit_tile(builder, rows, rest, load, number_bytes))
        return context.get_dummy_value()

    return generate


def _emit_prefetch(builder: Any, weights: Any, k: Any, row_bytes: int) -> None:
    """Ask for the cache lines of the row that lies PREFETCHED_BYTES behind row k; it need not be there."""
    address = builder.add(weights, ir.Constant(INT64, PREFETCHED_BYTES))
    byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), (byte, flag, flag, flag))
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", (byte,), kind)
    to_read, keep, data = (ir.Constant(flag, value) for value in (0, 3, 1))
    row = builder.add(address, builder.mul(k, ir.Constant(INT64, row_bytes)))
    for offset in range(0, row_bytes, CACHE_LINE):
        place = builder.inttoptr(builder.add(row, ir.Constant(INT64, offset)), byte)
        builder.call(prefetch, (place, to_read, keep, data))


def _load_floats(builder: Any, weights: Any, k: Any) -> list[Any]:
    """Return row k of a panel in fp32 as vectors."""
    row = builder.ptrtoint(at(builder, weights, k, COLUMNS * FLOAT_BYTES, FLOAT), INT64)
    places = [at(builder, row, vector * LANES, FLOAT_BYTES, VECTOR) for vector in range(VECTORS)]
    return [builder.load(place, align=LANES * FLOAT_BYTES) for place in places]


def _load_bfloats(builder: Any, weights: Any, k: Any) -> list[Any]:
    """Return row k of a panel in bf16 as two vectors in fp32, whose upper halves bf16 numbers are."""
    words = builder.load(at(builder, weights, k, COLUMNS * SHORT_BYTES, WORDS), align=LANES * FLOAT_BYTES)
    lower = builder.shl(words, ir.Constant(WORDS, [16] * LANES))
    upper = builder.and_(words, ir.Constant(WORDS, [UPPER_HALF] * LANES))
    return [builder.bitcast(half, VECTOR) for half in (lower, upper)]


def _load_halves(builder: Any, weights: Any, k: Any) -> list[Any]:
    """Return row k of a panel in fp16 as vectors in fp32."""
    row = builder.ptrtoint(at(builder, weights, k, COLUMNS * SHORT_BYTES, HALF), INT64)
    places = [at(builder, row, vector * LANES, SHORT_BYTES, HALF_VECTOR) for vector in range(VECTORS)]
    return [builder.fpext(builder.load(place, align=LANES * SHORT_BYTES), VECTOR) for place in places]


def _emit_tile(builder: Any, num_rows: int, args: list[Any], load: Callable[..., Any], number_bytes: int) -> None:
    x, x_stride, weights, depth, start, start_stride, out, out_stride = args
    cells = [(row, vector) for row in range(num_rows) for vector in range(VECTORS)]

    def place(address: Any, stride: Any, row: int, vector: int) -> Any:
        index = builder.add(builder.mul(stride, ir.Constant(INT64, row)), ir.Constant(INT64, vector * LANES))
        return at(builder, address, index, FLOAT_BYTES, VECTOR)

    def step(k: Any, sums: list[Any]) -> list[Any]:
        if num_rows > number_bytes:  # fewer go at the speed of memory as it is
            _emit_prefetch(builder, weights, k, COLUMNS * number_bytes)
        loaded = load(builder, weights, k)
        indexes = [builder.add(builder.mul(x_stride, ir.Constant(INT64, row)), k) for row in range(num_rows)]
        factors = [spread(builder, builder.load(at(builder, x, index, FLOAT_BYTES, FLOAT)), LANES) for index in indexes]
        products = [builder.fmul(factors[row], loaded[vector], flags=FUSED) for row, vector in cells]
        return [builder.fadd(total, product, flags=FUSED) for total, product in zip(sums, products, strict=True)]

    starts = [builder.load(place(start, start_stride, *cell), align=FLOAT_BYTES) for cell in cells]
    for total, cell in zip(emit_loop(builder, depth, starts, step), cells, strict=True):
        builder.store(total, place(out, out_stride, *cell), align=FLOAT_BYTES)


@emitted
def _pointer(_context, address):
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], FLOAT.as_pointer())

    return types.CPointer(types.float32)(types.int64), generate


@emitted
def _byte_pointer(_context, address):
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.CPointer(types.uint8)(types.int64), generate


@numba.njit
def bytes_at(address: int, count: int) -> Any:
    """Return the bytes at an address as an array."""
    return carray(_byte_pointer(address), (count,))


@numba.njit
def floats_at(address: int, count: int) -> Any:
    """Return the fp32 numbers at an address as an array."""
    return carray(_pointer(address), (count,))
