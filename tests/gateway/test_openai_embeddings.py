"""OpenAI's own client asks for embeddings: one request to the model for each text, one answer of all, in order."""

import base64
import struct
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.gateway import backend as backend_module
from tests.gateway.backend import Backend
from tests.gateway.process import GatewayProcess
from tests.gateway.test_openai_api import chunk, error, inputs_of


def vector_of(content: bytes) -> list[float]:
    """Return what the stand-in for the model makes of a prompt."""
    return [float(len(content)), 0.5, float(sum(content))]


def answer(service: Any, request: Any, context: Any) -> Iterator[Any]:
    """Embed; the text `fail` fails, `hang` never ends, and `none` has no embedding."""
    inputs = inputs_of(request)
    assert "embed" in inputs
    content = inputs["text_input"][4:] if "text_input" in inputs else inputs["input_ids"]
    if content == b"fail":
        yield error(request.id, "in ensemble 'llm', RESOURCE_EXHAUSTED: the queue is full")
        return
    if content == b"hang":
        ended = threading.Event()
        if context.add_callback(ended.set):
            ended.wait(20)
        return
    made = chunk(request.id, 0, "stop")
    if content != b"none":
        made.infer_response.outputs.add(name="embedding")
        made.infer_response.raw_output_contents.append(struct.pack("<3f", *vector_of(content)))
    yield made


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[OpenAI, Backend]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_module._Service, "_answer", answer)
        fake = Backend("a")
        gateway = GatewayProcess(fake.flag)
        gateway.wait_usable(1)
        with OpenAI(base_url=f"http://{gateway.http}/v1", api_key="none", max_retries=0, timeout=20) as client:
            yield client, fake
        gateway.stop()
        fake.stop()


@pytest.fixture
def client(served: tuple[OpenAI, Backend]) -> OpenAI:
    return served[0]


@pytest.fixture
def fake(served: tuple[OpenAI, Backend]) -> Backend:
    served[1].requests.clear()
    served[1].ended.clear()
    return served[1]


def ints(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


INPUTS: list[tuple[Any, list[bytes]]] = [
    ("ä text", ["ä text".encode()]),
    (["one", "two and more"], [b"one", b"two and more"]),
    ([5, 6, 7], [ints(5, 6, 7)]),
    ([[5, 6, 7], [1]], [ints(5, 6, 7), ints(1)]),
    ([f"text {'x' * index}" for index in range(50)], [b"text " + b"x" * index for index in range(50)]),
]


@pytest.mark.parametrize("encoding", ["float", "base64", None])
@pytest.mark.parametrize(("given", "contents"), INPUTS)
def test_each_text_has_its_vector_in_order(client: OpenAI, given: Any, contents: list[bytes], encoding: Any) -> None:
    options: dict[str, Any] = (
        {} if encoding is None else {"encoding_format": encoding}
    )  # without, the client asks for base64
    done = client.embeddings.create(model="llm", input=given, **options)
    assert [item.index for item in done.data] == list(range(len(contents)))
    vectors: list[Any] = [item.embedding for item in done.data]
    if encoding == "base64":
        vectors = [list(struct.unpack("<3f", base64.b64decode(vector))) for vector in vectors]
    assert vectors == [vector_of(content) for content in contents]
    assert (done.usage.prompt_tokens, done.usage.total_tokens) == (5 * len(contents), 5 * len(contents))


def test_pooling_and_adapter_go_to_the_model(client: OpenAI, fake: Backend) -> None:
    client.embeddings.create(model="llm", input="a")
    client.embeddings.create(model="llm", input="a", extra_body={"pooling": "mean", "adapter": "pirate"})
    first, second = (inputs_of(request) for request in fake.requests)
    assert (first["embed"][4:], "adapter" in first) == (b"last", False)
    assert (second["embed"][4:], second["adapter"][4:]) == (b"mean", b"pirate")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"input": ""}, "input: "),
        ({"input": []}, "input: "),
        ({"input": [[]]}, "input.0: "),
        ({"input": ["a", 5]}, "input"),
        ({"input": [-1]}, "input.0: Input should be greater than or equal to 0"),
        ({"input": ["a"] * 2049}, "at most 2048 in one request, got 2049"),
        ({"input": "a", "dimensions": 3}, "the field 'dimensions' is unknown or not supported"),
        ({"input": "a", "extra_body": {"pooling": "max"}}, "pooling: Input should be 'last' or 'mean'"),
        ({"input": "a", "model": "other"}, "the model 'other' does not exist"),
    ],
)
def test_what_cannot_be_embedded_is_refused_with_the_reason(
    client: OpenAI, options: dict[str, Any], reason: str
) -> None:
    wish: dict[str, Any] = {"model": "llm", **options}
    with pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(**wish)
    assert caught.value.status_code in {400, 404}
    assert reason in caught.value.message


def test_one_failure_fails_the_answer_and_ends_the_other_requests(client: OpenAI, fake: Backend) -> None:
    with pytest.raises(openai.RateLimitError, match="the queue is full"):
        client.embeddings.create(model="llm", input=["hang", "hang", "fail", "hang"])
    assert fake.wait_for(lambda: len(fake.ended) == len(fake.requests))


def test_an_answer_without_an_embedding_is_an_error(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="holds no embedding"):
        client.embeddings.create(model="llm", input="none")


def test_a_client_that_leaves_ends_its_requests(client: OpenAI, fake: Backend) -> None:
    before = len(fake.aborted)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).embeddings.create(model="llm", input=["hang", "hang"])
    assert fake.wait_for(lambda: len(fake.aborted) >= before + 2)
