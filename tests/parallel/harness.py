"""A client of an engine core on two ranks, and what it has said."""

import queue
import time
from pathlib import Path
from typing import Any

import psutil

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.outputs import FinishReason, RequestOutput
from engine.sampling_params import SamplingParams
from tests.conftest import TinyModel
from tests.polling import PAUSE_SECONDS

TIMEOUT = 120.0
LONG = SamplingParams(max_tokens=200, ignore_eos=True)
SHORT = SamplingParams(max_tokens=12, ignore_eos=True, temperature=0.0)


class Harness:
    """A client of a core with two ranks, and what it has said."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.outputs: queue.Queue[RequestOutput] = queue.Queue()
        config = EngineConfig(model=path, block_size=4, num_blocks=256, num_threads=1, tensor_parallel=2, **options)
        self.client = EngineClient(config, self.take)

    def take(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            self.outputs.put(output)

    def until_final(self) -> list[RequestOutput]:
        """Collect outputs until one request has ended."""
        seen = [self.outputs.get(timeout=TIMEOUT)]
        while seen[-1].finish_reason is None:
            seen.append(self.outputs.get(timeout=TIMEOUT))
        return seen

    def rank(self) -> psutil.Process:
        """Return the process of rank 1."""
        (child,) = psutil.Process(self.client.pid).children()
        return child

    def check_serves(self, model: TinyModel) -> None:
        self.client.submit([5, 6, 7], SHORT, time.monotonic())
        assert [t for o in self.until_final() for t in o.token_ids] == model.greedy([5, 6, 7], 12)

    def check_ends_with_an_error(self) -> None:
        """Assert that the open request ends as its core does."""
        final = self.until_final()[-1]
        assert (final.finish_reason, final.error_code) == (FinishReason.ERROR, "UNAVAILABLE")
        assert "the engine core ended unexpectedly" in (final.error or "")

    def wait_until_up_again(self, old_pid: int | None) -> None:
        deadline = time.monotonic() + TIMEOUT
        while self.client.pid == old_pid or not self.client.is_up:
            assert time.monotonic() < deadline, "the core did not come back"
            time.sleep(PAUSE_SECONDS)
