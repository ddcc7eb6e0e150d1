"""Weights in the types that their files hold them in, so that loading a model of 16 bits never takes 32.

Knows modules and a checkpoint's header. Does not know packing: `keep_stored_types` is a pass over a model that has no
memory yet, for a CPU, whose products take weights of 16 bits. Norms, biases and whatever else is small stay in fp32.
"""

from collections.abc import Mapping

import torch
from torch import nn

from engine.layers.checkpoint import Views, as_pieces
from engine.weights.safetensors_file import DTYPES, TensorEntry

SHORT_TYPES = (torch.bfloat16, torch.float16)


def keep_stored_types(model: nn.Module, views: Views, entries: Mapping[str, TensorEntry]) -> None:
    """Give linear layers' and embeddings' weights the type of their tensors, where that is one type, of 16 bits.

    Args:
        model: its parameters have no memory; those that change are replaced.
        views: where tensors of the checkpoint go in these parameters, by name.
        entries: the checkpoint's tensors; what is missing there is found when it is loaded.
    """
    stored: dict[int, set[torch.dtype | None]] = {}
    for name, view in views.items():
        entry = entries.get(name)
        for piece in as_pieces(view).pieces:
            owner = piece.into if piece.into._base is None else piece.into._base
            stored.setdefault(id(owner), set()).add(None if entry is None else DTYPES.get(entry.dtype))
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        types = stored.get(id(module.weight), set())
        if len(types) == 1 and (dtype := types.pop()) in SHORT_TYPES:
            module.weight = nn.Parameter(module.weight.to(dtype), requires_grad=False)
