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


def test_a_trace_is_read_as_arrivals(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    rows = [{"timestamp": at, "input_length": 700, "output_length": 5, "hash_ids": [0, 7]} for at in (1500, 2500)]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert read_trace(file, 9) == [Arrival(0.0, 700, 5, (0, 7)), Arrival(1.0, 700, 5, (0, 7))]
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
