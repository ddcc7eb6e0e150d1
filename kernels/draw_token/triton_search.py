"""What one program does for its row in Triton's language: weigh, find which weights are kept, draw.

A cut keeps the weights from a bound `low` on, and of those equal to it the first ones by id, up to `last`. Weights are
positive or 0, so their order is that of their bits as integers: a bound is found by quartering a range of integers,
each step one pass over the row, which lies in the cache by now. A pass counts and sums above three bounds in lanes, so
that it has one reduction, and reads several chunks at once: else it would wait for the cache more than it computes.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
COLDEST = tl.constexpr(1e-30)  # below it no two different fp32 logits both keep a weight above 0
ABOVE_ONE = tl.constexpr(0x3F800001)  # bits of the first number above the largest weight, 1
FOLDED = tl.constexpr(4)  # neighbours that one thread reads together
AT_ONCE = tl.constexpr(2)  # chunks that are read together where all are


@triton.jit
def scale_of(temperature):
    """Return what a difference of logits is multiplied by to be a power of two; fp32."""
    return (1.0 / tl.maximum(temperature, COLDEST) * LOG2_E).to(tl.float32)


@triton.jit
def weigh(x, maximum, scale):
    """Return 2^((x - maximum) scale); 1 where x is the maximum, whatever that is."""
    return tl.exp2(tl.where(x == maximum, 0.0, x - maximum) * scale)


@triton.jit
def find_kept(line, vocab_size, maximum, scale, limit, portion, least, total, CHUNK: tl.constexpr):
    """Return bits of the smallest weight kept, and the last token kept of those that have it.

    Args: a row, its size, largest logit and scale; top-k, top-p, min-p; the sum of all weights.
    """
    low = 0
    last = vocab_size
    goal = total
    if limit < vocab_size:
        low, last, goal = _cut(line, vocab_size, maximum, scale, limit, float("inf"), total, CHUNK)
    if portion < 1.0:
        low, last, goal = _cut(line, vocab_size, maximum, scale, limit, portion * goal, total, CHUNK)
    floor = tl.minimum(least, 1.0).to(tl.float32).to(tl.int32, bitcast=True)
    last = tl.where(floor > low, vocab_size, last)
    return tl.maximum(low, floor), last


@triton.jit
def _cut(line, vocab_size, maximum, scale, limit, goal, total, CHUNK: tl.constexpr):
    """Return bits and last token of the shortest beginning with `limit` tokens or a sum of `goal`, and its sum.

    `total` is the sum of all.
    """
    low = tl.zeros((), tl.int32)
    high = tl.full((), ABOVE_ONE, tl.int32)
    num_low = vocab_size
    num_high = tl.zeros((), tl.int32)
    sum_low = total
    sum_high = tl.zeros((), tl.float64)
    while (high - low > 1) & ((num_low - num_high > 1) | (low == 0)):
        step = tl.maximum((high - low) // 4, 1)
        b0, b1, b2 = low + step, low + 2 * step, low + 3 * step
        n0, n1, n2, s0, s1, s2 = _above(line, vocab_size, maximum, scale, b0, b1, b2, CHUNK)
        low, num_low, sum_low, high, num_high, sum_high = _narrow(
            low, num_low, sum_low, high, num_high, sum_high, b0, n0, s0, limit, goal
        )
        low, num_low, sum_low, high, num_high, sum_high = _narrow(
            low, num_low, sum_low, high, num_high, sum_high, b1, n1, s1, limit, goal
        )
        low, num_low, sum_low, high, num_high, sum_high = _narrow(
            low, num_low, sum_low, high, num_high, sum_high, b2, n2, s2, limit, goal
        )
    last = vocab_size
    kept = sum_low
    if num_low - num_high > 1:  # equal weights, of which some may be enough
        weight = low.to(tl.float32, bitcast=True).to(tl.float64)
        wanted = tl.minimum((limit - num_high).to(tl.float64), tl.ceil((goal - sum_high) / weight))
        wanted = tl.maximum(wanted, 1.0)
        if wanted < num_low - num_high:
            last = _nth_equal(line, vocab_size, maximum, scale, low, wanted.to(tl.int32), CHUNK)
            kept = sum_high + wanted * weight
    return low, last, kept


@triton.jit
def _narrow(low, num_low, sum_low, high, num_high, sum_high, bound, count, above, limit, goal):
    """Return the range with `bound` as an end: the lower one if what is above it is enough."""
    is_enough = (count >= limit) | (above >= goal)
    if is_enough & (bound > low):
        low, num_low, sum_low = bound, count, above
    if (not is_enough) & (bound < high):
        high, num_high, sum_high = bound, count, above
    return low, num_low, sum_low, high, num_high, sum_high


@triton.jit
def _bits_of(line, vocab_size, maximum, scale, tokens):
    """Return the bits of tokens' weights, the largest logit being finite; those past the end have no weight."""
    x = tl.load(line + tokens, mask=tokens < vocab_size, other=-float("inf"))
    return tl.exp2((x - maximum) * scale).to(tl.int32, bitcast=True)


@triton.jit
def _above(line, vocab_size, maximum, scale, b0, b1, b2, CHUNK: tl.constexpr):
    """Return numbers, then sums, of the weights whose bits are at least each of three bounds, which are not 0."""
    LANES: tl.constexpr = CHUNK // (2 * FOLDED)
    lanes = tl.arange(0, LANES)[:, None] * FOLDED + tl.arange(0, FOLDED)[None, :]
    n0, s0 = tl.zeros((LANES,), tl.float32), tl.zeros((LANES,), tl.float32)
    n1, s1, n2, s2 = n0, s0, n0, s0
    for start in range(0, vocab_size, AT_ONCE * CHUNK):
        for part in tl.static_range(2 * AT_ONCE):
            tokens = start + part * (CHUNK // 2) + lanes
            bits = _bits_of(line, vocab_size, maximum, scale, tokens)
            n0, s0 = _add_above(n0, s0, bits, b0)
            n1, s1 = _add_above(n1, s1, bits, b1)
            n2, s2 = _add_above(n2, s2, bits, b2)
    return _count(n0), _count(n1), _count(n2), _wide_sum(s0), _wide_sum(s1), _wide_sum(s2)


@triton.jit
def _add_above(counts, sums, bits, bound):
    one = (bits >= bound).to(tl.float32)
    return counts + tl.sum(one, axis=1), sums + tl.sum(one * bits.to(tl.float32, bitcast=True), axis=1)


@triton.jit
def _count(x):
    return tl.sum(x.to(tl.int32), axis=0)


@triton.jit
def _wide_sum(x):
    return tl.sum(x.to(tl.float64), axis=0)


@triton.jit
def _nth_equal(line, vocab_size, maximum, scale, bound, wanted, CHUNK: tl.constexpr):
    """Return the token of the weight number `wanted`, from 1, of those whose bits are `bound`."""
    found = vocab_size
    num_before = tl.zeros((), tl.int32)
    for start in range(0, vocab_size, CHUNK):
        token = start + tl.arange(0, CHUNK)
        is_equal = (_bits_of(line, vocab_size, maximum, scale, token) == bound).to(tl.int32)
        is_wanted = (is_equal == 1) & (num_before + tl.cumsum(is_equal, axis=0) == wanted)
        found = tl.minimum(found, tl.min(tl.where(is_wanted, token, vocab_size), axis=0))
        num_before += tl.sum(is_equal, axis=0)
    return found


@triton.jit
def _kept(line, vocab_size, maximum, scale, low, last, tokens):
    """Return tokens' weights, 0 where they are not kept."""
    bits = _bits_of(line, vocab_size, maximum, scale, tokens)
    is_kept = (bits > low) | ((bits == low) & (tokens <= last))
    return tl.where(is_kept, bits.to(tl.float32, bitcast=True), 0.0)


@triton.jit
def sums_of_kept(line, vocab_size, maximum, scale, low, last, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Return the sums of the kept weights of each chunk, [BLOCK] fp64."""
    chunks, lanes, parts = tl.arange(0, BLOCK), tl.arange(0, CHUNK), tl.arange(0, AT_ONCE)
    sums = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, tl.cdiv(vocab_size, CHUNK), AT_ONCE):
        tokens = (first + parts)[:, None] * CHUNK + lanes[None, :]
        part = tl.sum(_kept(line, vocab_size, maximum, scale, low, last, tokens), axis=1)
        is_place = chunks[:, None] == (first + parts)[None, :]
        sums += tl.sum(tl.where(is_place, part.to(tl.float64)[None, :], 0.0), axis=1)
    return sums


@triton.jit
def draw_among(line, vocab_size, maximum, scale, low, last, share, sums, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Return the token at `share`, 0 to 1, of the running sum of the kept weights, whose `sums` are by chunk, fp64."""
    chunks, lanes = tl.arange(0, BLOCK), tl.arange(0, CHUNK)
    until = tl.cumsum(sums, axis=0)
    rest = share * tl.sum(sums, axis=0)
    last_chunk = tl.max(tl.where(sums > 0.0, chunks, 0), axis=0)
    chunk = tl.minimum(tl.sum((until <= rest).to(tl.int32), axis=0), last_chunk)
    rest -= tl.sum(tl.where(chunks < chunk, sums, 0.0), axis=0)
    tokens = chunk * CHUNK + lanes
    weights = _kept(line, vocab_size, maximum, scale, low, last, tokens)
    is_before = tl.cumsum(weights, axis=0).to(tl.float64) <= rest
    last_token = tl.max(tl.where(weights > 0.0, tokens, 0), axis=0)
    return tl.minimum(chunk * CHUNK + tl.sum(is_before.to(tl.int32), axis=0), last_token)
