"""Choosing tokens in Triton's language: one pass over the vocabulary by everybody, then one program a row.

`survey_kernel`, a program for each row and chunk of the vocabulary, leaves the chunk's largest logit, where it is, and
the sum of weights relative to it. That decides rows that are greedy, and the chunk, the only one read again, from which
rows without cuts draw. Rows with cuts find the last weight that is kept by bisecting over its bits (`triton_search`).

Weights 2^((x - max x) log2(e) / temperature) and their sums over lanes are fp32, sums of those fp64. Lanes past the end
are minus infinity, weight 0. A NaN, which no maximum shows, makes the chunk's and so the row's maximum NaN.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kernels.aot import Build
from kernels.draw_token.triton_search import draw_among, find_kept, weigh

if TYPE_CHECKING:
    from kernels.draw_token import Draws

CHUNK = 4096  # tokens that one program surveys
NUM_WARPS = 8


def draw_tokens_triton(logits: torch.Tensor, draws: "Draws") -> tuple[torch.Tensor, torch.Tensor]:
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
            logits, draws.temperature, tops, places, sums, stride, vocab_size, CHUNK=CHUNK, num_warps=NUM_WARPS
        )
        draw_kernel[(num_rows,)](
            logits, draws.temperature, draws.top_k, draws.top_p, draws.min_p, draws.point, tops, places, sums,
            token_ids, maxima, stride, vocab_size, num_chunks, CHUNK=CHUNK, BLOCK=block, num_warps=NUM_WARPS,
        )  # fmt: skip
    return token_ids, maxima


@triton.jit
def survey_kernel(logits, temperature, tops, places, sums, row_stride, vocab_size, CHUNK: tl.constexpr):
    """Store the largest logit of a chunk, its first place, and the sum of the weights relative to it."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lanes = tl.arange(0, CHUNK)
    token = chunk * CHUNK + lanes
    x = tl.load(logits + row * row_stride + token, mask=token < vocab_size, other=-float("inf"))
    top = tl.max(x, axis=0)
    place = tl.min(tl.where(x == top, lanes, CHUNK - 1), axis=0)
    total = tl.sum(weigh(x, top, tl.load(temperature + row)), axis=0)
    is_nan = tl.max((x != x).to(tl.int32), axis=0)
    target = row * tl.num_programs(1) + chunk
    tl.store(tops + target, tl.where(is_nan == 1, float("nan"), top))
    tl.store(places + target, chunk * CHUNK + place)
    tl.store(sums + target, total)


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
        line = logits + row * row_stride
        share = tl.load(point + row)
        limit = tl.load(top_k + row)
        portion = tl.load(top_p + row)
        least = tl.load(min_p + row)
        part = tl.load(sums + row * num_chunks + chunks, mask=is_chunk, other=0.0)
        part = (part * weigh(top, maximum, heat)).to(tl.float64)
        if (limit <= 0) | (limit >= vocab_size):
            limit = tl.zeros((), tl.int64) + vocab_size
        low = 0
        last = vocab_size
        if (limit < vocab_size) | (portion < 1.0) | (least > 0.0):
            total = tl.sum(part, axis=0)
            low, last = find_kept(line, vocab_size, maximum, heat, limit, portion, least, total, CHUNK)
        token = draw_among(line, vocab_size, maximum, heat, low, last, share, part, CHUNK, BLOCK)
    tl.store(token_ids + row, token.to(tl.int64))


def shipped() -> list[Build]:
    """Return both kernels, the second for vocabularies of up to 32, 64 and 128 chunks."""
    options = dict.fromkeys(("temperature", "top_p", "min_p", "point"), "*fp64") | {"top_k": "*i64"}
    stored = {"tops": "*fp32", "places": "*i32", "sums": "*fp32", "logits": "*fp32"}
    sizes = {"row_stride": "i32", "vocab_size": "i32"}
    survey = Build(
        "survey",
        survey_kernel,
        stored | sizes | {"temperature": "*fp64"},
        {"CHUNK": CHUNK},
        frozenset(sizes),
        num_warps=NUM_WARPS,
    )
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
    return [survey, *draws]
