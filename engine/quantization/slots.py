"""Places in a model where quantized linear layers will stand, filled as a checkpoint is read.

Knows a model's projections and the checkpoint's names for their parts. Does not know formats or files.

A fused projection has parts of their own names (`q_proj`, `k_proj`, `v_proj`), each quantized alone. Its slot takes
them in any order, joins them when the last has come, and puts the layer in its place; so of a model that is being
loaded at most the unfinished projections exist twice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from engine.layers.checkpoint import Pieces, View
from engine.quantization.layout import Cut
from engine.quantization.quantized_linear import make_linear
from engine.quantization.weights import PartWeight, join


@dataclass(slots=True, frozen=True)
class Part:
    """Outputs of a projection that have a name in the checkpoint.

    Attributes:
        name: of the module, without `.weight`.
        start: the first of the projection's outputs that are this part's.
        cut: which part of the checkpoint's weight of that name it is.
        has_bias: whether the model has a bias there.
        expert: the index within a tensor that stacks this part of all experts; None for a tensor of its own.
        num_experts: how many that tensor stacks.
    """

    name: str
    start: int
    cut: Cut
    has_bias: bool
    expert: int | None = None
    num_experts: int = 0

    @property
    def weight_name(self) -> str:
        """What the checkpoint calls a plain weight of that name."""
        return self.name if self.expert is not None else f"{self.name}.weight"


class Slot(nn.Module):
    """Stands where a linear layer will, with its sizes and its bias, and no weight."""

    def __init__(self, linear: nn.Linear, path: str, parts: list[Part]) -> None:
        """Stand in for `linear`, the module at `path`."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.dtype = linear.weight.dtype
        self.path = path
        self.parts = parts


@dataclass(slots=True)
class SlotFiller:
    """Puts finished layers into a model."""

    model: nn.Module
    device: torch.device
    arrived: dict[str, dict[Part, PartWeight]] = field(default_factory=dict)

    def fill(self, slot: Slot, part: Part, weight: PartWeight) -> None:
        """Take a part of the slot; the last one makes the layer and replaces the slot."""
        arrived = self.arrived.setdefault(slot.path, {})
        arrived[part] = weight
        if len(arrived) == len(slot.parts):
            joined = join([arrived[part] for part in slot.parts])
            del self.arrived[slot.path]
            replace_module(self.model, slot.path, make_linear(joined, slot.bias, self.device, slot.dtype))


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` in the place of the model's module of that name."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def find_parts(model: nn.Module, views: Mapping[str, View]) -> dict[str, list[Part]]:
    """Return each linear module's parts in order, by its name in the model; `views` are the model's, weights plain."""
    linears = {id(module.weight): path for path, module in model.named_modules() if type(module) is nn.Linear}
    found: dict[str, list[Part]] = {}
    for part, piece in whole_parts(views):
        path = linears.get(id(piece if piece._base is None else piece._base))
        if path is not None:
            found.setdefault(path, []).append(part)
    return {path: sorted(parts, key=lambda part: part.start) for path, parts in found.items()}


def whole_parts(views: Mapping[str, View]) -> Iterator[tuple[Part, torch.Tensor]]:
    """Yield what each matrix of a whole model would be a part of if it were a projection's, and the view of it."""
    for name, view in views.items():
        assert not isinstance(view, Pieces)
        if isinstance(view, list) and view[0].ndim == 2:  # stacked by transposed views of whole weights
            for expert, piece in enumerate(view):
                cut = Cut.whole(piece.shape[1], piece.shape[0])
                yield Part(name, 0, cut, f"{name}_bias" in views, expert, len(view)), piece
        elif isinstance(view, torch.Tensor) and view.ndim == 2:
            module, start = name.removesuffix(".weight"), int(view.storage_offset()) // view.shape[1]
            yield Part(module, start, Cut.whole(view.shape[0], view.shape[1]), f"{module}.bias" in views), view
