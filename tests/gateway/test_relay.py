"""Unmodified clients through the gateway: what they send arrives, what is answered comes back."""

import asyncio
import json
import socket
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from tests.gateway.backend import Backend
from tests.gateway.clients import Client, indices, request
from tests.gateway.process import GatewayProcess
from tests.gateway.protos import pb

Pair = tuple[GatewayProcess, list[Backend]]
MEGABYTE = 2**20


def test_a_sync_tritonclient_works_unchanged(pair: Pair) -> None:
    results: list[Any] = []
    made: Any = triton.InferenceServerClient(pair[0].url)
    with made as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("llm")
        assert client.get_model_metadata("llm").platform == "ensemble"
        assert client.get_server_metadata().name in {"a", "b"}
        client.get_model_config("llm")
        client.get_inference_statistics("llm")
        assert client.infer("llm", [], request_id="one").get_response().id == "one"
        client.start_stream(lambda result, error: results.append((result, error)))
        for number in range(10):
            client.async_stream_infer("llm", [], request_id=str(number), parameters={"chunks": "4"})
        client.stop_stream()
    assert not [error for _, error in results if error]
    answered = sorted(result.get_response().id for result, _ in results)
    assert answered == sorted(4 * [str(number) for number in range(10)])


def test_an_aio_tritonclient_works_unchanged(pair: Pair) -> None:
    async def talk() -> list[str]:
        made: Any = triton_aio.InferenceServerClient(pair[0].url)
        async with made as client:
            assert await client.is_server_ready()

            async def requests():
                for number in range(3):
                    yield {"model_name": "llm", "inputs": [], "request_id": str(number), "parameters": {"chunks": "2"}}

            return [result.get_response().id async for result, _ in client.stream_infer(requests())]

    assert sorted(asyncio.run(talk())) == ["0", "0", "1", "1", "2", "2"]


def test_requests_of_one_stream_spread_over_the_backends_and_each_answer_is_whole_and_in_order(pair: Pair) -> None:
    gateway, backends = pair
    before = [len(backend.requests) for backend in backends]
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(*(request(f"r{number}", chunks=50, size=number) for number in range(64)))
        responses = stream.rest()
        assert stream.call.code() is grpc.StatusCode.OK
    for number in range(64):
        assert indices(responses, f"r{number}") == list(range(50))
    counts = [len(backend.requests) - start for backend, start in zip(backends, before, strict=True)]
    assert sum(counts) == 64
    assert min(counts) >= 16


def test_each_request_gets_a_key_of_its_own_beside_its_own_parameters(pair: Pair) -> None:
    gateway, backends = pair
    before = [len(backend.requests) for backend in backends]
    with Client(gateway.url) as client:
        stream = client.stream(metadata=(("x-mine", "yes"), ("x-raw-bin", b"\x00\xff")))
        stream.send(request("k1", note="ü"), request("k2"))
        stream.rest()
    seen = [item for backend, start in zip(backends, before, strict=True) for item in backend.requests[start:]]
    keys = {item.parameters["request_key"].string_param for item in seen}
    assert len(keys) == 2
    assert "" not in keys
    assert [item.parameters["note"].string_param for item in seen if item.id == "k1"] == ["ü"]
    metadata = [facts for backend in backends for facts in backend.metadata if facts.get("x-mine")]
    assert {facts["x-raw-bin"] for facts in metadata} == {b"\x00\xff"}


def test_a_stream_that_is_half_closed_at_once_ends_well_after_its_answers(pair: Pair) -> None:
    with Client(pair[0].url) as client:
        stream = client.stream()
        stream.send(request("h", chunks=3, delay=0.05))
        assert indices(stream.rest(), "h") == [0, 1, 2]
        assert stream.call.code() is grpc.StatusCode.OK
        empty = client.stream()
        assert empty.rest() == []
        assert empty.call.code() is grpc.StatusCode.OK


def test_an_error_comes_in_band_with_the_requests_id_and_the_stream_lives_on(pair: Pair) -> None:
    with Client(pair[0].url) as client:
        stream = client.stream()
        stream.send(request("bad", chunks=5, fail="INVALID_ARGUMENT", fail_after=0, message="no such option"))
        error = stream.read()
        assert (error.error_message, error.infer_response.id) == ("no such option", "bad")
        stream.send(request("late", chunks=5, fail="INTERNAL", fail_after=2), request("good", chunks=2))
        responses = stream.rest()
        assert indices(responses, "good") == [0, 1]
        late = [item for item in responses if item.infer_response.id == "late"]
        assert [item.error_message for item in late] == ["", "", "it broke"]
        assert stream.call.code() is grpc.StatusCode.OK


def test_a_client_that_asks_for_statuses_gets_the_error_as_the_end_of_its_stream(pair: Pair) -> None:
    with Client(pair[0].url) as client:
        stream = client.stream(metadata=(("triton_grpc_error", "true"),))
        stream.send(request("bad", chunks=5, fail="INVALID_ARGUMENT", fail_after=1))
        assert stream.read().infer_response.id == "bad"
        with pytest.raises(grpc.RpcError):
            stream.read()
        stream.half_close()
        assert stream.call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert stream.call.details() == "it broke"


def test_a_backends_status_and_trailing_metadata_pass_through_on_other_methods(pair: Pair) -> None:
    with Client(pair[0].url) as client:
        with pytest.raises(grpc.RpcError) as caught:
            client.stub.ModelMetadata(pb.ModelMetadataRequest(name="nope"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
        assert caught.value.details() == "Request for unknown model: 'nope' is not found: ü"  # type: ignore[attr-defined]
        with pytest.raises(grpc.RpcError) as caught:
            client.stub.RepositoryIndex(pb.RepositoryIndexRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
        with pytest.raises(grpc.RpcError) as caught:
            client.channel.unary_unary("/other.Service/Method")(b"anything")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
        _, call = client.stub.ModelInfer.with_call(request("x"))
        assert dict(call.trailing_metadata())["served-by"] in {"a", "b"}


def test_a_message_of_five_megabytes_goes_both_ways(pair: Pair) -> None:
    body = bytes(range(256)) * (5 * MEGABYTE // 256)
    with Client(pair[0].url) as client:
        assert client.stub.ModelInfer(request("big", raw=body)).raw_output_contents == [body]
        stream = client.stream()
        stream.send(*(request(f"big{n}", raw=body, chunks=2, size=5 * MEGABYTE) for n in range(2)))
        stream.send(*(request(f"small{n}", chunks=100) for n in range(4)))
        responses = stream.rest()
    for number in range(2):
        assert indices(responses, f"big{number}") == [0, 1]
    for number in range(4):
        assert indices(responses, f"small{number}") == list(range(100))
    assert {len(item.infer_response.raw_output_contents[0]) for item in responses} == {8, 5 * MEGABYTE}


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_reach_the_backend(pair: Pair, compression: grpc.Compression) -> None:
    with Client(pair[0].url, compression=compression) as client:
        stream = client.stream()
        stream.send(request("z", raw=b"x" * 5000, chunks=2))
        assert indices(stream.rest(), "z") == [0, 1]
        assert client.stub.ModelInfer(request("z", raw=b"x" * 5000)).raw_output_contents == [b"x" * 5000]


def test_keepalive_pings_on_a_quiet_stream_are_not_punished(pair: Pair) -> None:
    options = (
        ("grpc.keepalive_time_ms", 20),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    with Client(pair[0].url, *options) as client:
        stream = client.stream()
        stream.send(request("quiet", chunks=2, delay=0.7))
        assert indices(stream.rest(), "quiet") == [0, 1]


def test_a_message_above_the_limit_ends_the_stream_with_resource_exhausted(pair: Pair) -> None:
    with Client(pair[0].url) as client:
        stream = client.stream()
        stream.send(request("huge", raw=b"x" * (65 * MEGABYTE)))
        with pytest.raises(grpc.RpcError):
            stream.read()
        stream.half_close()
        assert stream.call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_what_is_no_http2_is_told_so_and_the_gateway_serves_on(pair: Pair) -> None:
    host, port = pair[0].url.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while part := peer.recv(4096):
            received += part
    assert b"the client's preface is not HTTP/2's" in received
    with Client(pair[0].url) as client:
        assert client.stub.ServerLive(pb.ServerLiveRequest()).live


def test_the_http_port_shows_metrics_and_health(pair: Pair) -> None:
    gateway, backends = pair
    status, body = gateway.get("/healthz")
    assert status == 200
    assert [item["health"] for item in json.loads(body)["instances"]] == ["ready", "ready"]
    before = gateway.metric("gateway_relayed_messages_total")
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(request("m", chunks=300))
        stream.rest()
    assert gateway.metric("gateway_relayed_messages_total") == before + 300
    assert gateway.metric("gateway_in_flight_requests") == 0
    assert gateway.metric("gateway_instance_up") == 2
    assert gateway.metric("gateway_ttft_seconds_count") > 0
    assert gateway.metric(f'gateway_requests_total{{instance="{backends[0].grpc_address}"') > 0
    assert gateway.get("/nothing")[0] == 404
    assert gateway.get("/healthz", "DELETE")[0] == 405
