"""Schedulers and sequences for tests, and what the core does after each step."""

from typing import Any

from engine.config import EngineConfig
from engine.kv_manager import KVManager
from engine.outputs import Timings
from engine.sampling_params import SamplingParams
from engine.scheduler import Scheduler
from engine.scheduling_params import SchedulingParams
from engine.sequence import Sequence
from engine.sliding_window import SlidingWindow
from engine.step_plan import StepPlan
from engine.stopping import append_token


def make_scheduler(num_blocks: int = 64, block_size: int = 4, window: int | None = None, **config: Any) -> Scheduler:
    sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 8, "max_waiting": 16, "ageing_seconds": 10.0} | config
    sliding = None if window is None else SlidingWindow(window, block_size, sizes["max_num_batched_tokens"])
    return Scheduler(KVManager(num_blocks, block_size, window=sliding), EngineConfig(**sizes))


def make_sequence(
    request_id: int, prompt: list[int], max_tokens: int = 8, arrived: float = 0.0, **scheduling: Any
) -> Sequence:
    facts = SchedulingParams(**scheduling)
    return Sequence(
        request_id,
        list(prompt),
        len(prompt),
        SamplingParams(max_tokens=max_tokens),
        len(prompt) + max_tokens,
        frozenset(),
        scheduling=facts,
        deadline=facts.deadline(arrived),
        timings=Timings(arrived=arrived),
    )


def finish_step(scheduler: Scheduler, plan: StepPlan, token_id: int = 7) -> list[Sequence]:
    """Do what the core does after computing: book tokens, append one where due, end what is done; return the ended."""
    ended = []
    for item in plan.scheduled:
        samples = item.samples
        item.sequence.num_computed_tokens += item.num_tokens
        scheduler.kv.register(item.sequence)
        if samples and (reason := append_token(item.sequence, token_id)) is not None:
            scheduler.finish(item.sequence, reason)
            ended.append(item.sequence)
    return ended


def counts(plan: StepPlan) -> dict[int, int]:
    return {item.sequence.request_id: item.num_tokens for item in plan.scheduled}


def run_to_end(scheduler: Scheduler, max_steps: int = 500) -> list[Sequence]:
    """Step until nothing is left, checking each time; return the sequences in the order in which they ended."""
    ended: list[Sequence] = []
    for _ in range(max_steps):
        if not scheduler.has_work:
            break
        plan = scheduler.schedule(0.0)
        ended += plan.expired + finish_step(scheduler, plan)
        scheduler.check()
    assert not scheduler.has_work
    return ended
