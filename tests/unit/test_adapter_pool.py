"""The pool of adapters: budgets, who leaves first, and that everybody gets theirs in the end."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from engine.errors import InvalidRequest
from engine.lora.adapter_pool import AdapterPool, AdapterState, Moves

SIZES = {"a": 1, "b": 2, "c": 3, "d": 1, "e": 4}


def ready(pool: AdapterPool, user: int, name: str) -> None:
    """Bring an adapter into memory and let a user have it."""
    assert pool.acquire(user, name, SIZES[name]).load == [name]
    assert pool.loaded(name).granted == [(user, name)]


def test_the_first_user_waits_for_loading_and_later_ones_do_not() -> None:
    pool = AdapterPool(2, 10)
    assert pool.acquire(1, "a", 1) == Moves(load=["a"])
    assert pool.acquire(2, "a", 1) == Moves()
    assert pool.loaded("a") == Moves(granted=[(1, "a"), (2, "a")])
    assert pool.acquire(3, "a", 1) == Moves(granted=[(3, "a")])


def test_the_unused_adapter_asked_for_longest_ago_makes_room() -> None:
    pool = AdapterPool(2, 10)
    for user, name in enumerate("ab"):
        ready(pool, user, name)
    pool.acquire(2, "a", 1)
    for user in range(3):
        pool.release(user)
    assert pool.acquire(4, "c", 3) == Moves(load=["c"], dropped=["b"])


def test_as_many_leave_as_the_bytes_need() -> None:
    pool = AdapterPool(5, 5)
    for user, name in enumerate("abd"):
        ready(pool, user, name)
        pool.release(user)
    assert pool.acquire(9, "c", 3) == Moves(load=["c"], dropped=["a", "b"])


def test_where_all_are_in_use_one_takes_no_new_users_until_it_can_leave() -> None:
    pool = AdapterPool(1, 10)
    ready(pool, 1, "a")
    assert pool.acquire(2, "b", 2) == Moves()
    assert pool.places["a"].state is AdapterState.LEAVING
    assert pool.acquire(3, "a", 1) == Moves()
    assert pool.release(1) == Moves(load=["b"], dropped=["a"])
    assert pool.loaded("b") == Moves(granted=[(2, "b")])
    assert pool.places["b"].state is AdapterState.LEAVING
    assert pool.release(2) == Moves(load=["a"], dropped=["b"])


def test_an_adapter_just_loaded_goes_to_who_waits_for_it_before_it_may_leave() -> None:
    pool = AdapterPool(1, 10)
    pool.acquire(1, "a", 1)
    pool.acquire(2, "b", 2)
    assert pool.loaded("a") == Moves(granted=[(1, "a")])


def test_unloading_waits_for_the_users_and_is_refused_where_there_is_nothing_to_unload() -> None:
    pool = AdapterPool(2, 10)
    with pytest.raises(InvalidRequest, match="'a' is not loaded"):
        pool.unload("a")
    pool.acquire(1, "a", 1)
    with pytest.raises(InvalidRequest, match="'a' is being loaded"):
        pool.unload("a")
    pool.loaded("a")
    assert pool.unload("a") == Moves()
    assert pool.release(1) == Moves(dropped=["a"])
    ready(pool, 2, "b")
    pool.release(2)
    assert pool.unload("b") == Moves(dropped=["b"])


def test_a_failure_is_told_to_all_who_wait_and_makes_room() -> None:
    pool = AdapterPool(1, 10)
    pool.acquire(1, "a", 1)
    pool.acquire(2, "a", 1)
    pool.acquire(3, "b", 1)
    assert pool.failed("a") == ([1, 2], Moves(load=["b"]))


def test_one_that_never_fits_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'e' takes 4 bytes; the budget is 3"):
        AdapterPool(2, 3).acquire(1, "e", 4)


class PoolMachine(RuleBasedStateMachine):
    """Users come and go, loads end well or badly, and adapters are unloaded, in any order."""

    users = Bundle("users")

    @initialize(max_adapters=st.integers(1, 3), max_bytes=st.integers(4, 8))
    def start(self, max_adapters: int, max_bytes: int) -> None:
        self.pool = AdapterPool(max_adapters, max_bytes)
        self.num_users = 0
        self.loading: list[str] = []
        self.having: dict[int, str] = {}
        self.waiting: dict[int, str] = {}

    def take(self, moves: Moves) -> None:
        self.loading += moves.load
        for user, name in moves.granted:
            assert self.waiting.pop(user) == name
            self.having[user] = name
        assert not set(moves.dropped) & set(self.having.values())

    @rule(target=users, name=st.sampled_from(sorted(SIZES)))
    def acquire(self, name: str) -> int:
        self.num_users += 1
        self.waiting[self.num_users] = name
        self.take(self.pool.acquire(self.num_users, name, SIZES[name]))
        return self.num_users

    @rule(user=consumes(users))
    def release(self, user: int) -> None:
        self.having.pop(user, None)
        self.waiting.pop(user, None)
        self.take(self.pool.release(user))

    @rule(data=st.data(), works=st.booleans())
    def end_a_load(self, data: st.DataObject, works: bool) -> None:
        if not self.loading:
            return
        name = self.loading.pop(data.draw(st.integers(0, len(self.loading) - 1)))
        if works:
            self.take(self.pool.loaded(name))
            return
        failed, moves = self.pool.failed(name)
        assert failed == [user for user, wanted in self.waiting.items() if wanted == name]
        for user in failed:
            del self.waiting[user]
        self.take(moves)

    @rule(name=st.sampled_from(sorted(SIZES)))
    def unload(self, name: str) -> None:
        place = self.pool.places.get(name)
        if place is not None and place.state is not AdapterState.LOADING:
            self.take(self.pool.unload(name))

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check()
            assert all(user in self.pool.places[name].users for user, name in self.having.items())
            assert [waiter.user for waiter in self.pool.line] == list(self.waiting)

    def teardown(self) -> None:
        """Everybody gets theirs once loads end and users go."""
        if not hasattr(self, "pool"):
            return
        for _ in range(2 * self.num_users + 2):
            for name in [*self.loading]:
                self.loading.remove(name)
                self.take(self.pool.loaded(name))
            for user in [*self.having]:
                del self.having[user]
                self.take(self.pool.release(user))
        assert not self.waiting
        assert all(not place.users for place in self.pool.places.values())


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPoolMachine = PoolMachine.TestCase
