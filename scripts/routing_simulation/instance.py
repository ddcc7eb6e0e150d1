"""A model of one instance: continuous batching with chunked prefill, in steps.

step seconds = BASE + DECODE * sequences decoding + PREFILL * prompt tokens computed, at most `BUDGET` of these a step.
The constants are of the order of a small model on one GPU: chosen, not measured. Knows its own requests only.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from scripts.routing_simulation.arrivals import Arrival
from scripts.simulation.trace import HASH_TOKENS

BASE = 0.012
DECODE = 0.00015
PREFILL = 0.00005
BUDGET = 2048
MAX_RUNNING = 128
KV_TOKENS = 400_000
CACHED_PIECES = KV_TOKENS // HASH_TOKENS


@dataclass(slots=True)
class Job:
    """One request at an instance."""

    arrival: Arrival
    prompt_left: int
    output_left: int


@dataclass(slots=True)
class ModelInstance:
    """Runs jobs step by step."""

    name: str
    busy_until: float = 0.0
    waiting: deque[Job] = field(default_factory=deque)
    running: list[Job] = field(default_factory=list)
    cached: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def submit(self, arrival: Arrival) -> None:
        """Queue a request; what its prompt shares with earlier ones need not be computed."""
        known = 0
        for piece in arrival.pieces:
            if piece not in self.cached:
                break
            known += 1
        for piece in arrival.pieces:
            self.cached[piece] = None
            self.cached.move_to_end(piece)
        while len(self.cached) > CACHED_PIECES:
            self.cached.popitem(last=False)
        left = max(1, arrival.prompt_tokens - known * HASH_TOKENS)
        self.waiting.append(Job(arrival, left, arrival.output_tokens))

    @property
    def kv_usage(self) -> float:
        """Used part of the KV cache."""
        return min(1.0, sum(job.arrival.prompt_tokens for job in self.running) / KV_TOKENS)

    def step(self) -> tuple[float, list[Job], list[Job]]:
        """Return (seconds of the step, jobs that got their first token, jobs that ended)."""
        while self.waiting and len(self.running) < MAX_RUNNING:
            self.running.append(self.waiting.popleft())
        decoding = [job for job in self.running if not job.prompt_left]
        budget, first = BUDGET, []
        for job in self.running:
            if job.prompt_left and budget:
                computed = min(budget, job.prompt_left)
                budget -= computed
                job.prompt_left -= computed
                if not job.prompt_left:
                    first.append(job)
        for job in [*decoding, *first]:
            job.output_left -= 1
        ended = [job for job in self.running if not job.prompt_left and job.output_left <= 0]
        if ended:
            self.running = [job for job in self.running if job.prompt_left or job.output_left > 0]
        return BASE + DECODE * len(decoding) + PREFILL * (BUDGET - budget), first, ended
