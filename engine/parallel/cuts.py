"""Cutting the parameters of a model without memory down to one rank's, and where the checkpoint's tensors go then.

Knows parameters, the views of them that have names in the checkpoint, and how views lie in their parameters. Does not
know layers, ranks or files.

Invariant: for every name the boxes of the checkpoint's tensor that all ranks ask for, joined, are the whole tensor.
"""

from dataclasses import dataclass

import torch
from torch import nn

from engine.layers.checkpoint import Piece, Pieces, View, Views, full_box


@dataclass(slots=True)
class Kept:
    """What is kept of one parameter.

    Attributes:
        full: the parameter before it was cut, without memory.
        module: who holds it; None where nothing of it is kept.
        name: its name there.
        dim: the dimension that is cut, if any.
        ranges: the indices kept along `dim`, in their order here.
    """

    full: torch.Tensor
    module: nn.Module | None
    name: str
    dim: int = 0
    ranges: list[range] | None = None


class Cuts:
    """Cuts parameters and remembers how."""

    def __init__(self, model: nn.Module, views: Views) -> None:
        """Start with a whole model on the meta device and the views of its parameters."""
        self._views = views
        self._kept: dict[int, Kept] = {}
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                self._kept.setdefault(id(parameter), Kept(parameter, module, name))

    def cut(self, module: nn.Module, name: str, dim: int, ranges: list[range]) -> None:
        """Keep only these indices of a parameter's dimension."""
        kept = self._of(module, name)
        kept.dim, kept.ranges = dim, ranges
        shape = list(kept.full.shape)
        shape[dim] = sum(map(len, ranges))
        local = torch.empty(shape, dtype=kept.full.dtype, device="meta")
        module.register_parameter(name, nn.Parameter(local, requires_grad=False))

    def drop(self, module: nn.Module, name: str) -> None:
        """Keep nothing of a parameter; the module has None in its place."""
        self._of(module, name).module = None
        module.register_parameter(name, None)

    def drop_all(self, module: nn.Module) -> None:
        """Keep nothing of a module's parameters, whose module will go."""
        for part in module.modules():
            for name, _ in list(part.named_parameters(recurse=False)):
                self.drop(part, name)

    def pieces(self) -> Views:
        """Return what to load where, once the model has memory."""
        return {name: self._pieces(view) for name, view in self._views.items()}

    def _of(self, module: nn.Module, name: str) -> Kept:
        return self._kept[id(getattr(module, name))]

    def _pieces(self, view: View) -> Pieces:
        if isinstance(view, torch.Tensor):
            return Pieces(tuple(view.shape), self._pieces_of(view))
        assert isinstance(view, list)
        stack: list[Piece] = []
        for index, part in enumerate(view):
            place = range(index, index + 1)
            stack += [Piece((place, *piece.box), piece.into.unsqueeze(0)) for piece in self._pieces_of(part)]
        return Pieces((len(view), *view[0].shape), stack)

    def _pieces_of(self, view: torch.Tensor) -> list[Piece]:
        full = view._base if view._base is not None else view
        kept = self._kept[id(full)]
        if kept.module is None:
            return []
        local = getattr(kept.module, kept.name).detach()
        is_turned = view.ndim == 2 and view.stride() != full.stride() and view.shape == full.shape[::-1]
        dim = 1 - kept.dim if is_turned else kept.dim
        local = local.t() if is_turned else local
        first = int(view.storage_offset()) // full.stride(
            0
        )  # a view is some rows of its parameter, or all of it turned
        rows = range(first, first + len(view))
        if kept.ranges is None or dim != 0:
            local = local[rows.start : rows.stop]
        if kept.ranges is None:
            return [Piece(full_box(view.shape), local)]
        window = rows if dim == 0 else range(view.shape[dim])
        return _cut_pieces(tuple(view.shape), window, dim, kept.ranges, local)


def _cut_pieces(
    shape: tuple[int, ...], window: range, dim: int, ranges: list[range], local: torch.Tensor
) -> list[Piece]:
    """Return the pieces of a view that lies at `window` of the dimension of which `local` holds `ranges`."""
    pieces: list[Piece] = []
    position = 0
    for kept in ranges:
        start, stop = max(kept.start, window.start), min(kept.stop, window.stop)
        if start < stop:
            box = list(full_box(shape))
            box[dim] = range(start - window.start, stop - window.start)
            into = local.narrow(dim, position + start - kept.start, stop - start)
            pieces.append(Piece(tuple(box), into))
        position += len(kept)
    return pieces
