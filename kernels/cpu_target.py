"""What the CPU can do that numba compiles for: this machine's, or the one that `NUMBA_CPU_FEATURES` describes.

So an AVX-512 machine can compile, run and test what a lesser one would (`AVX2`).
"""

import llvmlite.binding
from numba.core import config

AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2",
}  # an environment that makes such a machine of any better one


def has(*features: str) -> bool:
    """Whether the CPU has all of these, in LLVM's spelling."""
    given: str | None = getattr(config, "CPU_FEATURES", None)
    if given is not None:
        return {f"+{feature}" for feature in features} <= set(given.split(","))
    host = llvmlite.binding.get_host_cpu_features()
    return all(host.get(feature, False) for feature in features)
