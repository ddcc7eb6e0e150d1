"""How a format stores a weight [O, C]: which tensors, of which types and shapes, and what they say.

Knows the interface that each format's file implements, and bits in integers. Does not know files or models.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from engine.quantization.weights import PartWeight

Shape = tuple[int, ...]
WORD_BITS = 32
FLOAT_TYPES = ("F32", "F16", "BF16")


@dataclass(slots=True, frozen=True)
class Expected:
    """What a tensor must be.

    Attributes:
        dtypes: the types it may have, as safetensors spells them.
        shapes: the shapes it may have.
        is_optional: whether a checkpoint may do without.
    """

    dtypes: tuple[str, ...]
    shapes: tuple[Shape, ...]
    is_optional: bool = False


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

    def read(self, tensors: dict[str, torch.Tensor], num_outputs: int, num_inputs: int, /) -> PartWeight:
        """Return the weight that these tensors say.

        Raises:
            ValueError: they contradict each other.
        """
        ...


class PlainLayout:
    """A plain weight, where the projection's other parts are quantized."""

    names = ()

    def tensors(self, num_outputs: int, num_inputs: int) -> dict[str, Expected]:
        """Return what stands for a weight [O, C]."""
        return {"weight": Expected(FLOAT_TYPES, ((num_outputs, num_inputs),))}

    def read(self, tensors: dict[str, torch.Tensor], num_outputs: int, num_inputs: int) -> PartWeight:
        """Return the weight."""
        return PartWeight(tensors["weight"].view(num_outputs, num_inputs))


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the unsigned numbers in each int32, lowest bits first: [..., n] to [..., n * 32 / bits] uint8."""
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32, device=words.device)
    numbers = (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return numbers.to(torch.uint8).flatten(-2)


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


def dequantize_groups(
    values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | float, group: int
) -> torch.Tensor:
    """Return (values - zeros) * scales, [O, C] fp32, for values [O, C] and scales and zeros [O, G]."""
    centres = zeros.float().unsqueeze(2) if isinstance(zeros, torch.Tensor) else zeros
    return ((values.float().unflatten(1, (-1, group)) - centres) * scales.float().unsqueeze(2)).flatten(1)
