"""OpenAI's client through the gateway and real tritonservers says what the offline engine says."""

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from engine.core import EngineCore
from engine.offline import generate
from engine.sampling_params import SamplingParams
from gateway.observe.ledger import STAGES
from scripts.launcher.cluster import Cluster
from scripts.launcher.examples import openai_example
from scripts.launcher.paths import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
PROMPT = "Once upon a time"
CHAT: list[Any] = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture
def client(cluster: Cluster) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"http://{cluster.gateway.http_url}/v1", api_key="none", timeout=120) as made:
        yield made


def test_completions_equal_the_offline_engine(client: OpenAI, offline: EngineCore) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"seed": 3, "temperature": 0.9, "top_p": 0.9},
        {"stop": ["the"]},
        {"frequency_penalty": 0.5, "presence_penalty": 0.25},
    ]
    prompt = offline.tokenizer.encode(PROMPT)
    params = [SamplingParams.from_mapping({"max_tokens": 24} | option) for option in options]
    for option, expected in zip(options, generate(offline, [prompt] * len(options), params), strict=True):
        for given in (PROMPT, prompt):
            done = client.completions.create(model="llm", prompt=given, max_tokens=24, **option)
            assert done.choices[0].text == expected.text
            assert done.choices[0].finish_reason == expected.finish_reason
            assert done.usage is not None
            assert done.usage.prompt_tokens == len(prompt)
            assert done.usage.completion_tokens == len(expected.token_ids)
        events = list(client.completions.create(model="llm", prompt=PROMPT, max_tokens=24, stream=True, **option))
        assert "".join(event.choices[0].text for event in events) == expected.text


def test_a_chat_is_the_same_streamed_and_whole(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="llm", messages=CHAT, max_tokens=16)
    events = client.chat.completions.create(model="llm", messages=CHAT, max_tokens=16, stream=True)
    assert "".join(event.choices[0].delta.content or "" for event in events) == whole.choices[0].message.content


@pytest.mark.parametrize("stream", [True, False])
def test_a_ledger_runs_through_every_stage_in_order(client: OpenAI, stream: bool) -> None:
    began = time.time_ns()
    done: Any = client.completions.create(
        model="llm", prompt=PROMPT, max_tokens=16, extra_headers={"x-ledger": "true"}, stream=stream
    )
    ledger = (list(done)[-1] if stream else done).model_extra["ledger"]
    marks = [ledger[stage] for stage in STAGES]
    assert marks == sorted(marks)
    assert began < marks[0] < marks[-1] < time.time_ns()


def test_a_deadline_reaches_the_engine_and_ends_a_request_there(client: OpenAI) -> None:
    def ask(seconds: str, max_tokens: int) -> Any:
        headers = {"x-request-timeout": seconds}
        options: dict[str, Any] = {"extra_headers": headers, "frequency_penalty": 1.0}
        return client.with_options(max_retries=0).completions.create(
            model="llm", prompt=PROMPT, max_tokens=max_tokens, **options
        )

    assert ask("60", 8).usage.completion_tokens == 8
    with pytest.raises(openai.APIStatusError) as ended:
        ask("0.05", 200)
    assert ended.value.status_code == 504


def test_sequences_formats_and_log_probabilities_reach_the_engine(client: OpenAI) -> None:
    done = client.completions.create(model="llm", prompt=PROMPT, max_tokens=8, n=2, seed=1, temperature=1.0, logprobs=2)
    assert [choice.index for choice in done.choices] == [0, 1]
    assert done.usage is not None
    logs = [choice.logprobs for choice in done.choices]
    assert sum(len(log.tokens or ()) for log in logs if log is not None) == done.usage.completion_tokens
    assert all(len(top) == 2 for log in logs if log is not None for top in log.top_logprobs or ())
    form: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"enum": ["red", "blue"]}}}
    said = client.chat.completions.create(model="llm", messages=CHAT, max_tokens=60, response_format=form)
    assert json.loads(said.choices[0].message.content or "") in {"red", "blue"}
    biased = client.completions.create(
        model="llm", prompt=PROMPT, max_tokens=1, logit_bias={"300": 100}, logprobs=0, temperature=0
    )
    assert biased.choices[0].logprobs is not None
    assert biased.choices[0].logprobs.tokens == [biased.choices[0].text]
    assert all("".join(log.tokens or ()) == choice.text for log, choice in zip(logs, done.choices, strict=True) if log)


def test_a_demanded_call_follows_its_schema(client: OpenAI) -> None:
    class Look(BaseModel):
        at: Literal["moon", "sun"]
        twice: bool

    wish: dict[str, Any] = {"tools": [openai.pydantic_function_tool(Look)], "tool_choice": "required"}
    with client.chat.completions.stream(model="llm", messages=CHAT, max_tokens=128, **wish) as events:
        streamed = events.get_final_completion().choices[0]
    whole = client.chat.completions.parse(model="llm", messages=CHAT, max_tokens=128, **wish).choices[0]
    calls = [each.message.tool_calls[0].function for each in (streamed, whole) if each.message.tool_calls]
    assert isinstance(calls[0].parsed_arguments, Look)
    assert [call.arguments for call in calls] == [calls[0].arguments] * 2
    assert (streamed.finish_reason, whole.finish_reason) == ("tool_calls", "tool_calls")


def test_what_the_model_refuses_is_a_bad_request(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="top_p"):
        client.completions.create(model="llm", prompt=PROMPT, top_p=0)
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.completions.create(model="llm", prompt=PROMPT, max_tokens=10**6)


def test_the_printed_example_works(cluster: Cluster) -> None:
    command = openai_example(cluster.gateway.http_url)
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout
