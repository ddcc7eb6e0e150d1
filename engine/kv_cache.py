"""The memory that keys and values live in.

Knows shapes and sizes. Does not know which block belongs to whom.
"""

from dataclasses import dataclass

import torch

from engine.config import EngineConfig
from engine.errors import ModelError
from engine.models.config import ModelConfig


@dataclass(slots=True)
class KVCache:
    """Keys and values of all layers, [L, N, K, B, D] fp32 each."""

    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def allocate(cls, model: ModelConfig, num_blocks: int, block_size: int) -> "KVCache":
        """Reserve address space for `num_blocks` blocks; pages are touched only as they are written."""
        shape = (model.num_layers, num_blocks, model.num_kv_heads, block_size, model.head_dim)
        return cls(keys=torch.empty(shape), values=torch.empty(shape))


def num_blocks_for(config: EngineConfig, model: ModelConfig) -> int:
    """Return how many blocks the configuration asks for.

    Raises:
        ModelError: the memory given does not hold a single block.
    """
    if config.num_blocks:
        return config.num_blocks
    num_blocks = int(config.kv_cache_gib * 2**30) // (model.kv_bytes_per_token * config.block_size)
    if num_blocks < 1:
        raise ModelError(
            f"kv_cache_gib={config.kv_cache_gib} holds no block: one block of {config.block_size} tokens takes "
            f"{model.kv_bytes_per_token * config.block_size} bytes"
        )
    return num_blocks
