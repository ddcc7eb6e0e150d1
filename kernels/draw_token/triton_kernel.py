"""Choosing tokens in Triton's language: one pass over the vocabulary by everybody, then one program a row.

`survey_kernel`, a program for each row and chunk of the vocabulary, makes the row's changes that fall into the chunk,
in place, then leaves the chunk's largest logit, where it is, and the sum of weights relative to it. That decides rows
that are greedy, and the chunk, the only one read again, from which rows without cuts draw. Rows with cuts find the last
weight that is kept by quartering over its bits (`triton_search`).

Weights 2^((x - max x) log2(e) / temperature) and their sums over lanes are fp32, sums of those fp64. Lanes past the end
are minus infinity, weight 0. A NaN, which no maximum shows, makes the chunk's and so the row's maximum NaN.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kernels.aot import Build
from kernels.draw_token.triton_search import draw_among, find_kept, scale_of, sums_of_kept, weigh

if TYPE_CHECKING:
    from kernels.draw_token import Draws, Edits

CHUNK = 4096  # tokens that one program surveys
EDITS = 256  # changes that it looks at together
NUM_WARPS = 8


def draw_tokens_triton(
    logits: torch.Tensor, draws: "Draws", edits: "Edits | None" = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose; see the contract in `kernels.draw_token`."""
    num_rows, vocab_size = logits.shape
    num_chunks = triton.cdiv(vocab_size, CHUNK)
    tops, sums = torch.empty(2, num_rows, num_chunks, dtype=torch.float32, device=logits.device)
    places = torch.empty(num_rows, num_chunks, dtype=torch.int32, device=logits.device)
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    maxima = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    if num_rows:
        stride, block = logits.stride(0), triton.next_power_of_2(num_chunks)
        survey_kernel[(num_rows, num_chunks)](
            logits, *_changes(edits), draws.temperature, tops, places, sums, stride, vocab_size,
            CHUNK=CHUNK, EDITS=EDITS, num_warps=NUM_WARPS,
        )  # fmt: skip
        draw_kernel[(num_rows,)](
            logits, draws.temperature, draws.top_k, draws.top_p, draws.min_p, draws.point, tops, places, sums,
            token_ids, maxima, stride, vocab_size, num_chunks, CHUNK=CHUNK, BLOCK=block, num_warps=NUM_WARPS,
        )  # fmt: skip
    return token_ids, maxima


def _changes(edits: "Edits | None") -> tuple[torch.Tensor | None, ...]:
    if edits is None:
        return (None,) * 6
    return edits.starts, edits.ids, edits.penalties, edits.added, edits.guides, edits.allowed.view(torch.uint8)


@triton.jit
def survey_kernel(
    logits, starts, ids, penalties, added, guides, allowed, temperature, tops, places, sums, row_stride, vocab_size,
    CHUNK: tl.constexpr, EDITS: tl.constexpr,
):  # fmt: skip
    """Edit a chunk; store its largest logit, its first place, and the sum of the weights relative to it."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lanes = tl.arange(0, CHUNK)
    token = chunk * CHUNK + lanes
    line = logits + row * row_stride
    if starts is not None:
        _edit(
            line, ids, penalties, added, tl.load(starts + row), tl.load(starts + row + 1), chunk * CHUNK, CHUNK, EDITS
        )
    x = tl.load(line + token, mask=token < vocab_size, other=-float("inf"))
    if guides is not None:
        guide = tl.load(guides + row).to(tl.int64)
        if guide >= 0:
            is_allowed = tl.load(allowed + guide * vocab_size + token, mask=token < vocab_size, other=0)
            x = tl.where(is_allowed != 0, x, -float("inf"))
            tl.store(line + token, x, mask=token < vocab_size)
    top = tl.max(x, axis=0)
    place = tl.min(tl.where(x == top, lanes, CHUNK - 1), axis=0)
    total = tl.sum(weigh(x, top, scale_of(tl.load(temperature + row))), axis=0)
    is_nan = tl.max((x != x).to(tl.int32), axis=0)
    target = row * tl.num_programs(1) + chunk
    tl.store(tops + target, tl.where(is_nan == 1, float("nan"), top))
    tl.store(places + target, chunk * CHUNK + place)
    tl.store(sums + target, total)


@triton.jit
def _edit(line, ids, penalties, added, begin, end, first_token, CHUNK: tl.constexpr, EDITS: tl.constexpr):
    """Change the logits of one chunk that are among those of the row's entries, which are distinct, in memory."""
    for entry in range(begin, end, EDITS):
        place = entry + tl.arange(0, EDITS)
        token = tl.load(ids + place, mask=place < end, other=-1)
        is_mine = (token >= first_token) & (token < first_token + CHUNK)
        x = tl.load(line + token, mask=is_mine, other=0.0)
        penalty = tl.load(penalties + place, mask=is_mine, other=1.0)
        x = tl.where(x > 0.0, tl.div_rn(x, penalty), x * penalty)
        tl.store(line + token, x + tl.load(added + place, mask=is_mine, other=0.0), mask=is_mine)
    tl.debug_barrier()  # other threads of this program read what these have written


@triton.jit
def draw_kernel(
    logits, temperature, top_k, top_p, min_p, point, tops, places, sums, token_ids, maxima, row_stride, vocab_size,
    num_chunks, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the token and the largest logit of a row."""
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, BLOCK)
    is_chunk = chunks < num_chunks
    top = tl.load(tops + row * num_chunks + chunks, mask=is_chunk, other=-float("inf"))
    place = tl.load(places + row * num_chunks + chunks, mask=is_chunk, other=0)
    maximum = tl.max(top, axis=0)
    first = tl.min(tl.where(top == maximum, place, vocab_size - 1), axis=0)
    maximum = tl.where(tl.max((top != top).to(tl.int32), axis=0) == 1, float("nan"), maximum)
    tl.store(maxima + row, maximum)
    heat = tl.load(temperature + row)
    token = first.to(tl.int32)
    if (heat > 0.0) & (tl.abs(maximum) < float("inf")):
        line, scale = logits + row * row_stride, scale_of(heat)
        surveyed = row * num_chunks + chunks
        limit = tl.load(top_k + row)
        limit = tl.where((limit <= 0) | (limit >= vocab_size), vocab_size, limit).to(tl.int32)
        portion = tl.load(top_p + row)
        least = tl.load(min_p + row)
        low = 0
        last = vocab_size
        if (limit < vocab_size) | (portion < 1.0) | (least > 0.0):
            total = tl.sum(_sums_of_all(tops, sums, surveyed, is_chunk, maximum, scale), axis=0)
            low, last = find_kept(line, vocab_size, maximum, scale, limit, portion, least, total, CHUNK)
        if low > 0:
            kept = sums_of_kept(line, vocab_size, maximum, scale, low, last, CHUNK, BLOCK)
        else:
            kept = _sums_of_all(tops, sums, surveyed, is_chunk, maximum, scale)
        token = draw_among(line, vocab_size, maximum, scale, low, last, tl.load(point + row), kept, CHUNK, BLOCK)
    tl.store(token_ids + row, token.to(tl.int64))


@triton.jit
def _sums_of_all(tops, sums, surveyed, is_chunk, maximum, scale):
    """Return the sums of the weights of each chunk, kept or not, fp64."""
    top = tl.load(tops + surveyed, mask=is_chunk, other=-float("inf"))
    return (tl.load(sums + surveyed, mask=is_chunk, other=0.0) * weigh(top, maximum, scale)).to(tl.float64)


def shipped() -> list[Build]:
    """Return both kernels: the first with and without edits, the second for vocabularies of up to 128 chunks."""
    options = dict.fromkeys(("temperature", "top_p", "min_p", "point"), "*fp64") | {"top_k": "*i64"}
    stored = {"tops": "*fp32", "places": "*i32", "sums": "*fp32", "logits": "*fp32"}
    sizes = {"row_stride": "i32", "vocab_size": "i32"}
    edits = {"starts": "*i32", "ids": "*i64", "guides": "*i32", "allowed": "*u8"}
    edits |= {"penalties": "*fp32", "added": "*fp32"}
    surveys = [
        Build(
            name,
            survey_kernel,
            stored | sizes | {"temperature": "*fp64"} | given,
            {"CHUNK": CHUNK, "EDITS": EDITS} | dict.fromkeys(edits.keys() - given.keys()),
            frozenset(sizes),
            num_warps=NUM_WARPS,
            is_sampled=bool(given),
        )
        for name, given in {"survey": {}, "edit and survey": edits}.items()
    ]
    answers = {"token_ids": "*i64", "maxima": "*fp32", "num_chunks": "i32"}
    draws = [
        Build(
            f"draw from {block} chunks",
            draw_kernel,
            stored | sizes | options | answers,
            {"CHUNK": CHUNK, "BLOCK": block},
            frozenset(sizes),
            num_warps=NUM_WARPS,
            is_sampled=block == 32,
        )
        for block in (1, 8, 16, 32, 64, 128)
    ]
    return [*surveys, *draws]
