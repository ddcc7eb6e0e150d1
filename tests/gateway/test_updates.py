"""A running gateway takes changes of its configuration and of its instances, or refuses them whole."""

import asyncio
import hashlib
import itertools
import json
import re
import signal
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from gateway.address import split_address
from gateway.config import GatewayConfig
from gateway.discovery.config import DnsDiscovery, FileDiscovery, KubernetesDiscovery
from gateway.discovery.kubernetes import instances_of, watch_slices
from gateway.discovery.sources import Instances, at_host, watch_dns, watch_file
from gateway.tls import client_context
from gateway.updates import Updates
from tests.gateway.backend import Backend
from tests.gateway.certificates import make_certificates
from tests.gateway.clients import Client, indices, request
from tests.gateway.process import GatewayProcess


class Running:
    """A gateway on a configuration file, and two backends."""

    def __init__(self, folder: Path) -> None:
        self.backends = [Backend("a"), Backend("b")]
        self.file = folder / "gateway.json"
        self.log = folder / "log"
        self.write([self.backends[0]])
        (folder / "hook_that_ends.py").write_text("raise SystemExit(1)")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(folder))
            self.gateway = GatewayProcess(flags=("--config", str(self.file)), log=self.log)
        self.gateway.wait_usable(1)

    def write(self, backends: list[Backend], **fields: object) -> None:
        instances = [{"grpc": b.grpc_address, "metrics": b.flag.partition(",")[2], "name": b.name} for b in backends]
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps({"instances": instances} | fields))
        new.replace(self.file)

    def hang_up(self) -> None:
        self.gateway.process.send_signal(signal.SIGHUP)

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.log.read_text().splitlines()) if line["event"] == event]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    made.gateway.stop()
    for backend in made.backends:
        backend.stop()


def test_an_instance_joins_and_another_leaves_after_finishing_while_streams_go_on(running: Running) -> None:
    first, second = running.backends
    with Client(running.gateway.url) as client:
        stream = client.stream()
        stream.send(request("slow", chunks=30, delay=0.05))
        stream.read()
        running.write([second])
        running.hang_up()
        running.gateway.wait_until(lambda: running.gateway.health() == {"b": "ready"})
        stream.send(*(request(f"r{n}") for n in range(4)))
        responses = stream.rest()
    assert indices(responses, "slow") == list(range(1, 30))
    assert {item.id for item in second.requests} == {f"r{n}" for n in range(4)}
    assert {item.id for item in first.requests} == {"slow"}


def test_a_change_of_the_file_applies_without_a_signal(running: Running) -> None:
    running.write(running.backends, routing={"policy": "round_robin"}, max_retries=7)
    running.gateway.wait_usable(2)
    running.gateway.wait_until(lambda: bool(running.logged("config_applied")))
    assert running.logged("config_applied")[0]["changed"] == ["instances", "max_retries", "routing"]
    assert json.loads(running.gateway.get("/healthz")[1])["routing"]["policy"] == "round_robin"


def test_how_instances_are_watched_changes_for_those_there_are(running: Running) -> None:
    running.backends[0].beating = False
    running.gateway.wait_until(lambda: running.gateway.health() == {"a": "dead"})
    running.write(running.backends[:1], heartbeat_timeout_s=1000, scrape_interval_s=0.02)
    running.gateway.wait_usable(1)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"max_retries": -1}, "max_retries"),
        ({"observe": {"journal": {"path": "new.db"}}}, "only a restart can change observe.journal"),
        ({"safety": {"content": {"hook": "tests.gateway.test_updates:broken_hook"}}}, "hook .* RuntimeError"),
        ({"safety": {"content": {"hook": "hook_that_ends:Check"}}}, "hook .* not there: SystemExit"),
    ],
)
def test_a_change_that_is_invalid_is_refused_whole(running: Running, fields: dict[str, object], reason: str) -> None:
    running.write(running.backends, **fields)
    running.hang_up()
    running.gateway.wait_until(lambda: bool(running.logged("config_refused")))
    assert re.search(reason, running.logged("config_refused")[0]["reason"])
    assert running.gateway.health() == {"a": "ready"}


def broken_hook() -> None:
    raise RuntimeError("this hook cannot be made")


def key_line(key: str, tenant: str) -> str:
    return f"{tenant} sha256:{hashlib.sha256(key.encode()).hexdigest()}\n"


def tenant(name: str, amount: int) -> dict[str, object]:
    return {"name": name, "limits": [{"what": "requests", "amount": amount, "per_s": 86400}]}


def test_tenants_keys_and_rules_change_while_workers_run(tmp_path: Path) -> None:
    backend, config, keys, workers = Backend("a"), tmp_path / "gateway.json", tmp_path / "keys", 2

    def write(*tenants: dict[str, object], **safety: object) -> None:
        given = {"tenants": tenants, "keys_file": "keys", "max_wait_s": 0} if tenants else {}
        instance = {"grpc": backend.grpc_address, "metrics": backend.flag.partition(",")[2]}
        document = {"instances": [instance], "workers": workers, "safety": given | safety}
        config.with_suffix(".new").write_text(json.dumps(document))
        config.with_suffix(".new").replace(config)

    def ask(key: str, count: int = 1) -> str:
        """Return the last answer's error, of `count` requests that each have a connection of their own."""
        said = "nothing was asked"
        for _ in range(count):
            with Client(gateway.url) as client:
                said = ask_over(client, key)
        return said

    def ask_over(client: Client, key: str) -> str:
        stream = client.stream(metadata=(("x-api-key", key),))
        stream.send(prompt)
        try:
            return stream.rest()[-1].error_message
        except grpc.RpcError as error:
            return str(error.code())  # type: ignore[attr-defined]

    prompt = request("r", raw=b"\3\0\0\0bad")
    prompt.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    keys.write_text(key_line("one's", "one"))
    write(tenant("one", 3))
    gateway = GatewayProcess(flags=("--config", str(config)))
    gateway.wait_usable(1)
    assert (ask("one's", 3), ask("two's")) == ("", "StatusCode.UNAUTHENTICATED")
    with Client(gateway.url) as client, Client(gateway.url) as lasting:
        old = client.stream(metadata=(("x-api-key", "one's"),))
        write(tenant("one", 4), tenant("two", 100))
        keys.write_text(key_line("one's", "one") + key_line("two's", "two"))
        gateway.wait_until(lambda: all(ask("two's") == "" for _ in range(4 * workers)))
        assert ask("one's").startswith("RESOURCE_EXHAUSTED")  # what was used stays used
        assert [ask_over(lasting, "two's") for _ in range(20)] == [""] * 20  # by now with the same block of headers
        keys.write_text(key_line("one's", "one") + key_line("another", "two"))
        gateway.wait_until(lambda: all(ask("two's") == "StatusCode.UNAUTHENTICATED" for _ in range(4 * workers)))
        assert ask_over(lasting, "two's") == "StatusCode.UNAUTHENTICATED"
        assert ask("another") == ""
        write(tenant("two", 100), content={"rules": [{"name": "bad", "pattern": "bad", "action": "block"}]})
        keys.write_text(key_line("another", "two"))
        gateway.wait_until(lambda: all("by the content rule bad" in ask("another") for _ in range(4 * workers)))
        old.send(request("late"))
        assert old.rest()[-1].error_message == "UNAUTHENTICATED: there is no tenant 'one' any more"
    gateway.stop()
    backend.stop()


def test_a_renewed_certificate_is_shown_without_a_signal_and_half_a_renewal_is_not(tmp_path: Path) -> None:
    made, config, log = make_certificates(tmp_path), tmp_path / "gateway.json", tmp_path / "log"
    tls = {"certificate": "server.pem", "key": "server.key", "client_ca": "ca.pem"}
    config.write_text(json.dumps({"tls": tls, "instances": [{"grpc": "127.0.0.1:1"}]}))
    gateway = GatewayProcess(flags=("--config", str(config)), log=log)
    context = client_context(made.ca, made.certificate("client"), made.key("client"))

    def shown() -> str:
        with (
            socket.create_connection(split_address(gateway.url), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            return ssl.DER_cert_to_PEM_cert(secure.getpeercert(binary_form=True) or b"")

    first = made.certificate("server").read_text()
    assert shown() == first
    made.certificate("server").write_bytes(made.certificate("client").read_bytes())
    gateway.wait_until(lambda: "config_refused" in log.read_text())
    assert shown() == first
    made.key("server").write_bytes(made.key("client").read_bytes())
    gateway.wait_until(lambda: shown() == made.certificate("client").read_text())
    gateway.stop()


@pytest.mark.parametrize("workers", [1, 2])
def test_instances_in_a_watched_file_are_used(tmp_path: Path, workers: int) -> None:
    backend, listed = Backend("a"), tmp_path / "instances.yaml"
    listed.write_text("[]")
    config = tmp_path / "gateway.json"
    discovery = {"kind": "file", "path": str(listed), "interval_s": 0.05}
    config.write_text(json.dumps({"discovery": discovery, "workers": workers}))
    gateway = GatewayProcess(flags=("--config", str(config)), log=tmp_path / "log")
    listed.write_text(f"- {{grpc: '{backend.grpc_address}', name: found}}\n")
    gateway.wait_until(lambda: gateway.health() == {"found": "ready"})
    listed.write_text("- {grpc: nonsense}\n")
    gateway.wait_until(lambda: "discovery_failed" in (tmp_path / "log").read_text())
    assert gateway.health() == {"found": "ready"}
    listed.write_text("[]")
    gateway.wait_until(lambda: gateway.health() == {})
    gateway.stop()
    backend.stop()


async def first(source: Any) -> Instances:
    async with asyncio.timeout(10):
        return await anext(source)


def names(instances: Instances) -> list[str]:
    return [instance.grpc for instance in instances]


def test_dns_gives_an_instance_for_each_address() -> None:
    config = DnsDiscovery(kind="dns", host="localhost", grpc_port=9001, metrics_port=9002)
    found = asyncio.run(first(watch_dns(config)))
    assert "127.0.0.1:9001" in names(found)
    assert "127.0.0.1:9002" in [instance.metrics for instance in found]


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('[{"grpc": "h:1"}]')

    async def run() -> list[list[str]]:
        source = watch_file(FileDiscovery(kind="file", path=path, interval_s=0.01))
        seen = [names(await first(source))]
        path.write_text('[{"grpc": "h:1"}, {"grpc": "h:2"}]')
        return [*seen, names(await first(source))]

    assert asyncio.run(run()) == [["h:1"], ["h:1", "h:2"]]


def endpoint_slice(name: str, *endpoints: tuple[str, bool | None]) -> dict[str, Any]:
    made = [{"addresses": [host], "conditions": {} if ready is None else {"ready": ready}} for host, ready in endpoints]
    return {"metadata": {"name": name}, "endpoints": made}


class FakeApi:
    """A Kubernetes API server that lists one slice and then tells of changes."""

    def __init__(self) -> None:
        self.paths: list[tuple[str, str | None]] = []
        self.events: list[list[dict[str, Any]]] = []  # of each watch in turn
        self.over = threading.Event()
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                api.paths.append((self.path, self.headers["authorization"]))
                self.send_response(200)
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                if "watch=1" not in self.path:
                    items = [endpoint_slice("s1", ("10.0.0.1", True), ("10.0.0.2", False), ("10.0.0.3", None))]
                    self.chunk(json.dumps({"metadata": {"resourceVersion": "42"}, "items": items}).encode())
                elif api.events:
                    for event in api.events.pop(0):
                        line = json.dumps(event).encode() + b"\n"
                        self.chunk(line[:20])
                        self.chunk(line[20:])
                else:
                    api.over.wait(10)
                self.chunk(b"")

            def chunk(self, data: bytes) -> None:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def api() -> Iterator[FakeApi]:
    made = FakeApi()
    yield made
    made.stop()


@pytest.fixture
def kubernetes(api: FakeApi, tmp_path: Path) -> KubernetesDiscovery:
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "namespace").write_text("models")
    url = f"http://127.0.0.1:{api.server.server_port}"
    return KubernetesDiscovery(kind="kubernetes", service="llm", api=url, account=tmp_path)


def test_endpoint_slices_are_listed_and_watched(api: FakeApi, kubernetes: KubernetesDiscovery) -> None:
    added = {"type": "ADDED", "object": endpoint_slice("s2", ("fd00::1", True), ("10.0.0.1", True))}
    deleted = {"type": "DELETED", "object": endpoint_slice("s1")}
    api.events = [[added, deleted], [{"type": "ERROR", "object": {"message": "too old resource version", "code": 410}}]]

    async def run(count: int) -> list[list[str]]:
        source = watch_slices(kubernetes)
        seen = [names(await first(source)) for _ in range(count)]
        await source.aclose()  # type: ignore[attr-defined]
        return seen

    listed = ["10.0.0.1:8001", "10.0.0.3:8001"]
    added_too, without = ["10.0.0.1:8001", "10.0.0.3:8001", "[fd00::1]:8001"], ["10.0.0.1:8001", "[fd00::1]:8001"]
    assert asyncio.run(run(4)) == [listed, added_too, without, listed]
    path = "/apis/discovery.k8s.io/v1/namespaces/models/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dllm"
    assert api.paths[0] == (path, "Bearer secret")
    assert "resourceVersion=42" in api.paths[1][0]


def test_looking_goes_on_after_an_answer_that_nobody_foresaw(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asyncio.Queue[list[str]]()

    async def source(_config: object) -> AsyncIterator[Instances]:
        if (calls := next(count)) == 0:
            raise AttributeError("'list' object has no attribute 'get'")
        yield (at_host(f"h{calls}", 1, None),)

    async def run() -> list[str]:
        fleet: Any = SimpleNamespace(apply=lambda wanted, _reason: found.put_nowait(names(wanted)))
        config = GatewayConfig.model_validate({"discovery": {"kind": "dns", "host": "h"}})
        updates = Updates(config, (), fleet)
        updates.start()
        async with asyncio.timeout(10):
            seen = [await found.get(), await found.get()][-1]
        await updates.close()
        return seen

    count = itertools.count()
    monkeypatch.setattr("gateway.updates._source", source)
    monkeypatch.setattr("gateway.updates.POLL_SECONDS", 0.01)
    assert asyncio.run(run()) == ["h1:1"]


def test_a_slice_without_endpoints_has_no_instances(kubernetes: KubernetesDiscovery) -> None:
    assert instances_of({"s": {"metadata": {"name": "s"}, "endpoints": None}}, kubernetes) == ()


def test_an_endpoint_without_an_address_is_passed_over_and_the_others_are_found(
    kubernetes: KubernetesDiscovery, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoints = [{"addresses": [], "targetRef": {"name": "llm-7"}}, {"targetRef": None}, {"addresses": ["10.0.0.1"]}]
    found = instances_of({"s": {"metadata": {"name": "s"}, "endpoints": endpoints}}, kubernetes)
    assert [instance.grpc for instance in found] == ["10.0.0.1:8001"]
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["endpoint"]) for line in lines] == [
        ("endpoint_without_address", "llm-7"),
        ("endpoint_without_address", "?"),
    ]


def test_a_pod_of_two_address_families_is_one_instance(kubernetes: KubernetesDiscovery) -> None:
    pods = [
        {"addresses": ["fd00::1"], "targetRef": {"uid": "a"}},
        {"addresses": ["fd00::2"], "targetRef": {"uid": "b"}},
    ]
    six = {"addressType": "IPv6", "endpoints": pods}
    four = {"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1", "10.0.0.9"], "targetRef": {"uid": "a"}}]}
    found = instances_of({"six": six, "four": four}, kubernetes)
    assert [instance.grpc.rpartition(":")[0] for instance in found] == ["10.0.0.1", "[fd00::2]"]


def test_an_api_server_that_refuses_is_asked_again(
    kubernetes: KubernetesDiscovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.discovery.kubernetes.RETRY_SECONDS", 0.01)
    broken = kubernetes.model_copy(update={"account": kubernetes.account / "gone"})
    said: list[str] = []
    record: Callable[..., None] = lambda event, **facts: said.append(event)  # noqa: E731
    monkeypatch.setattr("gateway.discovery.kubernetes.log", record)

    async def run() -> None:
        task = asyncio.ensure_future(anext(watch_slices(broken)))
        async with asyncio.timeout(10):
            while len(said) < 3:
                await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(run())
    assert set(said) == {"discovery_failed"}
