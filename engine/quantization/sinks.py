"""What takes a checkpoint's tensors, on their way to a model's slots.

Knows tensors that come in pieces. Does not know files, or how a format packs its numbers.
"""

from collections.abc import Iterator, Sequence

import torch

from engine.errors import WeightMismatch
from engine.quantization.layout import FLOAT_TYPES, Cut, Expected, Layout
from engine.quantization.schemes import Quantizer, round_cut, whole_blocks
from engine.quantization.slots import Part, Slot, SlotFiller
from engine.quantization.weights import PartWeight
from engine.weights.safetensors_loader import StoredTensor


class RoundingSink:
    """Takes a plain weight, [O, C], or those of all experts in one tensor, [E, C, O], and rounds what is wanted of it.

    An output's row is rounded as it comes where the scheme can, an expert's weight as a whole.
    """

    dtypes = FLOAT_TYPES

    def __init__(self, filler: SlotFiller, targets: Sequence[tuple[Slot, Part]], quantizer: Quantizer) -> None:
        """Fill these parts, of that tensor, of the slots."""
        part = targets[0][1]
        num_outputs, num_inputs = part.cut.shape
        is_stacked = part.expert is not None
        self.shapes = ((part.num_experts, num_inputs, num_outputs) if is_stacked else part.cut.shape,)
        self._filler, self._targets, self._quantizer = filler, targets, quantizer

    def take(self, tensor: StoredTensor) -> None:
        """Round the parts and hand them to their slots."""
        for slot, part in self._targets:
            self._filler.fill(slot, part, self._round(tensor, part))

    def _round(self, tensor: StoredTensor, part: Part) -> PartWeight:
        def read(cut: Cut) -> Iterator[torch.Tensor]:
            if part.expert is None:
                return (piece for _, piece in tensor.read((cut.outputs, cut.inputs)))
            box = (range(part.expert, part.expert + 1), cut.inputs, cut.outputs)
            return (piece[0].t().contiguous() for _, piece in tensor.read(box))  # one index comes in one piece

        return round_cut(self._quantizer, part.cut, read)


class PartReader:
    """Gathers the tensors that make one part's weight in a quantized checkpoint.

    Attributes:
        part: the part.
        cut: what is read for it; more than the part where it is rounded with its neighbours.
    """

    def __init__(
        self,
        filler: SlotFiller,
        slot: Slot,
        part: Part,
        layout: Layout,
        names: Sequence[str],
        *,
        quantizer: Quantizer | None = None,
    ) -> None:
        """Wait for the tensors whose names end in `names`; round what they say where there is a quantizer."""
        self._filler, self._slot, self._layout, self._quantizer = filler, slot, layout, quantizer
        self.part, self._missing = part, set(names)
        self.cut = part.cut if quantizer is None else whole_blocks(quantizer, part.cut)
        self._tensors: dict[str, torch.Tensor] = {}

    def take(self, name: str, tensor: torch.Tensor) -> None:
        """Take one; the last makes the weight."""
        self._tensors[name] = tensor
        self._missing.discard(name)
        if not self._missing:
            self._filler.fill(self._slot, self.part, self._read())
            self._tensors = {}

    def _read(self) -> PartWeight:
        try:
            weight = self._layout.read(self._tensors, self.cut)
        except ValueError as error:
            expert = "" if self.part.expert is None else f"expert {self.part.expert} of "
            raise WeightMismatch(f"{expert}{self.part.name!r} cannot be read: {error}") from None
        if self._quantizer is None:
            return weight
        return round_cut(self._quantizer, self.part.cut, lambda _: [weight.dequantize()])


class RawSink:
    """Takes one tensor of a quantized weight as it is, or the boxes of it that this process wants."""

    def __init__(self, readers: Sequence[PartReader], name: str, expected: Expected) -> None:
        """Hand each reader its box under the end of the tensor's name; without readers the tensor is not read."""
        self.dtypes, self.shapes = expected.dtypes, expected.shapes
        self._readers, self._name, self._expected = readers, name, expected

    def take(self, tensor: StoredTensor) -> None:
        """Copy the boxes and hand them on."""
        for reader in self._readers:
            box, expert = self._expected.box(tensor.shape, reader.cut), reader.part.expert
            if expert is not None:
                box = (range(expert, expert + 1), *box[1:])
            copies = [piece.clone() for _, piece in tensor.read(box)]
            joined = torch.cat(copies) if len(copies) > 1 else copies[0]
            reader.take(self._name, joined if expert is None else joined[0])


class ZeroSink:
    """Takes a bias that the model does not have; old quantizers write zeros for it."""

    dtypes = FLOAT_TYPES

    def __init__(self, name: str, num_outputs: int) -> None:
        """Take the tensor of that name."""
        self.shapes = ((num_outputs,),)
        self._name = name

    def take(self, tensor: StoredTensor) -> None:
        """Refuse anything but zeros.

        Raises:
            WeightMismatch: a value is not zero.
        """
        if any(piece.any() for _, piece in tensor.read()):
            raise WeightMismatch(f"unexpected tensor {self._name!r}: the model has no bias there")
