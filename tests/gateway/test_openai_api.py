"""OpenAI's own client against the gateway: it gets what the model says, and every other wish is refused by name."""

import json
import math
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from pydantic import BaseModel, ValidationError

from gateway.kserve_messages import Chunk
from gateway.openai_bodies import ChatBody, CompletionBody
from gateway.openai_embeddings import EmbeddingBody
from gateway.openai_errors import ApiError
from gateway.openai_logprobs import text_logprobs
from gateway.openai_parsing import parse_body
from gateway.openai_prompts import MAX_AT_ONCE
from gateway.openai_shapes import CHAT as CHAT_SHAPE
from gateway.openai_shapes import TEXT as TEXT_SHAPE
from gateway.openai_shapes import Reply
from gateway.tensors import pack_texts
from tests.gateway import backend as backend_module
from tests.gateway.backend import Backend
from tests.gateway.process import GatewayProcess
from tests.gateway.protos import pb

WORDS = ["Once", " upon", " ä", " time"]
GATE = threading.Event()
CHAT: list[Any] = [{"role": "user", "content": "Hello"}]
CONTEXT = "context_length_exceeded"
TOOL = {"type": "function", "function": {"name": "look"}}
PART = {"type": "text", "text": "a"}


class Look(BaseModel):
    at: int


def inputs_of(request: Any) -> dict[str, bytes]:
    return dict(zip((tensor.name for tensor in request.inputs), request.raw_input_contents, strict=True))


def chunk(request_id: str, index: int, finish_reason: str, text: str | None = None) -> Any:
    response = pb.ModelInferResponse(id=request_id, model_name="llm")
    for name, raw in {
        "text_output": pack_text(WORDS[index % len(WORDS)] if text is None else text),
        "finish_reason": pack_text(finish_reason),
        "prompt_tokens": struct.pack("<i", 5),
        "completion_tokens": struct.pack("<i", index + 1),
        "cached_tokens": struct.pack("<i", 2),
    }.items():
        response.outputs.add(name=name)
        response.raw_output_contents.append(raw)
    return pb.ModelStreamInferResponse(infer_response=response)


def error(request_id: str, text: str) -> Any:
    return pb.ModelStreamInferResponse(error_message=text, infer_response=pb.ModelInferResponse(id=request_id))


def pack_text(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def sequences(request: Any, options: dict[str, Any]) -> Iterator[Any]:
    """Say one word and `END` in each sequence, with three likely tokens where log-probabilities are wanted."""
    num_top = options.get("top_logprobs", 0)
    for step, reason in enumerate(("", "stop")):
        for index in range(options.get("n", 1)):
            response = chunk(request.id, index, reason)
            extra = {"sequence_index": struct.pack("<i", index), "token_ids": struct.pack("<i", 10 * index + step)}
            if options.get("logprobs"):
                extra["log_probs"] = struct.pack("<f", -0.5)
                extra["token_bytes"] = pack_texts([b"Once" if step == 0 else b"\xc3"])
                extra["top_token_bytes"] = pack_texts([b"Once", b"\xf0\x9f", b"<end>"][:num_top])
                extra["top_token_ids"] = struct.pack(f"<{num_top}i", *range(num_top))
                extra["top_log_probs"] = struct.pack(f"<{num_top}f", *[-1.0, float("-inf"), -3.0][:num_top])
            for name, raw in extra.items():
                response.infer_response.outputs.add(name=name)
                response.infer_response.raw_output_contents.append(raw)
            yield response


def answer(service: Any, request: Any, context: Any) -> Iterator[Any]:
    """Say the words; the prompt `fail TEXT` fails at once, `late TEXT` after a word, `hang` and `silent` never end.

    `wait` says nothing until `GATE` is open.
    """
    inputs = inputs_of(request)
    limit = struct.unpack("<i", inputs.get("max_tokens", b"\x04\0\0\0"))[0]
    wish, _, text = inputs.get("text_input", b"")[4:].decode().partition(" ")
    if wish == "fail":
        yield error(request.id, text)
        return
    if wish == "wait":
        GATE.wait(20)
    turns = json.loads(inputs["messages"][4:]) if "messages" in inputs else [{"content": ""}]
    if turns[-1]["content"].startswith("say|"):
        pieces = turns[-1]["content"].split("|")[1:]
        for index, piece in enumerate(pieces):
            yield chunk(request.id, index, "stop" if index == len(pieces) - 1 else "", piece)
        return
    if "sampling_parameters" in inputs:
        yield from sequences(request, json.loads(inputs["sampling_parameters"][4:]))
        return
    for index in range(limit):
        last = index == limit - 1 and wish not in {"hang", "late"}
        if wish == "silent":
            break
        yield chunk(request.id, index, "length" if last else "")
        if wish == "late":
            yield error(request.id, text)
            return
    ended = threading.Event()
    if wish in {"hang", "silent"} and context.add_callback(ended.set):
        ended.wait(20)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[OpenAI, Backend, GatewayProcess]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_module._Service, "_answer", answer)
        fake = Backend("a")
        gateway = GatewayProcess(fake.flag)
        gateway.wait_usable(1)
        with OpenAI(base_url=f"http://{gateway.http}/v1", api_key="none", max_retries=0, timeout=20) as client:
            yield client, fake, gateway
        gateway.stop()
        fake.stop()


@pytest.fixture
def client(served: tuple[OpenAI, Backend, GatewayProcess]) -> OpenAI:
    return served[0]


@pytest.fixture
def fake(served: tuple[OpenAI, Backend, GatewayProcess]) -> Backend:
    return served[1]


def test_the_model_is_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["llm"]
    assert client.models.retrieve("llm").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_completion_has_the_whole_text_and_the_usage(client: OpenAI) -> None:
    done = client.completions.create(model="llm", prompt="Hi")
    assert (done.choices[0].text, done.choices[0].finish_reason) == ("".join(WORDS), "length")
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (5, 4, 9)


def test_a_chat_completion_has_the_assistants_message(client: OpenAI, fake: Backend) -> None:
    parts: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    done = client.chat.completions.create(model="llm", messages=parts, max_completion_tokens=2)
    assert (done.choices[0].message.role, done.choices[0].message.content) == ("assistant", "Once upon")
    sent = inputs_of(fake.requests[-1])
    assert json.loads(sent["messages"][4:]) == [{"role": "user", "content": "ab"}]
    assert sent["max_tokens"] == struct.pack("<i", 2)


def test_a_streamed_completion_comes_word_by_word(client: OpenAI) -> None:
    events = list(client.completions.create(model="llm", prompt="Hi", stream=True))
    assert [event.choices[0].text for event in events] == WORDS
    assert [event.choices[0].finish_reason for event in events] == [None, None, None, "length"]


def test_a_streamed_chat_ends_with_the_usage_where_asked_for(client: OpenAI) -> None:
    options: Any = {"include_usage": True}
    events = list(client.chat.completions.create(model="llm", messages=CHAT, stream=True, stream_options=options))
    assert [event.choices[0].delta.content for event in events[:-1]] == WORDS
    assert events[0].choices[0].delta.role == "assistant"
    assert events[-1].choices == []
    assert events[-1].usage is not None
    assert events[-1].usage.total_tokens == 9


def test_options_arrive_as_tensors_and_absent_ones_are_left_out(client: OpenAI, fake: Backend) -> None:
    client.completions.create(model="llm", prompt="Hi")
    assert set(inputs_of(fake.requests[-1])) == {"text_input", "stream"}
    client.completions.create(
        model="llm", prompt=[1, 2], temperature=0.5, top_p=0.25, seed=7, stop=["a", "ä"], presence_penalty=1, n=1
    )
    assert inputs_of(fake.requests[-1]) == {
        "input_ids": struct.pack("<2i", 1, 2),
        "temperature": struct.pack("<f", 0.5),
        "top_p": struct.pack("<f", 0.25),
        "presence_penalty": struct.pack("<f", 1),
        "random_seed": struct.pack("<Q", 7),
        "stop_words": pack_text("a") + pack_text("ä"),
        "stream": b"\x01",
    }


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 0}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"the": 1}}, "logit_bias"),
        ({"tools": [{"type": "retrieval"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "look"}}}, "tool_choice"),
        ({"prediction": {"type": "content", "content": "a"}}, "prediction"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"extra_body": {"top_a": 3}}, "top_a"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client: OpenAI, options: dict[str, Any], param: str) -> None:
    wishes: dict[str, Any] = {"model": "llm", "messages": CHAT} | options
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**wishes)
    assert (refused.value.param, refused.value.type) == (param, "invalid_request_error")
    assert param in refused.value.message


def options_of(request: Any) -> dict[str, Any]:
    return json.loads(inputs_of(request)["sampling_parameters"][4:])


@pytest.mark.parametrize("stream", [True, False])
def test_several_sequences_are_as_many_choices(client: OpenAI, fake: Backend, stream: bool) -> None:
    answered: Any = client.chat.completions.create(model="llm", messages=CHAT, n=3, stream=stream)
    texts, reasons = {0: "", 1: "", 2: ""}, {}
    for choice in [choice for event in answered for choice in event.choices] if stream else answered.choices:
        texts[choice.index] += (choice.delta if stream else choice.message).content or ""
        reasons[choice.index] = choice.finish_reason
    assert texts == {index: 2 * WORDS[index] for index in range(3)}
    assert set(reasons.values()) == {"stop"}
    assert options_of(fake.requests[-1]) == {"n": 3}
    if not stream:
        assert (answered.usage.prompt_tokens, answered.usage.completion_tokens) == (5, 1 + 2 + 3)


def test_a_chats_log_probabilities_name_tokens_by_their_text_or_bytes(client: OpenAI, fake: Backend) -> None:
    done = client.chat.completions.create(model="llm", messages=CHAT, logprobs=True, top_logprobs=2)
    assert done.choices[0].logprobs is not None
    content = done.choices[0].logprobs.content
    assert content is not None
    assert [(item.token, item.logprob) for item in content] == [("Once", -0.5), ("bytes:\\xc3", -0.5)]
    assert [item.bytes for item in content] == [[79, 110, 99, 101], [0xC3]]
    likeliest = [(top.token, top.logprob, top.bytes) for top in content[0].top_logprobs]
    assert likeliest == [("Once", -1, [79, 110, 99, 101]), ("bytes:\\xf0\\x9f", -9999, [0xF0, 0x9F])]
    assert options_of(fake.requests[-1]) == {"logprobs": True, "top_logprobs": 2}


def test_a_completions_log_probabilities_come_as_lists(client: OpenAI) -> None:
    logs = client.completions.create(model="llm", prompt="Hi", logprobs=1).choices[0].logprobs
    assert logs is not None
    assert (logs.tokens, logs.token_logprobs) == (["Once", "bytes:\\xc3"], [-0.5, -0.5])
    assert (logs.top_logprobs, logs.text_offset) == ([{"Once": -1.0}] * 2, [0, 4])


def test_tokens_of_one_chunk_begin_each_at_its_own_place() -> None:
    whole = Chunk("a äb", "", 1, 3, 0, token_bytes=(b"a ", b"\xc3", b"\xa4b"), log_probs=(math.nan, -1.0, -2.0))
    logs = text_logprobs([whole, whole], 0)
    assert logs["text_offset"] == [0, 2, 2, 4, 6, 6]
    assert logs["token_logprobs"] == [None, -1.0, -2.0] * 2


@given(st.lists(st.binary(max_size=5) | st.text(max_size=3).map(str.encode), max_size=20))
def test_a_token_begins_where_the_text_of_those_before_it_ends(spelled: list[bytes]) -> None:
    text = b"".join(spelled).decode("utf-8", "ignore")
    before = [b"".join(spelled[:at]).decode("utf-8", "ignore") for at in range(len(spelled))]
    chunk = Chunk(text, "", 1, 1, 0, token_bytes=tuple(spelled), log_probs=(-1.0,) * len(spelled))
    assert text_logprobs([chunk], 0)["text_offset"] == [min(len(each), len(text)) for each in before]


@pytest.mark.parametrize(
    ("text", "spelled", "offsets"),
    [
        ("Once 你", [b"<s>", b" On", b"ce ", "你".encode()], [0, 0, 2, 5]),  # sentencepiece's, with an echoed BOS
        ("a\ufffd\ufffdb", [b"a", b"\xff", b"\xfe", b"b", b"c"], [0, 1, 1, 1, 4]),
        ("on the", [b"on", b" them", b"</s>"], [0, 2, 6]),
    ],
)
def test_what_a_text_does_not_show_of_a_token_takes_no_place(
    text: str, spelled: list[bytes], offsets: list[int]
) -> None:
    chunk = Chunk(text, "", 1, 1, 0, token_bytes=tuple(spelled), log_probs=(-1.0,) * len(spelled))
    assert text_logprobs([chunk], 0)["text_offset"] == offsets


def test_nothing_is_told_of_what_else_could_begin_an_echoed_prompt() -> None:
    logged = {"log_probs": (math.nan, -1.0), "top_token_bytes": (b"<s>", b"b"), "top_log_probs": (math.nan, -1.0)}
    logs = text_logprobs([Chunk("ab", "", 1, 2, 0, token_bytes=(b"a", b"b"), **logged)], 1)
    assert logs["top_logprobs"] == [None, {"b": -1.0}]


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_tools_come_as_objects(client: OpenAI, stream: bool) -> None:
    function = {"name": "look", "strict": True, "parameters": {"type": "object"}}
    tools: list[Any] = [{"type": "function", "function": function}]
    said = 'say|I will.\n<tool_|call>{"name": "look", "argu|ments": {"at": |"it"}}</tool_call>'
    turns: list[Any] = [{"role": "user", "content": said}]
    if stream:
        with client.chat.completions.stream(model="llm", messages=turns, tools=tools) as events:
            pieces = [event.arguments_delta for event in events if event.type == "tool_calls.function.arguments.delta"]
            whole: Any = events.get_final_completion()
        assert [piece for piece in pieces if piece] == ['{"at": ', '"it"}']
    else:
        whole = client.chat.completions.create(model="llm", messages=turns, tools=tools)
    assert whole.choices[0].message.content == "I will."
    calls, reason = whole.choices[0].message.tool_calls, whole.choices[0].finish_reason
    assert [(call.function.name, call.function.arguments) for call in calls] == [("look", '{"at": "it"}')]
    assert calls[0].id.startswith("call_")
    assert reason == "tool_calls"
    for options in ({}, {"tools": tools, "tool_choice": "none"}):
        plain: Any = client.chat.completions.create(model="llm", messages=turns, **options)
        assert plain.choices[0].message.tool_calls is None
        assert plain.choices[0].message.content == said.removeprefix("say|").replace("|", "")


def test_formats_biases_and_echo_become_sampling_parameters(client: OpenAI, fake: Backend) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    formats: list[Any] = [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}},
    ]
    for form, guided in zip(formats, ({"json_object": True}, {"json_schema": schema}), strict=True):
        client.chat.completions.create(model="llm", messages=CHAT, response_format=form, logit_bias={"7": -100})
        assert options_of(fake.requests[-1]) == {"guided": guided, "logit_bias": {"7": -100}}
    client.completions.create(model="llm", prompt="Hi", echo=True)
    assert options_of(fake.requests[-1]) == {"echo": True}


def test_tools_and_their_calls_go_to_the_template(client: OpenAI, fake: Backend) -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    turns: list[Any] = [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "seen"},
    ]
    client.chat.completions.create(model="llm", messages=turns, tools=tools)
    sent = inputs_of(fake.requests[-1])
    assert json.loads(sent["tools"][4:]) == tools
    assert json.loads(sent["messages"][4:]) == [
        *CHAT,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        turns[2],
    ]
    client.chat.completions.create(model="llm", messages=CHAT, tools=tools, tool_choice="none")
    assert "tools" not in inputs_of(fake.requests[-1])


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "function": {"name": "look"}},
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOL]}},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_demanded_call_is_guided_and_found(client: OpenAI, fake: Backend, choice: Any, stream: bool) -> None:
    names = ["look", "go"] if choice == "required" else ["look"]
    tools: list[Any] = [{"type": "function", "function": {"name": name}} for name in ("look", "go")]
    turns: list[Any] = [{"role": "user", "content": 'say|{"name": "look", "arg|uments": {"at": 1}}'}]
    wish: dict[str, Any] = {"model": "llm", "messages": turns, "tools": tools, "tool_choice": choice}
    if stream:
        with client.chat.completions.stream(**wish) as events:
            whole: Any = events.get_final_completion()
    else:
        whole = client.chat.completions.create(**wish)
    called = whole.choices[0].message.tool_calls[0].function
    assert (called.name, called.arguments, whole.choices[0].finish_reason) == ("look", '{"at": 1}', "tool_calls")
    grammar = options_of(fake.requests[-1])["guided"]["ebnf"]
    assert [name for name in ("look", "go") if name in grammar] == names


def test_a_tool_that_is_not_allowed_is_not_called(client: OpenAI, fake: Backend) -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": name}} for name in ("look", "go")]
    said = '{"name": "go", "arguments": {}}'
    choice: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOL]}}
    turns: list[Any] = [{"role": "user", "content": f"say|{said}"}]
    done = client.chat.completions.create(model="llm", messages=turns, tools=tools, tool_choice=choice)
    assert (done.choices[0].message.content, done.choices[0].message.tool_calls) == (said, None)
    assert set(inputs_of(fake.requests[-1])) == {"messages", "tools", "stream"}


def test_an_answers_message_may_be_sent_back_with_all_that_its_client_adds(client: OpenAI, fake: Backend) -> None:
    tools: list[Any] = [openai.pydantic_function_tool(Look, name="look")]
    turns: list[Any] = [{"role": "user", "content": 'say|{"name": "look", "arguments": {"at": 1}}'}]
    wish: dict[str, Any] = {"model": "llm", "tools": tools}
    message = client.chat.completions.parse(messages=turns, **wish).choices[0].message
    assert message.tool_calls
    assert message.tool_calls[0].function.parsed_arguments == Look(at=1)
    call = {"id": message.tool_calls[0].id, "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    for sent in (message, message.model_dump()):
        again: list[Any] = [*turns, sent]
        client.chat.completions.create(messages=again, **wish)
        told = json.loads(inputs_of(fake.requests[-1])["messages"][4:])
        assert told[1] == {"role": "assistant", "content": "", "tool_calls": [call]}


def test_what_asks_for_nothing_may_be_sent(client: OpenAI, fake: Backend) -> None:
    said: dict[str, Any] = {"user": "a", "safety_identifier": "a", "prompt_cache_key": "a", "metadata": {"a": "b"}}
    nothing = dict.fromkeys(("audio", "functions", "prediction", "verbosity", "seed"))
    options = {"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": False}}
    body = {"model": "llm", "messages": CHAT, "extra_body": nothing} | said | options
    assert len(list(client.chat.completions.create(**body))) == len(WORDS)
    assert set(inputs_of(fake.requests[-1])) == {"messages", "stream"}
    client.completions.create(model="llm", prompt="Hi", seed=-1)
    assert inputs_of(fake.requests[-1])["random_seed"] == b"\xff" * 8


def test_options_that_vllm_adds_are_taken(client: OpenAI, fake: Backend) -> None:
    asked: dict[str, Any] = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.0, "min_tokens": 2, "ignore_eos": True}
    client.completions.create(model="llm", prompt="Hi", extra_body=asked | {"stop_token_ids": [7]})
    assert options_of(fake.requests[-1]) == asked | {"stop_token_ids": [7]}


def test_one_prompt_in_a_list_is_as_one_alone(client: OpenAI) -> None:
    assert client.completions.create(model="llm", prompt=["Hi"]).choices[0].text == "".join(WORDS)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", [["a", "b", "c"], [[1], [2, 3], [4]]])
def test_choices_of_several_prompts_are_numbered_across_prompts(
    client: OpenAI, fake: Backend, prompt: Any, stream: bool
) -> None:
    before = len(fake.requests)
    options: Any = {"stream_options": {"include_usage": True}} if stream else {}
    answered: Any = client.completions.create(model="llm", prompt=prompt, n=2, stream=stream, **options)
    events = list(answered) if stream else [answered]
    texts = dict.fromkeys(range(6), "")
    for choice in (choice for event in events for choice in event.choices):
        texts[choice.index] += choice.text
    assert texts == {index: 2 * WORDS[index % 2] for index in range(6)}
    usage = events[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (3 * 5, 3 * (1 + 2))
    assert usage.prompt_tokens_details.cached_tokens == 3 * 2
    sent = [inputs_of(item) for item in fake.requests[before:]]
    name, packed = ("text_input", [pack_text(text) for text in prompt]) if prompt[0] == "a" else (
        "input_ids", [struct.pack(f"<{len(ids)}i", *ids) for ids in prompt]
    )  # fmt: skip
    assert sorted(item[name] for item in sent) == sorted(packed)


@pytest.mark.parametrize("stream", [True, False])
def test_one_of_several_prompts_that_fails_fails_all_and_ends_the_others(
    served: tuple[OpenAI, Backend, GatewayProcess], stream: bool
) -> None:
    client, _, gateway = served
    with pytest.raises(openai.BadRequestError, match="too long"):
        client.completions.create(model="llm", prompt=["silent 1", "fail too long", "silent 2"], stream=stream)
    gateway.wait_until(lambda: gateway.metric("gateway_in_flight_requests") == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_several_prompts_ends_them_all(
    served: tuple[OpenAI, Backend, GatewayProcess], stream: bool
) -> None:
    client, _, gateway = served
    with pytest.raises(openai.APITimeoutError):
        list(
            client.with_options(timeout=0.5).completions.create(model="llm", prompt=["silent", "silent"], stream=stream)
        )
    gateway.wait_until(lambda: gateway.metric("gateway_in_flight_requests") == 0)


def test_many_prompts_wait_for_a_place_and_all_are_answered(client: OpenAI) -> None:
    done = client.completions.create(model="llm", prompt=["Hi"] * (MAX_AT_ONCE + 6), max_tokens=1)
    assert [choice.index for choice in done.choices] == list(range(MAX_AT_ONCE + 6))
    with pytest.raises(openai.BadRequestError, match="at most 2048 in one request"):
        client.completions.create(model="llm", prompt=["Hi"] * 2049)


def test_another_model_does_not_exist(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt") as refused:
        client.completions.create(model="gpt", prompt="Hi")
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("wish", "status"),
    [
        ("in ensemble 'llm', top_p must be at most 1, got 2", 400),
        ("Request for unknown model: 'llm' is not found", 404),
        ("in ensemble 'llm', RESOURCE_EXHAUSTED: the queue is full", 429),
        ("in ensemble 'llm', INTERNAL: it broke", 500),
        ("in ensemble 'llm', UNAVAILABLE: the engine core is restarting", 503),
    ],
)
def test_a_failure_has_its_status(client: OpenAI, wish: str, status: int, stream: bool) -> None:
    with pytest.raises(openai.APIStatusError) as failed:
        client.completions.create(model="llm", prompt=f"fail {wish}", stream=stream)
    assert failed.value.status_code == status


@pytest.mark.parametrize(
    ("complaint", "param", "code"),
    [
        ("the prompt has 9 tokens; it alone is more than the model's limit of 8 tokens", "prompt", CONTEXT),
        ("the prompt has 99 characters; at most 64 can be served", "prompt", CONTEXT),
        ("prompt holds the token id 99; the vocabulary has ids 0 to 7", "prompt", "invalid_argument"),
        ("a stop string must have 1 to 1024 characters, got 0", "stop", "invalid_argument"),
        ("guided.json_schema is not valid: no", "response_format", "invalid_argument"),
        ("logit_bias holds the token id 99", "logit_bias", "invalid_argument"),
        ("something else", None, "invalid_argument"),
    ],
)
def test_what_the_model_complains_of_is_named(client: OpenAI, complaint: str, param: str | None, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="llm", prompt=f"fail in ensemble 'llm', {complaint}")
    assert (refused.value.param, refused.value.code) == (param, code)


def test_without_an_instance_the_service_is_unavailable(tmp_path: Any) -> None:
    gateway = GatewayProcess("127.0.0.1:1", flags=("--queue-timeout-s", "0"), log=tmp_path / "log")
    with OpenAI(base_url=f"http://{gateway.http}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as failed:
            client.completions.create(model="llm", prompt="Hi")
        assert failed.value.status_code == 503
    gateway.stop()


def test_a_failure_after_the_first_word_ends_the_stream_with_an_error(client: OpenAI) -> None:
    events = iter(client.completions.create(model="llm", prompt="late INTERNAL: it broke", stream=True))
    assert next(events).choices[0].text == "Once"
    with pytest.raises(openai.APIError, match="it broke"):
        list(events)


@given(st.text(), st.sampled_from(["", "stop"]), st.booleans(), st.booleans())
def test_an_event_is_the_object_it_stands_for(text: str, reason: str, is_chat: bool, with_usage: bool) -> None:
    reply = Reply(CHAT_SHAPE if is_chat else TEXT_SHAPE, "id[]", 7, with_usage=with_usage)
    first, second = reply.events([Chunk(text, "", 1, 1, 0), Chunk(text, reason, 1, 2, 0)]).split("\n\n")[:-1]
    heads = [{"delta": {"role": "assistant", "content": text}}, {"delta": {"content": text} if text else {}}]
    for event, head, end in zip((first, second), heads, ("", reason), strict=True):
        choice = {"index": 0, "logprobs": None, "finish_reason": end or None} | (head if is_chat else {"text": text})
        expected = {"id": "id[]", "object": reply.shape.piece, "created": 7, "model": "llm", "choices": [choice]}
        assert json.loads(event.removeprefix("data: ")) == expected | ({"usage": None} if with_usage else {})
    told = [json.loads(event.removeprefix("data: ")) for event in reply.closing({}).split("\n\n")[:-2]]
    assert [event["usage"]["total_tokens"] for event in told] == [3] * with_usage


@pytest.mark.parametrize("wish", ["hang", "silent"])
def test_a_client_that_leaves_a_stream_has_its_request_aborted(client: OpenAI, fake: Backend, wish: str) -> None:
    if wish == "hang":
        stream = client.completions.create(model="llm", prompt=wish, stream=True)
        assert next(iter(stream)).choices[0].text == "Once"
        stream.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.5).completions.create(model="llm", prompt=wish, stream=True)
    key = fake.requests[-1].parameters["request_key"].string_param
    assert fake.wait_for(lambda: key in fake.aborted)


@pytest.mark.parametrize(
    ("form", "place"),
    [
        ({"type": "json_schema", "json_schema": False}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": False}}, "response_format.json_schema.schema"),
        (False, "response_format"),
    ],
)
def test_what_must_be_an_object_is_asked_for_in_the_words_of_json(form: object, place: str) -> None:
    body = {"model": "llm", "messages": [{"role": "user", "content": "x"}], "response_format": form}
    with pytest.raises(ApiError) as refused:
        parse_body(ChatBody, json.dumps(body).encode())
    assert str(refused.value) == f"{place}: must be an object, not false"


@pytest.mark.parametrize("wish", ["hang", "silent"])
def test_a_client_that_leaves_an_answer_has_its_request_aborted(
    served: tuple[OpenAI, Backend, GatewayProcess], wish: str
) -> None:
    client, fake, gateway = served
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).completions.create(model="llm", prompt=wish)
    key = fake.requests[-1].parameters["request_key"].string_param
    assert fake.wait_for(lambda: key in fake.aborted)
    gateway.wait_until(lambda: gateway.metric("gateway_in_flight_requests") == 0)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "JSON object"),
        (b'{"model": "llm"}', "prompt: Field required"),
        (b'{"model": "llm", "prompt": "\\ud800"}', "prompt: .*surrogate"),
        (b'{"model": "llm", "prompt": [2147483648]}', "prompt.0: .*less than or equal to 2147483647, not 2147483648"),
        (b'{"model": "llm", "prompt": []}', "prompt: List should have at least 1 item"),
        (b'{"model": "llm", "prompt": "a", "temperature": NaN}', "temperature: .*, not nan"),
        (b'{"model": "llm", "prompt": "a", "zz": null}', "zz"),
        (b'{"model": "llm", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"model": "llm", "prompt": "a", "stream_options": {}}', "only with stream"),
    ],
)
def test_a_bad_body_is_refused_with_the_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(ApiError, match=reason) as refused:
        parse_body(CompletionBody, raw)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (CompletionBody, {"prompt": [-1] * 5000}),
        (CompletionBody, {"prompt": [[-1] * 5000] * 5000}),
        (CompletionBody, {"prompt": "a", "stop": [1] * 5000, "stop_token_ids": ["a"] * 5000}),
        (ChatBody, {"messages": [{"role": "alien", "content": [{}] * 5000, "tool_calls": [{}] * 5000}] * 5000}),
        (ChatBody, {"messages": CHAT, "tools": [{}] * 5000}),
        (EmbeddingBody, {"input": [""] * 5000}),
    ],
)
def test_what_is_wrong_many_times_is_reported_a_few(kind: type[BaseModel], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        kind.model_validate({"model": "llm"} | fields)
    assert refused.value.error_count() <= 20


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"messages": CHAT * 8193}, "messages: .*at most 8192"),
        (
            {"messages": CHAT, "logit_bias": {str(token): 1 for token in range(65537)}},
            "logit_bias: at most 65536 tokens",
        ),
        ({"messages": CHAT, "tools": [TOOL] * 8193}, "tools: .*at most 8192"),
        ({"messages": [{"role": "user", "content": [PART] * 8193}]}, "content: .*at most 8192"),
        ({"messages": CHAT, "metadata": dict.fromkeys(map(str, range(65)), "")}, "metadata: at most 64"),
        ({"messages": CHAT, "stop_token_ids": [1] * (2**19 + 1)}, "the body has 52.* commas; at most 524288"),
        (dict.fromkeys(map(str, range(256))), "the body has 257 fields"),
    ],
)
def test_what_takes_long_to_check_is_refused_by_its_size(wish: dict[str, Any], reason: str) -> None:
    with pytest.raises(ApiError, match=reason):
        parse_body(ChatBody, json.dumps({"model": "llm"} | wish).encode())


@pytest.mark.parametrize("kind", [CompletionBody, EmbeddingBody])
def test_prompts_are_counted_before_they_are_checked(kind: type[BaseModel]) -> None:
    for many in (["a"] * 2049, [[1]] * 2049):
        with pytest.raises(ValidationError, match="at most 2048 in one request, got 2049") as refused:
            kind.model_validate({"model": "llm", "prompt": many, "input": many})
        assert len(refused.value.errors()) <= 2


def test_more_errors_than_can_be_told_are_counted() -> None:
    body = {"model": "llm", "prompt": "a", "logit_bias": {f"token{index}": 1 for index in range(1001)}}
    with pytest.raises(ApiError, match="the body has 1001 fields or values that are wrong"):
        parse_body(CompletionBody, json.dumps(body).encode())


PLACES = (
    ("/v1/completions", "POST", 400),
    ("/v1/nonsense", "GET", 404),
    ("/v1/completions", "PUT", 405),
    ("/v1/models", "TRACE", 405),
    ("/v1/models/llm", "DELETE", 405),
)


def test_a_header_that_cannot_be_passed_on_is_refused(served: tuple[OpenAI, Backend, GatewayProcess]) -> None:
    call = urllib.request.Request(
        f"http://{served[2].http}/v1/completions", b'{"model": "llm", "prompt": "Hi"}', {"traceparent": "\xe9"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(call, timeout=10)
    assert refused.value.code == 400
    assert b"the header traceparent must be printable ASCII" in refused.value.read()


def test_a_session_is_passed_on(client: OpenAI, fake: Backend) -> None:
    client.completions.create(model="llm", prompt="Hi", extra_headers={"x-session-id": "s7"})
    assert fake.metadata[-1]["x-session-id"] == "s7"


def test_what_is_wrong_with_a_choice_is_said_in_openais_names() -> None:
    with pytest.raises(ApiError, match=r"tool_choice.type: Input should be 'function', not 'x'"):
        parse_body(ChatBody, json.dumps({"model": "llm", "messages": CHAT, "tool_choice": {"type": "x"}}).encode())


def test_a_role_is_one_of_openais_and_a_developer_is_the_system() -> None:
    with pytest.raises(ApiError, match=r"messages.0.role: .*, not 'alien'"):
        parse_body(ChatBody, b'{"model": "llm", "messages": [{"role": "alien", "content": "a"}]}')
    body = parse_body(ChatBody, b'{"model": "llm", "messages": [{"role": "developer", "content": "a"}]}')
    assert b'"system"' in body.requests()[0][0].raw


def test_what_is_malformed_is_refused_in_openais_shape(served: tuple[OpenAI, Backend, GatewayProcess]) -> None:
    for path, method, status in PLACES:
        place = path if path in {"/v1/completions", "/v1/models"} else "other"
        series = f'gateway_http_answers_total{{path="{place}",status="{status}"}}'
        before = served[2].metric(series)
        got, body = served[2].get(path, method)
        assert got == status
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        assert served[2].metric(series) == before + 1


def test_what_is_under_way_is_finished_when_the_gateway_drains(
    served: tuple[OpenAI, Backend, GatewayProcess], tmp_path: Any
) -> None:
    gateway = GatewayProcess(served[1].flag, log=tmp_path / "log")
    gateway.wait_usable(1)
    host, _, port = gateway.http.partition(":")
    with socket.create_connection((host, int(port))) as sender:
        sender.sendall(b"nonsense\r\n\r\n")
        assert b" 400 " in sender.recv(100)
    prompts = ["wait"] * (MAX_AT_ONCE + 1)  # the last one is asked for when another has been answered
    with (
        OpenAI(base_url=f"http://{gateway.http}/v1", api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        streamed = pool.submit(lambda: list(client.completions.create(model="llm", prompt="wait", stream=True)))
        whole = pool.submit(client.completions.create, model="llm", prompt=prompts)
        gateway.wait_until(lambda: gateway.metric("gateway_in_flight_requests") == MAX_AT_ONCE + 1)
        gateway.terminate()
        gateway.wait_until(lambda: json.loads(gateway.get("/healthz")[1])["draining"])
        with pytest.raises(openai.InternalServerError, match="shutting down") as refused:
            client.completions.create(model="llm", prompt="Hi")
        assert refused.value.status_code == 503
        GATE.set()
        assert [event.choices[0].text for event in streamed.result()] == WORDS
        assert [choice.text for choice in whole.result().choices] == ["".join(WORDS)] * len(prompts)
        assert gateway.process.wait(10) == 0  # though the client keeps its idle connections
    gateway.stop()
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert "library" in events  # uvicorn has told of the nonsense
