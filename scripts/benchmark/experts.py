"""What a mixture of experts costs against a dense feed-forward of as many operations.

Run as `python -m scripts.benchmark.experts`. Knows shapes like those of published models, scaled to what a small
machine holds. Does not know requests.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import typer
from torch import nn

from engine.layers.feed_forward import FeedForward
from engine.layers.fused_layers import fuse_layers
from engine.layers.moe import MixtureOfExperts
from engine.layers.packed_linear import pack_linears
from engine.model_runner import set_threads
from engine.models.moe_config import MoEConfig


@dataclass(slots=True, frozen=True)
class Shape:
    """Experts of width `intermediate`, of which each token goes to `num_chosen`."""

    hidden: int
    intermediate: int
    num_experts: int
    num_chosen: int


SHAPES = {
    "few wide experts (Mixtral, a quarter of its widths)": Shape(1024, 3584, 8, 2),
    "few experts, half as wide": Shape(1024, 2048, 8, 2),
    "few small experts": Shape(512, 1024, 8, 2),
    "many narrow experts (Qwen3-30B-A3B)": Shape(2048, 768, 128, 8),
}


def build(shape: Shape, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Return the experts and the dense layer that does as many operations for each token; weights are of `dtype`."""
    device = torch.device("cpu")
    moe = MoEConfig(shape.num_experts, shape.num_chosen, shape.intermediate, norm_topk=True, sparse_layers=frozenset())
    experts = MixtureOfExperts(shape.hidden, "silu", moe, device)
    dense = FeedForward(shape.hidden, shape.num_chosen * shape.intermediate, "silu")
    both = nn.ModuleList([experts, dense]).to(dtype)
    pack_linears(both)
    fuse_layers(both)
    return both[0], both[1]


def milliseconds(module: nn.Module, hidden: torch.Tensor) -> float:
    """Return the CPU time of one call on this thread."""
    started = time.thread_time()
    module(hidden)
    return (time.thread_time() - started) * 1e3


@torch.inference_mode()
def main(
    *,
    batch: Annotated[int, typer.Option(min=1, help="Tokens in a step.")] = 64,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="What the checkpoint holds.")] = "bfloat16",
    runs: Annotated[int, typer.Option(min=1, help="Alternating calls of each side.")] = 30,
) -> None:
    """Print medians and their ratio; one thread and its CPU time, so that a busy machine disturbs little."""
    set_threads(1)
    for name, shape in SHAPES.items():
        experts, dense = build(shape, getattr(torch, dtype))
        hidden = torch.randn(batch, shape.hidden)
        pairs = [(milliseconds(experts, hidden), milliseconds(dense, hidden)) for _ in range(runs)]
        sparse_ms, dense_ms = (statistics.median(side) for side in zip(*pairs, strict=True))
        rows = batch * shape.num_chosen / shape.num_experts
        print(f"{name}: {sparse_ms:.1f} against {dense_ms:.1f} ms, {sparse_ms / dense_ms:.2f}; {rows:g} rows an expert")


if __name__ == "__main__":
    typer.run(main)
