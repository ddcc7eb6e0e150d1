"""Cutting the parameters of a model without memory down to one rank's, and where the checkpoint's tensors go then.

Knows parameters, the views of them that have names in the checkpoint, and how views lie in their parameters. Does not
know layers, ranks or files. Quantized weights are not views of parameters: for those it says which parts are wanted.

Invariant: for every name the boxes of the checkpoint's tensor that all ranks ask for, joined, are the whole tensor.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from engine.layers.checkpoint import Piece, Pieces, View, Views, full_box
from engine.lora.targets import Target
from engine.quantization.slots import Part, whole_parts


@dataclass(slots=True)
class Kept:
    """What is kept of one parameter.

    Attributes:
        full: the parameter before it was cut, without memory.
        module: who held it then.
        name: its name there.
        dim: the dimension that is cut, if any.
        ranges: the indices kept along `dim`, in their order here.
        is_dropped: whether nothing of it is kept.
    """

    full: torch.Tensor
    module: nn.Module
    name: str
    dim: int = 0
    ranges: list[range] | None = None
    is_dropped: bool = False


class Cuts:
    """Cuts parameters and remembers how."""

    def __init__(self, model: nn.Module, views: Views) -> None:
        """Start with a whole model on the meta device and the views of its parameters."""
        self._views = views
        self._paths: dict[int, str] = {}
        self._kept: dict[int, Kept] = {}
        self._by_name: dict[str, Kept] = {}
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                kept = self._kept.setdefault(id(parameter), Kept(parameter, module, name))
                self._by_name[f"{path}.{name}"] = kept

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
        self._of(module, name).is_dropped = True
        module.register_parameter(name, None)

    def drop_all(self, module: nn.Module) -> None:
        """Keep nothing of a module's parameters, whose module will go."""
        for part in module.modules():
            for name, _ in list(part.named_parameters(recurse=False)):
                self.drop(part, name)

    def settle(self, model: nn.Module) -> None:
        """Remember where modules are now that all is cut: from here on they may be replaced."""
        self._paths = {id(module): path for path, module in model.named_modules()}

    def pieces(self, model: nn.Module) -> Views:
        """Return what to load where, once the model has memory; nowhere, what a replaced module does not have."""
        return {name: self._pieces(model, view) for name, view in self._views.items()}

    def parts(self) -> tuple[dict[str, list[Part]], list[Part]]:
        """Return the parts of linear weights that are kept, in order by their module's name, and those dropped."""
        kept: dict[str, list[Part]] = {}
        dropped: list[Part] = []
        for part, piece in whole_parts(self._views):
            found = self._kept[id(piece if piece._base is None else piece._base)]
            if isinstance(found.module, nn.Linear):
                place = dropped if found.is_dropped else kept.setdefault(self._paths[id(found.module)], [])
                place += [part] if found.is_dropped else _cut_part(part, found)
        return {path: sorted(parts, key=lambda part: part.start) for path, parts in kept.items()}, dropped

    def local_target(self, target: Target) -> Target:
        """Return what is kept of the outputs and inputs that an adapter may change."""
        kept = self._by_name[f"{target.path}.weight"]
        if kept.ranges is None:
            return target
        if kept.dim == 1:
            return replace(target, inputs=kept.ranges[0])
        window = range(target.start, target.start + target.shape[0])
        return replace(target, outputs=tuple(_overlaps(window, kept.ranges)))

    def _of(self, module: nn.Module, name: str) -> Kept:
        return self._kept[id(getattr(module, name))]

    def _pieces(self, model: nn.Module, view: View) -> Pieces:
        if isinstance(view, torch.Tensor):
            return Pieces(tuple(view.shape), self._pieces_of(model, view))
        assert isinstance(view, list)
        stack: list[Piece] = []
        for index, part in enumerate(view):
            place = range(index, index + 1)
            stack += [Piece((place, *piece.box), piece.into.unsqueeze(0)) for piece in self._pieces_of(model, part)]
        return Pieces((len(view), *view[0].shape), stack)

    def _pieces_of(self, model: nn.Module, view: torch.Tensor) -> list[Piece]:
        full = view._base if view._base is not None else view
        kept = self._kept[id(full)]
        if kept.is_dropped:
            return []
        local = getattr(model.get_submodule(self._paths[id(kept.module)]), kept.name, None)
        if local is None:
            return []
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


def _cut_part(part: Part, kept: Kept) -> Iterator[Part]:
    """Yield what is kept of a part."""
    whole = part.cut
    if kept.ranges is None:
        yield part
    elif kept.dim == 1:
        (inputs,) = kept.ranges
        yield replace(part, cut=replace(whole, inputs=inputs))
    else:
        for place, outputs in _overlaps(range(part.start, part.start + whole.shape[0]), kept.ranges):
            yield replace(part, start=place, cut=replace(whole, outputs=outputs))


def _cut_pieces(
    shape: tuple[int, ...], window: range, dim: int, ranges: list[range], local: torch.Tensor
) -> list[Piece]:
    """Return the pieces of a view that lies at `window` of the dimension of which `local` holds `ranges`."""
    pieces: list[Piece] = []
    for place, run in _overlaps(window, ranges):
        box = list(full_box(shape))
        box[dim] = run
        pieces.append(Piece(tuple(box), local.narrow(dim, place, len(run))))
    return pieces


def _overlaps(window: range, ranges: list[range]) -> Iterator[tuple[int, range]]:
    """Yield the runs of `ranges` within `window`: the place among the kept indices, and the run counted from there."""
    position = 0
    for kept in ranges:
        start, stop = max(kept.start, window.start), min(kept.stop, window.stop)
        if start < stop:
            yield position + start - kept.start, range(start - window.start, stop - window.start)
        position += len(kept)
