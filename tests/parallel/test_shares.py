"""Who gets which part of a model, and which models cannot be split."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import DEFAULT_MODEL
from engine.errors import ModelError
from engine.models.config import ModelConfig
from engine.models.moe_config import MoEConfig
from engine.parallel.config import ParallelConfig
from engine.parallel.shares import even_share, head_share


@given(st.integers(0, 200), st.integers(1, 20))
def test_even_shares_cover_everything_once_and_differ_by_at_most_one(size: int, num_parts: int) -> None:
    shares = [even_share(size, num_parts, part) for part in range(num_parts)]
    assert [index for share in shares for index in share] == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(1, 12), st.integers(1, 8), st.data())
def test_every_rank_has_query_heads_and_exactly_the_kv_heads_that_they_read(
    num_kv_heads: int, group: int, data: st.DataObject
) -> None:
    num_heads = num_kv_heads * group
    num_parts = data.draw(st.integers(1, num_heads))
    shares = [head_share(num_heads, num_kv_heads, num_parts, part) for part in range(num_parts)]
    assert [head for share in shares for head in share.queries] == list(range(num_heads))
    for share in shares:
        local_group, rest = divmod(len(share.queries), len(share.kvs))
        assert not rest
        read = [share.kvs[local // local_group] for local in range(len(share.queries))]
        assert read == [head // group for head in share.queries]


def test_kv_heads_are_copied_only_where_there_are_fewer_than_ranks() -> None:
    model = ModelConfig.from_dir(DEFAULT_MODEL)
    held = [ParallelConfig(tp).max_kv_heads(model) for tp in (1, model.num_kv_heads, model.num_heads)]
    assert held == [model.num_kv_heads, 1, 1]


@pytest.mark.parametrize(
    ("tp", "ep", "sizes", "message"),
    [
        (5, 1, {}, "tensor_parallel x expert_parallel is 5, but the model has 4 query heads"),
        (2, 1, {"intermediate_size": 1}, "but the model has 1 feed-forward channels"),
        (2, 1, {"vocab_size": 1}, "but the model has 1 tokens in its vocabulary"),
        (1, 2, {}, "expert_parallel is 2, but the model has no experts"),
        (1, 4, {"moe": MoEConfig(3, 2, 8, True, frozenset({0}))}, "expert_parallel is 4, but the model has 3 experts"),
        (2, 2, {"moe": MoEConfig(3, 2, 1, True, frozenset({0}))}, "tensor_parallel is 2, .* 1 channels in an expert"),
        (2, 1, {"moe": MoEConfig(3, 2, 8, True, frozenset({0}), 1)}, "1 channels in the shared expert"),
    ],
)
def test_a_model_too_small_for_its_ranks_is_refused_with_both_numbers(
    tp: int, ep: int, sizes: dict[str, Any], message: str
) -> None:
    model = replace(ModelConfig.from_dir(DEFAULT_MODEL), **sizes)
    with pytest.raises(ModelError, match=message):
        ParallelConfig(tp, ep).check(model)
