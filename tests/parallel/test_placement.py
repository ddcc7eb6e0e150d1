"""Which group holds which experts."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import DEFAULT_MODEL, EngineConfig
from engine.errors import ModelError
from engine.models.config import ModelConfig
from engine.parallel.placement import ExpertPlacement, place_by_load, place_evenly, placements_for
from tests.models.test_config import read


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=24), st.data())
def test_every_expert_is_held_no_group_is_empty_none_holds_one_twice_or_too_many(
    loads: list[float], data: st.DataObject
) -> None:
    num_groups = data.draw(st.integers(1, len(loads)))
    num_replicas = data.draw(st.integers(0, 12))
    groups = place_by_load(loads, num_groups, num_replicas).groups
    assert {expert for experts in groups for expert in experts} == set(range(len(loads)))
    assert all(list(experts) == sorted(set(experts)) for experts in groups)
    assert len(groups) == num_groups
    assert all(groups)
    assert max(map(len, groups)) <= -(-(len(loads) + num_replicas) // num_groups)


def test_experts_used_together_more_than_others_are_parted() -> None:
    assert place_by_load([9.0, 9.0, 1.0, 1.0], 2, 0) == ExpertPlacement(((0, 2), (1, 3)))
    assert place_evenly(4, 2) == ExpertPlacement(((0, 1), (2, 3)))


def test_the_hottest_expert_gets_the_copies() -> None:
    placement = place_by_load([1.0, 30.0, 2.0, 3.0], 3, 2)
    assert placement.holders(1) == [0, 1, 2]
    assert [len(placement.holders(expert)) for expert in (0, 2, 3)] == [1, 1, 1]


def mixtral(tmp_path: Path) -> ModelConfig:
    return read(tmp_path, "MixtralForCausalLM", num_local_experts=3)


def test_loads_are_read_by_layer(tmp_path: Path) -> None:
    model = mixtral(tmp_path)
    (tmp_path / "loads.json").write_text(json.dumps({str(layer): [layer, 5, 1] for layer in range(4)}))
    config = EngineConfig(expert_parallel=2, expert_loads=tmp_path / "loads.json")
    assert placements_for(config, model)[0] == ExpertPlacement(((1,), (0, 2)))
    assert placements_for(EngineConfig(expert_parallel=2), model)[0] == ExpertPlacement(((0, 1), (2,)))
    assert placements_for(config, ModelConfig.from_dir(DEFAULT_MODEL)) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"0": [1, 1, 1]}', r"is for layers \[0\], not \[0, 1, 2, 3\]"),
        ('{"0": [1], "1": [1], "2": [1], "3": [1]}', "must give 3 numbers of at least 0"),
        ('{"0": [1, 1, -1], "1": [1, 1, 1], "2": [1, 1, 1], "3": [1, 1, 1]}', "must give 3 numbers of at least 0"),
    ],
)
def test_loads_of_another_model_are_refused(tmp_path: Path, content: str, message: str) -> None:
    model = mixtral(tmp_path)
    (tmp_path / "loads.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        placements_for(EngineConfig(expert_parallel=2, expert_loads=tmp_path / "loads.json"), model)
