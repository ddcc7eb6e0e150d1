"""Linear layers whose rows may each have an adapter's update.

Knows one projection and the step's rows. Does not know models, files or requests: `wrap_linears` is a pass over a
built, loaded and packed model.

Invariant: in a step without adapters a wrapped layer does what the layer inside does, and no more than look once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from engine.batch import Batch
from engine.device_link import DeviceLink
from engine.models.decoder import HEAD
from engine.parallel.layers import GatheredHead, RowParallel
from engine.parallel.rounded_layers import RoundedRowParallel
from engine.quantization.slots import replace_module
from kernels import lora
from kernels.lora import LowRankUpdate, RowGroup


@dataclass(slots=True)
class LoadedAdapter:
    """An adapter in memory.

    Attributes:
        name: as requests say it.
        digest: names its content; equal ones compute the same.
        num_bytes: memory that it takes.
        updates: what it adds, by the name of the model's linear module.
    """

    name: str
    digest: bytes
    num_bytes: int
    updates: dict[str, LowRankUpdate]


@dataclass(slots=True)
class AdapterRows:
    """Which of the step's rows have which adapter; one object is shared by all wrapped layers of a model.

    Attributes:
        groups: the rows of each adapter's tokens.
        head_groups: those of the tokens whose logits are wanted, among these; of adapters that change the head.
    """

    groups: list[tuple[torch.Tensor, LoadedAdapter]] = field(default_factory=list)
    head_groups: list[tuple[torch.Tensor, LoadedAdapter]] = field(default_factory=list)

    def assign(self, adapters: Sequence[object], batch: Batch, link: DeviceLink) -> None:
        """Take the next step's rows.

        Args:
            adapters: the `LoadedAdapter` of each sequence, or None.
            batch: the step, on the host.
            link: the way to the model's device.
        """
        used = list({id(a): a for a in adapters if isinstance(a, LoadedAdapter)}.values())
        if not used and not self.groups:
            return
        of_tokens = batch.token_to_seq.numpy()
        of_logits = of_tokens[batch.logits_indices.numpy()]
        at_head = [adapter for adapter in used if HEAD in adapter.updates]
        rows = [_rows_of(adapter, adapters, of_tokens) for adapter in used]
        rows += [_rows_of(adapter, adapters, of_logits) for adapter in at_head]
        groups = list(zip(link.upload(rows), [*used, *at_head], strict=True))
        self.groups, self.head_groups = groups[: len(used)], groups[len(used) :]

    def groups_at(self, path: str) -> list[tuple[torch.Tensor, LoadedAdapter]]:
        """Return those that matter to the linear module of that name."""
        return self.head_groups if path == HEAD else self.groups


class LoraLinear(nn.Module):
    """`x W^T + b` and, in rows with an adapter, its update."""

    def __init__(self, inner: nn.Module, path: str, rows: AdapterRows, device: torch.device) -> None:
        """Wrap `inner`, which maps [T, C] to a new [T, O]; `path` is its name in the model."""
        super().__init__()
        self.inner = inner
        self.path = path
        self.rows = rows
        self.add_updates = lora.select(device)

    @property
    def is_wanted(self) -> bool:
        """Whether a sequence of this step has an adapter."""
        return bool(self.rows.groups_at(self.path))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map [T, C] to [T, O]."""
        out = self.inner(inputs)
        if found := self.rows.groups_at(self.path):
            groups = [
                RowGroup(rows, update)
                for rows, adapter in found
                if (update := adapter.updates.get(self.path)) is not None and len(rows)
            ]
            self.add_updates(out, inputs, groups)
        return out


class NoAnswer(nn.Module):
    """What an update is added to where the layer's own answer is not yet there."""

    def __init__(self, num_outputs: int) -> None:
        """Answer with so many zeros."""
        super().__init__()
        self.num_outputs = num_outputs

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map [T, C] to [T, O]."""
        return inputs.new_zeros(len(inputs), self.num_outputs)


def _rows_of(adapter: LoadedAdapter, adapters: Sequence[object], sequence_of_rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(np.array([other is adapter for other in adapters])[sequence_of_rows]))


def wrap_linears(model: nn.Module, paths: Iterable[str], device: torch.device) -> AdapterRows:
    """Wrap the modules of these names and return the object that says, before each step, who has which adapter.

    Of one whose answers are parts that ranks sum or join, the part that is here is wrapped: an update's are, too.
    """
    rows = AdapterRows()
    for path in sorted(set(paths)):
        module = model.get_submodule(path)
        if isinstance(module, RoundedRowParallel):
            module.update = LoraLinear(NoAnswer(module.out_features), path, rows, device)
        elif isinstance(module, RowParallel | GatheredHead):
            module.inner = LoraLinear(module.inner, path, rows, device)
        else:
            replace_module(model, path, LoraLinear(module, path, rows, device))
    return rows
