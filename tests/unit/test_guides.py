"""Whatever a model prefers, guided text follows its guide; and other requests of the batch do not notice."""

import json
import queue
import random
import re
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.core_process import CoreLoop, Event
from engine.errors import InvalidRequest
from engine.guided_options import Guided
from engine.guides import GuideFactory
from engine.messages import AbortCommand, AddCommand
from engine.offline import generate
from engine.outputs import EngineStats, FinishReason, RequestOutput
from engine.sampling_params import SamplingParams
from engine.text.tokenizer import Tokenizer
from gateway.demanded_calls import call_grammar
from gateway.openai_parts import Function, Tool
from tests.conftest import TinyModel
from tests.tokenizer_folders import make_byte_fallback, make_byte_level, make_unigram

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["世界", "cat"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
CHOICES = ["yes", "no", "maybe 😀", 'a "quoted" one']


def follows_schema(text: str) -> bool:
    value = json.loads(text)
    return (
        set(value) == {"name", "age", "tags"}
        and value["name"] in {"世界", "cat"}
        and 0 <= value["age"] <= 99
        and len(value["tags"]) <= 3
        and all(isinstance(tag, bool) for tag in value["tags"])
    )


def tool(name: str, answer: dict[str, Any]) -> Tool:
    """Return a tool whose schema refers to a definition of its own, under a name that others use too."""
    parameters = {"$defs": {"Answer": answer}, "properties": {"it": {"$ref": "#/$defs/Answer"}}, "required": ["it"]}
    return Tool(type="function", function=Function(name=name, parameters=parameters))


def is_call(text: str) -> bool:
    call = json.loads(text)
    answers = {"pick.one": ["yes", "no"], "is-it": [True, False]}
    return set(call) == {"name", "arguments"} and call["arguments"] in [
        {"it": answer} for answer in answers[call["name"]]
    ]


CALLS = call_grammar([tool("pick.one", {"enum": ["yes", "no"]}), tool("is-it", {"type": "boolean"})])
GUIDES: dict[str, tuple[dict[str, Any], Callable[[str], Any]]] = {
    "json_schema": ({"json_schema": SCHEMA}, follows_schema),
    "json_object": ({"json_object": True}, lambda text: isinstance(json.loads(text), dict)),
    "regex": ({"regex": r"[a-f]{2,5}-([0-9]{3}|é+!)"}, re.compile(r"[a-f]{2,5}-([0-9]{3}|é+!)").fullmatch),
    "gbnf": ({"ebnf": 'root ::= "(" root ")" | "x"'}, re.compile(r"(\(*)x(\)*)").fullmatch),
    "lark": ({"ebnf": 'start: "a" | "b" start'}, re.compile(r"b*a").fullmatch),
    "choice": ({"choice": CHOICES}, CHOICES.__contains__),
    "call": ({"ebnf": CALLS}, is_call),
}


@pytest.fixture(scope="module")
def core(tiny_llama: TinyModel) -> EngineCore:
    return EngineCore(EngineConfig(model=tiny_llama.path, block_size=4, num_blocks=400, num_threads=1))


@pytest.fixture(scope="module", params=["demo", "byte level", "byte fallback", "unigram"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "demo":
        return Tokenizer.from_dir(EngineConfig().model)
    makers = {"byte level": make_byte_level, "byte fallback": make_byte_fallback, "unigram": make_unigram}
    make = makers[request.param]
    return Tokenizer.from_dir(make(tmp_path_factory.mktemp("tokenizer")))


def random_text(tokenizer: Tokenizer, guided: dict[str, Any], seed: int, limit: int = 400) -> str | None:
    """Choose among the allowed tokens at random, an end where there is one; None where that takes too long."""
    guide = GuideFactory(tokenizer).make(Guided.from_json(guided))
    chosen: list[int] = []
    rng = random.Random(seed)
    while not guide.is_over and len(chosen) < limit:
        allowed = guide.allowed(tokenizer.vocab_size + 7, tokenizer.eos_ids).nonzero()[0].tolist()
        if tokenizer.eos_ids & set(allowed):
            break
        chosen.append(rng.choice(allowed))
        guide.accept(chosen[-1])
    return tokenizer.decode(chosen) if len(chosen) < limit else None


@pytest.mark.parametrize("kind", GUIDES)
def test_any_allowed_tokens_of_any_tokenizer_spell_a_text_that_follows(tokenizer: Tokenizer, kind: str) -> None:
    guided, follows = GUIDES[kind]
    texts = [random_text(tokenizer, guided, seed) for seed in range(12)]
    finished = [text for text in texts if text is not None]
    assert len(finished) > 3
    for text in finished:
        assert follows(text), text


@pytest.mark.parametrize(
    ("kind", "ignore_eos"),
    [("json_schema", False), ("regex", True), ("choice", False), ("choice", True), ("lark", True)],
)
def test_completions_follow_with_and_without_an_end_of_sequence(core: EngineCore, kind: str, ignore_eos: bool) -> None:
    guided, follows = GUIDES[kind]
    options = {"guided": guided, "temperature": 1.0, "max_tokens": 150, "ignore_eos": ignore_eos, "n": 3}
    for completion in generate(core, [[5, 6]], [SamplingParams.from_mapping({**options, "seed": 1})]):
        assert completion.finish_reason is FinishReason.STOP
        assert follows(completion.text), completion.text


def test_unguided_requests_of_the_batch_say_the_same(core: EngineCore) -> None:
    free = SamplingParams(max_tokens=12, temperature=1.0, seed=4, ignore_eos=True)
    guided = SamplingParams.from_mapping({"max_tokens": 12, "guided": {"regex": "[ab]*"}, "ignore_eos": True})
    alone = generate(core, [[5, 6]], [free])[0]
    together = generate(core, [[5, 6], [7, 8], [9]], [free, guided, guided])
    assert together[0].token_ids == alone.token_ids
    assert re.fullmatch("[ab]{12}", together[1].text)


def test_a_complete_text_ends_even_before_min_tokens_and_an_open_one_goes_on(core: EngineCore) -> None:
    def run(pattern: str) -> tuple[str, FinishReason | None]:
        options = {"max_tokens": 9, "min_tokens": 5, "guided": {"regex": pattern}, "stop_token_ids": [97, 98]}
        completion = generate(core, [[5]], [SamplingParams.from_mapping(options)])[0]
        return completion.text, completion.finish_reason

    assert run("AB") == ("AB", FinishReason.STOP)
    text, _ = run("[AB]+")
    assert len(text) >= 5


def test_a_guided_request_goes_on_at_another_engine_and_survives_preemption(
    core: EngineCore, tiny_llama: TinyModel
) -> None:
    config = EngineConfig(model=tiny_llama.path, block_size=4, num_blocks=40, num_threads=1, max_num_seqs=4)
    tight = EngineCore(config)
    guided = {"json_schema": SCHEMA}
    params = [
        SamplingParams.from_mapping({"guided": guided, "temperature": 1.0, "seed": s, "max_tokens": 120})
        for s in range(4)
    ]
    whole = generate(core, [[5, 6]] * 4, params)
    assert [c.token_ids for c in generate(tight, [[5, 6]] * 4, params)] == [c.token_ids for c in whole]
    assert tight.read_stats().num_preemptions > 0
    for num_delivered in (1, 10):
        outputs = tight.add(1, [5, 6], params[0], 0.0, tuple(whole[0].token_ids[:num_delivered]))
        while tight.has_work:
            outputs += tight.step()
        assert [t for o in outputs for t in o.token_ids] == whole[0].token_ids[num_delivered:]
        assert outputs[-1].finish_reason is whole[0].finish_reason
    with pytest.raises(InvalidRequest, match="resume_token_ids cannot be followed: the guide does not allow token 5"):
        tight.add(1, [5, 6], params[0], 0.0, (5,))


@pytest.mark.parametrize(
    ("before", "goes_on"),
    [("{", True), ('{"a":', True), ('{"a":1', True), ("{ ", False), ("{\n", False), ("{\n\t", False)],
)
def test_blanks_between_the_tokens_of_json_have_an_end(core: EngineCore, before: str, goes_on: bool) -> None:
    """A model that likes blanks would fill its `max_tokens` with them."""
    guide = core.guides.make(Guided("json_object", "true"))
    for token in core.tokenizer.encode(before):
        guide.accept(token)
    (line,) = core.tokenizer.encode("\n")
    assert guide.allowed(core.tokenizer.vocab_size, frozenset())[line] == goes_on


def test_a_schema_that_allows_everything_is_one(core: EngineCore) -> None:
    guide = core.guides.make(Guided.from_json({"json_schema": True}))
    for token in core.tokenizer.encode('[1, {"a": null}]'):
        guide.accept(token)
    assert guide.allowed(core.tokenizer.vocab_size, frozenset({2}))[2]


@pytest.mark.parametrize(
    ("guided", "message"),
    [
        ({"regex": "[a"}, "guided.regex is not valid: .*unclosed character class"),
        ({"json_schema": {"type": "foo"}}, "guided.json_schema is not valid: Invalid type: foo"),
        ({"json_schema": "{bad"}, "guided.json_schema is not valid: Expecting property name"),
        ({"ebnf": "start: nope"}, 'guided.ebnf is not valid: .*unknown name: "nope"'),
    ],
)
def test_a_guide_that_cannot_be_compiled_is_refused_with_its_reason(
    core: EngineCore, guided: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        core.add(1, [5], SamplingParams.from_mapping({"guided": guided}), 0.0)
    assert not core.has_work


@pytest.mark.parametrize(
    ("guided", "message"),
    [
        ({"jsonschema": {}}, "guided must be an object with exactly one of json_schema, json_object, regex, ebnf"),
        ({"regex": "a", "choice": ["a"]}, "exactly one of"),
        ("a", "guided must be an object"),
        ({"regex": 5}, "guided.regex must be a string, got int"),
        ({"regex": ""}, "guided.regex must have 1 to 65536 characters, got 0"),
        ({"json_schema": 5}, "guided.json_schema must be a schema or its text, got int"),
        ({"json_object": False}, "guided.json_object must be true, got False"),
        ({"choice": []}, "guided.choice is empty"),
        ({"choice": "ab"}, "guided.choice must be a list of strings"),
        ({"choice": ["a", ""]}, "a choice must have 1 to"),
    ],
)
def test_what_is_no_guide_is_refused_before_any_engine_sees_it(guided: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SamplingParams.from_mapping({"guided": guided})


@pytest.mark.parametrize("kind", GUIDES)
def test_a_guide_crosses_to_the_engine_unchanged(kind: str) -> None:
    params = SamplingParams.from_mapping({"guided": GUIDES[kind][0], "logit_bias": {"7": -1.5, "300": 2}})
    assert SamplingParams.from_mapping(json.loads(params.to_json())) == params


class Loop:
    """A core loop fed by hand, with what it has sent."""

    def __init__(self, core: EngineCore) -> None:
        self.ours, theirs = Pipe()
        self.commands: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.loop = CoreLoop(core, theirs, self.commands)
        self.outputs: list[RequestOutput] = []

    def until_final(self, request_id: int) -> RequestOutput:
        while True:
            self.loop.turn()
            while self.ours.poll():
                message = self.ours.recv()
                self.outputs += [] if isinstance(message, EngineStats) else message
            found = [o for o in self.outputs if o.request_id == request_id and o.finish_reason is not None]
            if found:
                return found[-1]


def add(request_id: int, guided: dict[str, Any]) -> AddCommand:
    options = {"guided": guided, "max_tokens": 50, "temperature": 1.0, "seed": 1}
    return AddCommand(request_id, [5], SamplingParams.from_mapping(options), 0.0)


def test_guides_are_compiled_beside_the_loop_refused_and_aborted(core: EngineCore) -> None:
    loop = Loop(core)
    loop.commands.put(add(1, {"regex": "[ab]{4}"}))
    loop.commands.put(add(2, {"regex": "[ab"}))
    loop.commands.put(add(3, {"regex": "[ab]{4}"}))
    loop.commands.put(AbortCommand(3))
    assert loop.until_final(1).finish_reason is FinishReason.STOP
    refused = loop.until_final(2)
    assert (refused.finish_reason, refused.error_code) == (FinishReason.ERROR, "INVALID_ARGUMENT")
    assert loop.until_final(3).finish_reason is FinishReason.CANCELLED
    loop.commands.put(add(4, {"regex": "[ab]{4}"}))
    loop.until_final(4)
    assert sum(o.request_id == 3 for o in loop.outputs) == 1
    assert not loop.loop.compiling


def test_an_unguided_request_starts_while_a_guide_is_being_compiled(core: EngineCore, monkeypatch: pytest.MonkeyPatch):
    gate: queue.SimpleQueue[None] = queue.SimpleQueue()
    make = core.guides.make

    def slow(guided: Guided) -> Any:
        gate.get()
        return make(guided)

    monkeypatch.setattr(core.guides, "make", slow)
    loop = Loop(core)
    loop.commands.put(add(1, {"regex": "[ab]{4}"}))
    loop.commands.put(AddCommand(2, [5], SamplingParams(max_tokens=3, ignore_eos=True), 0.0))
    assert loop.until_final(2).finish_reason is FinishReason.LENGTH
    assert not [o for o in loop.outputs if o.request_id == 1]
    gate.put(None)
    assert loop.until_final(1).finish_reason is FinishReason.STOP


def test_the_folder_of_the_demo_model_makes_guides() -> None:
    factory = GuideFactory(Tokenizer.from_dir(Path("demo_model")))
    assert not factory.make(Guided.from_json({"choice": ["a"]})).is_over


def test_a_grammar_that_is_too_costly_to_follow_is_refused_at_once() -> None:
    guides = GuideFactory(Tokenizer.from_dir(EngineConfig().model))
    with pytest.raises(InvalidRequest, match=r"guided\.regex is not valid: .*too many expressions"):
        guides.make(Guided("regex", "(a{1000}){1000}"))
