"""The memory that keys and values live in.

Knows shapes and sizes. Does not know which block belongs to whom.
"""

from dataclasses import dataclass, field

import torch

from engine.config import EngineConfig
from engine.errors import ModelError
from engine.models.config import ModelConfig
from engine.placement import Placement

QUANTIZED = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
SCALE_BYTES = 4


@dataclass(slots=True)
class LayerCache:
    """Keys and values of a layer, [N, K, B, D] each, and, where they are quantized, their scales, [N, K, B] fp32."""

    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor | None = None
    value_scales: torch.Tensor | None = None


@dataclass(slots=True)
class KVCache:
    """Keys and values of all layers, [L, N, K, B, D] each, and, where they are quantized, their scales."""

    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor | None = None
    value_scales: torch.Tensor | None = None
    layers: list[LayerCache] = field(init=False)

    def __post_init__(self) -> None:
        """Name each layer's part."""
        num_layers = len(self.keys)
        key_scales, value_scales = (
            [None] * num_layers if scales is None else list(scales) for scales in (self.key_scales, self.value_scales)
        )
        self.layers = [
            LayerCache(*parts) for parts in zip(self.keys, self.values, key_scales, value_scales, strict=True)
        ]

    @classmethod
    def allocate(
        cls, model: ModelConfig, num_blocks: int, block_size: int, device: torch.device, dtype: torch.dtype
    ) -> "KVCache":
        """Reserve memory for `num_blocks` blocks; on the CPU pages are touched only as they are written."""
        shape = (model.num_layers, num_blocks, model.num_kv_heads, block_size, model.head_dim)
        keys, values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        if dtype not in QUANTIZED.values():
            return cls(keys, values)
        return cls(keys, values, *(torch.empty(shape[:-1], dtype=torch.float32, device=device) for _ in range(2)))


def cache_dtype(config: EngineConfig, placement: Placement) -> torch.dtype:
    """Return the type that keys and values are stored in."""
    return QUANTIZED.get(config.kv_cache_dtype, placement.dtype)


def num_blocks_in(num_bytes: int, model: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Return how many blocks of keys and values of that type fit into so many bytes, their scales included.

    Raises:
        ModelError: not a single one.
    """
    value_bytes = model.kv_values_per_token * dtype.itemsize
    scale_bytes = model.kv_values_per_token // model.head_dim * SCALE_BYTES if dtype in QUANTIZED.values() else 0
    block_bytes = (value_bytes + scale_bytes) * block_size
    if num_bytes < block_bytes:
        raise ModelError(
            f"a KV cache of {num_bytes} bytes holds no block: one of {block_size} tokens takes {block_bytes} bytes"
        )
    return num_bytes // block_bytes


def is_measured(config: EngineConfig, placement: Placement) -> bool:
    """Whether the cache gets what the largest step leaves, since the configuration says nothing."""
    return placement.device.type == "cuda" and not (config.num_blocks or config.kv_cache_gib)


def given_num_blocks(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """Return how many blocks the configuration asks for, where none are measured.

    Raises:
        ModelError: the memory given does not hold a single block.
    """
    given = int(config.host_cache_gib * 2**30)
    return config.num_blocks or num_blocks_in(given, model, config.block_size, dtype)
