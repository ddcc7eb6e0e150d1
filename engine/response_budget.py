"""How often responses may leave, so that sending them costs a bounded share of the machine's cores.

Knows a response's cost and the cores. Does not know requests. Where the engine computes on the same cores, its steps
lack what sending takes; where it computes on a GPU, one core leads the steps and the others are there for clients.
"""

CORE_SECONDS = 0.0016  # 0.9 ms on a response's way to an OpenAI client, and what the engine's threads wait meanwhile
SHARE_BESIDE_ENGINE, SHARE_BESIDE_GPU = 0.1, 0.5  # of the cores


def seconds_per_response(num_cores: int, *, on_gpu: bool) -> float:
    """Return the time in which one response may leave, in the long run."""
    return CORE_SECONDS / (num_cores * (SHARE_BESIDE_GPU if on_gpu else SHARE_BESIDE_ENGINE))
