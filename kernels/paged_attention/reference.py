"""Paged attention in plain torch: the truth that other implementations are tested against."""

import torch

from kernels.cache_quantization import dequantize_rows


def paged_attention_reference(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    token_to_seq: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    *,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    key_scales: torch.Tensor | None = None,
    value_scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend one token at a time over its gathered keys and values; see the contract in `kernels.paged_attention`."""
    num_groups = query.shape[1] // key_cache.shape[1]
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for token, (row, position) in enumerate(zip(token_to_seq.tolist(), positions.tolist(), strict=True)):
        first = 0 if window is None else max(0, position - window + 1)
        slots = torch.arange(first, position + 1, device=query.device)
        keys = _gather(key_cache, key_scales, block_tables[row], slots).repeat_interleave(num_groups, dim=1)
        values = _gather(value_cache, value_scales, block_tables[row], slots).repeat_interleave(num_groups, dim=1)
        scores = torch.einsum("hd,phd->hp", query[token].float(), keys) * scale
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        if sinks is not None:
            scores = torch.cat((scores, sinks.float().unsqueeze(1)), dim=1)
        weights = scores.softmax(dim=-1)[:, : len(slots)]
        out[token] = torch.einsum("hp,phd->hd", weights, values).to(query.dtype)
    return out


def _gather(
    cache: torch.Tensor, scales: torch.Tensor | None, table: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Return the keys or values of one sequence at `positions`, [P, K, D] fp32."""
    block_size = cache.shape[2]
    blocks, offsets = table[positions // block_size].long(), positions % block_size
    return dequantize_rows(cache[blocks, :, offsets], None if scales is None else scales[blocks, :, offsets])
