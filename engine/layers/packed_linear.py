"""Linear layers whose weights lie in the order in which the CPU's tiles read them.

Knows modules. Does not know the layouts (`kernels.linear`) or models: `pack_linears` is a pass over a built and loaded
one, and the last that looks at plain weights.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from engine.quantization.quantized_linear import QuantizedLinear
from kernels import choice
from kernels.cpu_memory import WeightMemory
from kernels.linear import Norm
from kernels.quantized_linear import Int8Weight


class PackedLinear(nn.Module):
    """`x W^T + b` on a CPU, for inference only: in fp32, or of 8-bit integers.

    Attributes:
        packed: the weight.
        is_int8: whether it is of 8-bit integers.
        norm: what comes before the layer and is computed with it, None for nothing.
    """

    def __init__(self, packed: Any, multiply: Callable[..., torch.Tensor], *, is_int8: bool) -> None:
        """Take a packed weight and the kernel for it."""
        super().__init__()
        self.packed, self.multiply, self.is_int8 = packed, multiply, is_int8
        self.norm: Norm | None = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map [T, in] to [T, out]."""
        return self.multiply(inputs, self.packed, self.norm)

    __call__ = forward  # without hooks, which nobody sets here: 3 us less, of 7 beside the product itself


class PackedEmbedding(nn.Module):
    """An embedding whose table is the packed weight of a head."""

    def __init__(self, packed: Any) -> None:
        """Share the weight."""
        super().__init__()
        self.packed = packed
        self.lookup = choice.cpu_kernel("linear").lookup_cpu

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Map [T] to [T, C]."""
        return self.lookup(token_ids, self.packed)


class WideningEmbedding(nn.Module):
    """An embedding whose table is of 16 bits, for a model that computes in fp32."""

    def __init__(self, weight: torch.Tensor) -> None:
        """Take the table, [V, C]."""
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Map [T] to [T, C] fp32."""
        return self.weight[token_ids].float()


def pack_linears(model: nn.Module) -> None:
    """Replace every linear layer of a loaded CPU model that has a packed form, and embeddings.

    An embedding that shares a packed weight reads its rows there; a table of 16 bits gets a module that widens them.
    A plain weight's memory is given back while it is packed: weights are held once, and nothing else may hold them.
    """
    memory = WeightMemory()
    children = [(module, *child) for module in model.modules() for child in module.named_children()]
    embeddings = {
        id(child.weight): (parent, name) for parent, name, child in children if isinstance(child, nn.Embedding)
    }
    for parent, name, child in children:
        if (layer := _packed(child, memory)) is None:
            continue
        setattr(parent, name, layer)
        if isinstance(child, nn.Linear) and id(child.weight) in embeddings:
            owner, place = embeddings.pop(id(child.weight))
            setattr(owner, place, PackedEmbedding(layer.packed))
    for owner, place in embeddings.values():
        table = owner.get_submodule(place).get_parameter("weight")
        if table.dtype != torch.float32:
            setattr(owner, place, WideningEmbedding(table))


def _packed(module: nn.Module, memory: WeightMemory) -> PackedLinear | None:
    if type(module) is nn.Linear:
        kernel = choice.cpu_kernel("linear")
        bias = None if module.bias is None else module.bias.detach()
        return PackedLinear(kernel.pack(module.weight.detach(), bias, memory), kernel.linear_cpu, is_int8=False)
    if not isinstance(module, QuantizedLinear) or module.order is not None:
        return None
    if not isinstance(module.weight, Int8Weight):
        return None
    kernel = choice.cpu_kernel("int8_linear")
    packed = kernel.pack_int8(module.weight.values, module.weight.scales, module.bias, memory)
    return PackedLinear(packed, kernel.int8_linear_cpu, is_int8=True)
