"""The scheduler's one rule, its two policies for blocks, priorities, tenants and deadlines."""

from typing import Any

import pytest

from engine.errors import QueueFull
from engine.outputs import FinishReason
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from tests.unit.scheduling import counts, finish_step, make_scheduler, make_sequence, run_to_end


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(1, list(range(20))))
    seen = []
    for _ in range(3):
        plan = scheduler.schedule(0.0)
        seen.append(counts(plan))
        finish_step(scheduler, plan)
    assert seen == [{1: 8}, {1: 8}, {1: 4}]


def test_decodes_come_before_prefill_and_share_its_step() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(1, [1, 2, 3]))
    finish_step(scheduler, scheduler.schedule(0.0))
    scheduler.add(make_sequence(2, list(range(20))))
    plan = scheduler.schedule(0.0)
    assert counts(plan) == {1: 1, 2: 7}
    assert [item.samples for item in plan.scheduled] == [True, False]


def test_requests_are_admitted_in_the_order_they_came() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for request_id in (1, 2, 3):
        scheduler.add(make_sequence(request_id, [1, 2], max_tokens=1))
    first = scheduler.schedule(0.0)
    assert counts(first) == {1: 2, 2: 2}
    finish_step(scheduler, first)
    assert counts(scheduler.schedule(0.0)) == {3: 2}


def test_a_full_queue_refuses_with_its_depth() -> None:
    scheduler = make_scheduler(max_waiting=1)
    scheduler.add(make_sequence(1, [1]))
    with pytest.raises(QueueFull, match="1 requests are waiting and the limit is 1"):
        scheduler.add(make_sequence(2, [1]))
    assert scheduler.shares.num_active == 1


def test_a_queue_full_of_tokens_refuses_with_its_depth_but_an_empty_one_takes_any_prompt() -> None:
    scheduler = make_scheduler(max_waiting_tokens=10)
    scheduler.add(make_sequence(1, [1] * 11))
    with pytest.raises(QueueFull, match="11 tokens are waiting, this request has 1 and the limit is 10"):
        scheduler.add(make_sequence(2, [1]))
    finish_step(scheduler, scheduler.schedule(0.0))
    scheduler.add(make_sequence(2, [1] * 9))
    scheduler.add(make_sequence(3, [1]))


def test_an_equal_prefix_is_computed_once_and_its_last_token_always() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=16)
    prompt = list(range(8))
    scheduler.add(make_sequence(1, prompt))
    finish_step(scheduler, scheduler.schedule(0.0))
    twin = make_sequence(2, prompt)
    scheduler.add(twin)
    assert counts(scheduler.schedule(0.0)) == {1: 1, 2: 4}
    assert twin.num_cached_tokens == 4


@pytest.mark.parametrize(
    ("first", "second", "hits"),
    [
        ({}, {}, 4),
        ({"cache_salt": "a"}, {"cache_salt": "a"}, 4),
        ({"cache_salt": "a"}, {"cache_salt": "b"}, 0),
        ({"cache_salt": "a"}, {}, 0),
        ({"enable_prefix_cache": False}, {}, 0),
        ({}, {"enable_prefix_cache": False}, 0),
        ({"tenant": "a"}, {"tenant": "b"}, 4),
    ],
)
def test_a_prefix_is_shared_only_under_one_salt_and_where_both_take_part(
    first: dict[str, Any], second: dict[str, Any], hits: int
) -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(1, list(range(8)), max_tokens=1, **first))
    run_to_end(scheduler)
    twin = make_sequence(2, list(range(8)), max_tokens=1, **second)
    scheduler.add(twin)
    run_to_end(scheduler)
    assert twin.num_cached_tokens == hits


def test_when_blocks_run_out_the_youngest_gives_way_and_comes_back() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=2)
    old, young = make_sequence(1, [1, 2, 3], max_tokens=5), make_sequence(2, [4, 5, 6], max_tokens=5)
    scheduler.add(old)
    scheduler.add(young)
    assert [s.request_id for s in run_to_end(scheduler)] == [1, 2]
    assert old.num_preemptions == 0
    assert young.num_preemptions > 0
    assert young.num_output_tokens == 5


def test_when_blocks_run_out_the_lowest_priority_gives_way_before_the_youngest() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=2)
    low = make_sequence(1, [1, 2, 3], max_tokens=5, priority_class=9)
    high = make_sequence(2, [4, 5, 6], max_tokens=5, arrived=1.0, priority_class=0)
    scheduler.add(low)
    scheduler.add(high)
    assert [s.request_id for s in run_to_end(scheduler)] == [2, 1]
    assert (low.num_preemptions > 0, high.num_preemptions) == (True, 0)


def test_without_eviction_a_request_starts_only_where_its_longest_output_fits() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=2, scheduler_policy="guaranteed_no_evict")
    first, second = make_sequence(1, [1, 2, 3], max_tokens=3), make_sequence(2, [4, 5, 6], max_tokens=5)
    scheduler.add(first)
    scheduler.add(second)
    assert counts(scheduler.schedule(0.0)) == {1: 3}
    finish_step(scheduler, scheduler.schedule(0.0))
    assert [s.request_id for s in run_to_end(scheduler)] == [1, 2]
    assert scheduler.num_preemptions == 0


def test_without_eviction_shared_blocks_count_once() -> None:
    scheduler = make_scheduler(num_blocks=8, block_size=2, scheduler_policy="guaranteed_no_evict")
    prompt = [1, 2, 3, 4, 5, 6, 7]
    for request_id in (1, 2):
        scheduler.add(make_sequence(request_id, prompt, max_tokens=3))
    finish_step(scheduler, scheduler.schedule(0.0))
    assert counts(scheduler.schedule(0.0)) == {1: 1, 2: 1}


@pytest.mark.parametrize("facts", [{}, {"enable_prefix_cache": False}])
@pytest.mark.parametrize("prompt_log_probs", [False, True])
def test_whoever_is_refused_waits_whether_or_not_it_looks_for_a_prefix(
    facts: dict[str, Any], prompt_log_probs: bool
) -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=4)
    refused = make_sequence(2, list(range(50, 63)), max_tokens=1, **facts)
    refused.params = SamplingParams(max_tokens=1, prompt_logprobs=prompt_log_probs)
    scheduler.add(make_sequence(1, [1, 2, 3], max_tokens=3))
    scheduler.add(refused)
    assert [s.request_id for s in run_to_end(scheduler)] == [1, 2]


def test_who_was_refused_is_looked_up_again_only_when_there_may_be_room(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=4)
    running, waiting = make_sequence(1, list(range(8)), max_tokens=6), make_sequence(2, list(range(50, 58)))
    scheduler.add(running)
    finish_step(scheduler, scheduler.schedule(0.0))
    lookups: list[Sequence] = []
    take_prefix = scheduler.kv.take_prefix
    monkeypatch.setattr(scheduler.kv, "take_prefix", lambda sequence: (lookups.append(sequence), take_prefix(sequence)))
    finish_step(scheduler, scheduler.schedule(0.0))
    scheduler.add(waiting)
    while not running.is_finished:
        assert len(scheduler.running) == 1
        finish_step(scheduler, scheduler.schedule(0.0))
    assert lookups == [waiting]
    assert counts(scheduler.schedule(0.0)) == {2: 8}


def test_an_aborted_sequence_gives_its_blocks_back_at_once() -> None:
    scheduler = make_scheduler()
    sequence = make_sequence(1, [1, 2, 3])
    scheduler.add(sequence)
    finish_step(scheduler, scheduler.schedule(0.0))
    scheduler.finish(sequence, FinishReason.CANCELLED)
    assert scheduler.kv.pool.num_used == 0
    assert not scheduler.has_work


def test_an_expired_request_is_dropped_before_prefill_and_ended_in_decode() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    running, waiting = make_sequence(1, [1, 2], deadline_ms=2000), make_sequence(2, [1, 2], deadline_ms=1000)
    scheduler.add(running)
    scheduler.add(waiting)
    finish_step(scheduler, scheduler.schedule(0.5))
    plan = scheduler.schedule(1.0)
    assert (plan.expired, counts(plan)) == ([waiting], {1: 1})
    finish_step(scheduler, plan)
    plan = scheduler.schedule(2.5)
    assert (plan.expired, counts(plan)) == ([running], {})
    assert {waiting.finish_reason, running.finish_reason} == {FinishReason.DEADLINE}
    assert (waiting.num_output_tokens, running.num_output_tokens) == (0, 2)
    assert (scheduler.kv.pool.num_used, scheduler.has_work) == (0, False)


def served_first(sequences: list[Sequence]) -> list[int]:
    """Return the ids of requests in the order in which an engine with one place starts them."""
    scheduler = make_scheduler(max_num_seqs=1, max_waiting=64)
    for sequence in sequences:
        scheduler.add(sequence)
    return [s.request_id for s in run_to_end(scheduler)]


def test_a_better_class_comes_first_until_the_other_has_aged() -> None:
    def make(request_id: int, arrived: float, priority_class: int) -> Sequence:
        return make_sequence(request_id, [1], 1, arrived, priority_class=priority_class)

    assert served_first([make(1, 0.0, 5), make(2, 9.0, 4)]) == [2, 1]
    assert served_first([make(1, 0.0, 5), make(2, 11.0, 4)]) == [1, 2]
    assert served_first([make(1, 0.0, 9), make(2, 0.0, 0), make(3, 0.0, 4)]) == [2, 3, 1]


def test_a_tenant_with_a_deep_queue_does_not_hold_up_another() -> None:
    flood = [make_sequence(i, [1], 1, tenant="flood", priority_class=0) for i in range(1, 9)]
    guests = [make_sequence(i, [1], 1, arrived=5.0, tenant="guest") for i in (11, 12)]
    assert served_first(flood + guests)[:4] == [1, 11, 2, 12]


def test_tenants_are_served_by_weight() -> None:
    light = [make_sequence(i, [1], 1, tenant="light") for i in range(1, 13)]
    heavy = [make_sequence(100 + i, [1], 1, tenant="heavy", tenant_weight=3) for i in range(1, 13)]
    first = served_first(light + heavy)[:12]
    assert sum(request_id > 100 for request_id in first) == 9
