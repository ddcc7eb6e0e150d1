"""The engine adapter with a stand-in for the engine: each request ends in exactly one final answer."""

import json
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from engine.errors import EngineUnavailable, InvalidRequest, QueueFull
from engine.messages import ModelInfo
from engine.outputs import EngineStats, FinishReason, RequestOutput, Timings
from engine.sampling_params import SamplingParams
from engine.top_tokens import TopTokens
from tests.triton_models.fake_pb_utils import InferenceRequest, MetricFamily, Tensor, TritonError

WAIT = 10.0


class FakeClient:
    """Takes requests; the test says what comes out."""

    def __init__(self, config: Any, on_outputs: Callable[[list[RequestOutput]], None]) -> None:
        self.on_outputs, self.submitted, self.aborted = on_outputs, [], []
        self.stats, self.is_up = EngineStats(num_running=3, block_size=16, num_generated_tokens=7), True
        self.tasks: list[Any] = []
        self.managed: list[tuple[str, bool]] = []
        self.failure: Exception | None = None
        self.info = ModelInfo(vocab_size=256, max_model_len=64, block_size=16, num_blocks=8, eos_token_ids=())
        self.closed = False

    def start(self) -> None:
        pass

    def submit(
        self,
        prompt_ids: list[int],
        params: Any,
        arrived: float,
        resume_ids: tuple[int, ...],
        *,
        scheduling: Any,
        task: Any,
    ) -> int:
        if self.failure is not None:
            raise self.failure
        self.submitted.append((prompt_ids, params, resume_ids, scheduling))
        self.tasks.append(task)
        return len(self.submitted)

    def manage_adapter(self, name: str = "", *, is_unload: bool = False) -> int:
        self.managed.append((name, is_unload))
        return 100 + len(self.managed)

    def abort(self, request_id: int) -> None:
        self.aborted.append(request_id)
        self.on_outputs([RequestOutput(request_id, finish_reason=FinishReason.CANCELLED)])

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def module(load_adapter: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loaded = load_adapter("llm_engine")
    monkeypatch.setattr(loaded, "EngineClient", FakeClient)
    monkeypatch.setattr(loaded, "CANCEL_POLL_SECONDS", 0.01)
    return loaded


@pytest.fixture
def model(module: ModuleType) -> Any:
    made = module.TritonPythonModel()
    made.initialize({"model_name": "llm_engine"})
    yield made
    made.finalize()


def request(parameters: dict[str, Any] | None = None, *, stream: bool = True, **sampling: Any) -> InferenceRequest:
    options = np.array([json.dumps({"sampling": sampling, "stream": stream}).encode()], dtype=np.object_)
    ids = np.array([90, 91], dtype=np.int32)
    return InferenceRequest(parameters, request_id="r", prompt_ids=ids, request_options=options)


def test_scheduling_facts_reach_the_engine_and_are_optional(model: Any):
    facts = {"tenant": "t", "tenant_weight": 3, "priority_class": 2, "deadline_ms": 500, "cache_salt": "s"}
    with_facts = request()
    with_facts.inputs()[1] = Tensor(
        "request_options",
        np.array([json.dumps({"sampling": {}, "scheduling": facts, "stream": True}).encode()], dtype=np.object_),
    )
    model.execute([request(), with_facts])
    assert [scheduling.to_mapping() for *_, scheduling in model._client.submitted] == [{}, facts]


def test_the_name_of_an_adapter_reaches_the_engine(model: Any):
    with_adapter = request()
    text = json.dumps({"sampling": {}, "task": {"adapter": "pirate"}, "stream": True})
    with_adapter.inputs()[1] = Tensor("request_options", np.array([text.encode()], dtype=np.object_))
    model.execute([request(), with_adapter])
    assert [task.adapter for task in model._client.tasks] == ["", "pirate"]


def test_an_embedding_is_one_response_without_tokens(model: Any):
    made = request()
    text = json.dumps({"sampling": {}, "task": {"embed": "mean"}, "stream": True})
    made.inputs()[1] = Tensor("request_options", np.array([text.encode()], dtype=np.object_))
    model.execute([made])
    vector = np.array([0.5, -1.5], dtype=np.float32)
    model._client.on_outputs([RequestOutput(1, finish_reason=FinishReason.STOP, num_prompt_tokens=2, embedding=vector)])
    assert finish_reasons(made) == ["stop"]
    tensors = made.sender.responses[0].tensors
    assert (tensors["embedding"].tolist(), tensors["token_ids"].tolist()) == ([0.5, -1.5], [])


def adapters(text: str) -> InferenceRequest:
    return InferenceRequest(adapters=np.array([text.encode()], dtype=np.object_))


def test_adapters_are_listed_loaded_and_unloaded_by_messages(model: Any):
    made = [adapters("{}"), adapters('{"load": "a"}'), adapters('{"unload": "a"}')]
    model.execute(made)
    assert model._client.managed == [("", False), ("a", False), ("a", True)]
    for number, one in enumerate(made, 101):
        told = '{"a": {"state": "ready"}}'
        model._client.on_outputs([RequestOutput(number, finish_reason=FinishReason.STOP, adapters=told)])
        assert finish_reasons(one) == ["stop"]
        assert one.sender.responses[0].tensors["adapters"].tolist() == [told.encode()]


@pytest.mark.parametrize(
    "text", ["[]", "x", '{"load": ""}', '{"load": 1}', '{"drop": "a"}', '{"load": "a", "unload": "b"}']
)
def test_other_messages_about_adapters_are_refused(model: Any, text: str):
    made = adapters(text)
    model.execute([made])
    assert made.sender.done.wait(WAIT)
    assert made.sender.responses[0].error().code() == TritonError.INVALID_ARG
    assert not model._client.managed


def abort(key: str, **more: Any) -> InferenceRequest:
    return InferenceRequest(abort=np.array([key.encode()], dtype=np.object_), **more)


def finish_reasons(made: InferenceRequest) -> list[str]:
    assert made.sender.done.wait(WAIT)
    return [r.tensors["finish_reason"][0].decode() for r in made.sender.responses]


def test_a_request_streams_chunks_with_their_facts_and_one_final_response(model: Any):
    made = request(max_tokens=5)
    assert model.execute([made]) is None
    times = Timings(arrived=1.0, scheduled=1.5, first_token=2.0)
    done = Timings(arrived=1.0, scheduled=1.5, first_token=2.0, finished=4.0)
    model._client.on_outputs([RequestOutput(1, [90], num_prompt_tokens=2, num_cached_tokens=1, timings=times)])
    model._client.on_outputs(
        [
            RequestOutput(
                1, [91], [-0.5], FinishReason.STOP, num_prompt_tokens=2, num_preemptions=3, trim_chars=1, timings=done
            )
        ]
    )
    assert finish_reasons(made)[-1] == "stop"
    last = {name: array.tolist() for name, array in made.sender.responses[-1].tensors.items()}
    assert [i for r in made.sender.responses for i in r.tensors["token_ids"]] == [90, 91]
    assert last["prompt_tokens"] == [2]
    assert last["completion_tokens"] == [2]
    assert last["preemptions"] == [3]
    assert last["text_window"][0] == 1
    assert (last["queue_seconds"], last["ttft_seconds"], last["e2e_seconds"]) == ([0.5], [1.0], [3.0])
    assert last["detokenize_seconds"][0] > 0
    assert model._client.submitted[0][0] == [90, 91]
    assert model._client.submitted[0][1].max_tokens == 5


def test_a_response_tells_when_its_request_came_to_triton_and_to_the_engine(model: Any):
    made = request()
    made.inputs().append(Tensor("received_ns", np.array([123], dtype=np.int64)))
    model.execute([made])
    arrived, now = time.monotonic(), time.time_ns()
    times = Timings(arrived=arrived, finished=arrived)
    model._client.on_outputs([RequestOutput(1, [90], finish_reason=FinishReason.STOP, timings=times)])
    assert finish_reasons(made)[-1] == "stop"
    received, engine_in = made.sender.responses[-1].tensors["clock_ns"].tolist()
    assert received == 123
    assert abs(engine_in - now) < 10**9


def test_a_copy_has_a_key_of_its_own_and_the_seed_of_the_first(model: Any):
    first, copy = (
        request(given, temperature=1.0) for given in ({"request_key": "k"}, {"request_key": "k.2", "seed_key": "k"})
    )
    model.execute([first, copy])
    assert model._client.submitted[0][1] == model._client.submitted[1][1]
    model.execute([abort("k.2")])
    assert finish_reasons(copy) == ["cancelled"]
    assert not first.sender.done.is_set()


def test_a_resumed_request_goes_on_behind_what_was_delivered_with_the_seed_of_its_key(model: Any):
    made = request({"request_key": "k"}, temperature=1.0)
    made.inputs().append(Tensor("resume_token_ids", np.array([70, 71, 72], dtype=np.int32)))
    model.execute([made])
    model._client.on_outputs([RequestOutput(1, [90], finish_reason=FinishReason.STOP, num_completion_tokens=4)])
    assert finish_reasons(made)[-1] == "stop"
    _, params, resume_ids, _ = model._client.submitted[0]
    assert (params, resume_ids) == (SamplingParams(temperature=1.0).with_seed_of("k"), (70, 71, 72))
    last = made.sender.responses[-1].tensors
    assert (last["token_index"].tolist(), last["completion_tokens"].tolist()) == ([3], [4])


def test_each_sequence_has_its_own_responses_and_triton_sees_one_final_flag(model: Any):
    made = request(n=2, logprobs=True, top_logprobs=1)
    model.execute([made])
    top = TopTokens(1, [7], [-0.25])
    for index, open_after, end in ((1, 2, None), (0, 1, FinishReason.STOP), (1, 0, FinishReason.LENGTH)):
        facts: dict[str, Any] = {"sequence_index": index, "num_open_sequences": open_after, "top": top}
        model._client.on_outputs([RequestOutput(1, [90 + index], [-0.5], end, **facts)])
    assert made.sender.done.wait(WAIT)
    seen = [r.tensors for r in made.sender.responses]
    assert [t["sequence_index"][0] for t in seen if t["finish_reason"][0]] == [0, 1]
    for index, count in ((0, 1), (1, 2)):
        own = [t for t in seen if t["sequence_index"][0] == index]
        assert [i for t in own for i in t["token_ids"]] == [90 + index] * count
        assert [i for t in own for i in t["top_token_ids"]] == [7] * count
        assert own[-1]["completion_tokens"].tolist() == [count]


def test_an_echoed_prompt_leads_the_first_response_and_prompt_log_probs_go_with_it(model: Any):
    made = request(echo=True, logprobs=True, prompt_logprobs=True)
    model.execute([made])
    model._client.on_outputs([RequestOutput(1, [92], [-0.5], FinishReason.STOP, prompt_log_probs=[-2.0])])
    assert finish_reasons(made) == ["stop"]
    tensors = made.sender.responses[0].tensors
    assert tensors["token_ids"].tolist() == [90, 91, 92]
    assert tensors["log_probs"].tolist()[1:] == [-2.0, -0.5]
    assert tensors["prompt_log_probs"].tolist()[1:] == [-2.0]
    assert np.isnan([tensors["log_probs"][0], tensors["prompt_log_probs"][0]]).all()
    assert (tensors["completion_tokens"].tolist(), tensors["token_index"].tolist()) == ([1], [0])


def test_without_streaming_there_is_one_response(model: Any):
    made = request(stream=False)
    model.execute([made])
    for token_id in (90, 91):
        model._client.on_outputs([RequestOutput(1, [token_id])])
    model._client.on_outputs([RequestOutput(1, [92], finish_reason=FinishReason.LENGTH)])
    assert finish_reasons(made) == ["length"]
    assert made.sender.responses[0].tensors["token_ids"].tolist() == [90, 91, 92]


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (InvalidRequest("bad"), TritonError.INVALID_ARG, "bad"),
        (QueueFull("5 requests are waiting", 5), TritonError.UNAVAILABLE, "RESOURCE_EXHAUSTED: the queue is full"),
        (EngineUnavailable("restarting"), TritonError.UNAVAILABLE, "UNAVAILABLE: restarting"),
        (ZeroDivisionError("oops"), TritonError.INTERNAL, "INTERNAL: llm_engine failed"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_refused_request_gets_one_error_and_the_next_one_is_served(
    model: Any, failure: Exception, code: int, message: str
):
    refused, served = request(), request()
    model._client.failure = failure
    model.execute([refused])
    model._client.failure = None
    model.execute([served])
    model._client.on_outputs([RequestOutput(1, [90], finish_reason=FinishReason.STOP)])
    assert refused.sender.done.is_set()
    assert len(refused.sender.responses) == 1
    assert refused.sender.responses[0].error().code() == code
    assert refused.sender.responses[0].error().message().startswith(message)
    assert finish_reasons(served) == ["stop"]


def test_an_error_of_the_engine_is_the_one_final_response(model: Any):
    made = request()
    model.execute([made])
    ended = RequestOutput(1, finish_reason=FinishReason.ERROR, error="the core is gone", error_code="UNAVAILABLE")
    model._client.on_outputs([ended])
    assert made.sender.done.wait(WAIT)
    error = made.sender.responses[-1].error()
    assert (error.code(), error.message()) == (TritonError.UNAVAILABLE, "UNAVAILABLE: the core is gone")


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"prompt_ids": np.array([1], dtype=np.int32)},
        {"prompt_ids": np.array([1], dtype=np.int32), "request_options": np.array([b"{}"], dtype=np.object_)},
        {"abort": np.array([b"k"], dtype=np.object_), "prompt_ids": np.array([1], dtype=np.int32)},
        {"abort": np.array([b"\xff"], dtype=np.object_)},
    ],
)
def test_direct_calls_that_make_no_sense_are_refused(model: Any, tensors: dict[str, Any]):
    made = InferenceRequest(**tensors)
    model.execute([made])
    assert made.sender.done.is_set()
    assert [r.error().code() for r in made.sender.responses] == [TritonError.INVALID_ARG]


@pytest.mark.parametrize("parameters", [{"request_key": "k"}, {}])
def test_an_abort_ends_the_request_it_names_and_is_answered_itself(model: Any, parameters: dict[str, Any]):
    made, message = request(parameters), abort("k" if parameters else "r")
    model.execute([made])
    model.execute([message])
    assert finish_reasons(message) == ["cancelled"]
    assert finish_reasons(made)[-1] == "cancelled"
    assert model._client.aborted == [1]


def test_an_abort_of_nobody_is_answered_and_cancels_a_request_that_comes_late(model: Any):
    message, late, other = abort("k"), request({"request_key": "k"}), request({"request_key": "other"})
    model.execute([message, late, other])
    assert finish_reasons(message) == ["cancelled"]
    assert finish_reasons(late) == ["cancelled"]
    assert not other.sender.done.is_set()
    assert model._client.aborted == [1]


def test_a_direct_client_that_cancels_is_noticed(model: Any):
    made = request()
    model.execute([made])
    made.sender.cancelled = True
    assert finish_reasons(made) == ["cancelled"]


def test_metrics_and_heartbeat_are_exported(model: Any):
    made = MetricFamily.made
    pulse = made["llm_heartbeat"].metrics[(("model", "llm_engine"),)]
    assert pulse.changed.wait(WAIT)
    assert made["llm_running_requests"].metrics[()].value == 3
    assert made["llm_engine_up"].metrics[()].value == 1
    assert made["llm_generated_tokens_total"].metrics[()].value == 7


def test_unloading_closes_the_engine(module: ModuleType):
    made = module.TritonPythonModel()
    made.initialize({"model_name": "llm_engine"})
    made.finalize()
    assert made._client.closed
