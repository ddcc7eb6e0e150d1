"""Naming parts of parameters as checkpoints do.

Knows how to cut a fused projection into the tensors a checkpoint holds. Does not know files.
"""

import torch
from torch import nn

View = torch.Tensor | list[torch.Tensor]  # a list where the checkpoint stacks what is apart here, on a new first axis
Views = dict[str, View]


def linear_views(linear: nn.Linear, parts: dict[str, int]) -> Views:
    """Return the weight and, if there is one, the bias of each part of a projection.

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
