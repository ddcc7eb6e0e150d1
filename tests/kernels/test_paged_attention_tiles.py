"""Paged attention where it is cut into tiles and splits: every head size, type and cache against float64 attention.

The reference runs the cases with quantized caches too; without, `test_paged_attention` has its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from kernels.cache_quantization import LARGEST, dequantize_rows, quantize_rows
from kernels.paged_attention import PagedAttention, paged_attention_reference, triton_kernel
from kernels.paged_attention.tiling import KINDS, TILINGS, choose_kind, choose_num_splits, choose_tiling
from kernels.paged_attention.triton_kernel import paged_attention_triton
from tests.kernels.accuracy import TOLERANCE, assert_close

MIXED = ((37, 1), (70, 70), (5, 5), (64, 1), (23, 9))  # context, and how many of its last tokens ask
DECODE = ((300, 1), (1, 1), (129, 1))
DRAFTS = ((260, 5), (31, 3))
LONG = ((150, 50), (70, 1))


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    yield
    torch.use_deterministic_algorithms(False)


@dataclass
class Paged:
    """Sequences in shuffled blocks, whose other slots are NaN, and the answer in float64."""

    query: torch.Tensor
    caches: torch.Tensor  # [2, N, K, B, D]
    scales: tuple[torch.Tensor | None, ...]
    tables: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    expected: torch.Tensor

    def run(self, attend: PagedAttention, part: slice = slice(None), **options: Any) -> torch.Tensor:
        scales = dict(zip(("key_scales", "value_scales"), self.scales, strict=True))
        query, rows, positions = self.query[part], self.rows[part], self.positions[part]
        scale = self.query.shape[2] ** -0.5
        return attend(query, self.caches[0], self.caches[1], self.tables, rows, positions, scale, **options, **scales)


def attention64(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **options: Any) -> torch.Tensor:
    """Attention of the last tokens [Q, H, D] over [P, K, D] in float64."""
    num_groups, window, cap = query.shape[1] // keys.shape[1], options.get("window"), options.get("soft_cap")
    k, v = (x.double().repeat_interleave(num_groups, dim=1) for x in (keys, values))
    scores = torch.einsum("qhd,phd->hqp", query.double(), k) * query.shape[2] ** -0.5
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    distance = torch.arange(len(keys) - len(query), len(keys)).unsqueeze(1) - torch.arange(len(keys))
    is_hidden = (distance < 0) | (distance >= (window or len(keys)))
    scores = scores.masked_fill(is_hidden, float("-inf"))
    if (sinks := options.get("sinks")) is not None:
        scores = torch.cat((scores, sinks.double().view(-1, 1, 1).expand(-1, len(query), 1)), dim=2)
    return torch.einsum("hqp,phd->qhd", scores.softmax(dim=2)[:, :, : len(keys)], v)


def paged(
    lengths: tuple[tuple[int, int], ...],
    shape: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
    stored: torch.dtype | None = None,
    **options: Any,
) -> Paged:
    """Make a batch of `(context, asking)` sequences for a shape H, K, D, B."""
    num_heads, num_kv_heads, head_dim, block_size = shape
    generator = torch.Generator().manual_seed(5)
    width = -(-max(context for context, _ in lengths) // block_size)
    tables = torch.randperm(width * len(lengths) + 2, generator=generator)[: width * len(lengths)]
    tables = tables.view(len(lengths), width).int()
    caches = torch.full((2, width * len(lengths) + 2, num_kv_heads, block_size, head_dim), float("nan"), dtype=dtype)
    queries = [torch.randn(asking, num_heads, head_dim, generator=generator).to(dtype) for _, asking in lengths]
    for row, (context, _) in enumerate(lengths):
        kv = torch.randn(2, context, num_kv_heads, head_dim, generator=generator).to(dtype)
        places = torch.arange(context)
        caches[:, tables[row, places // block_size].long(), :, places % block_size] = kv.transpose(0, 1)
    held: torch.Tensor = caches
    scales: tuple[torch.Tensor | None, ...] = (None, None)
    if stored is not None:
        held, both = quantize_rows(caches, stored)
        scales = both.unbind()
        caches = dequantize_rows(held, both)
    expected = []
    for row, (context, _) in enumerate(lengths):
        places = torch.arange(context)
        keys, values = caches[:, tables[row, places // block_size].long(), :, places % block_size].unbind(1)
        expected.append(attention64(queries[row], keys, values, **options))
    rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor([asking for _, asking in lengths])).int()
    positions = torch.cat([torch.arange(context - asking, context) for context, asking in lengths]).int()
    return Paged(torch.cat(queries), held, scales, tables, rows, positions, torch.cat(expected))


def pretend_multiprocessors(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(triton_kernel, "_device", lambda _device: (80, count))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(8, 2, 64, 16), (3, 1, 80, 16), (5, 5, 96, 13), (16, 1, 128, 32)])
def test_prefill_chunks_and_decodes_share_a_launch(dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    batch = paged(MIXED, shape, dtype)
    assert_close(batch.run(paged_attention_triton), batch.expected, dtype)


@pytest.mark.parametrize("lengths", [DECODE, DRAFTS, LONG])
@pytest.mark.parametrize("multiprocessors", [1, 200])
def test_splits_add_up_to_the_whole(lengths: Any, multiprocessors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_multiprocessors(monkeypatch, multiprocessors)
    batch = paged(lengths, (4, 2, 256 if lengths is DECODE else 40, 16), torch.float16)
    assert_close(batch.run(paged_attention_triton), batch.expected, torch.float16)


OPTIONS: dict[str, dict[str, Any]] = {
    "window": {"window": 70},
    "window of one": {"window": 1},
    "soft cap": {"soft_cap": 1.5},
    "sinks": {"sinks": torch.tensor([-2.0, 0.0, 1.0, 9.0])},
    "all": {"window": 67, "soft_cap": 2.0, "sinks": torch.tensor([-2.0, 0.0, 1.0, 9.0])},
}


@pytest.mark.parametrize("lengths", [DECODE, DRAFTS, LONG])
@pytest.mark.parametrize("name", OPTIONS)
def test_variations_hold_across_splits(lengths: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_multiprocessors(monkeypatch, 30)
    batch = paged(lengths, (4, 2, 24, 16), **OPTIONS[name])
    assert_close(batch.run(paged_attention_triton, **OPTIONS[name]), batch.expected)


@pytest.mark.parametrize("attend", [paged_attention_reference, paged_attention_triton])
@pytest.mark.parametrize("stored", LARGEST)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("lengths", [DECODE, MIXED])
def test_a_quantized_cache_counts_for_what_it_holds(
    attend: PagedAttention, stored: torch.dtype, dtype: torch.dtype, lengths: Any
) -> None:
    batch = paged(lengths, (6, 2, 80, 16), dtype, stored)
    assert_close(batch.run(attend), batch.expected, dtype)


@pytest.mark.parametrize(
    ("kind", "splits", "lengths", "parts"),
    [
        ("prefill", 1, MIXED, (slice(0, 1), slice(1, 40), slice(40, 73), slice(76, 86))),
        ("decode", 4, DECODE, (slice(0, 1), slice(1, 2), slice(2, 3))),
    ],
)
def test_whole_tiles_and_decodes_get_the_same_bits_in_any_company(
    kind: str, splits: int, lengths: Any, parts: tuple[slice, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_kernel, "choose_num_splits", lambda *_sizes: splits)
    monkeypatch.setattr(triton_kernel, "choose_kind", lambda *_sizes: kind)
    batch = paged(lengths, (4, 2, 32, 16))
    together = batch.run(paged_attention_triton)
    for part in parts:
        assert torch.equal(batch.run(paged_attention_triton, part), together[part])


def test_a_query_may_be_part_of_wider_rows() -> None:
    batch = paged(MIXED, (4, 2, 32, 16), torch.float16)
    wide = torch.full((len(batch.query), 9, 32), float("nan"), dtype=torch.float16)
    wide[:, :4] = batch.query
    batch.query = wide[:, :4]
    assert_close(batch.run(paged_attention_triton), batch.expected)


@pytest.mark.parametrize(
    ("num_tiles", "num_kv_heads", "max_positions", "splits"),
    [
        (1, 8, 131_072, 32),  # a long context alone: 33 wanted, rounded down
        (1, 8, 1024, 8),  # no less than 128 positions each
        (64, 8, 1024, 1),  # enough programs already
        (16, 8, 8192, 2),
        (1, 1, 1, 1),
        (1, 1, 10**6, 64),
    ],
)
def test_few_tiles_over_long_contexts_are_split(
    num_tiles: int, num_kv_heads: int, max_positions: int, splits: int
) -> None:
    assert choose_num_splits(num_tiles, num_kv_heads, max_positions, 132) == splits


def test_tilings_are_powers_of_two_and_hold_a_tokens_heads() -> None:
    for tiling in TILINGS.values():
        for number in (tiling.rows, tiling.positions, tiling.num_warps):
            assert number & (number - 1) == 0
    assert [choose_kind(tokens, 64) for tokens in (64, 512, 513)] == ["decode", "decode", "prefill"]
    assert choose_tiling(90, "decode", 2, 128, 71).rows == 128
    assert choose_tiling(86, "decode", 2, 128, 4) == choose_tiling(80, "decode", 2, 128, 4)
    assert choose_tiling(120, "prefill", 2, 80, 4) == choose_tiling(90, "prefill", 2, 128, 4)
    assert choose_tiling(90, "decode", 4, 16, 1) == choose_tiling(90, "decode", 4, 64, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("element_bytes", "head_dim"), [(2, 257), (4, 129)])
def test_a_head_that_is_too_wide_is_refused_with_its_size(kind: Any, element_bytes: int, head_dim: int) -> None:
    with pytest.raises(ValueError, match=f"at most 256 channels, in fp32 128, not {head_dim}"):
        choose_tiling(90, kind, element_bytes, head_dim, 4)
