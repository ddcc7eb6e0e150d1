"""Rounded weights as compressed-tensors stores them, so that vLLM and transformers read them too.

Knows the format's tensors and its configuration; `engine.quantization.compressed_tensors` reads them. Does not know how
weights are rounded or which.
"""

from dataclasses import dataclass
from typing import Any

import torch

from scripts.quantization.rounding import Rounded

WORD_BITS = 32
ROUNDED_ROWS = {"num_bits": 8, "symmetric": True, "strategy": "token", "dynamic": True}


@dataclass(slots=True, frozen=True)
class Format:
    """How a scheme is stored.

    Attributes:
        name: compressed-tensors' name.
        bits: of a value.
        kind: `int` or `float`.
        rounds_inputs: whether inputs are to be rounded too.
    """

    name: str
    bits: int
    kind: str
    rounds_inputs: bool

    @property
    def stored(self) -> torch.dtype:
        """The type of values with a scale for each output."""
        return torch.int8 if self.kind == "int" else torch.float8_e4m3fn

    def tensors(self, rounded: Rounded) -> dict[str, torch.Tensor]:
        """Return the tensors of a weight by the ends of their names."""
        if self.name != "pack-quantized":
            return {"weight": rounded.values, "weight_scale": rounded.scales}
        return {
            "weight_packed": pack(rounded.values, self.bits),
            "weight_scale": rounded.scales,
            "weight_shape": torch.tensor(rounded.values.shape),
        }

    def group(self, group: int, targets: list[str]) -> dict[str, Any]:
        """Return the entry for modules of one group size; 0 is a scale for each output."""
        weights = {"num_bits": self.bits, "type": self.kind, "symmetric": True, "dynamic": False}
        weights |= {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
        inputs = ROUNDED_ROWS | {"type": self.kind} if self.rounds_inputs else None
        return {"targets": targets, "weights": weights, "input_activations": inputs, "output_activations": None}

    def config(self, groups: dict[int, list[str]], ignore: list[str]) -> dict[str, Any]:
        """Return `quantization_config`.

        Args:
            groups: for each group size the modules that have it.
            ignore: linear modules that are plain.
        """
        sizes = sorted(groups, key=lambda size: len(groups[size]))
        targets = {size: groups[size] for size in sizes[:-1]} | {sizes[-1]: ["Linear"]}  # names win over the class
        return {
            "quant_method": "compressed-tensors",
            "format": self.name,
            "quantization_status": "compressed",
            "config_groups": {f"group_{i}": self.group(size, targets[size]) for i, size in enumerate(sizes)},
            "ignore": ignore,
        }


FORMATS = {
    "int8": Format("pack-quantized", 8, "int", rounds_inputs=False),
    "int8_dynamic": Format("int-quantized", 8, "int", rounds_inputs=True),
    "fp8": Format("float-quantized", 8, "float", rounds_inputs=True),
    "int4": Format("pack-quantized", 4, "int", rounds_inputs=False),
}


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack signed values [O, C] into int32, [O, ceil(C bits / 32)]: each plus half the range, the first lowest."""
    per_word = WORD_BITS // bits
    unsigned = values.to(torch.int64) + (1 << (bits - 1))
    padded = torch.nn.functional.pad(unsigned, (0, -values.shape[1] % per_word)).unflatten(1, (-1, per_word))
    words = (padded << torch.arange(0, WORD_BITS, bits)).sum(dim=2)
    return words.to(torch.int32)
