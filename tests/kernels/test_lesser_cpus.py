"""What a CPU with 256-bit vectors and no dot product of bytes would compile and compute, wherever this one has more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import cpu_target

ROOT = Path(__file__).parents[2]
ON_AVX2 = """
import torch
from kernels import cpu_int8, cpu_vectors
from kernels.int8_linear.cpu_kernel import int8_linear_cpu, pack_int8
from kernels.linear.cpu_kernel import linear_cpu, pack
from kernels.linear.tiles import ROWS_PER_ITEM
from kernels.quantized_linear import Int8Weight
from kernels.quantized_linear.reference import int8_linear_reference

assert (cpu_vectors.LANES, cpu_int8.HAS_DOT) == (8, False)
torch.manual_seed(0)  # of other numbers a few lie halfway, and may be rounded either way
for shape in (1, 1), (3, 5), (17, 123), (2 * cpu_vectors.COLUMNS, 3001):
    weight, bias = torch.randn(shape) / shape[1] ** 0.5, torch.randn(shape[0])
    weight[0] = weight[0].abs().amax() * weight[0].sign()  # an output of nothing but -127 and 127
    rounded = Int8Weight.quantize(weight)
    for rows in (*range(1, cpu_vectors.TILE_ROWS + 1), ROWS_PER_ITEM + 3):
        x = torch.randn(rows, shape[1])
        x[0] = weight[0].sign()
        for dtype in torch.float32, torch.bfloat16, torch.float16:
            stored = weight.to(dtype)
            plain, expected = linear_cpu(x, pack(stored, bias)), torch.nn.functional.linear(x, stored.float(), bias)
            torch.testing.assert_close(plain, expected, atol=2e-5, rtol=1e-4)
        packed = pack_int8(rounded.values, rounded.scales, bias)
        expected = int8_linear_reference(x, rounded, bias)
        torch.testing.assert_close(int8_linear_cpu(x, packed), expected, atol=1e-5, rtol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.skipif(not cpu_target.has("avx2", "fma"), reason="this CPU has less")
def test_256_bit_tiles_give_the_references_products() -> None:
    result = subprocess.run(
        [sys.executable, "-c", ON_AVX2],
        cwd=ROOT,
        env=os.environ | cpu_target.AVX2,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not result.returncode, result.stderr
