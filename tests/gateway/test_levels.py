"""Levels, sessions and splits through a running gateway: requests go where the router says, and it is visible why."""

import json
from pathlib import Path

from tests.gateway.backend import Backend
from tests.gateway.clients import Client, request
from tests.gateway.process import GatewayProcess


def gateway_with(folder: Path, backends: list[Backend], routing: dict[str, object]) -> GatewayProcess:
    labels = [{"pool": "tp", "group": "old"}, {"pool": "replicas", "group": "new"}]
    instances = [
        {"grpc": backend.grpc_address, "name": backend.name} | label
        for backend, label in zip(backends, labels, strict=True)
    ]
    file = folder / "gateway.json"
    file.write_text(json.dumps({"instances": instances, "routing": routing}))
    gateway = GatewayProcess(flags=("--config", str(file)))
    gateway.wait_usable(2)
    return gateway


def test_many_requests_in_flight_move_new_ones_to_the_other_pool_and_say_why(tmp_path: Path) -> None:
    low, high = backends = [Backend("a", metrics=False), Backend("b", metrics=False)]
    levels = {"low_pool": "tp", "high_pool": "replicas", "threshold": 4, "window_s": 0.2}
    gateway = gateway_with(tmp_path, backends, {"levels": levels})
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(*(request(f"held{n}", hang=1) for n in range(6)))
        assert low.wait_for(lambda: len(low.requests) == 6)
        gateway.wait_until(lambda: gateway.metric('gateway_level{level="high",pool="replicas"}') == 1)
        other = client.stream()
        other.send(request("next"))
        assert other.read().infer_response.id == "next"
        status = json.loads(gateway.get("/healthz")[1])["routing"]
        assert (status["level"], status["pool"]) == ("high", "replicas")
        assert "at least 4.4" in status["switches"][0]["reason"]
        assert [item.id for item in high.requests] == ["next"]
        stream.cancel()
        gateway.wait_until(lambda: gateway.metric("gateway_level_switches_total") == 2)
        other.half_close()
    gateway.stop()
    for backend in backends:
        backend.stop()


def test_a_session_keeps_its_instance_by_header_and_by_parameter(tmp_path: Path) -> None:
    backends = [Backend("a", metrics=False), Backend("b", metrics=False)]
    gateway = gateway_with(tmp_path, backends, {"policy": "session"})
    with Client(gateway.url) as client:
        by_header = client.stream(metadata=(("x-session-id", "s1"),))
        by_parameter = client.stream()
        for number in range(6):
            by_header.send(request(f"h{number}"))
            wish = request(f"p{number}")
            wish.parameters["x-session-id"].string_param = "s1"
            by_parameter.send(wish)
            by_header.read()
            by_parameter.read()
            gateway.wait_until(lambda: gateway.metric("gateway_in_flight_requests") == 0)  # else the bound applies
        by_header.half_close()
        by_parameter.half_close()
    assert sorted(len(backend.requests) for backend in backends) == [0, 12]
    gateway.stop()
    for backend in backends:
        backend.stop()


def test_a_group_with_weight_0_gets_nothing(tmp_path: Path) -> None:
    old, new = backends = [Backend("a", metrics=False), Backend("b", metrics=False)]
    gateway = gateway_with(tmp_path, backends, {"split": {"old": 1, "new": 0}})
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(*(request(f"r{n}") for n in range(12)))
        assert len(stream.rest()) == 12
    assert (len(old.requests), len(new.requests)) == (12, 0)
    gateway.stop()
    for backend in backends:
        backend.stop()
