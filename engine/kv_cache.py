"""The memory that keys and values live in.

Knows shapes and sizes. Does not know which block belongs to whom.
"""

from dataclasses import dataclass

import torch

from engine.config import EngineConfig
from engine.errors import ModelError
from engine.models.config import ModelConfig
from engine.placement import Placement


@dataclass(slots=True)
class KVCache:
    """Keys and values of all layers, [L, N, K, B, D] each."""

    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def allocate(cls, model: ModelConfig, num_blocks: int, block_size: int, placement: Placement) -> "KVCache":
        """Reserve memory for `num_blocks` blocks; on the CPU pages are touched only as they are written."""
        shape = (model.num_layers, num_blocks, model.num_kv_heads, block_size, model.head_dim)
        keys, values = (torch.empty(shape, dtype=placement.dtype, device=placement.device) for _ in range(2))
        return cls(keys, values)


def num_blocks_in(num_bytes: int, model: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Return how many blocks fit into so many bytes.

    Raises:
        ModelError: not a single one.
    """
    block_bytes = model.kv_values_per_token * dtype.itemsize * block_size
    if num_bytes < block_bytes:
        raise ModelError(
            f"a KV cache of {num_bytes} bytes holds no block: one of {block_size} tokens takes {block_bytes} bytes"
        )
    return num_bytes // block_bytes


def given_num_blocks(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """Return how many blocks the configuration asks for, where none are measured.

    Raises:
        ModelError: the memory given does not hold a single block.
    """
    given = int(config.host_cache_gib * 2**30)
    return config.num_blocks or num_blocks_in(given, model, config.block_size, dtype)
