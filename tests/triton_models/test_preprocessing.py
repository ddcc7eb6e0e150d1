"""Every bad input is refused alone, with its reason; good ones beside it are served."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.tokenizer_folders import make_byte_level
from tests.triton_models.fake_pb_utils import InferenceRequest, InferenceResponse, MetricFamily, TritonError

Load = Callable[[str], ModuleType]


def text(*values: str | bytes) -> np.ndarray:
    return np.array([v.encode() if isinstance(v, str) else v for v in values], dtype=np.object_)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


PROMPT = {"text_input": text("the cat")}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({}, "exactly one of text_input, messages, input_ids must be given, got none"),
    "two prompts": ({**PROMPT, "input_ids": ints(1)}, "got text_input and input_ids"),
    "an empty text": ({"text_input": text("")}, "text_input is empty"),
    "empty ids": ({"input_ids": ints()}, "the prompt is empty"),
    "an id too large": ({"input_ids": ints(10**6)}, "token id 1000000"),
    "a negative id": ({"input_ids": ints(5, -1)}, "token id -1"),
    "invalid UTF-8": ({"text_input": text(b"ab\xff")}, "not valid UTF-8: invalid start byte at byte 2"),
    "invalid UTF-8 in a stop string": ({**PROMPT, "stop_words": text("ok", b"\xc3")}, "stop_words is not valid UTF-8"),
    "two texts": ({"text_input": text("a", "b")}, r"exactly 1 element, got shape \[2\]"),
    "no element": ({**PROMPT, "max_tokens": ints()}, r"exactly 1 element, got shape \[0\]"),
    "a wrong dtype": ({**PROMPT, "max_tokens": floats(1)}, "max_tokens must be of type INT32"),
    "numbers for text": ({"text_input": ints(1)}, "text_input must be of type BYTES"),
    "an integer flag": ({**PROMPT, "stream": ints(1)}, "stream must be of type BOOL"),
    "an integer temperature": ({**PROMPT, "temperature": ints(1)}, "temperature must be of type FP32"),
    "no tokens": ({**PROMPT, "max_tokens": ints(0)}, "max_tokens must be between 1 and"),
    "a negative temperature": ({**PROMPT, "temperature": floats(-1)}, "temperature must be between 0 and 100, got -1"),
    "not a number": ({**PROMPT, "top_p": floats(float("nan"))}, "top_p must be a finite number"),
    "an endless penalty": ({**PROMPT, "presence_penalty": floats(float("inf"))}, "must be a finite number"),
    "an empty stop string": ({**PROMPT, "stop_words": text("")}, "must have 1 to 1024 characters"),
    "a number beyond all floats": (
        {**PROMPT, "temperature": floats(1), "sampling_parameters": text('{"temperature": 1' + "0" * 400 + "}")},
        "temperature is given twice and differently",
    ),
    "broken JSON": ({**PROMPT, "sampling_parameters": text("{")}, "sampling_parameters is not valid JSON"),
    "deep JSON": ({**PROMPT, "sampling_parameters": text("[" * 99999)}, "sampling_parameters is not valid JSON"),
    "a JSON list": ({**PROMPT, "sampling_parameters": text("[]")}, "must be a JSON object"),
    "an unknown option": ({**PROMPT, "sampling_parameters": text('{"m": 2}')}, "unknown sampling parameter 'm'"),
    "a list of adapters": ({**PROMPT, "adapter": text("a", "b")}, "adapter must hold exactly 1 element"),
    "an adapter that is no text": (
        {**PROMPT, "sampling_parameters": text('{"adapter": 1}')},
        "adapter must be a string",
    ),
    "two adapters": (
        {**PROMPT, "adapter": text("a"), "sampling_parameters": text('{"adapter": "b"}')},
        "adapter is given twice and differently: 'a' as a tensor and 'b'",
    ),
    "an unknown pooling": ({**PROMPT, "embed": text("max")}, "embed must be one of mean, last, got 'max'"),
    "an embedding with options": ({**PROMPT, "embed": text("mean"), "max_tokens": ints(3)}, "embed takes no options"),
    "an embedding to resume": (
        {**PROMPT, "embed": text("mean"), "resume_token_ids": ints(3)},
        "embed gives no tokens to resume, got 1",
    ),
    "a completion to normalize": (
        {**PROMPT, "normalize_embedding": np.array([False])},
        "normalize_embedding is for requests with embed",
    ),
    "a value given twice": (
        {**PROMPT, "max_tokens": ints(3), "sampling_parameters": text('{"max_tokens": 4}')},
        "max_tokens is given twice and differently: 3 as a tensor and 4",
    ),
    "a bias that is no number": (
        {**PROMPT, "logit_bias": text('{"5": "x"}')},
        "logit_bias of token 5 must be a finite",
    ),
    "a bias of no token": (
        {**PROMPT, "logit_bias": text('{"a": 1}')},
        "logit_bias must have token ids as names, got 'a'",
    ),
    "a biased token too large": (
        {**PROMPT, "logit_bias": text('{"999999": 1}')},
        "logit_bias holds the token id 999999",
    ),
    "too many sequences": ({**PROMPT, "num_return_sequences": ints(129)}, "n must be between 1 and 128, got 129"),
    "top tokens alone": ({**PROMPT, "num_top_log_probs": ints(2)}, "top_logprobs needs logprobs, got 2 without it"),
    "too many top tokens": ({**PROMPT, "num_top_log_probs": ints(21)}, "top_logprobs must be between 0 and 20, got 21"),
    "a guide without type": (
        {**PROMPT, "guided_decoding_guide": text("a")},
        "needs guided_decoding_guide_type, one of",
    ),
    "a type without guide": (
        {**PROMPT, "guided_decoding_guide_type": text("regex")},
        "regex needs guided_decoding_guide",
    ),
    "an unknown guide": ({**PROMPT, "guided_decoding_guide_type": text("xml")}, "must be one of .*, got 'xml'"),
    "no list of choices": (
        {**PROMPT, "guided_decoding_guide_type": text("choice"), "guided_decoding_guide": text('"a"')},
        "guided_decoding_guide must be a JSON list",
    ),
    "an echo that was not delivered": (
        {**PROMPT, "echo": np.array([True]), "resume_token_ids": ints(1, 2)},
        "resume_token_ids do not begin with the prompt",
    ),
    "an unknown tensor": ({**PROMPT, "beam_width": ints(2)}, "unknown input tensor 'beam_width'"),
    "too long a prompt": ({"input_ids": ints(*[90] * 65)}, "65 tokens; .* limit of 64 tokens"),
    "too long an output": ({"input_ids": ints(90), "max_tokens": ints(64)}, "with max_tokens 64 .* limit of 64 tokens"),
    "broken messages": ({"messages": text("[{}]")}, r"messages\[0\] needs a role"),
    "half a surrogate": ({"messages": text('[{"role": "user", "content": "\\ud800"}]')}, "not valid Unicode"),
    "too low a priority": ({**PROMPT, "parameters": {"priority_class": 101}}, "must be between 0 and 100, got 101"),
    "a deadline in words": ({**PROMPT, "parameters": {"deadline_ms": "1"}}, "deadline_ms must be an integer, got '1'"),
    "a salt of numbers": ({**PROMPT, "sampling_parameters": text('{"cache_salt": 5}')}, "cache_salt must be a string"),
    "a tenant as an option": (
        {**PROMPT, "sampling_parameters": text('{"tenant": "t"}')},
        "parameter 'tenant'",
    ),
    "a text of megabytes": ({"text_input": text("a " * 1025)}, "the prompt has 2050 characters; at most 2048"),
    "messages of megabytes": (
        {"messages": text('[{"role": "user", "content": "' + "a " * 1025 + '"}]')},
        "the prompt has 20.. characters; at most 2048",
    ),
    "too many ids to read": ({"input_ids": ints(*[1] * (2**20 + 1))}, "has 1048577 elements; at most 1048576"),
    "JSON of megabytes": ({"messages": text("[" * 20_000)}, "messages has 20000 bytes; at most 16384"),
    "options of megabytes": ({**PROMPT, "sampling_parameters": text(" " * 2**21)}, "2097152 bytes; at most 1048576"),
    "parameters of megabytes": ({**PROMPT, "parameters": {"x-a": "a" * 2**21}}, "parameters has .* bytes; at most"),
    "an unknown parameter": ({**PROMPT, "parameters": {"temperatur": 1}}, "unknown request parameter 'temperatur'"),
}


@pytest.fixture
def model(load_adapter: Load) -> Any:
    made = load_adapter("preprocessing").TritonPythonModel()
    made.initialize({"model_name": "preprocessing"})
    yield made
    made.finalize()


def prepared(response: InferenceResponse) -> tuple[list[int], dict[str, Any]]:
    assert not response.has_error()
    return response.tensors["prompt_ids"].tolist(), json.loads(response.tensors["request_options"][0])


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_by_name_and_its_neighbours_are_served(model: Any, case: str):
    tensors, reason = BAD[case]
    good = InferenceRequest(**PROMPT)
    responses = model.execute([good, InferenceRequest(**tensors), good])
    assert len(responses) == 3
    error = responses[1].error()
    with pytest.raises(ValueError, match=reason):
        raise ValueError(error.message())
    assert error.code() == TritonError.INVALID_ARG
    assert prepared(responses[0]) == prepared(responses[2])


def test_options_arrive_from_tensors_and_json_alike(model: Any):
    options = {"max_tokens": 5, "temperature": 0.7, "seed": 2**64 - 1, "stop": ["a", "世"], "logprobs": True}
    by_tensor = InferenceRequest(
        **PROMPT,
        max_tokens=ints(5),
        temperature=floats(0.7),
        random_seed=np.array([2**64 - 1], dtype=np.uint64),
        stop_words=text("a", "世"),
        return_log_probs=np.array([True]),
    )
    by_json = InferenceRequest(**PROMPT, sampling_parameters=text(json.dumps(options)))
    first, second = (prepared(r) for r in model.execute([by_tensor, by_json]))
    assert first == second
    assert first[1]["sampling"] == options


def test_delivered_tokens_are_checked_and_passed_on(model: Any):
    requests = [InferenceRequest(**PROMPT, resume_token_ids=ids) for ids in (ints(90, 91), ints(), ints(10**6))]
    responses = model.execute([*requests, InferenceRequest(**PROMPT)])
    assert [r.tensors["resume_token_ids"].tolist() for r in responses if not r.has_error()] == [[90, 91], [], []]
    assert "resume_token_ids holds the token id 1000000" in responses[2].error().message()


@pytest.mark.parametrize(
    ("parameters", "options", "expected"),
    [
        ({}, {}, {}),
        ({"tenant": "t", "tenant_weight": 5}, {}, {"tenant": "t", "tenant_weight": 5}),
        ({}, {"cache_salt": "s", "enable_prefix_cache": False}, {"cache_salt": "s", "enable_prefix_cache": False}),
        ({"priority_class": 2}, {}, {"priority_class": 2}),
        ({}, {"priority_class": 2}, {"priority_class": 2}),
        ({"priority_class": 3}, {"priority_class": 2}, {"priority_class": 3}),
        ({"priority_class": 3}, {"priority_class": 9}, {"priority_class": 9}),
        ({"deadline_ms": 300}, {"deadline_ms": 200}, {"deadline_ms": 200}),
        ({"deadline_ms": 100}, {"deadline_ms": 200}, {"deadline_ms": 100}),
    ],
)
def test_of_a_gateways_and_a_clients_wish_the_stricter_holds(
    model: Any, parameters: dict[str, Any], options: dict[str, Any], expected: dict[str, Any]
):
    request = InferenceRequest(parameters, **PROMPT, sampling_parameters=text(json.dumps(options)))
    assert prepared(model.execute([request])[0])[1].get("scheduling", {}) == expected


@pytest.mark.parametrize(
    ("tensors", "options"),
    [
        ({"num_return_sequences": ints(3)}, {"n": 3}),
        (
            {"return_log_probs": np.array([True]), "num_top_log_probs": ints(5)},
            {"logprobs": True, "top_logprobs": 5},
        ),
        (
            {"return_prompt_log_probs": np.array([True]), "echo": np.array([True])},
            {"prompt_logprobs": True, "echo": True},
        ),
        ({"bad_words": text("the", "cat")}, {"bad_words": ["the", "cat"]}),
        ({"logit_bias": text('{"5": -1.5, "7": 2}')}, {"logit_bias": {"5": -1.5, "7": 2}}),
        ({"guided_decoding_guide_type": text("json")}, {"guided": {"json_object": True}}),
        (
            {"guided_decoding_guide_type": text("ebnf_grammar"), "guided_decoding_guide": text('root ::= "a"')},
            {"guided": {"ebnf": 'root ::= "a"'}},
        ),
        (
            {"guided_decoding_guide_type": text("choice"), "guided_decoding_guide": text('["a", "b"]')},
            {"guided": {"choice": ["a", "b"]}},
        ),
    ],
)
def test_options_of_the_output_arrive_from_tensors_and_json_alike(
    model: Any, tensors: dict[str, Any], options: dict[str, Any]
):
    by_tensor = InferenceRequest(**PROMPT, **tensors)
    by_json = InferenceRequest(**PROMPT, sampling_parameters=text(json.dumps(options)))
    first, second = (prepared(r) for r in model.execute([by_tensor, by_json]))
    assert first[1]["sampling"] == second[1]["sampling"] == options


@pytest.mark.parametrize(
    "given", [{"adapter": text("pirate")}, {"sampling_parameters": text('{"adapter": "pirate", "top_k": 2}')}]
)
def test_the_name_of_an_adapter_is_passed_on(model: Any, given: dict[str, Any]):
    (response,) = model.execute([InferenceRequest(**PROMPT, **given)])
    assert json.loads(response.tensors["request_options"][0])["task"] == {"adapter": "pirate"}


def test_an_embedding_is_asked_for_by_tensors_or_json(model: Any):
    requests = [
        InferenceRequest(**PROMPT, embed=text("last"), normalize_embedding=np.array([False])),
        InferenceRequest(**PROMPT, sampling_parameters=text('{"embed": "last", "normalize_embedding": false}')),
    ]
    for response in model.execute(requests):
        task = json.loads(response.tensors["request_options"][0])["task"]
        assert task == {"embed": "last", "normalize_embedding": False}


def test_a_value_given_twice_and_alike_is_fine(model: Any):
    request = InferenceRequest(**PROMPT, top_p=floats(0.9), sampling_parameters=text('{"top_p": 0.9}'))
    assert prepared(model.execute([request])[0])[1]["sampling"] == {"top_p": 0.9}


def test_messages_are_rendered_with_the_models_template(model: Any):
    request = InferenceRequest(messages=text('[{"role": "user", "content": "hi"}]'))
    ids, _ = prepared(model.execute([request])[0])
    tokenizer = model._reader.tokenizer
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("parameters", "tensors", "streams"),
    [
        ({}, {}, False),
        ({"request_key": "k"}, {}, True),
        ({"request_key": "k.2", "seed_key": "k"}, {}, True),
        ({"user-agent": "grpc-python/1.80"}, {}, True),
        ({"user-agent": "curl/8"}, {}, False),
        ({"request_key": "k"}, {"stream": np.array([False])}, False),
        ({}, {"stream": np.array([True])}, True),
        ({"priority": 1, "timeout": 5, "triton_x": 1, "sequence_id": 0, "id": "a", "x-tenant": "t"}, {}, False),
    ],
)
def test_without_stream_only_requests_surely_from_grpc_get_chunks(
    model: Any, parameters: dict[str, Any], tensors: dict[str, Any], streams: bool
):
    response = model.execute([InferenceRequest(parameters, **PROMPT, **tensors)])[0]
    assert prepared(response)[1]["stream"] is streams


def test_a_bug_of_ours_fails_one_request_only(model: Any, caplog: pytest.LogCaptureFixture):
    broken = InferenceRequest(**PROMPT)
    broken.parameters = lambda: 5  # type: ignore[method-assign,assignment]
    responses = model.execute([broken, InferenceRequest(**PROMPT)])
    assert responses[0].error().code() == TritonError.INTERNAL
    assert not responses[1].has_error()
    assert "preprocessing failed" in caplog.text


def test_the_heart_beats(model: Any):
    metric = next(iter(MetricFamily.made["llm_heartbeat"].metrics.values()))
    assert metric.changed.wait(10)


def test_a_folder_without_config_is_named_at_load(load_adapter: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    monkeypatch.setenv("SCALELLM_MODEL", str(tmp_path / "nowhere"))
    with pytest.raises(Exception, match=r"nowhere/tokenizer\.json does not exist"):
        load_adapter("preprocessing").TritonPythonModel().initialize({"model_name": "preprocessing"})


def test_limits_are_those_of_a_text_model_within_another_and_of_its_familys_defaults(
    load_adapter: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    make_byte_level(tmp_path)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 420}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("SCALELLM_MODEL", str(tmp_path))
    made = load_adapter("preprocessing")
    engine_config = made.EngineConfig.from_env()
    info = made.read_model_info(engine_config, made.Tokenizer.from_dir(tmp_path))
    assert (info.max_model_len, info.vocab_size) == (131072, 420)


def test_tools_are_for_messages_and_a_list_of_objects(model: Any):
    tools = text('[{"type": "function"}]')
    requests = [InferenceRequest(**PROMPT, tools=tools), InferenceRequest(messages=text("[]"), tools=text("{}"))]
    errors = [response.error().message() for response in model.execute(requests)]
    assert "tools are for messages, not for text_input" in errors[0]
    assert "tools must be a JSON list of objects" in errors[1]
