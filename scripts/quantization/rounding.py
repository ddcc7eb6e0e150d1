"""Rounding a weight for a checkpoint: scales in the type that they are stored in, errors passed on to later inputs.

Knows numbers. Does not know names or files.

For `int4` each column's rounding error is spread over the columns that are yet to be rounded, so that the outputs for
inputs like those of the calibration change least: GPTQ (arXiv 2210.17323), algorithm 1, without its order of columns.
"""

from dataclasses import dataclass

import torch

LARGEST_INT8, LARGEST_FLOAT8 = 127, 448
LOWEST_INT4, HIGHEST_INT4 = -8, 7
DAMPING = 0.01  # of the mean square of an input, added to each
BATCH = 128  # columns whose errors reach the rest of the weight together


@dataclass(slots=True, frozen=True)
class Rounded:
    """A rounded weight.

    Attributes:
        values: [O, C] int8 or float8_e4m3fn.
        scales: [O, G], for C / G inputs each.
    """

    values: torch.Tensor
    scales: torch.Tensor

    def meaning(self) -> torch.Tensor:
        """Return the weight that is meant, [O, C] fp32."""
        groups = self.values.float().unflatten(1, (self.scales.shape[1], -1))
        return (groups * self.scales.float().unsqueeze(2)).flatten(1)


def round_outputs(weight: torch.Tensor, stored: torch.dtype, scale_dtype: torch.dtype) -> Rounded:
    """Round a weight [O, C] to int8 or e4m3 with a scale for each output."""
    largest = LARGEST_INT8 if stored == torch.int8 else LARGEST_FLOAT8
    scales = _scales(weight.abs().amax(dim=1, keepdim=True) / largest, scale_dtype)
    scaled = (weight / scales.float()).clamp(-largest, largest)
    return Rounded((scaled.round() if stored == torch.int8 else scaled).to(stored), scales)


def round_groups(weight: torch.Tensor, group: int, moments: torch.Tensor, scale_dtype: torch.dtype) -> Rounded:
    """Round a weight [O, C] to 4 bits, a scale for each `group` of inputs.

    Args:
        weight: fp32.
        group: divides C.
        moments: [C, C], the sum of x x^T over inputs x; where it is 0 errors are not passed on.
        scale_dtype: the type of the scales.
    """
    spread = _spread(moments)
    rest, values = weight.clone(), torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight), weight.shape[1] // group, dtype=scale_dtype)
    for start in range(0, weight.shape[1], BATCH):
        stop = min(start + BATCH, weight.shape[1])
        errors = torch.zeros(len(weight), stop - start)
        for column in range(start, stop):
            if column % group == 0:
                end = min(column + group, stop)  # of what later batches hold the errors are not in yet
                ahead = torch.cat((rest[:, column:end], rest[:, end : column + group]), dim=1)
                scales[:, column // group] = _scales(ahead.abs().amax(dim=1) / -LOWEST_INT4, scale_dtype)
            scale = scales[:, column // group].float()
            rounded = (rest[:, column] / scale).round().clamp(LOWEST_INT4, HIGHEST_INT4)
            values[:, column] = rounded.to(torch.int8)
            error = (rest[:, column] - rounded * scale) / spread[column, column]
            rest[:, column:stop] -= torch.outer(error, spread[column, column:stop])
            errors[:, column - start] = error
        rest[:, stop:] -= errors @ spread[start:stop, stop:]
    return Rounded(values, scales)


def _scales(wanted: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return wanted.masked_fill(wanted == 0, 1.0).to(dtype)


def _spread(moments: torch.Tensor) -> torch.Tensor:
    """Return the upper Cholesky factor of the inverse of the damped moments, which says where errors go."""
    damped = moments.clone()
    mean = float(damped.diagonal().mean()) or 1.0
    damped.diagonal().add_(DAMPING * mean)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
