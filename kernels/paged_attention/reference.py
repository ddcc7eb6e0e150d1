"""Paged attention in plain torch: the truth that other implementations are tested against."""

import torch


def paged_attention_reference(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    token_to_seq: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attend one token at a time over its gathered keys and values; see the contract in `kernels.paged_attention`."""
    num_groups = query.shape[1] // key_cache.shape[1]
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for token, (row, position) in enumerate(zip(token_to_seq.tolist(), positions.tolist(), strict=True)):
        keys = _gather(key_cache, block_tables[row], position + 1).repeat_interleave(num_groups, dim=1)
        values = _gather(value_cache, block_tables[row], position + 1).repeat_interleave(num_groups, dim=1)
        scores = torch.einsum("hd,phd->hp", query[token].float(), keys) * scale
        out[token] = torch.einsum("hp,phd->hd", scores.softmax(dim=-1), values).to(query.dtype)
    return out


def _gather(cache: torch.Tensor, table: torch.Tensor, num_positions: int) -> torch.Tensor:
    """Return the first `num_positions` keys or values of one sequence, [P, K, D] fp32."""
    rows = cache[table.long()].transpose(1, 2).flatten(0, 1)
    return rows[:num_positions].float()
