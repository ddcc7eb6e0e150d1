"""Content rules: what they find whole they find in pieces, and what they block or mask leaves in no form."""

import asyncio
import contextlib
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import openai
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI

from gateway.call import STREAM_INFER, parse_call
from gateway.config import ConfigError
from gateway.content.check import Finding, RuleCheck
from gateway.content.config import ContentConfig, RuleConfig
from gateway.content.judging import Hearing, ask
from gateway.content.scanner import Scanner
from gateway.content.screen import Screen, Screening
from gateway.entrance import Entrance, make_screening
from gateway.exchange import Exchange
from gateway.request import Request
from gateway.safety.config import SafetyConfig
from gateway.status import Code, Failure
from gateway.wire.connection import Connection
from gateway.wire.stream import Stream
from gateway.wire.table import Role
from tests.gateway import backend as backend_module
from tests.gateway.backend import Backend
from tests.gateway.clients import Client
from tests.gateway.process import GatewayProcess
from tests.gateway.protos import pb

CARD = {"name": "card", "pattern": r"\b\d{4}-\d{4}\b", "action": "mask"}
WORDS = {"name": "words", "words": ["bad word", "worse"], "action": "block"}
NOTED = {"name": "noted", "pattern": "hello", "action": "flag"}
Start = Callable[..., tuple[GatewayProcess, Backend]]


def scanner(*rules: dict[str, Any], max_held: int = 64) -> Scanner:
    return Scanner(RuleCheck(RuleConfig.model_validate(rule) for rule in rules), "output", "***", max_held)


def scan(pieces: list[str], *rules: dict[str, Any]) -> str:
    scanning = scanner(*rules)
    return "".join(scanning.push(piece, index == len(pieces) - 1) for index, piece in enumerate(pieces))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pay 1234-5678 now", "pay *** now"),
        ("pay 1234-56789 now", "pay 1234-56789 now"),
        ("1234-5678", "***"),
        ("a bad word here", "a "),
        ("a bad words here", "a bad words here"),
        ("a Bad\n  word here", "a "),
        ("Worse", ""),
        ("1234-5678 worse", "*** "),
        ("hello there", "hello there"),
    ],
)
def test_a_text_in_pieces_of_any_size_is_checked_as_a_whole(text: str, expected: str) -> None:
    for size in range(1, len(text) + 1):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert scan(pieces, CARD, WORDS, NOTED) == expected, size


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("ab1-2 w", max_size=6), min_size=1, max_size=12))
def test_any_cut_gives_what_the_whole_text_gives(pieces: list[str]) -> None:
    rules = (
        {"name": "pair", "pattern": r"\b1+-2", "action": "mask"},
        {"name": "ab", "words": ["ab", "aba b"], "action": "mask"},
        {"name": "stop", "pattern": "ww1", "action": "block"},
    )
    assert scan(pieces, *rules) == scan(["".join(pieces)], *rules)


def test_only_what_may_become_a_finding_is_held_back_and_not_for_ever() -> None:
    scanning = scanner(CARD, max_held=8)
    assert scanning.push("costs ", final=False) == "costs "
    assert scanning.push("12", final=False) == ""
    assert scanning.push(" euros", final=False) == "12 euros"
    endless = scanner({"name": "long", "pattern": "<.*>", "action": "mask"}, max_held=8)
    assert endless.push("<" + "a" * 7, final=False) == ""
    assert endless.push("b", final=False) == "<aaaaaaab"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rules": [CARD | {"pattern": "("}]}, "is no pattern"),
        ({"rules": [CARD | {"pattern": "a*"}]}, "no text at all"),
        ({"rules": [CARD | {"words": ["a"]}]}, "either a pattern or words"),
        ({}, "neither a rule nor a hook"),
        ({"hook": "no.such.module:check"}, "not there"),
        ({"hook": "json:nothing"}, "not there"),
    ],
)
def test_rules_that_cannot_work_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ContentConfig.model_validate(fields)


def encode(model: str = "llm", typed: bool = False, **texts: str) -> bytes:
    asked = pb.ModelInferRequest(model_name=model, id="7")
    for name, text in texts.items():
        tensor = asked.inputs.add(name=name, datatype="BYTES", shape=[1])
        if typed:
            tensor.contents.bytes_contents.append(text.encode())
        else:
            asked.raw_input_contents.append(struct.pack("<I", len(text.encode())) + text.encode())
    return asked.SerializeToString()


def screened(request: bytes, *rules: dict[str, Any]) -> Any:
    result = Screen(Screening(ContentConfig.model_validate({"rules": rules}))).prompt(request)
    return result if isinstance(result, Failure) else pb.ModelInferRequest.FromString(result)


@pytest.mark.parametrize("typed", [True, False])
def test_a_prompt_is_masked_where_it_stands(typed: bool) -> None:
    made = screened(encode(typed=typed, stop_words="1234-5678", text_input="ä 1234-5678"), CARD)
    found = (
        [bytes(t.contents.bytes_contents[0]) for t in made.inputs]
        if typed
        else [r[4:] for r in made.raw_input_contents]
    )
    assert found == [b"1234-5678", "ä ***".encode()]
    assert (made.id, [tensor.name for tensor in made.inputs]) == ("7", ["stop_words", "text_input"])


def test_messages_are_read_as_json_so_that_no_escape_hides_a_word() -> None:
    escaped = '[{"role": "user", "content": "w\\u006frse"}]'
    refused = screened(encode(messages=escaped), WORDS)
    assert (refused.code, "words" in refused.message) == (Code.INVALID_ARGUMENT, True)
    made = screened(encode(messages='[{"role": "user", "content": [{"text": "1234-5678"}]}]'), CARD)
    assert json.loads(made.raw_input_contents[0][4:]) == [{"role": "user", "content": [{"text": "***"}]}]


def test_what_cannot_be_read_is_refused() -> None:
    assert screened(encode("llm_engine", text_input="a"), CARD).code is Code.PERMISSION_DENIED
    assert screened(encode(input_ids="1234"), CARD).code is Code.PERMISSION_DENIED
    assert screened(encode(messages="{"), CARD).code is Code.INVALID_ARGUMENT
    assert screened(b"\xff", CARD).code is Code.INVALID_ARGUMENT
    assert not isinstance(screened(encode(input_ids="1234"), CARD | {"on": ["output"]}), Failure)


class LoudCheck:
    """A hook: whatever is loud is blocked."""

    def find(self, text: str, place: str) -> list[Finding]:
        return [Finding(0, len(text), "loud", "block")] if text.isupper() and place == "prompt" else []

    def open_from(self, text: str, start: int, place: str) -> int:
        return len(text)


def test_a_hook_of_the_operators_own_is_asked_too() -> None:
    config = ContentConfig(hook="tests.gateway.test_content:LoudCheck")
    refused = Screen(Screening(config)).prompt(encode(text_input="SHOUT"))
    assert isinstance(refused, Failure)
    assert "loud" in refused.message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("spell", "missing 3 required"),
        ("SimpleNamespace", "none of find, judge, judge_answer"),
        ("FindOnly", "not open_from"),
    ],
)
def test_a_hook_that_could_check_nothing_is_refused(name: str, reason: str) -> None:
    config = SafetyConfig.model_validate({"content": {"hook": f"tests.gateway.test_content:{name}"}})
    with pytest.raises(ConfigError, match=reason):
        make_screening(config)


class FindOnly:
    find = LoudCheck.find


def spell(service: Any, asked: Any, context: Any) -> Iterator[Any]:
    """Say back the prompt, three characters a response."""
    text = asked.raw_input_contents[0][4:].decode()
    size = 200_000 if text.startswith("large") else 3
    for start in range(0, len(text), size):
        last = start + size >= len(text)
        response = pb.ModelInferResponse(id=asked.id, model_name="llm")
        piece = text[start : start + size].encode()
        for name, raw in {
            "text_output": struct.pack("<I", len(piece)) + piece,
            "token_ids": struct.pack("<i", start),
            "finish_reason": b"\x06\0\0\0length" if last else b"\0\0\0\0",
            **dict.fromkeys(("prompt_tokens", "completion_tokens", "cached_tokens"), struct.pack("<i", start)),
        }.items():
            response.outputs.add(name=name)
            response.raw_output_contents.append(raw)
        yield pb.ModelStreamInferResponse(infer_response=response)
    while text.startswith("hang") and context.is_active() and not service.backend.stopped.wait(0.02):
        pass


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    ended: list[tuple[GatewayProcess, Backend]] = []

    def run(*rules: dict[str, Any], **content: object) -> tuple[GatewayProcess, Backend]:
        config = tmp_path / "gateway.yaml"
        config.write_text(yaml.safe_dump({"safety": {"content": {"rules": list(rules)} | content}}))
        backend = Backend("a")
        gateway = GatewayProcess(backend.flag, flags=("--config", str(config)))
        ended.append((gateway, backend))
        gateway.wait_usable(1)
        return gateway, backend

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_module._Service, "_answer", spell)
        yield run
        for gateway, backend in ended:
            gateway.stop()
            backend.stop()


def test_an_answer_is_masked_and_its_tokens_are_not_told(start: Start) -> None:
    gateway, _ = start(CARD | {"on": ["output"]}, NOTED)
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(pb.ModelInferRequest.FromString(encode(text_input="hello, pay 1234-5678 to me")))
        answers = [item.infer_response for item in stream.rest()]
    names = [[output.name for output in item.outputs] for item in answers]
    assert all("token_ids" not in item and item[0] == "text_output" for item in names)
    assert b"".join(item.raw_output_contents[0][4:] for item in answers) == b"hello, pay *** to me"
    assert gateway.metric('gateway_content_findings_total{action="mask",place="output",rule="card"}') == 1
    assert gateway.metric('gateway_content_findings_total{action="flag",place="prompt",rule="noted"}') == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_blocked_answer_ends_as_openai_says_and_is_aborted(start: Start, stream: bool) -> None:
    gateway, backend = start(WORDS | {"on": ["output"]})
    with OpenAI(base_url=f"http://{gateway.http}/v1", api_key="none", max_retries=0, timeout=20) as client:
        answer: Any = client.completions.create(model="llm", prompt="hang: a bad word, and more", stream=stream)
        choices = [event.choices[0] for event in answer] if stream else [answer.choices[0]]
        assert "".join(choice.text for choice in choices) == "hang: a "
        assert choices[-1].finish_reason == "content_filter"
    assert backend.wait_for(lambda: len(backend.aborted) == 1)


def test_a_blocked_prompt_is_a_bad_request(start: Start) -> None:
    gateway, backend = start(WORDS)
    with (
        OpenAI(base_url=f"http://{gateway.http}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.BadRequestError, match="content rule words"),
    ):
        client.chat.completions.create(model="llm", messages=[{"role": "user", "content": "worse"}])
    assert backend.requests == []


@pytest.mark.parametrize("text", ["0123456789 " * 3000, "large " + "0123456789 " * 60_000])
def test_a_long_checked_answer_flows_on_in_small_and_in_large_messages(start: Start, text: str) -> None:
    gateway, _ = start(CARD | {"on": ["output"]})
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(pb.ModelInferRequest.FromString(encode(text_input=text)))
        parts = [item.infer_response.raw_output_contents[0][4:] for item in stream.rest()]
    assert b"".join(parts) == text.encode()


class FragileCheck(LoudCheck):
    """A hook that breaks."""

    def find(self, text: str, place: str) -> list[Finding]:
        if text.startswith(f"break the {place}"):
            raise RuntimeError("a defect")
        return []


@pytest.mark.parametrize("place", ["prompt", "output"])
def test_a_defect_ends_one_stream_and_no_other_on_its_connections(start: Start, place: str) -> None:
    gateway, _ = start(hook="tests.gateway.test_content:FragileCheck")
    with Client(gateway.url) as client:
        other, broken = client.stream(), client.stream()
        other.send(pb.ModelInferRequest.FromString(encode(text_input="hang")))
        other.read()
        broken.send(pb.ModelInferRequest.FromString(encode(text_input=f"break the {place}")))
        try:
            assert "its log says how" in broken.rest()[-1].error_message
        except grpc.RpcError as error:
            assert "its log says how" in str(error)
        other.send(pb.ModelInferRequest.FromString(encode(text_input="on it goes")))
        texts = [other.read().infer_response.raw_output_contents[0][4:] for _ in range(3)]
        assert b"on " in b"".join(texts)
        other.cancel()
    assert gateway.metric("gateway_resumes_total") == gateway.metric("gateway_retries_total") == 0


class AnswerModerator:
    """A hook that waits for a verdict on answers: `bad` is forbidden, `broken` breaks it, `slow` takes for ever."""

    async def judge_answer(self, texts: list[str]) -> str | None:
        return await Moderator().judge(texts)


@pytest.mark.parametrize(
    ("text", "stops_before", "error"),
    [
        ("all is well. " * 400, None, ""),
        ("hang on, all is bad", "bad", ""),
        ("this is broken ", "broken", "UNAVAILABLE: the answer could not be judged"),
        ("this is slow", "slow", "UNAVAILABLE: the answer was not judged within 0.5 s"),
    ],
)
def test_an_asynchronous_hook_judges_answers_before_they_pass(
    start: Start, text: str, stops_before: str | None, error: str
) -> None:
    hook = "tests.gateway.test_content:AnswerModerator"
    gateway, backend = start(hook=hook, judge_timeout_s=0.5 if "slow" in text else 60)
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(pb.ModelInferRequest.FromString(encode(text_input=text)))
        answers = stream.rest()
    parts = [item.infer_response.raw_output_contents[0][4:] for item in answers if not item.error_message]
    said = b"".join(parts).decode()
    assert text.startswith(said)
    assert (said == text) if stops_before is None else (stops_before not in said)
    assert [item.error_message for item in answers if item.error_message] == ([error] if error else [])
    if stops_before == "bad":
        assert answers[-1].infer_response.raw_output_contents[1] == b"\x0e\0\0\0content_filter"
        assert gateway.metric('gateway_content_findings_total{action="block",place="output",rule="moderation"}') == 1
        assert backend.wait_for(lambda: len(backend.aborted) == 1)


def test_of_what_would_conclude_a_judged_answer_the_first_counts() -> None:
    """A rule's block, then the end of the instance's stream while the verdict is awaited: it stays a block."""
    done: list[str] = []

    async def run() -> None:
        verdict, ended = asyncio.get_running_loop().create_future(), asyncio.Event()

        async def judge(_texts: list[str]) -> str | None:
            return await verdict

        def conclude(how: str) -> None:
            done.append(how)
            ended.set()

        link = SimpleNamespace(hub=SimpleNamespace(flush=lambda: None))
        exchange = SimpleNamespace(deliver=lambda *_: done.append("delivered"), link=link)
        request, screen = SimpleNamespace(exchange=exchange), SimpleNamespace(texts=list)
        hearing = Hearing(judge, 60.0, screen, request)  # type: ignore[arg-type]
        hearing.take([(b"a", True)], 1)
        hearing.conclude(lambda: conclude("blocked"))
        hearing.conclude(lambda: conclude("whole"))
        verdict.set_result(None)
        async with asyncio.timeout(10):
            await ended.wait()

    asyncio.run(run())
    assert done == ["delivered", "blocked"]


class Moderator:
    """A hook that waits: `bad` is forbidden, `broken` breaks it, `slow` takes for ever."""

    async def judge(self, texts: list[str]) -> str | None:
        await asyncio.sleep(0)
        text = " ".join(texts)
        if "broken" in text:
            raise RuntimeError("no service")
        if "slow" in text:
            await asyncio.get_running_loop().create_future()
        return "moderation" if "bad" in text else None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("good", None),
        ("bad", "the prompt is blocked by the content rule moderation"),
        ("broken", "UNAVAILABLE: the prompt could not be judged"),
        ("slow", "UNAVAILABLE: the prompt was not judged within 0.01 s"),
    ],
)
def test_an_asynchronous_hook_judges_prompts(text: str, expected: str | None) -> None:
    patience = 0.01 if text == "slow" else 60  # a loaded machine takes longer than 10 ms for any verdict
    content = {"hook": "tests.gateway.test_content:Moderator", "judge_timeout_s": patience}
    config = SafetyConfig.model_validate({"content": content})

    async def ask() -> Failure | None:
        verdict: asyncio.Future[Failure | None] = asyncio.get_running_loop().create_future()
        entrance = Entrance(
            config, lambda _: verdict.set_result(None), lambda _, failure: verdict.set_result(failure), lambda: None
        )
        entrance.take(asked(text))
        return await verdict

    failure = asyncio.run(ask())
    assert (None if failure is None else failure.message) == expected


def test_a_request_that_leaves_is_not_judged_any_more() -> None:
    content = {"hook": "tests.gateway.test_content:Moderator"}
    config = SafetyConfig.model_validate({"content": content})
    told: list[object] = []

    async def ask() -> None:
        entrance = Entrance(config, told.append, lambda *given: told.append(given), lambda: None)
        request = asked("slow")
        entrance.take(request)
        await asyncio.sleep(0)
        entrance.leave(request)
        await asyncio.sleep(0)

    asyncio.run(ask())
    assert not told


@pytest.mark.parametrize("leaves", [False, True])
def test_nobody_waits_for_a_judge_that_catches_its_cancellation(leaves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.content.judging.STOP_SECONDS", 0.0)

    async def run() -> object:
        begun, over = asyncio.Event(), asyncio.Event()

        async def judge(_texts: list[str]) -> str | None:
            try:
                while True:
                    with contextlib.suppress(asyncio.CancelledError):
                        begun.set()
                        await asyncio.get_running_loop().create_future()
            finally:
                over.set()

        asking = asyncio.get_running_loop().create_task(ask(judge, ["text"], 60.0 if leaves else 0.01, "prompt"))
        async with asyncio.timeout(10):
            await begun.wait()
            if leaves:
                asking.cancel()
            (said,) = await asyncio.gather(asking, return_exceptions=True)
            await over.wait()
        return said

    assert isinstance(asyncio.run(run()), asyncio.CancelledError if leaves else Failure)


def test_a_verdict_that_is_none_lets_nothing_pass() -> None:
    async def judge(_texts: list[str]) -> Any:
        return True

    said = asyncio.run(ask(judge, ["text"], 60.0, "answer"))
    assert isinstance(said, Failure)
    assert said.message == "UNAVAILABLE: the answer could not be judged"


def asked(text: str) -> Any:
    link: Any = SimpleNamespace(loop=SimpleNamespace(time=lambda: 0.0), connection=Connection(Role.SERVER))
    call = parse_call(((b":method", b"POST"), (b":path", STREAM_INFER), (b"content-type", b"application/grpc")))
    dispatcher: Any = SimpleNamespace(max_request_bytes=1000)
    exchange = Exchange(link, Stream(1, link.connection.outbox, 1000, 1000), call, dispatcher)
    request = Request(exchange, 0.0)
    request.add(encode("llm", text_input=text), complete=True)
    return request
