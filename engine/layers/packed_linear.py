"""Linear layers whose weights lie in the order in which the CPU's matrix kernels read them.

Knows oneDNN's blocked layouts as torch exposes them. Does not know models: `pack_linears` is a pass over a built and
loaded one, and the last that looks at plain weights.

oneDNN against MKL on row-major weights, fp32, 2 threads of a Zen 4 (us, `[out, in]` at 1 / 8 / 64 / 512 rows):
[3072, 576] 365 / 333 / 1162 / 8365 against 665 / 827 / 1731 / 10320; [49152, 576] 4480 / 4128 / 17451 against
9500 / 17135 / 35473. And a row's result does not depend on the rows beside it, which MKL's does below 16 rows.
"""

import torch
from torch import nn

ROWS_HINT = 64  # of 1, 16, 64 and 512 the layouts chosen for 64 and 512 are the fastest from 2 rows up


class PackedLinear(nn.Module):
    """`x W^T + b` in fp32 on a CPU, for inference only."""

    def __init__(self, linear: nn.Linear) -> None:
        """Copy the weight of `linear`, [out, in], into oneDNN's layout."""
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.bias = None if linear.bias is None else linear.bias.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS_HINT)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map [T, in] to [T, out]."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")


def can_pack() -> bool:
    """Whether this build of torch brings oneDNN and its operators."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_linears(model: nn.Module) -> None:
    """Replace every `nn.Linear` of a loaded fp32 CPU model, one at a time, so that each weight is held once."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))
