"""A machine that adds, steps, waits and aborts at random, under every policy, and expects the promises to be kept."""

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.capacity_policy import POLICIES
from engine.errors import QueueFull
from engine.outputs import FinishReason
from engine.scheduler import Scheduler
from engine.sequence import Sequence, SequenceStatus
from engine.step_plan import StepPlan
from tests.unit.scheduling import finish_step, make_scheduler, make_sequence

FACTS = st.fixed_dictionaries(
    {},
    optional={
        "tenant": st.sampled_from(["a", "b", "c"]),
        "tenant_weight": st.sampled_from([1, 5]),
        "priority_class": st.sampled_from([0, 4, 9]),
        "deadline_ms": st.integers(1, 60),
        "cache_salt": st.sampled_from(["", "salt"]),
        "enable_prefix_cache": st.booleans(),
    },
)
BUDGET, MAX_SEQS, MAX_WAITING, MAX_WAITING_TOKENS = 6, 4, 6, 30
STEP_SECONDS = 0.001


class SchedulerMachine(RuleBasedStateMachine):
    """Requests with few distinct tokens, so that prefixes are shared, in a pool that is too small for all of them."""

    scheduler: Scheduler

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[int, Sequence] = {}
        self.num_added = 0
        self.now = 0.0

    @initialize(policy=st.sampled_from(sorted(POLICIES)), window=st.sampled_from([None, None, 1, 3, 4, 9]))
    def start(self, policy: str, window: int | None) -> None:
        self.scheduler = make_scheduler(
            num_blocks=8,
            block_size=2,
            window=window,
            scheduler_policy=policy,
            max_num_seqs=MAX_SEQS,
            max_num_batched_tokens=BUDGET,
            max_waiting=MAX_WAITING,
            max_waiting_tokens=MAX_WAITING_TOKENS,
            ageing_seconds=0.01,
        )

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=7), max_tokens=st.integers(1, 9), facts=FACTS)
    def add(self, prompt: list[int], max_tokens: int, facts: dict[str, Any]) -> None:
        self.num_added += 1
        sequence = make_sequence(self.num_added, prompt, max_tokens, self.now, **facts)
        queue = self.scheduler.waiting
        if len(queue) >= MAX_WAITING or (queue and queue.num_tokens + len(prompt) > MAX_WAITING_TOKENS):
            with pytest.raises(QueueFull):
                self.scheduler.add(sequence)
        else:
            self.scheduler.add(sequence)
            self.open[sequence.request_id] = sequence

    @precondition(lambda self: self.open)
    @rule(token_id=st.integers(0, 1), times=st.sampled_from([1, 3, 9]))
    def steps(self, token_id: int, times: int) -> None:
        for _ in range(times):
            self.step(token_id)
            self.everything_adds_up()

    def step(self, token_id: int) -> None:
        first = next(iter(self.scheduler.running), None)
        preemptions = {id(s): s.num_preemptions for s in self.open.values()}
        plan = self.scheduler.schedule(self.now)
        self.expect_ended_in_time(plan)
        assert all(i.sequence.num_preemptions == preemptions[id(i.sequence)] for i in plan.scheduled), "thrashing"
        assert plan.num_tokens == sum(item.num_tokens for item in plan.scheduled) <= BUDGET
        assert len(plan.scheduled) == len({item.sequence.request_id for item in plan.scheduled}) <= MAX_SEQS
        assert plan.scheduled or not self.open, "work was left but nothing was planned"
        assert first is None or first.status is not SequenceStatus.WAITING, "the first in rank was preempted"
        for item in plan.scheduled:
            self.expect_blocks_for(item.sequence, item.num_tokens)
        for sequence in finish_step(self.scheduler, plan, token_id):
            del self.open[sequence.request_id]
            assert sequence.num_tokens == sequence.max_total_tokens
        self.now += STEP_SECONDS

    def expect_ended_in_time(self, plan: StepPlan) -> None:
        for sequence in plan.expired:
            del self.open[sequence.request_id]
            assert sequence.finish_reason is FinishReason.DEADLINE
        assert all(s.deadline is None or s.deadline > self.now for s in self.open.values())

    def expect_blocks_for(self, sequence: Sequence, num_tokens: int) -> None:
        """Every token of the step, and every earlier one that it reads, has a block that is the sequence's own."""
        kv, start = self.scheduler.kv, sequence.num_computed_tokens
        assert 0 < num_tokens <= sequence.num_uncomputed_tokens
        assert start + num_tokens <= len(sequence.block_table) * kv.block_size
        first_read = 0 if kv.window is None else max(0, start - kv.window.size + 1)
        assert sequence.num_dropped_blocks <= first_read // kv.block_size
        written = sequence.block_table[start // kv.block_size :]
        assert all(kv.pool.ref_counts[block] == 1 and not kv.pool.is_full(block) for block in written)

    @rule(seconds=st.sampled_from([0.001, 0.02]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        sequence = self.open.pop(data.draw(st.sampled_from(sorted(self.open))))
        self.scheduler.finish(sequence, FinishReason.CANCELLED)
        self.scheduler.finish(sequence, FinishReason.ERROR)
        assert sequence.finish_reason is FinishReason.CANCELLED

    @invariant()
    def everything_adds_up(self) -> None:
        self.scheduler.check()
        assert {s.request_id for s in (*self.scheduler.waiting, *self.scheduler.running)} == set(self.open)
        assert all(s.status is not SequenceStatus.FINISHED for s in self.open.values())
        assert self.scheduler.num_preemptions == 0 or self.scheduler.policy == POLICIES["max_utilization"]()

    def teardown(self) -> None:
        """Go on while requests of the best class keep coming: each that is open still ends."""
        left = list(self.open.values())
        for number in range(600):
            if all(s.is_finished for s in left):
                break
            if number % 2 == 0 and not self.scheduler.waiting:
                self.scheduler.add(make_sequence(10**6 + number, [number], 2, self.now, priority_class=0))
            finish_step(self.scheduler, self.scheduler.schedule(self.now))
            self.scheduler.check()
            self.now += STEP_SECONDS
        assert all(s.is_finished for s in left)


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestSchedulerMachine = SchedulerMachine.TestCase


def random_facts(rng: random.Random) -> dict[str, Any]:
    choices: dict[str, list[Any]] = {
        "tenant": ["", "a", "b"],
        "tenant_weight": [1, 3],
        "priority_class": [0, 4, 9],
        "deadline_ms": [None, None, None, 40],
        "cache_salt": ["", "", "salt"],
        "enable_prefix_cache": [True, True, False],
    }
    return {name: rng.choice(values) for name, values in choices.items()}


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("window", [None, 1, 3, 6])
def test_promises_are_kept_under_constant_pressure(policy: str, window: int | None) -> None:
    rng = random.Random(1)
    machine = SchedulerMachine()
    machine.start(policy, window)
    for _ in range(2000):
        prompt = [rng.randrange(2) for _ in range(rng.randrange(1, 8))]
        machine.add(prompt, rng.randrange(1, 9), random_facts(rng))
        machine.step(rng.randrange(2))
        machine.everything_adds_up()
    machine.teardown()
    if policy == "max_utilization" and window in (None, 6):
        assert machine.scheduler.num_preemptions > 20, "there was no pressure"
