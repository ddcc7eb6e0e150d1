"""How much of a step is not the model's: scheduling, laying out the batch, sampling, stopping.

Knows the engine core, in this process. The time within the model's forward pass is taken by hooks of the module.
"""

import time
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.sampling_params import SamplingParams
from scripts.benchmark.workload import Workload


class StepShare:
    """Times steps of a core of its own."""

    def __init__(self, model: Path, num_threads: int, **options: Any) -> None:
        """Load the model, with further options of `EngineConfig`."""
        self._core = EngineCore(EngineConfig.from_env(model=model, num_threads=num_threads, **options))
        self._began = self._inside = 0.0
        self._core.runner.model.register_forward_pre_hook(self._begin)
        self._core.runner.model.register_forward_hook(self._end)

    def run(self, workload: Workload, seed: int) -> tuple[float, float]:
        """Compute a workload; return the seconds of all steps in which every sequence decodes, and those outside of it.

        Steps with prompts are left out: a longer forward pass would only flatter the share.
        """
        core, params = self._core, SamplingParams(max_tokens=workload.num_output, ignore_eos=True)
        for number, prompt in enumerate(workload.prompts(core.model_config.vocab_size, seed)):
            core.add(number, prompt, params, time.monotonic())
        total = inside = 0.0
        while core.has_work:
            is_decode = len(core.scheduler.running) == workload.num_requests and all(
                sequence.num_uncomputed_tokens == 1 for sequence in core.scheduler.running
            )
            self._inside, began = 0.0, time.perf_counter()
            core.step()
            if is_decode:
                total += time.perf_counter() - began
                inside += self._inside
        return total, total - inside

    def _begin(self, *_given: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, *_given: Any) -> None:
        self._inside += time.perf_counter() - self._began
