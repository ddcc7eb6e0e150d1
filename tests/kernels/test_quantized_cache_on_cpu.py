"""The CPU's attention over quantized keys and values against the reference's."""

from typing import Any

import pytest
import torch

from kernels.cache_quantization import LARGEST, quantize_rows
from kernels.paged_attention import paged_attention_reference
from kernels.paged_attention.cpu_kernel import paged_attention_cpu

VARIATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window, soft cap and sinks": {"window": 9, "soft_cap": 2.0, "sinks": torch.tensor([-2.0, 0.0, 1.0, 9.0])},
}


@pytest.mark.parametrize("stored", LARGEST)
@pytest.mark.parametrize("variation", VARIATIONS)
def test_attention_over_a_quantized_cache_is_the_references(stored: torch.dtype, variation: str) -> None:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(2, 12, 2, 4, 16, generator=generator) * torch.logspace(-2, 2, 12).view(1, 12, 1, 1, 1)
    cache, scales = quantize_rows(rows, stored)
    scales[:, 7, :, 2:] = float("nan")  # slots that nothing has been written to
    tables = torch.tensor([[3, 0, 5, 7], [1, 2, 9, -100]], dtype=torch.int32)
    token_to_seq, positions = torch.tensor([0, 0, 1, 1]).int(), torch.tensor([2, 13, 0, 11]).int()
    query = torch.randn(4, 4, 16, generator=generator)
    where = cache[0], cache[1], tables, token_to_seq, positions, 0.25
    options: dict[str, Any] = VARIATIONS[variation] | {"key_scales": scales[0], "value_scales": scales[1]}
    expected = paged_attention_reference(query, *where, **options)
    size = float(expected.abs().max())
    torch.testing.assert_close(paged_attention_cpu(query, *where, **options), expected, atol=2e-6 * size, rtol=2e-5)
