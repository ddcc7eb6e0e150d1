"""Rotary embedding and KV store in plain torch: the truth that other implementations are tested against."""

import torch


def rope_kv_store_reference(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
) -> None:
    """Rotate and store; see the contract in `kernels.rope_kv_store`."""
    num_kv_heads, block_size, head_dim = key_cache.shape[1:]
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    num_rotated = heads.shape[1] - num_kv_heads
    cos, sin = cos_sin[positions.long()].unsqueeze(2).unbind(1)
    turned, rest = heads[:, :num_rotated].split((2 * cos.shape[-1], head_dim - 2 * cos.shape[-1]), dim=-1)
    x1, x2 = turned.chunk(2, dim=-1)
    rotated = torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest), dim=-1)
    heads[:, :num_rotated] = rotated
    blocks, offsets = slot_mapping // block_size, slot_mapping % block_size
    key_cache[blocks, :, offsets] = rotated[:, num_rotated - num_kv_heads :]
    value_cache[blocks, :, offsets] = heads[:, num_rotated:]
