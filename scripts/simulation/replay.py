"""A trace run through the engine's own scheduler in simulated time.

Knows the scheduler, a trace and a cost model. Does not know models: tokens are made up.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.config import EngineConfig
from engine.errors import QueueFull
from engine.kv_manager import KVManager
from engine.outputs import FinishReason, Timings
from engine.sampling_params import SamplingParams
from engine.scheduler import Scheduler
from engine.scheduling_params import SchedulingParams
from engine.sequence import Sequence
from engine.step_plan import StepPlan
from scripts.simulation.cost_model import CostModel
from scripts.simulation.outcome import Outcome
from scripts.simulation.trace import TraceRequest

OUTPUT_TOKEN = -1


@dataclass(slots=True)
class Replay:
    """One run.

    Attributes:
        requests: the trace, in the order of arrival.
        config: the scheduler's settings, with a number of blocks.
        cost: how long steps take.
        max_tokens: what clients ask for; answers end where the trace says, which is seldom later.
        knows_tenants: whether the scheduler is told for whom requests are.
    """

    requests: list[TraceRequest]
    config: EngineConfig
    cost: CostModel
    max_tokens: int
    knows_tenants: bool = True
    outcome: Outcome = field(default_factory=Outcome)
    _now: float = 0.0
    _next: int = 0
    _last_token: dict[int, float] = field(default_factory=dict)

    def run(self, on_progress: Callable[[int], None]) -> Outcome:
        """Replay everything; `on_progress` gets the number of requests that have arrived."""
        kv = KVManager(
            self.config.num_blocks,
            self.config.block_size,
            enable_prefix_caching=self.config.enable_prefix_caching,
        )
        scheduler = Scheduler(kv, self.config)
        while self._next < len(self.requests) or scheduler.has_work:
            if not scheduler.has_work:
                self._now = max(self._now, self.requests[self._next].arrived)
            self._take_arrivals(scheduler)
            self._step(scheduler)
            on_progress(self._next)
        self.outcome.seconds = self._now
        self.outcome.num_preemptions = scheduler.num_preemptions
        return self.outcome

    def _take_arrivals(self, scheduler: Scheduler) -> None:
        while self._next < len(self.requests) and self.requests[self._next].arrived <= self._now:
            sequence = self._make_sequence(self._next, self.requests[self._next])
            try:
                if sequence.max_total_tokens > self.config.num_blocks * self.config.block_size:
                    raise QueueFull("a request longer than the cache came", self.config.num_blocks)
                scheduler.add(sequence)
            except QueueFull:
                self.outcome.num_refused += 1
            self._next += 1

    def _make_sequence(self, number: int, request: TraceRequest) -> Sequence:
        prompt = request.prompt(number)
        most = max(self.max_tokens, request.num_output)
        return Sequence(
            number,
            prompt,
            len(prompt),
            SamplingParams(max_tokens=most),
            len(prompt) + most,
            frozenset(),
            scheduling=SchedulingParams(tenant=request.tenant if self.knows_tenants else ""),
            timings=Timings(arrived=request.arrived),
        )

    def _step(self, scheduler: Scheduler) -> None:
        started = time.thread_time()
        plan = scheduler.schedule(self._now)
        self.outcome.scheduler_seconds += time.thread_time() - started
        self._now += self.cost.seconds(plan)
        self.outcome.num_steps += 1
        self.outcome.num_scheduled += len(plan.scheduled)
        self._account(scheduler, plan)

    def _account(self, scheduler: Scheduler, plan: StepPlan) -> None:
        started = time.thread_time()
        sampling = [item.sequence for item in plan.scheduled if item.samples]
        for item in plan.scheduled:
            item.sequence.num_computed_tokens += item.num_tokens
            scheduler.kv.register(item.sequence)
        self.outcome.scheduler_seconds += time.thread_time() - started
        for sequence in sampling:
            self._take_token(scheduler, sequence)

    def _take_token(self, scheduler: Scheduler, sequence: Sequence) -> None:
        number = sequence.request_id
        sequence.token_ids.append(OUTPUT_TOKEN - number)
        self.outcome.num_output_tokens += 1
        last = self._last_token.get(number)
        if last is None:
            tenant = self.requests[number].tenant
            self.outcome.ttfts.setdefault(tenant, []).append(self._now - sequence.timings.arrived)
            self.outcome.num_prompt_tokens += sequence.num_prompt_tokens
            self.outcome.num_cached_tokens += sequence.num_cached_tokens
        else:
            self.outcome.gaps.append(self._now - last)
        self._last_token[number] = self._now
        if sequence.num_output_tokens == self.requests[number].num_output:
            scheduler.finish(sequence, FinishReason.STOP)
            del self._last_token[number]
