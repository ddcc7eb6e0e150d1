"""Adapters and embeddings through tritonserver and gateway: what the offline engine says, and managing by messages."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.lora.adapter_file import inspect_adapter, load_adapter
from engine.offline import generate
from engine.sampling_params import SamplingParams
from engine.task_params import TaskParams
from scripts.launcher.cluster import Cluster
from tests.e2e.conftest import ADAPTERS
from tests.e2e.kserve import add_tensor, ask, ask_all, connect, make_request, pb, read_outputs

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def core(adapters: Path) -> EngineCore:
    return EngineCore(EngineConfig(num_threads=1, kv_cache_gib=0.25, adapters=adapters))


def manage(cluster: Cluster, wish: dict[str, str]) -> Any:
    """Ask the instance about adapters; return the states, or the error."""
    request = pb.ModelInferRequest(model_name="llm_engine")
    add_tensor(request, "adapters", "BYTES", json.dumps(wish))
    with connect(cluster.instances[0].grpc_url) as stub:
        for message in stub.ModelStreamInfer(iter([request]), timeout=60):
            if message.error_message:
                return message.error_message
            if outputs := read_outputs(message.infer_response):
                return {name: told["state"] for name, told in json.loads(outputs["adapters"]).items()}
    raise AssertionError("no answer")


def test_each_stream_says_what_its_adapter_says(healing_cluster: Cluster, core: EngineCore, adapters: Path) -> None:
    chosen = ["first", "", "second", "first", "", "second"]
    requests = [
        make_request(PROMPT, max_tokens=24, ignore_eos=True, **({"adapter": name} if name else {})) for name in chosen
    ]
    answers = ask_all(healing_cluster.gateway.grpc_url, requests)
    loaded = {
        name: load_adapter(inspect_adapter(name, adapters / name, core.runner.adapter_targets, 8)) for name in ADAPTERS
    }
    prompt = core.tokenizer.encode(PROMPT)
    params = [SamplingParams(max_tokens=24, ignore_eos=True)] * len(chosen)
    expected = generate(core, [prompt] * len(chosen), params, [loaded.get(name) for name in chosen])
    for answer, completion in zip(answers, expected, strict=True):
        answer.check_order()
        assert (answer.token_ids, answer.text) == (completion.token_ids, completion.text)
    assert len({answer.text for answer in answers}) == 3


def test_adapters_are_loaded_listed_and_unloaded_by_messages(healing_cluster: Cluster) -> None:
    assert manage(healing_cluster, {"load": "first"})["first"] == "ready"
    assert "first" not in manage(healing_cluster, {"unload": "first"})
    assert "first" not in manage(healing_cluster, {})
    assert "there is no adapter 'third'; there are: first, second" in manage(healing_cluster, {"load": "third"})
    with connect(healing_cluster.gateway.grpc_url) as stub:
        answer = ask(stub, make_request(PROMPT, max_tokens=2, adapter="third"))
    assert len(answer.errors) == 1
    assert "there is no adapter 'third'; there are: first, second" in answer.errors[0]


def test_embeddings_through_openais_client_are_the_offline_engines(healing_cluster: Cluster, core: EngineCore) -> None:
    texts = [PROMPT, "A dog and a cat", "x"]
    for index, text in enumerate(texts):
        task = TaskParams(embed="mean")
        core.add(index, core.tokenizer.encode(text), SamplingParams(), 0.0, task=task)
    expected = {output.request_id: output.embedding for _ in range(9) if core.has_work for output in core.step()}
    with OpenAI(base_url=f"http://{healing_cluster.gateway.http_url}/v1", api_key="none", timeout=60) as client:
        done = client.embeddings.create(model="llm", input=texts, extra_body={"pooling": "mean"})
        for item in done.data:
            vector = expected[item.index]
            assert vector is not None
            np.testing.assert_allclose(item.embedding, vector, rtol=0.0, atol=1e-4)
        assert done.usage.prompt_tokens == sum(len(core.tokenizer.encode(text)) for text in texts)
        other = client.embeddings.create(
            model="llm", input=texts[0], extra_body={"pooling": "mean", "adapter": "second"}
        )
        assert float(np.dot(other.data[0].embedding, done.data[0].embedding)) < 0.999
        with pytest.raises(openai.BadRequestError, match="there is no adapter 'third'"):
            client.embeddings.create(model="llm", input="x", extra_body={"adapter": "third"})
