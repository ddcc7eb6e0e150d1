"""The scheduler's one rule, and a machine that adds, steps, aborts and preempts at random."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.errors import QueueFull
from engine.kv_manager import KVManager
from engine.outputs import FinishReason
from engine.sampling_params import SamplingParams
from engine.scheduler import Scheduler, StepPlan
from engine.sequence import Sequence, SequenceStatus
from engine.stopping import append_token


def make_scheduler(num_blocks: int = 64, block_size: int = 4, **limits: int) -> Scheduler:
    sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 8, "max_waiting": 16} | limits
    return Scheduler(KVManager(num_blocks, block_size), **sizes)


def make_sequence(request_id: int, prompt: list[int], max_tokens: int = 8) -> Sequence:
    params = SamplingParams(max_tokens=max_tokens)
    return Sequence(request_id, list(prompt), len(prompt), params, len(prompt) + max_tokens, frozenset())


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


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(1, list(range(20))))
    seen = []
    for _ in range(3):
        plan = scheduler.schedule()
        seen.append(counts(plan))
        finish_step(scheduler, plan)
    assert seen == [{1: 8}, {1: 8}, {1: 4}]


def test_decodes_come_before_prefill_and_share_its_step() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(1, [1, 2, 3]))
    finish_step(scheduler, scheduler.schedule())
    scheduler.add(make_sequence(2, list(range(20))))
    plan = scheduler.schedule()
    assert counts(plan) == {1: 1, 2: 7}
    assert [item.samples for item in plan.scheduled] == [True, False]


def test_requests_are_admitted_in_the_order_they_came() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for request_id in (1, 2, 3):
        scheduler.add(make_sequence(request_id, [1, 2], max_tokens=1))
    first = scheduler.schedule()
    assert counts(first) == {1: 2, 2: 2}
    finish_step(scheduler, first)
    assert counts(scheduler.schedule()) == {3: 2}


def test_a_full_queue_refuses_with_its_depth() -> None:
    scheduler = make_scheduler(max_waiting=1)
    scheduler.add(make_sequence(1, [1]))
    with pytest.raises(QueueFull, match="1 requests are waiting and the limit is 1"):
        scheduler.add(make_sequence(2, [1]))


def test_an_equal_prefix_is_computed_once_and_its_last_token_always() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=16)
    prompt = list(range(8))
    scheduler.add(make_sequence(1, prompt))
    finish_step(scheduler, scheduler.schedule())
    twin = make_sequence(2, prompt)
    scheduler.add(twin)
    assert counts(scheduler.schedule()) == {1: 1, 2: 4}
    assert twin.num_cached_tokens == 4


def test_when_blocks_run_out_the_youngest_gives_way_and_comes_back() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=2)
    old, young = make_sequence(1, [1, 2, 3], max_tokens=5), make_sequence(2, [4, 5, 6], max_tokens=5)
    scheduler.add(old)
    scheduler.add(young)
    ended: list[Sequence] = []
    for _ in range(40):
        scheduler.check()
        ended += finish_step(scheduler, scheduler.schedule())
        if not scheduler.has_work:
            break
    assert [s.request_id for s in ended] == [1, 2]
    assert old.num_preemptions == 0
    assert young.num_preemptions > 0
    assert young.num_output_tokens == 5


def test_an_aborted_sequence_gives_its_blocks_back_at_once() -> None:
    scheduler = make_scheduler()
    sequence = make_sequence(1, [1, 2, 3])
    scheduler.add(sequence)
    finish_step(scheduler, scheduler.schedule())
    scheduler.finish(sequence, FinishReason.CANCELLED)
    assert scheduler.kv.pool.num_used == 0
    assert not scheduler.has_work


class SchedulerMachine(RuleBasedStateMachine):
    """Requests with few distinct tokens, so that prefixes are shared, in a pool that is too small for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = make_scheduler(
            num_blocks=12, block_size=2, max_num_seqs=4, max_num_batched_tokens=6, max_waiting=6
        )
        self.open: dict[int, Sequence] = {}
        self.num_added = 0

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=12), max_tokens=st.integers(1, 10))
    def add(self, prompt: list[int], max_tokens: int) -> None:
        self.num_added += 1
        sequence = make_sequence(self.num_added, prompt, max_tokens)
        if len(self.scheduler.waiting) >= self.scheduler.max_waiting:
            with pytest.raises(QueueFull):
                self.scheduler.add(sequence)
        else:
            self.scheduler.add(sequence)
            self.open[sequence.request_id] = sequence

    @rule(token_id=st.integers(0, 1))
    def step(self, token_id: int) -> None:
        plan = self.scheduler.schedule()
        assert plan.num_tokens == sum(item.num_tokens for item in plan.scheduled) <= 6
        assert len(plan.scheduled) == len({item.sequence.request_id for item in plan.scheduled}) <= 4
        assert plan.scheduled or not self.open, "work was left but nothing was planned"
        for item in plan.scheduled:
            room = len(item.sequence.block_table) * self.scheduler.kv.block_size
            assert 0 < item.num_tokens <= item.sequence.num_uncomputed_tokens
            assert item.sequence.num_computed_tokens + item.num_tokens <= room
        for sequence in finish_step(self.scheduler, plan, token_id):
            del self.open[sequence.request_id]
            assert sequence.num_tokens == sequence.max_total_tokens

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

    def teardown(self) -> None:
        for _ in range(2000):
            if not self.scheduler.has_work:
                break
            finish_step(self.scheduler, self.scheduler.schedule())
        assert not self.scheduler.has_work
        assert self.scheduler.kv.pool.num_used == 0


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestSchedulerMachine = SchedulerMachine.TestCase
