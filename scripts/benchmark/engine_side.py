"""The engine alone: its own process, fed and read by a client in this one, without Triton and gateway.

Knows the engine client. Does not know gRPC.
"""

import queue
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.errors import EngineError
from engine.outputs import FinishReason, RequestOutput
from engine.sampling_params import SamplingParams
from scripts.benchmark.workload import Workload


@dataclass(slots=True, frozen=True)
class RunResult:
    """One run of a workload: the wall time and each request's time to first token, in seconds."""

    seconds: float
    ttfts: list[float]


class EngineSide:
    """A running engine core that takes workloads."""

    def __init__(self, model: Path, num_threads: int, **options: Any) -> None:
        """Start the core, with further options of `EngineConfig`, and wait for it."""
        self._outputs: queue.SimpleQueue[list[RequestOutput]] = queue.SimpleQueue()
        config = EngineConfig.from_env(model=model, num_threads=num_threads, **options)
        self._client = EngineClient(config, self._outputs.put)
        self._client.start()
        self.vocab_size = self._client.info.vocab_size

    def run(self, workload: Workload, seed: int) -> RunResult:
        """Send all requests at once and wait for the last token.

        Raises:
            EngineError: a request failed.
        """
        params = SamplingParams(max_tokens=workload.num_output, temperature=0.0, ignore_eos=True)
        prompts = workload.prompts(self.vocab_size, seed)
        started = time.monotonic()
        for prompt in prompts:
            self._client.submit(prompt, params, time.monotonic())
        ttfts: list[float] = []
        num_open = len(prompts)
        while num_open:
            for output in self._outputs.get():
                if output.finish_reason is None:
                    continue
                if output.finish_reason is FinishReason.ERROR:
                    raise EngineError(output.error or "a request failed")
                ttfts.append(output.timings.first_token - output.timings.arrived)
                num_open -= 1
        return RunResult(time.monotonic() - started, ttfts)

    def close(self) -> None:
        """Stop the core."""
        self._client.close()
