"""Random numbers that are a pure function of (seed, position).

Knows integers. Does not know requests: a request that keeps its seed draws the same numbers alone, in any batch, after
preemption and on another instance.
"""

import numpy as np

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniforms(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return the numbers in [0, 1), fp64, that belong to seeds and positions, uint64 of equal shape.

    SplitMix64 (Steele et al., OOPSLA 2014), over the position, from a state that the seed is mixed into.
    """
    with np.errstate(over="ignore"):
        state = _mix(seeds + GOLDEN_GAMMA) + GOLDEN_GAMMA * (positions + np.uint64(1))
        return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * MIX_1
    state = (state ^ (state >> np.uint64(27))) * MIX_2
    return state ^ (state >> np.uint64(31))
