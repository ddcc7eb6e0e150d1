"""Many streams at once say just what the offline engine says, in order, with nothing lost."""

import asyncio
import json
import re
import threading
import time
import urllib.request
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio

from engine.core import EngineCore
from engine.offline import generate
from engine.sampling_params import SamplingParams
from scripts.launcher.cluster import Cluster
from tests.e2e.kserve import Answer, ask, ask_all, connect, make_request, read_metrics, read_outputs
from tests.polling import PAUSE_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
OPENINGS = ["Once upon a time", "The king", "Alice was", "In the forest", "A whale", "My dear,", "The old woman", "He"]
SETTLE_SECONDS = 30.0


def mixed_options(index: int) -> dict[str, Any]:
    """Return greedy, sampled, penalised, stopped and logged requests in turn."""
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.9, "random_seed": index},
        {"temperature": 1.1, "top_p": 0.9, "random_seed": 1000 + index},
        {"repetition_penalty": 1.3},
        {"stop_words": ["the", "xyzzy"]},
        {"top_k": 20, "random_seed": 2**63 + index, "min_tokens": 4},
        {"return_log_probs": True},
        {"frequency_penalty": 0.5, "presence_penalty": 0.25},
    ]
    return {"max_tokens": 24 + index % 17} | kinds[index % len(kinds)]


def as_params(options: dict[str, Any]) -> SamplingParams:
    names = {"random_seed": "seed", "stop_words": "stop", "return_log_probs": "logprobs"}
    return SamplingParams.from_mapping({names.get(name, name): value for name, value in options.items()})


def test_64_streams_equal_the_offline_engine(cluster: Cluster, offline: EngineCore) -> None:
    texts = [OPENINGS[index % len(OPENINGS)] + " and" * (index // 8) for index in range(64)]
    options = [mixed_options(index) for index in range(64)]
    answers = ask_all(cluster.gateway.grpc_url, [make_request(t, **o) for t, o in zip(texts, options, strict=True)])
    prompts = [offline.tokenizer.encode(text) for text in texts]
    expected = generate(offline, prompts, [as_params(o) for o in options])
    for answer, completion, prompt, wanted in zip(answers, expected, prompts, options, strict=True):
        answer.check_order()
        assert not answer.errors
        assert answer.token_ids == completion.token_ids
        assert answer.text == completion.text
        assert answer.finish_reasons[-1] == completion.finish_reason
        assert answer.last["prompt_tokens"][0] == len(prompt)
        assert len(answer.log_probs) == (len(answer.token_ids) if "return_log_probs" in wanted else 0)
        np.testing.assert_allclose(answer.log_probs, completion.log_probs, atol=1e-3)
    assert all(read_metrics(i.metrics_url)["llm_finished_requests_total"] > 16 for i in cluster.instances)


def test_many_requests_on_one_stream_each_get_their_own_answer(cluster: Cluster, offline: EngineCore) -> None:
    answers = {str(index): Answer() for index in range(32)}
    requests = [make_request(OPENINGS[i % 8], request_id=str(i), max_tokens=8 + i) for i in range(32)]
    with connect(cluster.gateway.grpc_url) as stub:
        for message in stub.ModelStreamInfer(iter(requests), timeout=120):
            answers[message.infer_response.id].take(message)
    for index, answer in enumerate(answers.values()):
        answer.check_order()
        params = [SamplingParams(max_tokens=8 + index)]
        expected = generate(offline, [offline.tokenizer.encode(OPENINGS[index % 8])], params)[0]
        assert answer.text == expected.text


def test_plain_tritonclients_work_unchanged(cluster: Cluster, offline: EngineCore) -> None:
    expected = generate(offline, [offline.tokenizer.encode("The king")], [SamplingParams(max_tokens=12)])[0].text
    inputs = [
        tritonclient.grpc.InferInput("text_input", [1], "BYTES"),
        tritonclient.grpc.InferInput("max_tokens", [1], "INT32"),
    ]
    inputs[0].set_data_from_numpy(np.array([b"The king"], dtype=object))
    inputs[1].set_data_from_numpy(np.array([12], dtype=np.int32))

    results: list[Any] = []
    done = threading.Event()

    def on_result(result: Any, error: Any) -> None:
        results.append(error or result)
        if error or result.as_numpy("finish_reason")[0]:
            done.set()

    with tritonclient.grpc.InferenceServerClient(cluster.gateway.grpc_url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("llm")
        config: Any = client.get_model_config("llm", as_json=True)
        assert config["config"]["name"] == "llm"
        client.start_stream(on_result)
        client.async_stream_infer("llm", inputs)
        assert done.wait(60)
    assert b"".join(r.as_numpy("text_output")[0] for r in results).decode() == expected

    async def over_aio() -> str:
        async def requests() -> Any:
            yield {"model_name": "llm", "inputs": inputs}

        async with tritonclient.grpc.aio.InferenceServerClient(cluster.gateway.grpc_url) as client:
            results: Any = client.stream_infer(requests())
            chunks = [result.as_numpy("text_output")[0] async for result, _ in results]
        return b"".join(chunks).decode()

    assert asyncio.run(over_aio()) == expected


def test_the_http_endpoints_of_an_instance_answer(cluster: Cluster, offline: EngineCore) -> None:
    expected = generate(offline, [offline.tokenizer.encode("Alice was")], [SamplingParams(max_tokens=10)])[0].text

    def post(path: str, body: dict[str, Any]) -> str:
        url = f"http://{cluster.instances[0].http_url}/v2/models/llm/{path}"
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=60) as response:
            return response.read().decode()

    whole = json.loads(post("generate", {"text_input": "Alice was", "max_tokens": 10}))
    assert whole["text_output"] == expected
    lines = post("generate_stream", {"text_input": "Alice was", "max_tokens": 10, "stream": True}).splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert len(events) > 1
    assert "".join(event["text_output"] for event in events) == expected


@pytest.mark.parametrize("through_gateway", [True, False])
def test_a_grpc_client_that_does_not_say_gets_chunks(cluster: Cluster, through_gateway: bool) -> None:
    with connect(cluster.gateway.grpc_url if through_gateway else cluster.instances[0].grpc_url) as stub:
        chunks = ask(stub, make_request("The king", max_tokens=12))
        whole = ask(stub, make_request("The king", max_tokens=12, stream=False))
    assert len(chunks.texts) > 1
    assert len(whole.texts) == 1
    assert whole.text == chunks.text


def test_a_sampled_stream_goes_on_at_another_instance_at_the_same_character(cluster: Cluster) -> None:
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 1.2, "random_seed": 5, "stop_words": ["xyzzy"]}
    first, second = (instance.grpc_url for instance in cluster.instances)
    with connect(first) as stub:
        whole = ask(stub, make_request("The king", **options))
    for num_chunks in (0, 1, len(whole.texts) // 2):
        delivered = whole.token_ids[: sum(whole.chunk_lengths[:num_chunks])]
        with connect(second) as stub:
            rest = ask(stub, make_request("The king", resume_token_ids=delivered, **options))
        assert not rest.errors
        assert "".join(whole.texts[:num_chunks]) + rest.text == whole.text
        assert delivered + rest.token_ids == whole.token_ids
        assert rest.token_indices[0] == len(delivered)
        assert rest.last["completion_tokens"] == whole.last["completion_tokens"]


def test_sequences_guides_echo_and_top_tokens_arrive_through_the_ensemble(
    cluster: Cluster, offline: EngineCore
) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 1.0, "random_seed": 3}
    many = make_request("The king", num_return_sequences=3, **options)
    guide = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "[A-D]{3}"}
    guided = make_request("The king", **guide, **options)
    logged = make_request(
        "The king", echo=True, return_log_probs=True, num_top_log_probs=2, return_prompt_log_probs=True, max_tokens=5
    )
    bad = make_request("The king", guided_decoding_guide_type="regex", guided_decoding_guide="[A")
    with connect(cluster.gateway.grpc_url) as stub:
        messages = [m.infer_response for m in stub.ModelStreamInfer(iter([many]), timeout=120)]
        guided_answer, logged_answer, bad_answer = (ask(stub, r) for r in (guided, logged, bad))
    outputs = [read_outputs(response) for response in messages if response.outputs]
    prompt = offline.tokenizer.encode("The king")
    for index in range(3):
        text = "".join(o["text_output"] for o in outputs if o["sequence_index"][0] == index)
        params = SamplingParams(max_tokens=12, temperature=1.0, seed=3 + index)
        assert text == generate(offline, [prompt], [params])[0].text
    assert re.fullmatch("[A-D]{3}", guided_answer.text)
    assert guided_answer.finish_reasons[-1] == "stop"
    assert logged_answer.text.startswith("The king")
    assert logged_answer.token_ids[: len(prompt)] == prompt
    assert len(logged_answer.log_probs) == len(logged_answer.token_ids) == len(prompt) + 5
    assert "guided.regex is not valid" in bad_answer.errors[0]


def test_a_chat_is_rendered_with_the_models_template(cluster: Cluster, offline: EngineCore) -> None:
    messages = [{"role": "user", "content": "Tell me a story about a fox."}]
    with connect(cluster.gateway.grpc_url) as stub:
        answer = ask(stub, make_request(messages=json.dumps(messages), max_tokens=12))
    answer.check_order()
    prompt = offline.tokenizer.encode_chat(messages)
    assert answer.text == generate(offline, [prompt], [SamplingParams(max_tokens=12)])[0].text


def running_requests(cluster: Cluster) -> float:
    pages = [read_metrics(instance.metrics_url) for instance in cluster.instances]
    return sum(page["llm_running_requests"] + page["llm_waiting_requests"] for page in pages)


def wait_for_running(cluster: Cluster, number: int) -> None:
    """Poll the gauges, which are written a few times a second, until they show that many requests."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while running_requests(cluster) != number:
        assert time.monotonic() < deadline, f"{running_requests(cluster)} requests run instead of {number}"
        time.sleep(PAUSE_SECONDS)


def total(cluster: Cluster, name: str) -> float:
    return sum(read_metrics(instance.metrics_url)[name] for instance in cluster.instances)


def test_a_client_that_leaves_frees_its_blocks(cluster: Cluster) -> None:
    generated = total(cluster, "llm_generated_tokens_total")
    with connect(cluster.gateway.grpc_url) as stub:
        request = make_request("Once upon a time", max_tokens=900, ignore_eos=True)
        calls = [stub.ModelStreamInfer(iter([request]), timeout=120) for _ in range(4)]
        wait_for_running(cluster, 4)
        for call in calls:
            call.cancel()
        wait_for_running(cluster, 0)
    assert total(cluster, "llm_generated_tokens_total") - generated < 4 * 900, "the requests ran to their end"
    assert total(cluster, "llm_kv_cache_usage") == 0


def test_a_client_that_disconnects_frees_its_blocks(cluster: Cluster) -> None:
    generated = total(cluster, "llm_generated_tokens_total")
    with connect(cluster.gateway.grpc_url) as stub:
        request = make_request("The king", max_tokens=900, ignore_eos=True)
        call = stub.ModelStreamInfer(iter([request]), timeout=120)
        wait_for_running(cluster, 1)
        assert call.is_active()
    wait_for_running(cluster, 0)
    assert total(cluster, "llm_generated_tokens_total") - generated < 900
    assert total(cluster, "llm_kv_cache_usage") == 0


def test_a_deadline_given_as_a_request_parameter_ends_the_answer_with_what_there_is(cluster: Cluster) -> None:
    request = make_request("Once upon a time", ignore_eos=True)
    for name, number in {"deadline_ms": 30, "priority_class": 2, "tenant_weight": 3}.items():
        request.parameters[name].int64_param = number
    request.parameters["tenant"].string_param = "somebody"
    with connect(cluster.gateway.grpc_url) as stub:
        answer = ask(stub, request)
        answer.check_order()
        assert (answer.finish_reasons[-1], answer.errors) == ("deadline", [])
        assert answer.token_ids
        assert answer.last["preemptions"].tolist() == [0]
        request.parameters["deadline_ms"].int64_param = 0
        assert "deadline_ms must be between 1 and 1000000000000000, got 0" in ask(stub, request).errors[0]
