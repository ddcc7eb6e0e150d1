"""How long single steps of an engine core in this process take.

Knows the core. Does not know what is done with the figures. What one thread computes is timed by its CPU time, in which
other work on the machine does not show; of many equal steps the one is taken that a tenth of them stay below.
"""

import random
import time
from collections.abc import Callable

from engine.core import EngineCore
from engine.sampling_params import SamplingParams
from scripts.benchmark.workload import FIRST_ORDINARY_TOKEN

Clock = Callable[[], float]
NUM_STEPS = 40
NUM_PREFILLS = 6


def clock_for(num_threads: int) -> Clock:
    """Return the clock to time so many threads by: several can only be timed by the wall's."""
    return time.process_time if num_threads == 1 else time.perf_counter


def decode_seconds(core: EngineCore, num_sequences: int, prompt: int, clock: Clock) -> float:
    """Return the seconds of a step in which so many sequences decode behind prompts of `prompt` tokens."""
    _add(core, num_sequences, prompt, num_sequences + NUM_STEPS)
    seconds: list[float] = []
    while core.has_work:
        decoding = [sequence.num_uncomputed_tokens == 1 for sequence in core.scheduler.running]
        taken = _step(core, clock)
        if len(decoding) == num_sequences and all(decoding):
            seconds.append(taken)
    return sorted(seconds)[len(seconds) // 10]


def prefill_seconds(core: EngineCore, prompt: int, clock: Clock) -> float:
    """Return the seconds in which a prompt is computed, alone."""
    seconds: list[float] = []
    for _ in range(NUM_PREFILLS):
        _add(core, 1, prompt, 1)
        total = 0.0
        while core.has_work:
            total += _step(core, clock)
        seconds.append(total)
    return min(seconds)


def _step(core: EngineCore, clock: Clock) -> float:
    started = clock()
    core.step()
    return clock() - started


def _add(core: EngineCore, number: int, prompt: int, output: int) -> None:
    rng = random.Random(time.monotonic_ns())  # noqa: S311 - so that no prefix is found
    params = SamplingParams(max_tokens=output, ignore_eos=True)
    for request_id in range(number):
        ids = [rng.randrange(FIRST_ORDINARY_TOKEN, core.model_config.vocab_size) for _ in range(prompt)]
        core.add(request_id, ids, params, time.monotonic())
