"""The engine under a steady number of requests: each is followed by another as soon as it is answered.

Knows the engine client. Does not know what was predicted.
"""

import queue
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.errors import EngineError
from engine.outputs import FinishReason, RequestOutput
from engine.sampling_params import SamplingParams
from scripts.benchmark.workload import FIRST_ORDINARY_TOKEN

SPARE_ANSWERS = 8


@dataclass(frozen=True, slots=True)
class Seen:
    """Means over the answers of a window."""

    tokens_per_s: float
    ttft_s: float
    itl_s: float


class ClosedLoop:
    """A running engine core and its clients."""

    def __init__(self, client: EngineClient, outputs: "queue.SimpleQueue[list[RequestOutput]]", seed: int) -> None:
        self._client = client
        self._outputs = outputs
        self._rng = random.Random(seed)  # noqa: S311 - not for secrets

    def run(self, prompt: int, output: int, in_flight: int) -> Seen:
        """Keep so many requests open and return what is seen of twice as many answers, after a warm-up of once as many.

        Answers have half to one and a half times `output` tokens, so that requests do not march in step.

        Raises:
            EngineError: a request failed.
        """
        for _ in range(in_flight):
            self._ask(prompt, output)
        for _ in self._ended(in_flight, prompt, output):
            pass
        began, num_tokens, ended = time.monotonic(), 0, []
        for answer in self._ended(2 * in_flight + SPARE_ANSWERS, prompt, output):
            ended.append(answer)
            num_tokens += answer.num_completion_tokens
        seconds = time.monotonic() - began
        self._drain(in_flight)
        gaps = sum(each.num_completion_tokens - 1 for each in ended)
        return Seen(
            tokens_per_s=num_tokens / seconds,
            ttft_s=sum(each.timings.first_token - each.timings.arrived for each in ended) / len(ended),
            itl_s=sum(each.timings.finished - each.timings.first_token for each in ended) / gaps,
        )

    def _ask(self, prompt: int, output: int) -> None:
        ids = [self._rng.randrange(FIRST_ORDINARY_TOKEN, self._client.info.vocab_size) for _ in range(prompt)]
        number = self._rng.randint(output - output // 2, output + output // 2)
        self._client.submit(ids, SamplingParams(max_tokens=number, ignore_eos=True), time.monotonic())

    def _ended(self, number: int, prompt: int, output: int) -> Iterator[RequestOutput]:
        while number:
            for each in self._finished():
                self._ask(prompt, output)
                if number:
                    number -= 1
                    yield each

    def _finished(self) -> Iterator[RequestOutput]:
        for each in self._outputs.get():
            if each.finish_reason is FinishReason.ERROR:
                raise EngineError(each.error or "a request failed")
            if each.finish_reason is not None:
                yield each

    def _drain(self, number: int) -> None:
        while number:
            number -= sum(1 for _ in self._finished())


@contextmanager
def closed_loop(config: EngineConfig, seed: int) -> Iterator[ClosedLoop]:
    """Start a core, yield its clients, and stop it."""
    outputs: queue.SimpleQueue[list[RequestOutput]] = queue.SimpleQueue()
    client = EngineClient(config, outputs.put)
    client.start()
    try:
        yield ClosedLoop(client, outputs, seed)
    finally:
        client.close()
