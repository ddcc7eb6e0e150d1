"""Keys, limits and the lock on management, through a running gateway by gRPC and by OpenAI's client."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import openai
import pytest
import uvloop
import yaml
from openai import OpenAI

from gateway.safety.commands import refuse_command
from gateway.safety.config import SafetyConfig, TenantConfig
from gateway.safety.gate import Gate
from gateway.safety.tenant import make_tenant
from gateway.wire import protobuf
from tests.gateway import backend as backend_module
from tests.gateway.backend import Backend
from tests.gateway.clients import Client, request
from tests.gateway.process import GatewayProcess
from tests.gateway.protos import pb
from tests.gateway.test_openai_api import answer as openai_answer

Started = tuple[GatewayProcess, Backend]
Start = Callable[..., Started]
MANAGEMENT: dict[str, Any] = {
    "RepositoryModelLoad": pb.RepositoryModelLoadRequest(),
    "RepositoryModelUnload": pb.RepositoryModelUnloadRequest(),
    "SystemSharedMemoryStatus": pb.SystemSharedMemoryStatusRequest(),
    "SystemSharedMemoryRegister": pb.SystemSharedMemoryRegisterRequest(),
    "SystemSharedMemoryUnregister": pb.SystemSharedMemoryUnregisterRequest(),
    "CudaSharedMemoryStatus": pb.CudaSharedMemoryStatusRequest(),
    "CudaSharedMemoryRegister": pb.CudaSharedMemoryRegisterRequest(),
    "CudaSharedMemoryUnregister": pb.CudaSharedMemoryUnregisterRequest(),
    "TraceSetting": pb.TraceSettingRequest(),
    "LogSettings": pb.LogSettingsRequest(),
}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a starter of a gateway with the safety configuration, where keys are `key of TENANT`."""
    ended: list[Started] = []

    def run(**safety: Any) -> Started:
        keys = tmp_path / "keys"
        names = [tenant["name"] for tenant in safety.get("tenants", [])]
        keys.write_text("".join(f"{n} sha256:{hashlib.sha256(f'key of {n}'.encode()).hexdigest()}\n" for n in names))
        config = tmp_path / "gateway.yaml"
        config.write_text(yaml.safe_dump({"safety": safety | ({"keys_file": str(keys)} if names else {})}))
        backend = Backend("a")
        gateway = GatewayProcess(backend.flag, flags=("--config", str(config)))
        ended.append((gateway, backend))
        gateway.wait_usable(1)
        return gateway, backend

    with pytest.MonkeyPatch.context() as patch:
        plain = backend_module._Service._answer

        def answer(service: Any, asked: Any, context: Any) -> Iterator[Any]:
            return (openai_answer if asked.inputs else plain)(service, asked, context)

        patch.setattr(backend_module._Service, "_answer", answer)
        yield run
        for gateway, backend in ended:
            gateway.stop()
            backend.stop()


def key(tenant: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer key of {tenant}"),)


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()  # type: ignore[attr-defined]


def limit(what: str, amount: int, per_s: float) -> list[dict[str, Any]]:
    return [{"what": what, "amount": amount, "per_s": per_s}]


def test_management_is_refused_unless_allowed(start: Start) -> None:
    gateway, _ = start()
    with Client(gateway.url) as client:
        for method, message in MANAGEMENT.items():
            assert code_of(lambda m=method, r=message: getattr(client.stub, m)(r)) is grpc.StatusCode.PERMISSION_DENIED
        assert client.stub.ServerReady(pb.ServerReadyRequest()).ready
    gateway, _ = start(allow_management=True)
    with Client(gateway.url) as client:
        for method, message in MANAGEMENT.items():  # reaches the backend, which has none of them
            assert code_of(lambda m=method, r=message: getattr(client.stub, m)(r)) is grpc.StatusCode.UNIMPLEMENTED


def command(tensor: str, value: bytes = b"some-key") -> Any:
    made = pb.ModelInferRequest(model_name="llm_engine", id="9")
    made.inputs.add(name=tensor, datatype="BYTES", shape=[1])
    made.raw_input_contents.append(len(value).to_bytes(4, "little") + value)
    return made


@pytest.mark.parametrize("tensor", ["abort", "adapters"])
def test_commands_to_the_engine_are_refused_in_band_unless_allowed(start: Start, tensor: str) -> None:
    for allowed in (False, True):
        gateway, backend = start(allow_management=allowed)
        with Client(gateway.url) as client:
            stream = client.stream()
            stream.send(command(tensor), request("1"))
            errors = [item for item in stream.rest() if item.error_message]
        assert [item.infer_response.id for item in errors] == ([] if allowed else ["9"])
        assert all(item.error_message.startswith("PERMISSION_DENIED: ") for item in errors)
        assert backend.aborted == (["some-key"] if allowed else [])
        assert len(backend.requests) == 1


def test_a_command_is_known_however_it_is_written_and_nothing_else_is_taken_for_one() -> None:
    plain = command("abort").SerializeToString()
    typed = pb.ModelInferRequest(model_name="llm_engine")
    typed.inputs.add(name="abort", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"k")
    late_model = pb.ModelInferRequest(model_name="llm").SerializeToString() + plain
    with_others = plain + protobuf.encode_int32_input(b"x", [1], typed=True)
    for body in (plain, typed.SerializeToString(), late_model, with_others):
        assert refuse_command(body) is not None
    about = pb.ModelInferRequest(model_name="llm")
    about.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    about.raw_input_contents.append(b"what does llm_engine do on abort, and with adapters?")
    inference = command("prompt_ids", b"abort, adapters")
    for message in (about, inference):
        assert refuse_command(message.SerializeToString()) is None
    assert refuse_command(plain + b"\x0b") is not None  # a group, which gRPC's parsers skip and ours does not read


def test_a_key_opens_calls_and_is_not_passed_on(start: Start) -> None:
    gateway, backend = start(tenants=[{"name": "one"}])
    with Client(gateway.url) as client:
        for metadata in (None, (("x-api-key", "wrong"),)):
            stream = client.stream(metadata=metadata)
            assert code_of(stream.read) is grpc.StatusCode.UNAUTHENTICATED
            stream.half_close()
        stream = client.stream(metadata=(*key("one"), ("x-other", "kept")))
        stream.send(request("1"))
        assert len(stream.rest()) == 1
    assert backend.metadata[0]["x-other"] == "kept"
    assert "authorization" not in backend.metadata[0]


def test_the_engine_learns_for_whom_and_until_when_a_request_is(start: Start) -> None:
    gateway, backend = start(tenants=[{"name": "one", "weight": 3, "priority_class": 2}])
    with Client(gateway.url) as client:
        forged = request("1", tenant="other", priority_class="0")
        for options in ({"timeout": 5}, {"timeout": None}):
            stream = client.stream(metadata=key("one"), **options)
            stream.send(forged)
            stream.rest()
    with_deadline, without = (asked.parameters for asked in backend.requests)
    for told in (with_deadline, without):
        assert (told["tenant"].string_param, told["tenant_weight"].int64_param) == ("one", 3)
        assert told["priority_class"].int64_param == 2
    assert 4000 < with_deadline["deadline_ms"].int64_param <= 5000
    assert "deadline_ms" not in without


def test_only_an_admin_drains_an_instance(start: Start) -> None:
    gateway, backend = start(tenants=[{"name": "user"}, {"name": "boss", "is_admin": True}])
    path = f"/instances/{backend.grpc_address}/drain"
    assert gateway.get(path, "POST")[0] == 401
    assert gateway.get(path, "POST", dict(key("user")))[0] == 403
    assert gateway.get(path, "POST", dict(key("boss")))[0] == 200


def test_a_request_over_the_rate_is_refused_with_the_time_to_come_back(start: Start) -> None:
    gateway, backend = start(tenants=[{"name": "one", "limits": limit("requests", 2, 60)}], max_wait_s=0)
    with Client(gateway.url) as client:
        stream = client.stream(metadata=key("one"))
        stream.send(request("1"), request("2"), request("3"))
        answers = stream.rest()
    refused = [item for item in answers if item.error_message]
    assert [item.infer_response.id for item in refused] == ["3"]
    assert refused[0].error_message.startswith("RESOURCE_EXHAUSTED: tenant 'one' has reached its limit of 2 requests")
    assert len(backend.requests) == 2
    notes = dict(stream.call.trailing_metadata())
    assert 25 < float(notes["retry-after"]) <= 30
    details = notes["grpc-status-details-bin"]
    assert b"google.rpc.RetryInfo" in details


def test_where_the_client_asks_for_it_the_refusal_is_the_status(start: Start) -> None:
    gateway, _ = start(tenants=[{"name": "one", "limits": limit("requests", 1, 60)}], max_wait_s=0)
    with Client(gateway.url) as client:
        stream = client.stream(metadata=(*key("one"), ("triton_grpc_error", "true")))
        stream.send(request("1"), request("2"))
        stream.half_close()
        assert code_of(lambda: list(stream.call)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert float(dict(stream.call.trailing_metadata())["retry-after"]) > 50


def test_above_its_concurrency_a_tenants_requests_wait_their_turn(start: Start) -> None:
    gateway, _ = start(tenants=[{"name": "one", "max_concurrent": 1}], max_wait_s=10)
    with Client(gateway.url) as client:
        stream = client.stream(metadata=key("one"))
        stream.send(request("1", chunks=2, delay=0.3), request("2"), request("3"))
        answers = [item.infer_response.id for item in stream.rest()]
    assert answers == ["1", "1", "2", "3"]


def test_who_waits_too_long_is_refused(start: Start) -> None:
    gateway, backend = start(tenants=[{"name": "one"}], max_in_flight=1, max_wait_s=0.1, queue_size=1)
    with Client(gateway.url) as client:
        stream = client.stream(metadata=key("one"))
        stream.send(request("1", hang=1), request("2"), request("3"))
        refused = {item.infer_response.id: item.error_message for item in (stream.read(), stream.read())}
        assert set(refused) == {"2", "3"}
        assert all("its limit of 1 in flight" in text for text in refused.values())
        stream.cancel()
    assert backend.wait_for(lambda: "1" in backend.ended)
    with Client(gateway.url) as client:  # the slot is free again
        stream = client.stream(metadata=key("one"))
        stream.send(request("4"))
        assert len(stream.rest()) == 1


def test_tokens_are_charged_as_the_answer_reports_them(start: Start) -> None:
    tenants = [{"name": "one", "limits": limit("tokens", 1000, 3600)}]
    gateway, _ = start(tenants=tenants, max_wait_s=0, assumed_completion_tokens=900)
    with OpenAI(base_url=f"http://{gateway.http}/v1", api_key="key of one", max_retries=0) as client:
        for _ in range(8):  # each is estimated at 901 tokens and takes 9
            assert client.completions.create(model="llm", prompt="Hi").usage is not None
        with pytest.raises(openai.RateLimitError, match="1000 tokens in 3600 s") as refused:
            for _ in range(4):
                client.completions.create(model="llm", prompt="Hi", max_tokens=950)
    assert int(refused.value.response.headers["retry-after"]) >= 1
    assert float(refused.value.response.headers["retry-after-ms"]) > 0
    assert refused.value.type == "rate_limit_error"


def test_a_tenants_requests_have_a_size_limit(start: Start) -> None:
    gateway, _ = start(tenants=[{"name": "one", "max_request_bytes": 100}])
    with Client(gateway.url) as client:
        stream = client.stream(metadata=key("one"))
        stream.send(request("1", raw=bytes(200)))
        assert code_of(stream.read) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the limit is 100" in (stream.call.details() or "")
        assert dict(stream.call.trailing_metadata())["grpc-retry-pushback-ms"] == "-1"
        stream.half_close()
    with (
        OpenAI(base_url=f"http://{gateway.http}/v1", api_key="key of one", max_retries=0) as client,
        pytest.raises(openai.APIStatusError, match="the limit is 100") as refused,
    ):
        client.completions.create(model="llm", prompt="a" * 200)
    assert refused.value.status_code == 413


def test_openais_client_without_a_key_is_told_so(start: Start) -> None:
    gateway, _ = start(tenants=[{"name": "one"}])
    with OpenAI(base_url=f"http://{gateway.http}/v1", api_key="wrong", max_retries=0) as client:
        for call in (client.models.list, lambda: client.completions.create(model="llm", prompt="Hi", stream=True)):
            with pytest.raises(openai.AuthenticationError) as refused:
                call()
            assert refused.value.code == "invalid_api_key"
    with OpenAI(base_url=f"http://{gateway.http}/v1", api_key="key of one", max_retries=0) as client:
        assert client.completions.create(model="llm", prompt="Hi").choices[0].text


def test_a_request_timeout_ends_an_answer(start: Start) -> None:
    gateway, backend = start()
    with OpenAI(base_url=f"http://{gateway.http}/v1", api_key="none", max_retries=0) as client:
        began = time.monotonic()
        with pytest.raises(openai.APIStatusError) as ended:
            client.completions.create(model="llm", prompt="hang", extra_headers={"x-request-timeout": "0.3"})
        assert ended.value.status_code == 504
        assert time.monotonic() - began < 5
        assert backend.wait_for(lambda: len(backend.aborted) > 0)
        with pytest.raises(openai.BadRequestError, match="x-request-timeout"):
            client.completions.create(model="llm", prompt="Hi", extra_headers={"x-request-timeout": "soon"})


def test_two_that_leave_at_once_let_two_others_on() -> None:
    """Under uvloop, whose handle of a call for this very moment does not tell its time."""

    async def run() -> None:
        loop, all_placed, placed = asyncio.get_running_loop(), asyncio.Event(), list[Any]()

        def place(request: Any) -> None:
            placed.append(request)
            if len(placed) == 4:
                all_placed.set()

        config = SafetyConfig.model_validate({"tenants": [{"name": "a", "max_concurrent": 2}], "anonymous_tenant": "a"})
        gate = Gate(config, place, lambda _request, failure: pytest.fail(failure.message), lambda: None)
        tenant = make_tenant(config.tenants[0], loop.time())
        requests: list[Any] = [Mock(exchange=Mock(call=Mock(tenant=tenant)), kept=[]) for _ in range(4)]
        for asked in requests:
            gate.submit(asked)
        assert placed == requests[:2]
        for asked in requests[:2]:
            gate.left(asked, None)
        async with asyncio.timeout(10):
            await all_placed.wait()
        assert placed == requests

    uvloop.run(run())


def test_a_tenant_under_other_limits_keeps_what_it_has_used_of_those_that_stay() -> None:
    def configured(*limits: dict[str, Any]) -> TenantConfig:
        return TenantConfig.model_validate({"name": "one", "limits": limits})

    hourly, daily = {"what": "requests", "per_s": 3600}, {"what": "tokens", "per_s": 86400}
    tenant = make_tenant(configured(hourly | {"amount": 10}), 0.0)
    for _ in range(8):
        tenant.take(5, 0.0)
    tenant.become(make_tenant(configured(hourly | {"amount": 3600}, daily | {"amount": 50}), 0.0), 0.0)
    assert [bucket.level for _, bucket in tenant.buckets] == [2, 50]
    assert tenant.wait(1, 0.0) == 0
    assert tenant.num_in_flight == 8
    tenant.become(make_tenant(configured(hourly | {"amount": 1}), 0.0), 1.0)
    assert [bucket.level for _, bucket in tenant.buckets] == [1]  # 3 at the old rate, above the new capacity
