"""How a format stores a weight [O, C]: which tensors, of which types and shapes, and what they say.

Knows the interface that each format's file implements, and bits in integers. Does not know files or models.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch

from engine.quantization.weights import PartWeight

Shape = tuple[int, ...]
Box = tuple[range, ...]
WORD_BITS = 32
FLOAT_TYPES = ("F32", "F16", "BF16")


@dataclass(slots=True, frozen=True)
class Cut:
    """What is wanted of a weight [O, C]: a run of its outputs and one of its inputs.

    Attributes:
        shape: O and C.
        outputs: those wanted.
        inputs: those wanted.
    """

    shape: tuple[int, int]
    outputs: range
    inputs: range

    @classmethod
    def whole(cls, num_outputs: int, num_inputs: int) -> "Cut":
        """Return all of a weight."""
        return cls((num_outputs, num_inputs), range(num_outputs), range(num_inputs))


@dataclass(slots=True, frozen=True)
class Axis:
    """What a tensor's dimension counts: `per_index` of the weight's outputs or inputs an index."""

    is_outputs: bool
    per_index: int = 1

    def window(self, cut: Cut) -> range:
        """Return the indices behind which the wanted ones lie, and some neighbours where they share an index."""
        wanted = cut.outputs if self.is_outputs else cut.inputs
        return range(wanted.start // self.per_index, -(-wanted.stop // self.per_index))


def outputs(per_index: int = 1) -> Axis:
    """Return a dimension that counts outputs."""
    return Axis(is_outputs=True, per_index=per_index)


def inputs(per_index: int = 1) -> Axis:
    """Return a dimension that counts inputs."""
    return Axis(is_outputs=False, per_index=per_index)


@dataclass(slots=True, frozen=True)
class Expected:
    """What a tensor must be.

    Attributes:
        dtypes: the types it may have, as safetensors spells them.
        shapes: the shapes it may have.
        axes: what its dimensions count; one that is None, or has no entry, is always read whole.
        is_optional: whether a checkpoint may do without.
    """

    dtypes: tuple[str, ...]
    shapes: tuple[Shape, ...]
    axes: tuple[Axis | None, ...] = ()
    is_optional: bool = False

    def stacked(self, count: int) -> "Expected":
        """Return the tensor that stacks as many of these on a new first axis, one of which makes a weight."""
        shapes = tuple((count, *shape) for shape in self.shapes)
        return replace(self, shapes=shapes, axes=(None, *self.axes))

    def box(self, shape: Shape, cut: Cut) -> Box:
        """Return what to read of the tensor, which has one of `shapes`, for a part of the weight."""
        axes = dict(enumerate(self.axes))
        return tuple(_window(size, axes.get(dim), cut) for dim, size in enumerate(shape or (1,)))


class Layout(Protocol):
    """One format, with the options of one checkpoint."""

    @property
    def names(self) -> tuple[str, ...]:
        """The ends of the names of tensors that a quantized module has and a plain one has not."""
        ...

    def tensors(self, num_outputs: int, num_inputs: int) -> dict[str, Expected]:
        """Return the tensors of a weight [O, C] by the ends of their names.

        Raises:
            ValueError: no weight of that shape can be stored so.
        """
        ...

    def read(self, tensors: dict[str, torch.Tensor], cut: Cut, /) -> PartWeight:
        """Return the part of the weight that these tensors say; of each its `Expected.box` is given.

        Raises:
            ValueError: they contradict each other.
        """
        ...


class PlainLayout:
    """A plain weight, where the projection's other parts are quantized."""

    names = ()

    def tensors(self, num_outputs: int, num_inputs: int) -> dict[str, Expected]:
        """Return what stands for a weight [O, C]."""
        return {"weight": Expected(FLOAT_TYPES, ((num_outputs, num_inputs),), (outputs(), inputs()))}

    def read(self, tensors: dict[str, torch.Tensor], _cut: Cut) -> PartWeight:
        """Return the weight."""
        return PartWeight(tensors["weight"])


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the unsigned numbers in each int32, lowest bits first: [..., n] to [..., n * 32 / bits] uint8."""
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32, device=words.device)
    numbers = (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return numbers.to(torch.uint8).flatten(-2)


def unpack_run(words: torch.Tensor, bits: int, run: range) -> torch.Tensor:
    """Return the numbers `run` of rows of which `words` are those that hold them: [..., n] to [..., len(run)] uint8."""
    first = run.start % (WORD_BITS // bits)
    return unpack_words(words, bits)[..., first : first + len(run)]


def words_for(count: int, bits: int) -> int:
    """Return how many words hold `count` numbers."""
    return -(-count * bits // WORD_BITS)


def groups_of(num_inputs: int, group: int) -> tuple[int, int]:
    """Return the number of groups and the inputs in each; a `group` of 0 is the whole row.

    Raises:
        ValueError: the group does not divide the inputs.
    """
    size = group or num_inputs
    if num_inputs % size:
        raise ValueError(f"groups of {size} do not divide {num_inputs} inputs")
    return num_inputs // size, size


def _window(size: int, axis: Axis | None, cut: Cut) -> range:
    return range(size) if axis is None or size == 1 else axis.window(cut)


def dequantize_groups(
    values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | float, group: int
) -> torch.Tensor:
    """Return (values - zeros) * scales, [O, C] fp32, for values [O, C] and scales and zeros [O, G]."""
    centres = zeros.float().unsqueeze(2) if isinstance(zeros, torch.Tensor) else zeros
    return ((values.float().unflatten(1, (-1, group)) - centres) * scales.float().unsqueeze(2)).flatten(1)
