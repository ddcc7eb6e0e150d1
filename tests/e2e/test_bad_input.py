"""Whatever is wrong with a request, it gets one clear error, and the next request is fine."""

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from scripts.launcher.cluster import Cluster
from tests.e2e.kserve import Answer, add_tensor, ask, connect, make_request, pb

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def raw(*tensors: tuple[Any, ...], model: str = "llm", parameters: dict[str, str] | None = None) -> Any:
    request = pb.ModelInferRequest(model_name=model)
    for tensor in tensors:
        add_tensor(request, *tensor)
    for name, value in (parameters or {}).items():
        request.parameters[name].string_param = value
    return request


TEXT = ("text_input", "BYTES", "The king")
CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "no prompt": (lambda: raw(("max_tokens", "INT32", 4)), "text_input, messages"),
    "two prompts": (lambda: raw(TEXT, ("input_ids", "INT32", [5])), "input_ids"),
    "an empty prompt": (lambda: make_request(""), "empty"),
    "too long a prompt": (lambda: make_request("word " * 3000), "limit of 1024 tokens"),
    "too many tokens": (lambda: make_request("The king", max_tokens=2000), "limit of 1024 tokens"),
    "invalid UTF-8": (lambda: raw(("text_input", "BYTES", b"\xff\xfe")), "UTF-8"),
    "bad JSON in messages": (lambda: make_request(messages="{nope"), "JSON"),
    "a chat without a role": (lambda: make_request(messages=json.dumps([{"content": "x"}])), "role"),
    "bad JSON in sampling_parameters": (lambda: make_request("x", sampling_parameters="[]"), "sampling_parameters"),
    "an unknown sampling parameter": (lambda: make_request("x", sampling_parameters='{"heat": 1}'), "'heat'"),
    "a wrong dtype": (lambda: raw(TEXT, ("max_tokens", "INT64", 4)), "INT32"),
    "a wrong shape": (lambda: raw(TEXT, ("max_tokens", "INT32", [4, 4])), "shape"),
    "an unknown tensor": (lambda: raw(TEXT, ("max_tokenz", "INT32", 4)), "max_tokenz"),
    "an unknown parameter": (lambda: raw(TEXT, parameters={"temprature": "1"}), "temprature"),
    "a negative max_tokens": (lambda: make_request("x", max_tokens=-1), "max_tokens must be between 1"),
    "a negative temperature": (lambda: make_request("x", temperature=-1.0), "temperature must be between 0 and 100"),
    "a huge temperature": (lambda: make_request("x", temperature=1e30), "temperature must be between 0 and 100"),
    "a top_p of zero": (lambda: make_request("x", top_p=0.0), "top_p must be above 0"),
    "a token outside the vocabulary": (lambda: make_request(input_ids=[5, 999999]), "999999"),
    "a negative token": (lambda: make_request(input_ids=[-3]), "-3"),
    "too many stop words": (lambda: make_request("x", stop_words=["a"] * 65), "at most 64"),
    "a value given twice and differently": (
        lambda: make_request("x", max_tokens=3, sampling_parameters='{"max_tokens": 4}'),
        "max_tokens",
    ),
    "an unknown model": (lambda: raw(TEXT, model="nobody"), "nobody"),
}


def ask_whatever(stub: Any, request: Any) -> Answer:
    try:
        return ask(stub, request, timeout=30)
    except grpc.RpcError as error:
        answer = Answer()
        answer.errors.append(str(error))
        return answer


@pytest.mark.parametrize("name", CASES)
def test_bad_input_gets_one_clear_error_and_the_next_request_is_fine(cluster: Cluster, name: str) -> None:
    make, expected = CASES[name]
    with connect(cluster.gateway.grpc_url) as stub:
        bad = ask_whatever(stub, make())
        assert len(bad.errors) == 1, bad
        assert expected in bad.errors[0]
        assert bad.text == ""
        good = ask(stub, make_request("The king", max_tokens=3))
    good.check_order()
    assert len(good.token_ids) == 3


def test_a_bad_request_among_good_ones_on_one_stream_harms_nobody(cluster: Cluster) -> None:
    requests = [make_request("The king", request_id=str(i), max_tokens=6 if i % 3 else -1) for i in range(9)]
    answers = {str(i): Answer() for i in range(9)}
    with connect(cluster.gateway.grpc_url) as stub:
        for message in stub.ModelStreamInfer(iter(requests), timeout=60):
            answers[message.infer_response.id].take(message)
    for index, answer in enumerate(answers.values()):
        answer.check_order()
        assert bool(answer.errors) == (index % 3 == 0)
