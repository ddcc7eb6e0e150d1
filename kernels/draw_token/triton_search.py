"""What one program does for its row in Triton's language: weigh, find which weights are kept, draw.

A cut keeps the weights from a bound `low` on, and of those equal to it the first ones by id, up to `last`. Weights are
positive or 0, so their order is that of their bits as integers: a bound is found by bisecting integers, each step one
pass over the row, which lies in the cache by now. A step counts and sums in lanes, so that a pass has one reduction.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
COLDEST = tl.constexpr(1e-30)  # below it no two different fp32 logits both keep a weight above 0
ABOVE_ONE = tl.constexpr(0x3F800001)  # bits of the first number above the largest weight, 1


@triton.jit
def weigh(x, maximum, temperature):
    """Return 2^((x - maximum) log2(e) / temperature); 1 where x is the maximum, whatever that is."""
    scale = (1.0 / tl.maximum(temperature, COLDEST) * LOG2_E).to(tl.float32)
    return tl.exp2(tl.where(x == maximum, 0.0, x - maximum) * scale)


@triton.jit
def find_kept(line, vocab_size, maximum, heat, limit, portion, least, total, CHUNK: tl.constexpr):
    """Return bits of the smallest weight kept, and the last token kept of those that have it.

    Args: a row, its size, largest logit and temperature; top-k, top-p, min-p; the sum of all weights.
    """
    low = 0
    last = vocab_size
    goal = total
    if limit < vocab_size:
        low, last, goal = _cut(line, vocab_size, maximum, heat, limit, float("inf"), total, CHUNK)
    if portion < 1.0:
        low, last, goal = _cut(line, vocab_size, maximum, heat, limit, portion * goal, total, CHUNK)
    floor = tl.minimum(least, 1.0).to(tl.float32).to(tl.int32, bitcast=True)
    last = tl.where(floor > low, vocab_size, last)
    return tl.maximum(low, floor), last


@triton.jit
def _cut(line, vocab_size, maximum, heat, limit, goal, total, CHUNK: tl.constexpr):
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
        middle = low + (high - low) // 2
        count, above = _above(line, vocab_size, maximum, heat, middle, CHUNK)
        is_enough = (count >= limit) | (above >= goal)
        low, num_low, sum_low = _pick(is_enough, middle, count, above, low, num_low, sum_low)
        high, num_high, sum_high = _pick(is_enough, high, num_high, sum_high, middle, count, above)
    last = vocab_size
    kept = sum_low
    if num_low - num_high > 1:  # equal weights, of which some may be enough
        weight = low.to(tl.float32, bitcast=True).to(tl.float64)
        wanted = tl.minimum((limit - num_high).to(tl.float64), tl.ceil((goal - sum_high) / weight))
        wanted = tl.maximum(wanted, 1.0)
        if wanted < num_low - num_high:
            last = _nth_equal(line, vocab_size, maximum, heat, low, wanted.to(tl.int32), CHUNK)
            kept = sum_high + wanted * weight
    return low, last, kept


@triton.jit
def _pick(condition, a0, a1, a2, b0, b1, b2):
    return tl.where(condition, a0, b0), tl.where(condition, a1, b1), tl.where(condition, a2, b2)


@triton.jit
def _bits_of(line, vocab_size, maximum, heat, start, CHUNK: tl.constexpr):
    """Return the tokens of a chunk and the bits of their weights; those past the end have no weight."""
    token = start + tl.arange(0, CHUNK)
    x = tl.load(line + token, mask=token < vocab_size, other=-float("inf"))
    return token, weigh(x, maximum, heat).to(tl.int32, bitcast=True)


@triton.jit
def _above(line, vocab_size, maximum, heat, bound, CHUNK: tl.constexpr):
    """Return number and sum of the weights whose bits are at least `bound`, which is not 0."""
    counts = tl.zeros((CHUNK,), tl.int32)
    sums = tl.zeros((CHUNK,), tl.float32)
    for start in range(0, vocab_size, CHUNK):
        _, bits = _bits_of(line, vocab_size, maximum, heat, start, CHUNK)
        counts += (bits >= bound).to(tl.int32)
        sums += tl.where(bits >= bound, bits.to(tl.float32, bitcast=True), 0.0)
    return tl.sum(counts, axis=0), tl.sum(sums.to(tl.float64), axis=0)


@triton.jit
def _nth_equal(line, vocab_size, maximum, heat, bound, wanted, CHUNK: tl.constexpr):
    """Return the token of the weight number `wanted`, from 1, of those whose bits are `bound`."""
    found = vocab_size
    num_before = tl.zeros((), tl.int32)
    for start in range(0, vocab_size, CHUNK):
        token, bits = _bits_of(line, vocab_size, maximum, heat, start, CHUNK)
        is_equal = (bits == bound).to(tl.int32)
        is_wanted = (is_equal == 1) & (num_before + tl.cumsum(is_equal, axis=0) == wanted)
        found = tl.minimum(found, tl.min(tl.where(is_wanted, token, vocab_size), axis=0))
        num_before += tl.sum(is_equal, axis=0)
    return found


@triton.jit
def _kept_of(line, vocab_size, maximum, heat, low, last, start, CHUNK: tl.constexpr):
    """Return the tokens of a chunk and their weights, 0 where they are not kept."""
    token, bits = _bits_of(line, vocab_size, maximum, heat, start, CHUNK)
    is_kept = (bits > low) | ((bits == low) & (token <= last))
    return token, tl.where(is_kept, bits.to(tl.float32, bitcast=True), 0.0)


@triton.jit
def draw_among(line, vocab_size, maximum, heat, low, last, share, sums, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Return the token at `share`, 0 to 1, of the running sum of the kept weights.

    `sums` are those of all weights of each chunk; where weights are cut, the kept ones are summed anew.
    """
    chunks = tl.arange(0, BLOCK)
    if low > 0:
        for chunk in range(tl.cdiv(vocab_size, CHUNK)):
            _, weights = _kept_of(line, vocab_size, maximum, heat, low, last, chunk * CHUNK, CHUNK)
            sums = tl.where(chunks == chunk, tl.sum(weights, axis=0).to(tl.float64), sums)
    until = tl.cumsum(sums, axis=0)
    rest = share * tl.sum(sums, axis=0)
    last_chunk = tl.max(tl.where(sums > 0.0, chunks, 0), axis=0)
    chunk = tl.minimum(tl.sum((until <= rest).to(tl.int32), axis=0), last_chunk)
    rest -= tl.sum(tl.where(chunks < chunk, sums, 0.0), axis=0)
    token, weights = _kept_of(line, vocab_size, maximum, heat, low, last, chunk * CHUNK, CHUNK)
    is_before = tl.cumsum(weights, axis=0).to(tl.float64) <= rest
    last_token = tl.max(tl.where(weights > 0.0, token, 0), axis=0)
    return tl.minimum(chunk * CHUNK + tl.sum(is_before.to(tl.int32), axis=0), last_token)
