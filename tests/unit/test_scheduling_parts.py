"""The small rules that the scheduler is made of, each as a table."""

from typing import Any

import pytest

from engine.ageing import Ageing
from engine.capacity_policy import GuaranteedNoEvict, MaxUtilization
from engine.deadlines import Deadlines
from engine.errors import InvalidRequest
from engine.scheduling_params import SchedulingParams
from engine.sliding_window import SlidingWindow
from engine.tenant_shares import MAX_IDLE, TenantShares
from tests.unit.scheduling import finish_step, make_scheduler, make_sequence, run_to_end


@pytest.mark.parametrize("now", [0.0, 7.0, 1000.0])
@pytest.mark.parametrize(
    ("first", "second"), [((0.0, 4), (0.0, 5)), ((0.0, 4), (9.0, 3)), ((0.0, 4), (11.0, 3)), ((3.0, 9), (80.0, 0))]
)
def test_ranks_compare_as_the_aged_classes_do_at_any_time(
    first: tuple[float, int], second: tuple[float, int], now: float
) -> None:
    ageing = Ageing(10.0)
    aged = [priority_class - (now - arrived) / 10.0 for arrived, priority_class in (first, second)]
    assert (ageing.rank(*first) < ageing.rank(*second)) == (aged[0] < aged[1])


@pytest.mark.parametrize(
    ("policy", "needed", "available", "outstanding", "admits"),
    [
        (MaxUtilization(), 3, 3, 99, True),
        (MaxUtilization(), 4, 3, 4, False),
        (GuaranteedNoEvict(), 1, 8, 8, True),
        (GuaranteedNoEvict(), 1, 8, 9, False),
    ],
)
def test_a_policy_admits_by_its_own_measure(
    policy: MaxUtilization | GuaranteedNoEvict, needed: int, available: int, outstanding: int, admits: bool
) -> None:
    assert policy.admits(needed, available, lambda: outstanding) is admits


def test_the_last_in_rank_gives_way_or_nobody() -> None:
    last, other = make_sequence(2, [1]), make_sequence(1, [1])
    assert MaxUtilization().victim([last, other]) is last
    assert MaxUtilization().victim([]) is None


@pytest.mark.parametrize(
    ("size", "num_computed", "first_needed"),
    [(4, 0, 0), (4, 3, 0), (4, 4, 0), (4, 6, 0), (4, 7, 1), (4, 10, 1), (4, 11, 2), (1, 4, 1), (100, 50, 0)],
)
def test_a_window_frees_a_block_when_its_last_token_has_passed(size: int, num_computed: int, first_needed: int) -> None:
    assert SlidingWindow(size, 4, 8).first_needed_block(num_computed) == first_needed


@pytest.mark.parametrize("size", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("max_step_tokens", [1, 3, 8])
def test_no_step_touches_more_blocks_than_the_window_allows(size: int, max_step_tokens: int) -> None:
    window = SlidingWindow(size, 4, max_step_tokens)
    touched = [
        (start + max_step_tokens - 1) // 4 - window.first_needed_block(start) + 1 for start in range(3 * (size + 4))
    ]
    assert max(touched) == window.max_held_blocks


@pytest.mark.parametrize("window", [4, 6])
def test_a_long_sequence_under_a_window_needs_few_blocks_and_keeps_its_places(window: int) -> None:
    scheduler = make_scheduler(num_blocks=200, block_size=2, window=window)
    sequence = make_sequence(1, list(range(60)), max_tokens=40)
    scheduler.add(sequence)
    held = scheduler.kv.window.max_held_blocks if scheduler.kv.window else 0
    for _ in range(30):
        plan = scheduler.schedule(0.0)
        assert sum(block != 0 for block in sequence.block_table) <= scheduler.kv.pool.num_used <= held
        sequence.num_computed_tokens += plan.num_tokens
        scheduler.kv.register(sequence)
        if not sequence.num_uncomputed_tokens:
            sequence.token_ids.append(7)
    assert len(sequence.block_table) == -(-sequence.num_computed_tokens // 2)


def test_a_prefix_is_found_again_under_a_window_with_its_places_kept() -> None:
    scheduler = make_scheduler(num_blocks=200, block_size=2, window=5)
    scheduler.add(make_sequence(1, list(range(40)), max_tokens=1))
    run_to_end(scheduler)
    twin = make_sequence(2, list(range(40)), max_tokens=1)
    scheduler.add(twin)
    scheduler.schedule(0.0)
    assert (twin.num_cached_tokens, twin.num_dropped_blocks, len(twin.block_table)) == (38, 17, 20)


def test_under_a_window_a_shared_block_is_one_that_is_yet_needed() -> None:
    scheduler = make_scheduler(num_blocks=200, block_size=2, window=5, max_num_batched_tokens=8)
    first, second = (make_sequence(i, list(range(8)), max_tokens=50) for i in (1, 2))
    kv = scheduler.kv
    for sequence in (first, second):
        scheduler.add(sequence)
        finish_step(scheduler, scheduler.schedule(0.0))
    assert kv.window is not None
    held = len(second.block_table) - second.num_dropped_blocks
    shared = set(first.block_table[first.num_dropped_blocks :]) & set(second.block_table[second.num_dropped_blocks :])
    assert shared
    assert kv.num_outstanding_blocks(second) == kv.window.max_held_blocks - held + len(shared)


def served(shares: TenantShares, tenants: list[str], num_turns: int) -> list[str]:
    """Serve one token at a time to whoever has had the least."""
    turns = []
    for _ in range(num_turns):
        tenant = min(tenants, key=shares.__getitem__)
        shares.charge(tenant, 1.0)
        turns.append(tenant)
    return turns


@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (2, 5)])
def test_busy_tenants_are_served_by_weight(weights: tuple[int, int]) -> None:
    shares = TenantShares()
    for tenant, weight in zip("ab", weights, strict=True):
        shares.join(tenant, weight)
    turns = served(shares, ["a", "b"], 10 * sum(weights))
    assert [turns.count(tenant) for tenant in "ab"] == [10 * weight for weight in weights]


def test_idleness_saves_up_no_claim_and_leaving_pays_no_debt() -> None:
    shares = TenantShares()
    shares.join("busy", 1)
    served(shares, ["busy"], 100)
    shares.join("late", 1)
    assert served(shares, ["busy", "late"], 10).count("late") == 5
    shares.charge("late", 50.0)
    shares.leave("late")
    shares.join("late", 1)
    assert served(shares, ["busy", "late"], 50).count("late") == 0


def test_an_endless_row_of_new_tenants_cannot_hold_an_old_one_back() -> None:
    shares = TenantShares()
    shares.join("new 0", 1)
    shares.join("old", 1)
    shares.charge("old", 100.0)
    turns: list[str] = []
    while "old" not in turns and len(turns) < 500:
        number = len(turns) + 1
        shares.join(f"new {number}", 1)
        turns += served(shares, ["old", f"new {number - 1}", f"new {number}"], 1)
        shares.leave(f"new {number - 1}")
    assert "old" in turns


def test_only_so_many_idle_tenants_are_remembered() -> None:
    shares = TenantShares()
    for number in range(MAX_IDLE + 10):
        shares.join(str(number), 1)
        shares.leave(str(number))
    assert (len(shares._idle), shares.num_active, len(shares._weights)) == (MAX_IDLE, 0, 0)


def test_deadlines_expire_in_their_order_and_stay_until_removed() -> None:
    deadlines = Deadlines()
    late, soon, never = (make_sequence(i, [1], deadline_ms=ms) for i, ms in enumerate((2000, 1000, None)))
    for sequence in (late, soon, never):
        deadlines.add(sequence)
    assert deadlines.expired(0.999) == []
    assert deadlines.expired(1.0) == [soon]
    assert deadlines.expired(9.0) == [soon, late]
    deadlines.remove(soon)
    deadlines.remove(never)
    assert deadlines.expired(9.0) == [late]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"priority_class": 101}, "priority_class must be between 0 and 100, got 101"),
        ({"priority_class": True}, "priority_class must be an integer, got True"),
        ({"deadline_ms": 0}, "deadline_ms must be between 1 and 1000000000000000, got 0"),
        ({"tenant_weight": 1001}, "tenant_weight must be between 1 and 1000, got 1001"),
        ({"tenant": 5}, "tenant must be a string of at most 256 characters, got 5"),
        ({"cache_salt": "x" * 257}, "cache_salt must be a string of at most 256 characters"),
        ({"cache_salt": "\ud800"}, "cache_salt must be valid Unicode"),
        ({"enable_prefix_cache": 1}, "enable_prefix_cache must be true or false, got 1"),
    ],
)
def test_a_fact_outside_its_limits_is_refused_by_name(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SchedulingParams(**facts)
