"""What a load test sends and when, and how its messages look on the wire."""

import struct
from itertools import islice
from pathlib import Path

import pytest

from scripts.launcher.kserve import Progress, infer_request, pb, read_progress
from scripts.launcher.workload import (
    HIGHEST_ID,
    LOWEST_ID,
    PROMPTS,
    Arrival,
    random_ids,
    read_prompts,
    synthetic_arrivals,
    trace_arrivals,
)
from tests.load.fake_kserve import response

AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-17 00:00:00,1,1
"""
MOONCAKE = """\
{"timestamp": 1000, "input_length": 6755, "output_length": 500, "hash_ids": [1, 2]}
{"timestamp": 4500, "input_length": 10, "output_length": 4, "hash_ids": [1]}
"""


def test_prompts_are_sent_in_turn_for_ever_and_at_once() -> None:
    arrivals = list(islice(synthetic_arrivals(["a", "b"], 7, rate=0), 5))
    assert [arrival.prompt for arrival in arrivals] == ["a", "b", "a", "b", "a"]
    assert {arrival.at for arrival in arrivals} == {0.0}
    assert {arrival.max_tokens for arrival in arrivals} == {7}


def test_random_arrivals_come_at_the_asked_rate_and_again_the_same() -> None:
    times = [arrival.at for arrival in islice(synthetic_arrivals(PROMPTS, 1, rate=50.0), 2000)]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(2000 / 50, rel=0.1)
    assert times == [arrival.at for arrival in islice(synthetic_arrivals(PROMPTS, 1, rate=50.0), 2000)]


def test_azure_trace_gives_times_from_its_first_row_and_exact_lengths(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)
    arrivals = list(trace_arrivals(path))
    assert [arrival.at for arrival in arrivals] == pytest.approx([0.0, 4.314579, 20653.31941], abs=1e-4)
    assert [len(arrival.prompt) for arrival in arrivals] == [374, 396, 1]
    assert [arrival.max_tokens for arrival in arrivals] == [44, 109, 1]
    assert all(arrival.is_exact for arrival in arrivals)


def test_mooncake_trace_is_scaled_in_length_and_time_but_never_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(MOONCAKE)
    arrivals = list(trace_arrivals(path, length_scale=0.01, time_scale=0.5))
    assert [arrival.at for arrival in arrivals] == [0.0, 1.75]
    assert [len(arrival.prompt) for arrival in arrivals] == [68, 1]
    assert [arrival.max_tokens for arrival in arrivals] == [5, 1]


def test_made_up_ids_are_the_same_for_a_seed_and_in_every_byte_level_vocabulary() -> None:
    ids = random_ids(500, 3)
    assert ids == random_ids(500, 3)
    assert ids != random_ids(500, 4)
    assert min(ids) >= LOWEST_ID
    assert max(ids) < HIGHEST_ID


def test_prompts_are_read_from_text_and_from_json_of_several_shapes(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_text('plain\n\n{"prompt": "p"}\n{"text": "t"}\n{"turns": ["first", "second"]}\n12\n{"other": 1}\n')
    assert read_prompts(path) == ["plain", "p", "t", "first", "12", '{"other": 1}']
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(path)


def test_text_goes_out_as_one_string_tensor() -> None:
    request = infer_request(Arrival(0.0, "grüß", 9), "id-1")
    assert (request.model_name, request.id) == ("llm", "id-1")
    assert [tensor.name for tensor in request.inputs] == ["text_input", "max_tokens", "stream"]
    text = struct.pack("<I", 6) + "grüß".encode()
    assert list(request.raw_input_contents) == [text, struct.pack("<i", 9), b"\x01"]


def test_exact_lengths_go_out_as_ids_past_the_models_end() -> None:
    request = infer_request(Arrival(0.0, [5, 6, 7], 9, is_exact=True), "id-1")
    assert {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in request.inputs} == {
        "input_ids": ("INT32", [3]),
        "max_tokens": ("INT32", [1]),
        "stream": ("BOOL", [1]),
        "ignore_eos": ("BOOL", [1]),
    }
    assert request.raw_input_contents[0] == struct.pack("<3i", 5, 6, 7)


def test_response_says_tokens_and_reason() -> None:
    assert read_progress(response("text", 4, "stop")) == Progress(4, "stop", "")
    assert read_progress(response("text", 4, "")) == Progress(4, "", "")


def test_response_with_an_error_or_nothing_says_only_that() -> None:
    assert read_progress(pb.ModelStreamInferResponse(error_message="no")) == Progress(0, "", "no")
    assert read_progress(pb.ModelStreamInferResponse()) == Progress(0, "", "")
