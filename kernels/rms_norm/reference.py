"""RMSNorm in plain torch: the truth that other implementations are tested against."""

import torch


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
    """Normalize; see the contract in `kernels.rms_norm`."""
    wide = x.float()
    normed = wide * (wide.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return (normed * (offset + weight.float())).to(x.dtype)


def add_rms_norm_reference(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float
) -> torch.Tensor:
    """Add and normalize; see the contract in `kernels.rms_norm`."""
    residual += x
    return rms_norm_reference(residual, weight, eps, offset)
