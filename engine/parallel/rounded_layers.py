"""Layers of 8-bit integers on CPUs whose inputs are spread over ranks, and that answer what one rank does, to the bit.

Knows packed weights and what ranks tell each other. Does not know models or experts' routing.

A token's inputs are rounded by the largest of all of them, so the ranks agree on that first. Then they add up whole
numbers, which fp32 holds exactly, and scale the sum. Scaled answers would be added up with an error of fp32, of which a
model that rounds its inputs makes much: 6e-8 in the answers of attention turned 47 of 200 greedy tokens of 30 random
layers. On GPUs, which add up in 16 bits, each rank rounds by what it has.
"""

from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from engine.layers.packed_linear import PackedLinear
from engine.parallel.collectives import Collectives
from engine.quantization.quantized_linear import QuantizedLinear
from kernels import choice
from kernels.quantized_linear import Int8Weight

if TYPE_CHECKING:
    from kernels.int8_sums.cpu_kernel import UnscaledWeight


def rounds_inputs_on_cpu(linear: nn.Module) -> bool:
    """Whether a layer that is loaded and not yet packed will be one of 8-bit integers on a CPU."""
    if not isinstance(linear, QuantizedLinear) or not isinstance(linear.weight, Int8Weight):
        return False
    return linear.scheme == "int8" and linear.weight.values.device.type == "cpu"


class RoundedPart(nn.Module):
    """Some inputs of a linear layer, which is packed when it is used."""

    def __init__(self, inner: nn.Module) -> None:
        """Wrap the layer that has these inputs, and the bias on one rank only."""
        super().__init__()
        self.inner = inner
        self.kernel = choice.cpu_kernel("int8_sums")

    @cached_property
    def weight(self) -> "UnscaledWeight":
        """The packed weight."""
        assert isinstance(self.inner, PackedLinear)
        return self.kernel.UnscaledWeight.of(self.inner.packed)

    @cached_property
    def scales(self) -> torch.Tensor:
        """The outputs' scales, [O], the same on all ranks."""
        return self.weight.packed.scales[: self.weight.packed.out_features]

    @property
    def bias(self) -> torch.Tensor:
        """The bias, [O]; zeros on the ranks that do not have it."""
        return self.weight.packed.bias[: self.weight.packed.out_features]

    def largest(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map [T, F] to the largest magnitudes of its rows, [T]."""
        return self.kernel.largest_of_rows_cpu(inputs)

    def sums(self, inputs: torch.Tensor, tops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map [T, F] and the largest magnitudes of whole rows, [T], to sums [T, O] and the rows' scales [T]."""
        return self.kernel.int8_sums_cpu(inputs, tops, self.weight)

    def answer(self, sums: torch.Tensor, row_scales: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Make the sums of all parts, [T, O], answers, in place, with a bias [O]."""
        return self.kernel.scale_sums_cpu(sums, row_scales, self.scales, bias)


class Update(Protocol):
    """What adapters add to an answer."""

    @property
    def is_wanted(self) -> bool:
        """Whether a sequence of this step has an adapter; the same on all ranks."""
        ...

    def __call__(self, inputs: torch.Tensor, /) -> torch.Tensor:
        """Map [T, F] to [T, O]."""
        ...


class RoundedRowParallel(nn.Module):
    """A linear layer of 8-bit integers on a CPU whose inputs are spread over the ranks.

    Attributes:
        update: what adds an adapter's update, of the inputs that are here, to zeros; None where none are served.
    """

    def __init__(self, inner: nn.Module, ranks: Collectives) -> None:
        """Wrap the local part, which has the bias on one rank only."""
        super().__init__()
        self.part = RoundedPart(inner)
        self.ranks = ranks
        self.update: Update | None = None
        self._bias: torch.Tensor | None = None

    @property
    def out_features(self) -> int:
        """Outputs."""
        return len(self.part.scales)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map the local part of [T, F] to [T, O]."""
        if self._bias is None:  # in the warm-up, on all ranks
            self._bias = self.ranks.sum_all(self.part.bias.clone())
        tops = self.ranks.largest_all(self.part.largest(inputs))
        sums, row_scales = self.part.sums(inputs, tops)
        answer = self.part.answer(self.ranks.sum_all(sums), row_scales, self._bias)
        if self.update is not None and self.update.is_wanted:
            answer += self.ranks.sum_all(self.update(inputs))
        return answer
