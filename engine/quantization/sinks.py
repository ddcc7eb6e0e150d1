"""What takes a checkpoint's tensors, on their way to a model's slots.

Knows tensors that come in pieces. Does not know files, or how a format packs its numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from engine.errors import WeightMismatch
from engine.quantization.layout import FLOAT_TYPES, Expected, Layout
from engine.quantization.schemes import Quantizer
from engine.quantization.slots import Part, Slot, SlotFiller
from engine.quantization.weights import PartWeight, stack_rows

Pieces = Iterator[tuple[int, torch.Tensor]]


class RoundingSink:
    """Takes the plain weight of a part and rounds it, piece by piece where the scheme can."""

    dtypes = FLOAT_TYPES

    def __init__(self, filler: SlotFiller, slot: Slot, part: Part, quantizer: Quantizer) -> None:
        """Fill that part of the slot."""
        self.shapes = ((part.num_outputs, slot.in_features),)
        self._filler, self._slot, self._part, self._quantizer = filler, slot, part, quantizer

    def take(self, pieces: Pieces) -> None:
        """Round the tensor and hand it to the slot."""
        if self._quantizer.is_row_wise:
            parts = (self._quantizer.quantize(piece.float()) for _, piece in pieces)
            rounded = stack_rows(self._part.num_outputs, parts)
        else:
            rounded = self._quantizer.quantize(torch.cat([piece.float().clone() for _, piece in pieces]))
        self._filler.fill(self._slot, self._part, rounded)


class StackedRoundingSink:
    """Takes the plain weights, [E, C, O], of all experts in one tensor."""

    dtypes = FLOAT_TYPES

    def __init__(self, filler: SlotFiller, targets: Sequence[tuple[Slot, Part]], quantizer: Quantizer) -> None:
        """Fill the slots, one for each expert."""
        slot = targets[0][0]
        self.shapes = ((len(targets), slot.in_features, slot.out_features),)
        self._filler, self._targets, self._quantizer = filler, targets, quantizer

    def take(self, pieces: Pieces) -> None:
        """Round each expert's weight as it comes."""
        for row, piece in pieces:
            for offset, weight in enumerate(piece):
                slot, part = self._targets[row + offset]
                self._filler.fill(slot, part, self._quantizer.quantize(weight.float().t().contiguous()))


class StackReader:
    """Gathers the tensors that make all experts' weights, each stacked on a new first axis."""

    def __init__(
        self, filler: SlotFiller, targets: Sequence[tuple[Slot, Part]], layout: Layout, quantizer: Quantizer | None
    ) -> None:
        """Fill the slots, one for each expert, with what the layout says, rounded where there is a quantizer.

        Raises:
            ValueError: no weight of that shape can be stored so.
        """
        slot = targets[0][0]
        self._filler, self._targets, self._layout, self._quantizer = filler, targets, layout, quantizer
        self._expected = layout.tensors(slot.out_features, slot.in_features)
        self._tensors: dict[str, torch.Tensor] = {}

    def sinks(self) -> "dict[str, RawSink]":
        """Return what takes the tensors, by the ends of their names."""
        count = len(self._targets)
        return {
            name: RawSink(self, name, replace(one, shapes=tuple((count, *shape) for shape in one.shapes)))
            for name, one in self._expected.items()
        }

    def take(self, name: str, tensor: torch.Tensor) -> None:
        """Take one; the last makes the weights, one expert's after the other's."""
        self._tensors[name] = tensor
        if len(self._tensors) == len(self._expected):
            for expert, (slot, part) in enumerate(self._targets):
                self._filler.fill(slot, part, self._read(expert, slot, part))
            self._tensors = {}

    def _read(self, expert: int, slot: Slot, part: Part) -> PartWeight:
        tensors = {name: tensor[expert] for name, tensor in self._tensors.items()}
        try:
            weight = self._layout.read(tensors, slot.out_features, slot.in_features)
        except ValueError as error:
            raise WeightMismatch(f"expert {expert} of {part.name!r} cannot be read: {error}") from None
        return weight if self._quantizer is None else self._quantizer.quantize(weight.dequantize())


class PartReader:
    """Gathers the tensors that make one part's weight in a quantized checkpoint."""

    def __init__(self, filler: SlotFiller, slot: Slot, part: Part, layout: Layout, names: Sequence[str]) -> None:
        """Wait for the tensors whose names end in `names`."""
        self._filler, self._slot, self._part, self._layout = filler, slot, part, layout
        self._missing = set(names)
        self._tensors: dict[str, torch.Tensor] = {}

    def take(self, name: str, tensor: torch.Tensor) -> None:
        """Take one; the last makes the weight."""
        self._tensors[name] = tensor
        self._missing.discard(name)
        if not self._missing:
            self._filler.fill(self._slot, self._part, self._read())
            self._tensors = {}

    def _read(self) -> PartWeight:
        try:
            return self._layout.read(self._tensors, self._part.num_outputs, self._slot.in_features)
        except ValueError as error:
            raise WeightMismatch(f"{self._part.name!r} cannot be read: {error}") from None


class RawSink:
    """Takes one tensor of a quantized part as it is."""

    def __init__(self, reader: PartReader | StackReader, name: str, expected: Expected) -> None:
        """Hand it to `reader` under the end of its name."""
        self.dtypes, self.shapes = expected.dtypes, expected.shapes
        self._reader, self._name = reader, name

    def take(self, pieces: Pieces) -> None:
        """Copy the tensor and hand it on."""
        copies = [piece.clone() for _, piece in pieces]
        self._reader.take(self._name, torch.cat(copies) if len(copies) > 1 else copies[0])


class ZeroSink:
    """Takes a bias that the model does not have; old quantizers write zeros for it."""

    dtypes = FLOAT_TYPES

    def __init__(self, name: str, num_outputs: int) -> None:
        """Take the tensor of that name."""
        self.shapes = ((num_outputs,),)
        self._name = name

    def take(self, pieces: Pieces) -> None:
        """Refuse anything but zeros.

        Raises:
            WeightMismatch: a value is not zero.
        """
        if any(piece.any() for _, piece in pieces):
            raise WeightMismatch(f"unexpected tensor {self._name!r}: the model has no bias there")
