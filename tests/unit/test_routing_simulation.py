"""The routing simulator: what it reads, and that the default policy beats taking turns on heavy-tailed lengths."""

import json
from pathlib import Path

import pytest

from gateway.routing.policy import PolicyName
from scripts.routing_simulation.arrivals import Arrival, at_rate, heavy_tailed, read_trace
from scripts.routing_simulation.instance import BASE, PREFILL, ModelInstance
from scripts.routing_simulation.replay import Replay, quantile


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_queue_depth_beats_round_robin_on_heavy_tailed_lengths(seed: int) -> None:
    arrivals = heavy_tailed(1500, 40.0, seed)
    p99 = {
        policy: quantile(Replay(policy, 4, seed).run(arrivals), 0.99)
        for policy in (PolicyName.QUEUE_DEPTH, PolicyName.ROUND_ROBIN)
    }
    assert p99[PolicyName.QUEUE_DEPTH] < 0.8 * p99[PolicyName.ROUND_ROBIN]


def test_every_arrival_gets_a_first_token_under_every_policy() -> None:
    arrivals = heavy_tailed(200, 40.0, 3)
    for policy in PolicyName:
        assert len(Replay(policy, 3).run(arrivals)) == 200


def test_both_kinds_of_trace_are_read(tmp_path: Path) -> None:
    azure, mooncake = tmp_path / "a.csv", tmp_path / "m.jsonl"
    rows = ["2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109"]
    azure.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    first, second = read_trace(azure, 9)
    assert (first.at, first.prompt_tokens, first.output_tokens) == (0.0, 374, 44)
    assert second.at == pytest.approx(4.314579, abs=1e-5)
    row = {"timestamp": 1500, "input_length": 700, "output_length": 5, "hash_ids": [0, 7]}
    mooncake.write_text("\n".join(2 * [json.dumps(row)]))
    assert read_trace(mooncake, 1) == [Arrival(1.5, 700, 5, (0, 7))]
    assert [arrival.at for arrival in at_rate([Arrival(0.0, 1, 1), Arrival(4.0, 1, 1)], 1.0)] == [0.0, 2.0]


def test_a_known_prefix_is_not_computed_again() -> None:
    instance = ModelInstance("a")
    first_seconds = []
    for _ in range(2):
        instance.submit(Arrival(0.0, 1100, 1, (1, 2)))
        seconds, first, ended = instance.step()
        assert first == ended
        first_seconds.append(seconds)
    assert first_seconds == pytest.approx([BASE + 1100 * PREFILL, BASE + 76 * PREFILL])
