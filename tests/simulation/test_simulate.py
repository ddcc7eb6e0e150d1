"""The simulator: traces are read as they are laid out, and the real scheduler runs through simulated time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine.config import EngineConfig
from scripts.launcher import paths
from scripts.launcher.bootstrap import EXTRAS
from scripts.simulation.command import app
from scripts.simulation.cost_model import CostModel
from scripts.simulation.outcome import Outcome
from scripts.simulation.replay import Replay
from scripts.simulation.trace import TraceRequest, give_tenants, make_trace, read_trace

CSV = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
JSONL = """{"timestamp": 3000, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]}
{"timestamp": 3500, "input_length": 600, "output_length": 0, "hash_ids": [0, 2]}
"""
FIXED = CostModel(fixed_ms=10.0, token_us=0.0, kv_token_us=0.0)


def replay(requests: list[TraceRequest], cost: CostModel = FIXED, max_tokens: int = 1, **settings: object) -> Outcome:
    config = replace(EngineConfig(num_blocks=64, block_size=16), **settings)
    return Replay(requests, config, cost, max_tokens).run(lambda _: None)


def test_a_csv_trace_counts_from_its_first_request(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(CSV)
    requests = read_trace(path, limit=2)
    assert requests[0] == TraceRequest(0.0, 374, 44)
    assert requests[1].arrived == pytest.approx(4.314579, abs=1e-5)
    assert len(requests) == 2


def test_requests_come_in_the_order_of_their_arrivals(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f'{{"timestamp": {at}, "input_length": 1, "output_length": 1}}\n' for at in (20, 10, 30)))
    assert [request.arrived for request in read_trace(path, limit=9)] == pytest.approx([0.0, 0.01, 0.02])


def test_a_json_trace_shares_the_tokens_of_equal_hashes(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(JSONL)
    first, second = read_trace(path, limit=9)
    assert (second.arrived, second.num_output) == (0.5, 1)
    prompts = first.prompt(0), second.prompt(1)
    assert [len(p) for p in prompts] == [700, 600]
    assert prompts[0][:512] == prompts[1][:512]
    assert not set(prompts[0][512:]) & set(prompts[1][512:])


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("t.csv", CSV + "yesterday,1,1\n", "request 4 cannot be read: Invalid isoformat string: 'yesterday'"),
        ("t.csv", CSV + "2023-11-16 18:15:51,-7,1\n", "request 4 cannot be read: a prompt has .* not -7"),
        ("t.csv", "when,TIMESTAMP\n", "no column ContextTokens, GeneratedTokens, only when, TIMESTAMP"),
        ("t.csv", "", "no column TIMESTAMP, .* only none"),
        ("t.jsonl", JSONL + "{}", "request 3 has no 'timestamp'"),
        ("t.jsonl", JSONL + "[1]", "request 3 cannot be read"),
        ("t.jsonl", "", "holds no requests"),
        (".", "", "Is a directory"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_and_says_where(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    if path != tmp_path:
        path.write_text(text)
    with pytest.raises(ValueError, match=says):
        read_trace(path, limit=9)


def test_one_request_takes_a_step_for_its_prompt_and_one_for_each_further_token() -> None:
    outcome = replay([TraceRequest(5.0, 20, 4)])
    assert outcome.seconds == pytest.approx(5.0 + 4 * 0.010)
    assert outcome.ttfts[""] == [pytest.approx(0.010)]
    assert outcome.gaps == [pytest.approx(0.010)] * 3


def test_a_step_costs_its_tokens_and_the_context_it_reads() -> None:
    outcome = replay([TraceRequest(0.0, 100, 2)], CostModel(fixed_ms=1.0, token_us=10.0, kv_token_us=1.0))
    assert outcome.seconds == pytest.approx(0.002 + 101 * 10e-6 + 201 * 1e-6)


def test_shared_prefixes_are_found_and_preemptions_counted() -> None:
    shared = [TraceRequest(float(i), 600, 2, (0,)) for i in range(3)]
    assert replay(shared).num_cached_tokens == 2 * 512
    crowd = [TraceRequest(0.0, 100, 200) for _ in range(8)]
    eager, careful = (replay(crowd, scheduler_policy=p) for p in ("max_utilization", "guaranteed_no_evict"))
    assert eager.num_preemptions > 0
    assert careful.num_preemptions == 0
    assert eager.num_output_tokens == careful.num_output_tokens == 8 * 200


def test_a_full_queue_and_a_request_longer_than_the_cache_are_counted_as_refused() -> None:
    outcome = replay([TraceRequest(0.0, 2000, 1), *(TraceRequest(0.0, 10, 1) for _ in range(3))], max_waiting=2)
    assert outcome.num_refused == 2


def test_tenants_send_unequally_and_made_up_requests_are_the_same_each_time() -> None:
    requests = give_tenants(make_trace(300, 5.0, seed=3), 4, seed=3)
    assert requests == give_tenants(make_trace(300, 5.0, seed=3), 4, seed=3)
    counts = [sum(r.tenant == f"tenant {k}" for r in requests) for k in (1, 4)]
    assert counts[0] > 2 * counts[1] > 0


def test_the_command_compares_policies_and_writes_json(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--limit", "20", "--num-blocks", "600", "--json", str(tmp_path / "out.json")])
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    names = ["max_utilization", "guaranteed_no_evict"]
    assert list(results) == [n for name in names for n in (name, f"{name}, tenants as one")]
    assert results["guaranteed_no_evict"]["preemptions"] == 0


def test_a_bad_option_is_refused_with_its_reason() -> None:
    result = CliRunner().invoke(app, ["--policy", "fifo"])
    assert result.exit_code != 0
    assert "scheduler_policy" in result.output


def test_every_command_that_the_launcher_starts_knows_what_it_needs_installed() -> None:
    scripts = [path for path in paths.ROOT.joinpath("scripts").iterdir() if path.is_file() and not path.suffix]
    started = {path.name for path in scripts if f'start.sh" {path.name}' in path.read_text()}
    assert {"simulate", "serve", "bench"} <= started <= set(EXTRAS)
