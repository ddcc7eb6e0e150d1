"""The HTTP side's own client: its messages against protobuf's classes, its streams against a dispatcher that obeys."""

import asyncio
import contextlib
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.exchange import Exchange
from gateway.kserve_client import Completion, KserveClient
from gateway.kserve_messages import Chunk, KserveError, Tensor, encode_request, int_tensor, read_chunk, text_tensor
from gateway.link import Hub
from gateway.request import Request
from gateway.status import NOT_AGAIN, Code, Failure
from gateway.tensors import pack_texts
from gateway.upstream import UPSTREAM_STREAM_WINDOW
from gateway.wire.frames import DEFAULT_WINDOW
from gateway.wire.messages import PREFIX_SIZE, frame_message
from scripts.benchmark.fake_model import message as fake_message
from tests.gateway.protos import pb

NAMES = st.text(min_size=1, max_size=200)
RAWS = st.binary(max_size=300)
TENSORS = st.builds(Tensor, NAMES, st.sampled_from(["BYTES", "INT32", "FP32"]), RAWS, st.integers(0, 2**40))
NUMBERS = ("prompt_tokens", "completion_tokens", "cached_tokens", "sequence_index")
INTS = st.integers(-(2**31), 2**31 - 1)
FLOATS = st.floats(width=32, allow_nan=False)


@given(st.lists(TENSORS, max_size=20))
def test_a_request_is_what_protobuf_makes_of_it(tensors: list[Tensor]) -> None:
    expected = pb.ModelInferRequest(model_name="llm")
    for tensor in (*tensors, Tensor("stream", "BOOL", b"\x01")):
        expected.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=[tensor.size])
        expected.raw_input_contents.append(tensor.raw)
    assert encode_request(tensors) == expected.SerializeToString(deterministic=True)


def response(outputs: dict[str, bytes], **fields: Any) -> bytes:
    made = pb.ModelInferResponse(model_name="llm", **fields)
    for name, raw in outputs.items():
        made.outputs.add(name=name, datatype="BYTES", shape=[1])
        made.raw_output_contents.append(raw)
    return pb.ModelStreamInferResponse(infer_response=made).SerializeToString()


@given(
    st.text(),
    st.sampled_from(["", "stop", "length", "tool_calls"]),
    st.fixed_dictionaries({}, optional=dict.fromkeys(NUMBERS, INTS)),
    st.lists(st.tuples(FLOATS, RAWS), max_size=4),
    st.lists(st.tuples(FLOATS, RAWS), max_size=4),
    st.dictionaries(NAMES.map("x_".__add__), RAWS, max_size=3),
    st.text(max_size=300),
)
def test_a_response_says_what_protobuf_put_into_it(
    text: str,
    reason: str,
    numbers: dict[str, int],
    logged: list[tuple[float, bytes]],
    top: list[tuple[float, bytes]],
    others: dict[str, bytes],
    request_id: str,
) -> None:
    outputs = others | {"text_output": pack_texts([text.encode()]), "finish_reason": pack_texts([reason.encode()])}
    outputs |= {name: struct.pack("<i", value) for name, value in numbers.items()}
    if logged:
        for prefix, items in (("", logged), ("top_", top)):
            outputs[prefix + "log_probs"] = struct.pack(f"<{len(items)}f", *[value for value, _ in items])
            outputs[prefix + "token_bytes"] = pack_texts([spelled for _, spelled in items])
    prompt, completion, cached, index = (numbers.get(name, 0) for name in NUMBERS)
    expected = Chunk(text, reason, prompt, completion, cached, index)
    if logged:
        expected.log_probs, expected.token_bytes = (tuple(items) for items in zip(*logged, strict=True))
        expected.top_log_probs = tuple(value for value, _ in top)
        expected.top_token_bytes = tuple(spelled for _, spelled in top)
    assert read_chunk(response(outputs, id=request_id, model_version="1")) == expected


@given(st.binary(max_size=60) | st.builds(lambda raw: response({"text_output": raw, "finish_reason": raw}), RAWS))
def test_bytes_that_are_no_answer_are_an_error_of_the_models(message: bytes) -> None:
    with contextlib.suppress(KserveError):
        read_chunk(message)


@pytest.mark.parametrize(("reason", "code"), [("cancelled", "CANCELLED"), ("deadline", "DEADLINE_EXCEEDED")])
def test_what_was_ended_early_is_an_error(reason: str, code: str) -> None:
    with pytest.raises(KserveError) as failed:
        read_chunk(response({"text_output": pack_texts([b""]), "finish_reason": pack_texts([reason.encode()])}))
    assert failed.value.code == code


def test_the_benchmarks_stand_in_says_what_a_model_would() -> None:
    assert read_chunk(fake_message(b"length")[PREFIX_SIZE:]) == Chunk(" word", "length", 5, 10, 0)


def test_an_empty_response_says_nothing() -> None:
    assert read_chunk(response({})) is None


class Desk:
    """A dispatcher, and its guard, that leaves requests to the test."""

    max_request_bytes = 64 * 2**20

    def __init__(self) -> None:
        self.hub = Hub()
        self.guard: Any = self
        self.requests: list[Request] = []
        self.cancelled_requests: list[Request] = []
        desk: Any = self
        self.client = KserveClient(self.hub, desk)

    def open(self, call: Any) -> Any:
        return call

    def submit(self, request: Request) -> None:
        if request.exchange.call.headers.count((b"refuse", b"yes")):
            raise RuntimeError("a defect")
        self.requests.append(request)

    def cancelled(self, request: Request) -> None:
        self.cancelled_requests.append(request)

    def exchange_ended(self, exchange: Exchange) -> None:
        pass

    def delivered(self, num_messages: int, num_bytes: int) -> None:
        pass

    async def ask(self, *tensors: Tensor, **options: Any) -> tuple[Completion, Request]:
        completion = self.client.open(tensors, **options)
        num_before = len(self.requests)
        await settle(lambda: len(self.requests) > num_before)
        return completion, self.requests[-1]

    def say(self, request: Request, *bodies: bytes) -> None:
        for body in bodies:
            request.exchange.deliver(request, [(frame_message(body), True)], 1)
        self.hub.flush_soon()

    def end(self, request: Request, failure: Failure | None = None) -> None:
        if failure is None:
            request.exchange.on_end()
            request.exchange.succeeded(request, ())
        else:
            request.exchange.failed(request, failure)
        self.hub.flush_soon()


async def settle(condition: Callable[[], bool]) -> None:
    """Take turns of the loop until the condition holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition did not come true")


async def turns() -> None:
    """Let everything happen that is due."""
    for _ in range(50):
        await asyncio.sleep(0)


def word(text: str, reason: str = "") -> bytes:
    return response({"text_output": pack_texts([text.encode()]), "finish_reason": pack_texts([reason.encode()])})


async def texts(completion: Completion) -> list[str]:
    return [chunk.text async for batch in completion.batches() for chunk in batch]


def run(test: Callable[[Desk], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(test(Desk()), 20)

    asyncio.run(main())


def test_a_request_arrives_with_its_metadata_and_its_answer_comes_back() -> None:
    async def test(desk: Desk) -> None:
        metadata = [("x-api-key", "k"), ("x-ledger", "true")]
        completion, request = await desk.ask(text_tensor("text_input", ["Hi"]), metadata=metadata, timeout=1.5)
        call = request.exchange.call
        assert (call.timeout, call.wants_status, call.wants_ledger) == (1.5, True, True)
        assert (b"x-api-key", b"k") in call.headers
        assert request.body() == encode_request([text_tensor("text_input", ["Hi"])])
        request.exchange.notes[b"x-ledger"] = b'[{"a": 1}]'
        desk.say(request, word("a"), word("b"))
        desk.say(request, word("c", "stop"))
        desk.end(request)
        assert [[chunk.text for chunk in batch] async for batch in completion.batches()] == [["a", "b", "c"]]
        assert completion.ledger == {"a": 1}
        assert not desk.cancelled_requests

    run(test)


def test_a_large_request_and_a_large_answer_pass() -> None:
    async def test(desk: Desk) -> None:
        prompt = int_tensor("input_ids", range(2**21))
        completion, request = await desk.ask(prompt)
        assert request.body() == encode_request([prompt])
        reading = asyncio.ensure_future(texts(completion))
        desk.say(request, word("a" * 2**21), word("b", "stop"))
        desk.end(request)
        assert await reading == ["a" * 2**21, "b"]

    run(test)


def test_an_answer_that_nobody_takes_holds_its_stream_back() -> None:
    async def test(desk: Desk) -> None:
        completion, request = await desk.ask()
        other, second = await desk.ask()
        message = word("a" * 5000)
        desk.say(request, *[message] * 100)
        await turns()
        held = sum(len(piece) for piece, _ in request.exchange.stream.queue or ())
        assert 100 * len(message) - held <= UPSTREAM_STREAM_WINDOW == DEFAULT_WINDOW
        desk.say(second, word("b", "stop"))
        desk.end(second)
        assert await texts(other) == ["b"]
        desk.say(request, word("c", "stop"))
        desk.end(request)
        assert len(await texts(completion)) == 101

    run(test)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (Failure(Code.NOT_FOUND, "no 100 % ü"), ("NOT_FOUND", "no 100 % ü", None, True)),
        (
            Failure(Code.RESOURCE_EXHAUSTED, "full", notes=((b"retry-after", b"2.5"), NOT_AGAIN)),
            ("RESOURCE_EXHAUSTED", "full", 2.5, False),
        ),
    ],
)
def test_a_failure_arrives_behind_what_was_said(failure: Failure, expected: tuple[Any, ...]) -> None:
    async def test(desk: Desk) -> None:
        completion, request = await desk.ask()
        desk.say(request, word("a"))
        desk.end(request, failure)
        batches = completion.batches()
        assert [chunk.text for chunk in await anext(batches)] == ["a"]
        with pytest.raises(KserveError) as failed:
            await anext(batches)
        error = failed.value
        assert (error.code, error.message, error.retry_after, error.may_retry) == expected

    run(test)


def test_a_stream_without_a_last_response_is_an_error() -> None:
    async def test(desk: Desk) -> None:
        completion, request = await desk.ask()
        desk.say(request, word("a"))
        desk.end(request)
        with pytest.raises(KserveError, match="without a last response"):
            await texts(completion)

    run(test)


def test_a_time_that_is_over_ends_the_request() -> None:
    async def test(desk: Desk) -> None:
        completion, request = await desk.ask(timeout=0.01)
        with pytest.raises(KserveError) as failed:
            await texts(completion)
        assert failed.value.code == "DEADLINE_EXCEEDED"
        assert desk.cancelled_requests == [request]

    run(test)


def test_a_cancelled_request_is_cancelled_once_and_others_go_on() -> None:
    async def test(desk: Desk) -> None:
        many = [await desk.ask() for _ in range(5000)]  # more resets than another client may send
        for completion, _ in many[1:]:
            completion.cancel()
            completion.cancel()
        await settle(lambda: len(desk.cancelled_requests) == len(many) - 1)
        completion, request = many[0]
        desk.say(request, word("a", "stop"))
        desk.end(request)
        assert await texts(completion) == ["a"]
        completion.cancel()
        assert len(desk.client.links) == 1

    run(test)


def test_who_stops_reading_an_answer_cancels_its_request() -> None:
    async def test(desk: Desk) -> None:
        completion, request = await desk.ask()
        reading = asyncio.ensure_future(texts(completion))
        await turns()
        reading.cancel()
        await settle(lambda: desk.cancelled_requests == [request])

    run(test)


def test_a_defect_ends_one_request() -> None:
    async def test(desk: Desk) -> None:
        completion, request = await desk.ask()
        broken = desk.client.open((), [("refuse", "yes")])
        with pytest.raises(KserveError) as failed:
            await texts(broken)
        assert failed.value.code == "INTERNAL"
        desk.say(request, word("a", "stop"))
        desk.end(request)
        assert await texts(completion) == ["a"]

    run(test)


def test_a_connection_that_ends_ends_its_requests_and_the_next_request_makes_another() -> None:
    async def test(desk: Desk) -> None:
        completion, request = await desk.ask()
        (link,) = desk.client.links
        link.connection.close()
        desk.hub.flush()
        link.close()
        with pytest.raises(KserveError) as failed:
            await texts(completion)
        assert failed.value.code == "UNAVAILABLE"
        assert desk.cancelled_requests == [request]
        completion, request = await desk.ask()
        desk.say(request, word("a", "stop"))
        desk.end(request)
        assert await texts(completion) == ["a"]
        assert link not in desk.client.links

    run(test)
