"""Cases of the KV cache: rotating and storing, attention."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kernels.cache_quantization import quantize_rows
from scripts.kernel_cases.case import Case, Size, normal
from scripts.kernel_cases.rows import DTYPES

STORED: dict[Size, tuple[torch.dtype | None, ...]] = {  # what caches hold; None is the type of the inputs
    "tiny": (None, torch.int8),
    "cpu": (None,),
    "gpu": (None, torch.int8, torch.float8_e4m3fn),
}


@dataclass(slots=True, frozen=True)
class Shape:
    """Sequences of `context` tokens of which the last `num_new` ask."""

    num_sequences: int
    context: int
    num_new: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int

    def __str__(self) -> str:
        """Say it as a table would."""
        heads = f"{self.num_heads}/{self.num_kv_heads} heads of {self.head_dim}"
        return f"{self.num_sequences} x {self.num_new} at {self.context}, {heads}"

    @property
    def num_tokens(self) -> int:
        """Tokens that ask."""
        return self.num_sequences * self.num_new


SHAPES: dict[Size, tuple[Shape, ...]] = {
    "tiny": (Shape(3, 37, 1, 4, 2, 16, 4), Shape(2, 9, 5, 6, 1, 24, 7)),
    "cpu": (Shape(64, 160, 1, 9, 3, 64, 16), Shape(1, 512, 512, 9, 3, 64, 16)),
    "gpu": (
        Shape(1, 1024, 1, 32, 8, 128, 16),
        Shape(64, 1024, 1, 32, 8, 128, 16),
        Shape(1, 8192, 8192, 32, 8, 128, 16),
    ),
}


def cases(size: Size) -> list[Case]:
    """Return the cases of that size."""
    return [
        make_case(shape, dtype, stored)
        for shape in SHAPES[size]
        for dtype in DTYPES[size]
        for stored in STORED[size]
        for make_case in (_rope, _attention)
    ]


def _label(shape: Shape, stored: torch.dtype | None) -> str:
    return str(shape) if stored is None else f"{shape}, cache in {str(stored).removeprefix('torch.')}"


def _rope(shape: Shape, dtype: torch.dtype, stored: torch.dtype | None) -> Case:
    num_blocks = -(-shape.num_tokens // shape.block_size) + 1
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    cache_shape = (2, num_blocks, shape.num_kv_heads, shape.block_size, shape.head_dim)

    def make(device: torch.device) -> tuple[Any, ...]:
        angles = torch.arange(shape.context, device=device).unsqueeze(1) * torch.logspace(
            0, -3, shape.head_dim // 2, device=device
        )
        cos_sin = torch.stack((angles.cos(), angles.sin()), dim=1)
        tokens = torch.arange(shape.num_tokens, device=device)
        caches = torch.zeros(cache_shape, dtype=stored or dtype, device=device)
        scales = None if stored is None else torch.zeros(cache_shape[:-1], device=device)
        positions = (tokens % shape.num_new).int()
        return (
            normal(1, shape.num_tokens, width, dtype=dtype, device=device),
            cos_sin,
            positions,
            tokens,
            caches,
            scales,
        )

    element = dtype.itemsize if stored is None else 1
    moved = shape.num_tokens * shape.head_dim * (shape.num_heads + 2 * shape.num_kv_heads) * dtype.itemsize
    moved += shape.num_tokens * shape.head_dim * (shape.num_heads * dtype.itemsize + 2 * shape.num_kv_heads * element)
    run = partial(_rotate_and_store, shape)
    return Case("rope_kv_store", "rope_kv_store", _label(shape, stored), dtype, make, run, moved)


def _rotate_and_store(shape: Shape, implementation: Any, *inputs: Any) -> Any:
    qkv, cos_sin, positions, slots, caches, scales = inputs
    keywords = {} if scales is None else {"key_scales": scales[0], "value_scales": scales[1]}
    implementation(qkv, cos_sin, positions, slots, caches[0], caches[1], **keywords)
    queries = qkv[:, : shape.num_heads * shape.head_dim]
    if scales is None:
        return queries, caches
    return queries, scales  # rounding may go either way: what is stored is compared by the operation's own tests


def _attention(shape: Shape, dtype: torch.dtype, stored: torch.dtype | None) -> Case:
    per_sequence = -(-shape.context // shape.block_size)
    num_blocks = per_sequence * shape.num_sequences
    cache_shape = (num_blocks, shape.num_kv_heads, shape.block_size, shape.head_dim)

    def make(device: torch.device) -> tuple[Any, ...]:
        query = normal(2, shape.num_tokens, shape.num_heads, shape.head_dim, dtype=dtype, device=device)
        caches = tuple(normal(seed, *cache_shape, dtype=dtype, device=device) for seed in (3, 4))
        tables = normal(5, num_blocks, device=device).argsort().view(shape.num_sequences, per_sequence).int()
        rows = torch.arange(shape.num_sequences, device=device).repeat_interleave(shape.num_new).int()
        first = shape.context - shape.num_new
        positions = torch.arange(first, shape.context, device=device).repeat(shape.num_sequences).int()
        if stored is None:
            return query, *caches, tables, rows, positions, None, None
        (keys, key_scales), (values, value_scales) = (quantize_rows(cache, stored) for cache in caches)
        return query, keys, values, tables, rows, positions, key_scales, value_scales

    element = dtype.itemsize if stored is None else 1 + 4 / shape.head_dim
    moved = 2 * shape.num_sequences * shape.context * shape.num_kv_heads * shape.head_dim * element
    moved += 2 * shape.num_tokens * shape.num_heads * shape.head_dim * dtype.itemsize
    pairs = shape.num_tokens * (shape.context - (shape.num_new - 1) / 2)
    num_flops = 4.0 * pairs * shape.num_heads * shape.head_dim
    return Case("paged_attention", "paged_attention", _label(shape, stored), dtype, make, _attend, moved, num_flops)


def _attend(implementation: Any, query: Any, *inputs: Any) -> torch.Tensor:
    *tensors, key_scales, value_scales = inputs
    keywords = {} if key_scales is None else {"key_scales": key_scales, "value_scales": value_scales}
    return implementation(query, *tensors, query.shape[2] ** -0.5, **keywords)
