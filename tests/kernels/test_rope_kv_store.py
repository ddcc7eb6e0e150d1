"""Rotation and KV store: the fast path against the reference, and the reference against complex multiplication."""

import pytest
import torch

from kernels.rope_kv_store import RopeKVStore, rope_kv_store_cpu, rope_kv_store_reference

SHAPES = [(1, 1, 2, 1, 2), (4, 2, 16, 4, 16), (9, 3, 64, 16, 48), (5, 5, 10, 7, 10), (4, 2, 12, 4, 2)]  # H, K, D, B, R


@pytest.mark.parametrize("rotate_and_store", [rope_kv_store_reference, rope_kv_store_cpu])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim", "block_size", "rotary_dim"), SHAPES)
def test_rotates_like_complex_numbers_and_writes_only_its_slots(
    rotate_and_store: RopeKVStore, num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, rotary_dim: int
) -> None:
    generator = torch.Generator().manual_seed(3)
    num_tokens, num_blocks = 5, 6
    heads = torch.randn(num_tokens, num_heads + 2 * num_kv_heads, head_dim, generator=generator)
    angles = torch.rand(50, rotary_dim // 2, generator=generator) * 6
    positions = torch.tensor([0, 49, 7, 7, 23], dtype=torch.int32)
    slots = torch.randperm(num_blocks * block_size, generator=generator)[:num_tokens]
    caches = torch.full((2, num_blocks, num_kv_heads, block_size, head_dim), float("nan"))

    qkv = heads.flatten(1).clone()
    rotate_and_store(qkv, torch.stack((angles.cos(), angles.sin()), dim=1), positions, slots, caches[0], caches[1])

    turned = torch.complex(*heads[..., :rotary_dim].chunk(2, dim=-1)) * torch.polar(
        torch.tensor(1.0), angles[positions]
    ).unsqueeze(1)
    rotated = torch.cat((turned.real, turned.imag, heads[..., rotary_dim:]), dim=-1)
    torch.testing.assert_close(qkv.view_as(heads)[:, :num_heads], rotated[:, :num_heads], atol=1e-5, rtol=1e-5)
    flat = caches.transpose(2, 3).flatten(1, 2)  # [2, N B, K, D]
    torch.testing.assert_close(flat[0, slots], rotated[:, num_heads : num_heads + num_kv_heads], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(flat[1, slots], heads[:, num_heads + num_kv_heads :], atol=1e-5, rtol=1e-5)
    untouched = torch.ones(num_blocks * block_size, dtype=torch.bool)
    untouched[slots] = False
    assert flat[:, untouched].isnan().all()
