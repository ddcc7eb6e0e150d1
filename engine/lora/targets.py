"""Which outputs of which of a model's projections an adapter's module means.

Knows the model's parameters and the checkpoint's names for them. Does not know adapters' weights or requests.

Checkpoints name projections that are fused here; a view of a fused weight says by its place which outputs are meant.
Left out are experts, whose rows are not the batch's in order.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from engine.layers.checkpoint import View
from engine.models.decoder import HEAD

MODULE = re.compile(rf"(?P<prefix>(?:(?:language_model|model)\.)*)(?P<key>{HEAD}|layers\.(?P<layer>\d+)\.(?P<rest>.+))")
EXPERTS = ".experts."


@dataclass(slots=True, frozen=True)
class Target:
    """A run of outputs of one of the model's linear modules.

    Attributes:
        path: the linear module's name in the model.
        start: index of the first output.
        shape: number of outputs and inputs.
        outputs: the runs of these outputs that are here, each behind the index of its first one here; on a rank that
            has only some of them. None where all are, from `start` on.
        inputs: those that are here; None where all are.
    """

    path: str
    start: int
    shape: tuple[int, int]
    outputs: tuple[tuple[int, range], ...] | None = None
    inputs: range | None = None

    @property
    def runs(self) -> tuple[tuple[int, range], ...]:
        """The runs of outputs that are here."""
        return ((self.start, range(self.shape[0])),) if self.outputs is None else self.outputs


@dataclass(slots=True, frozen=True)
class ModuleName:
    """A module's name as an adapter spells it.

    Attributes:
        prefix: wrappers' names.
        key: the name without wrappers, by which modules are found.
        layer: the layer's index; None for the head.
    """

    prefix: str
    key: str
    layer: int | None

    @classmethod
    def parse(cls, name: str) -> "ModuleName | None":
        """Take the name apart; None for a module that is neither in the language model's layers nor its head."""
        found = MODULE.fullmatch(name)
        if found is None:
            return None
        return cls(found["prefix"], found["key"], None if found["layer"] is None else int(found["layer"]))


def find_targets(model: nn.Module, views: Mapping[str, View]) -> dict[str, Target]:
    """Return what adapters may change, by `ModuleName.key`; `views` are the model's, its weights still plain."""
    linears = {id(module.weight): (path, module) for path, module in model.named_modules() if type(module) is nn.Linear}
    head = model.get_submodule(HEAD)
    assert isinstance(head, nn.Linear)
    targets = {HEAD: Target(HEAD, 0, _shape(head.weight))}  # has no view where it is tied
    for name, view in views.items():
        module = ModuleName.parse(name.removesuffix(".weight"))
        if module is None or not isinstance(view, torch.Tensor) or view.ndim != 2 or EXPERTS in module.key:
            continue
        path, linear = linears[id(view if view._base is None else view._base)]
        start = (view.storage_offset() - linear.weight.storage_offset()) // linear.in_features
        targets[module.key] = Target(path, start, _shape(view))
    return targets


def _shape(view: torch.Tensor) -> tuple[int, int]:
    num_outputs, num_inputs = view.shape
    return num_outputs, num_inputs
