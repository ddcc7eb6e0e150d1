"""Programmatic dependent launch: the programs of a kernel start while those of the kernel before it still run.

Decode steps are hundreds of short kernels, and each costs some microseconds between its launch and its first bytes. A
kernel that is launched so fetches weights meanwhile, then waits for its inputs. Knows GPUs' capabilities. Does not know
what kernels compute.

Invariants, kept by every kernel that is launched so:
1. Every program calls `await_inputs` before it writes anything or reads what another kernel wrote.
2. What it reads before is constant while the model serves: weights.

Source: CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

CAPABILITY = (9, 0)  # GPUs before have no such thing


@cache
def launch_options(device: torch.device) -> dict[str, Any]:
    """Return how a kernel with the constant `DEPENDENT` is launched on a device."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY:
        return {"DEPENDENT": True, "launch_pdl": True}
    return {"DEPENDENT": False}


@triton.jit
def await_inputs(DEPENDENT: tl.constexpr):
    """Let the next kernel's programs start where there is room, and wait until all kernels before have ended.

    The next kernel waits for the end of this one, which waits here: what is before has ended then, too.
    """
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def fetch_to_cache(pointers):
    """Begin to bring 1,024 bytes behind each pointer, multiples of 16, into the GPU's second-level cache."""
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], 1024; mov.u32 $0, 0;",
        "=r,l",
        [pointers.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
