"""Rotary embedding and KV store in plain torch: the truth that other implementations are tested against."""

import torch

from kernels.cache_quantization import quantize_rows


def rope_kv_store_reference(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    *,
    key_scales: torch.Tensor | None = None,
    value_scales: torch.Tensor | None = None,
) -> None:
    """Rotate and store; see the contract in `kernels.rope_kv_store`."""
    num_kv_heads, _, head_dim = key_cache.shape[1:]
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    num_rotated = heads.shape[1] - num_kv_heads
    cos, sin = cos_sin[positions.long()].unsqueeze(2).unbind(1)
    turned, rest = heads[:, :num_rotated].split((2 * cos.shape[-1], head_dim - 2 * cos.shape[-1]), dim=-1)
    x1, x2 = turned.chunk(2, dim=-1)
    rotated = torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest), dim=-1)
    heads[:, :num_rotated] = rotated
    _store(rotated[:, num_rotated - num_kv_heads :], slot_mapping, key_cache, key_scales)
    _store(heads[:, num_rotated:], slot_mapping, value_cache, value_scales)


def _store(rows: torch.Tensor, slots: torch.Tensor, cache: torch.Tensor, scales: torch.Tensor | None) -> None:
    """Write rows [T, K, D] to their slots."""
    blocks, offsets = slots // cache.shape[2], slots % cache.shape[2]
    if scales is None:
        cache[blocks, :, offsets] = rows.to(cache.dtype)
        return
    stored, row_scales = quantize_rows(rows, cache.dtype)
    bytes_of = torch.uint8 if cache.dtype == torch.float8_e4m3fn else cache.dtype  # indexing knows no float8
    cache.view(bytes_of)[blocks, :, offsets] = stored.view(bytes_of)
    scales[blocks, :, offsets] = row_scales
