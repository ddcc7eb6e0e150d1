"""Every implementation of paged attention against plain torch attention over contiguous keys and values."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from kernels.paged_attention import PagedAttention, paged_attention_reference
from kernels.paged_attention.cpu_kernel import paged_attention_cpu
from kernels.paged_attention.triton_kernel import paged_attention_triton

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered.*:RuntimeWarning")  # numpy's, in Triton's interpreter
IMPLEMENTATIONS = [paged_attention_reference, paged_attention_cpu, paged_attention_triton]
SHAPES = [(5, 5, 8, 1), (4, 2, 16, 4), (6, 1, 24, 7), (9, 3, 128, 16)]  # H, K, D, B
LENGTHS = [1, 2, 13, 16, 17, 67]
TOLERANCE = 2e-5  # fp32, sums of up to 67 terms of size 1


@pytest.mark.parametrize("attend", IMPLEMENTATIONS)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim", "block_size"), SHAPES)
def test_equals_dense_attention_for_prefill_and_decode_in_one_batch(
    attend: PagedAttention, num_heads: int, num_kv_heads: int, head_dim: int, block_size: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    width = -(-max(LENGTHS) // block_size)
    num_blocks = width * len(LENGTHS) + 3
    caches = torch.full((2, num_blocks, num_kv_heads, block_size, head_dim), float("nan"))  # unwritten slots poison
    tables = torch.randperm(num_blocks, generator=generator)[: width * len(LENGTHS)].view(len(LENGTHS), width).int()
    queries, expected, rows, positions = [], [], [], []
    for row, length in enumerate(LENGTHS):
        q = torch.randn(length, num_heads, head_dim, generator=generator)
        kv = torch.randn(2, length, num_kv_heads, head_dim, generator=generator)
        for p in range(length):
            caches[:, tables[row, p // block_size], :, p % block_size] = kv[:, p]
        k, v = kv.repeat_interleave(num_heads // num_kv_heads, dim=2).transpose(1, 2)
        dense = F.scaled_dot_product_attention(q.transpose(0, 1), k, v, is_causal=True).transpose(0, 1)
        first = 0 if row % 2 else length - 1  # every other sequence decodes: only its last token asks
        queries.append(q[first:])
        expected.append(dense[first:])
        rows += [row] * (length - first)
        positions += range(first, length)
    out = attend(
        torch.cat(queries),
        caches[0],
        caches[1],
        tables,
        torch.tensor(rows, dtype=torch.int32),
        torch.tensor(positions, dtype=torch.int32),
        head_dim**-0.5,
    )
    torch.testing.assert_close(out, torch.cat(expected), atol=TOLERANCE, rtol=TOLERANCE)


VARIATIONS = {
    "window": {"window": 6},
    "window of one": {"window": 1},
    "window longer than all": {"window": 1000},
    "soft cap": {"soft_cap": 0.7},
    "sinks": {"sinks": torch.tensor([-2.0, 0.0, 1.0, 9.0])},
    "all": {"window": 17, "soft_cap": 2.0, "sinks": torch.tensor([-2.0, 0.0, 1.0, 9.0])},
}


def dense_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int = 10**6, soft_cap: float = 1e6, sinks: Any = None
) -> torch.Tensor:
    """[H, L, D] each; a cap of a million changes nothing that fp64 would not."""
    scores = (q.double() @ k.double().transpose(1, 2)) / q.shape[2] ** 0.5
    scores = soft_cap * torch.tanh(scores / soft_cap)
    distance = torch.arange(q.shape[1]).unsqueeze(1) - torch.arange(q.shape[1])
    scores = scores.masked_fill((distance < 0) | (distance >= window), float("-inf"))
    if sinks is not None:
        scores = torch.cat((scores, sinks.double().view(-1, 1, 1).expand(-1, q.shape[1], 1)), dim=2)
    return (scores.softmax(dim=2)[:, :, : q.shape[1]] @ v.double()).float()


@pytest.mark.parametrize("attend", IMPLEMENTATIONS)
@pytest.mark.parametrize("variation", VARIATIONS)
def test_windows_soft_caps_and_sinks_equal_dense_attention(attend: PagedAttention, variation: str) -> None:
    generator = torch.Generator().manual_seed(4)
    length, block_size = 45, 4
    q = torch.randn(length, 4, 16, generator=generator)
    kv = torch.randn(2, length, 2, 16, generator=generator)
    k, v = kv.repeat_interleave(2, dim=2).transpose(1, 2)
    table = torch.randperm(12, generator=generator).int()
    caches = torch.full((2, 12, 2, block_size, 16), float("nan"))
    for p in range(length):
        caches[:, table[p // block_size], :, p % block_size] = kv[:, p]
    rows, positions = torch.zeros(length, dtype=torch.int32), torch.arange(length, dtype=torch.int32)
    out = attend(q, caches[0], caches[1], table[None], rows, positions, 0.25, **VARIATIONS[variation])
    expected = dense_attention(q.transpose(0, 1), k, v, **VARIATIONS[variation]).transpose(0, 1)
    torch.testing.assert_close(out, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("attend", IMPLEMENTATIONS)
def test_blocks_before_the_window_are_not_read(attend: PagedAttention) -> None:
    caches = torch.full((2, 3, 1, 4, 16), float("nan"))
    caches[:, 2, :, 1:] = 1.0  # positions 9 to 11 of a sequence whose first two blocks belong to someone else now
    table, position = torch.tensor([[1000, -5, 2]]).int(), torch.tensor([11]).int()
    out = attend(
        torch.ones(1, 2, 16), caches[0], caches[1], table, torch.zeros(1, dtype=torch.int32), position, 1.0, window=3
    )
    torch.testing.assert_close(out, torch.ones(1, 2, 16))


@pytest.mark.parametrize("attend", IMPLEMENTATIONS)
def test_large_scores_do_not_overflow(attend: PagedAttention) -> None:
    cache = torch.zeros(2, 1, 4, 16)
    cache[0, 0, :, 0] = torch.tensor([500.0, -500.0, 499.0, 0.0])
    values = torch.arange(2 * 4 * 16, dtype=torch.float32).view(2, 1, 4, 16)
    query = torch.zeros(1, 2, 16)
    query[0, :, 0] = 1.0
    out = attend(query, cache, values, torch.tensor([[0]]).int(), torch.tensor([0]).int(), torch.tensor([3]).int(), 1.0)
    weights = torch.tensor([500.0, -500.0, 499.0, 0.0]).softmax(0)
    torch.testing.assert_close(out[0], (weights @ values[0, 0]).expand(2, -1), atol=1e-4, rtol=1e-5)


def test_a_tokens_result_does_not_depend_on_the_rest_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(2)
    cache = torch.randn(2, 8, 2, 4, 16, generator=generator)
    tables = torch.arange(8).view(2, 4).int()
    query = torch.randn(5, 4, 16, generator=generator)
    rows, positions = torch.tensor([0, 0, 1, 1, 1]).int(), torch.tensor([3, 4, 13, 14, 15]).int()
    together = paged_attention_cpu(query, cache[0], cache[1], tables, rows, positions, 0.25)
    for token in range(5):
        part = slice(token, token + 1)
        alone = paged_attention_cpu(query[part], cache[0], cache[1], tables, rows[part], positions[part], 0.25)
        assert torch.equal(alone[0], together[token])
