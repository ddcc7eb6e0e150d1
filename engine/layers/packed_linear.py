"""Linear layers whose weights lie in the order in which the CPU's tiles read them.

Knows modules. Does not know the layout (`kernels.linear.packing`) or models: `pack_linears` is a pass over a built and
loaded one, and the last that looks at plain weights.
"""

import torch
from torch import nn

from kernels import choice
from kernels.linear import Norm


class PackedLinear(nn.Module):
    """`x W^T + b` in fp32 on a CPU, for inference only.

    Attributes:
        norm: what comes before the layer and is computed with it, None for nothing.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Copy the weight of `linear`, [out, in]."""
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        kernel = choice.cpu_kernel("linear")
        self.packed = kernel.pack(linear.weight.detach(), None if linear.bias is None else linear.bias.detach())
        self.compute = kernel.linear_cpu
        self.norm: Norm | None = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map [T, in] to [T, out]."""
        return self.compute(inputs, self.packed, self.norm)


def pack_linears(model: nn.Module) -> None:
    """Replace every `nn.Linear` of a loaded fp32 CPU model, one at a time, so that each weight is held once."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))
