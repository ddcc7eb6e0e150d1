"""Naming parts of parameters as checkpoints do.

Knows how to cut a fused projection into the tensors a checkpoint holds. Does not know files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(slots=True, frozen=True)
class Piece:
    """A box of a checkpoint's tensor, one run of indices a dimension, and where it goes: `into`, of its shape."""

    box: tuple[range, ...]
    into: torch.Tensor


@dataclass(slots=True, frozen=True)
class Pieces:
    """What this process wants of a checkpoint's tensor of that shape: some boxes, or none."""

    shape: tuple[int, ...]
    pieces: list[Piece]


View = torch.Tensor | list[torch.Tensor] | Pieces  # a list: what the checkpoint stacks on a new first axis
Views = dict[str, View]


def full_box(shape: Sequence[int]) -> tuple[range, ...]:
    """Return the box of everything."""
    return tuple(range(size) for size in shape)


def as_pieces(view: View) -> Pieces:
    """Return which boxes of the checkpoint's tensor go where."""
    if isinstance(view, Pieces):
        return view
    if isinstance(view, torch.Tensor):
        return Pieces(tuple(view.shape), [Piece(full_box(view.shape), view)])
    rest = full_box(view[0].shape)
    stack = [Piece((range(index, index + 1), *rest), part.unsqueeze(0)) for index, part in enumerate(view)]
    return Pieces((len(view), *view[0].shape), stack)


def linear_views(linear: nn.Module, parts: dict[str, int]) -> Views:
    """Return those that there are of weight and bias of each part of a projection.

    Args:
        linear: projections fused along their outputs.
        parts: for each the checkpoint's name and its number of outputs, in order.
    """
    views: Views = {}
    for kind, parameter in linear.named_parameters():
        rows = parameter.split(list(parts.values()))
        views |= {f"{name}.{kind}": row for name, row in zip(parts, rows, strict=True)}
    return views


def prefixed(prefix: str, views: Views) -> Views:
    """Return the views with `prefix` and a dot before their names."""
    return {f"{prefix}.{name}": view for name, view in views.items()}
