"""TLS, mutual TLS and Unix sockets, on both sides of the gateway."""

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from gateway.address import split_address
from gateway.tls import TlsError, server_context
from tests.gateway.backend import Backend
from tests.gateway.certificates import Certificates, make_certificates
from tests.gateway.clients import OPTIONS, Client, ClientStream, indices, request
from tests.gateway.process import ROOT, GatewayProcess
from tests.gateway.protos import pb


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secure(certificates: Certificates) -> Iterator[GatewayProcess]:
    """Return a gateway that wants certificates of its clients, before an instance that wants the gateway's."""
    server = grpc.ssl_server_credentials(
        [(certificates.key("server").read_bytes(), certificates.certificate("server").read_bytes())],
        certificates.ca.read_bytes(),
        require_client_auth=True,
    )
    backend = Backend("a", metrics=False, credentials=server)
    instance = {"grpc": backend.grpc_address, "tls": certificates.tls("client", "ca")}
    config = certificates.folder / "config.json"
    config.write_text(json.dumps({"tls": certificates.tls("server", "client_ca"), "instances": [instance]}))
    gateway = GatewayProcess(flags=("--config", str(config)))
    gateway.wait_usable(1)
    yield gateway
    gateway.stop()
    backend.stop()


def channel(gateway: GatewayProcess, certificates: Certificates, name: str | None) -> grpc.Channel:
    own = (certificates.key(name).read_bytes(), certificates.certificate(name).read_bytes()) if name else (None, None)
    credentials = grpc.ssl_channel_credentials(certificates.ca.read_bytes(), *own)
    return grpc.secure_channel(gateway.url, credentials, options=OPTIONS)


def test_streams_pass_through_mutual_tls_on_both_sides(secure: GatewayProcess, certificates: Certificates) -> None:
    with channel(secure, certificates, "client") as made:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(made)
        streams = [ClientStream(stub) for _ in range(8)]
        for number, stream in enumerate(streams):
            stream.send(request(f"s{number}", chunks=40, size=3000 * number))
        for number, stream in enumerate(streams):
            assert indices(stream.rest(), f"s{number}") == list(range(40))
        body = bytes(6 * 2**20)
        big = stub.ModelInfer(request("big", raw=body), timeout=20)
        assert big.raw_output_contents[0] == body


@pytest.mark.parametrize("name", [None, "stranger"])
def test_a_client_without_a_certificate_of_the_authority_is_refused(
    secure: GatewayProcess, certificates: Certificates, name: str | None
) -> None:
    with channel(secure, certificates, name) as made:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(made)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ServerLive(pb.ServerLiveRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocols", [[], ["http/1.1"]])
def test_a_client_that_does_not_choose_http2_is_told_so(
    secure: GatewayProcess, certificates: Certificates, protocols: list[str]
) -> None:
    context = ssl.create_default_context(cafile=str(certificates.ca))
    context.load_cert_chain(certificates.certificate("client"), certificates.key("client"))
    if protocols:
        context.set_alpn_protocols(protocols)
    address = split_address(secure.url)
    with (
        socket.create_connection(address, timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as peer,
    ):
        received = b""
        while part := peer.recv(4096):
            received += part
    assert b"did not choose h2 by ALPN" in received


def test_tls_1_1_is_refused(secure: GatewayProcess, certificates: Certificates) -> None:
    context = ssl.create_default_context(cafile=str(certificates.ca))
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(split_address(secure.url), timeout=5) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="localhost")


def test_a_certificate_without_its_key_is_refused(certificates: Certificates) -> None:
    with pytest.raises(TlsError, match=r"server\.pem"):
        server_context(certificates.certificate("server"), certificates.key("client"), None)


def test_an_instance_that_the_authority_did_not_sign_is_not_trusted(certificates: Certificates, tmp_path: Path) -> None:
    pair = (certificates.key("stranger").read_bytes(), certificates.certificate("stranger").read_bytes())
    backend = Backend("a", metrics=False, credentials=grpc.ssl_server_credentials([pair]))
    config, log = tmp_path / "config.json", tmp_path / "log"
    config.write_text(json.dumps({"instances": [{"grpc": backend.grpc_address, "tls": {"ca": str(certificates.ca)}}]}))
    gateway = GatewayProcess(flags=("--config", str(config), "--queue-timeout-s", "0.3"), log=log)
    with Client(gateway.url) as client, pytest.raises(grpc.RpcError) as caught:
        client.stub.ServerLive(pb.ServerLiveRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    assert gateway.health() == {backend.grpc_address: "starting"}
    gateway.stop()
    backend.stop()


def test_unix_sockets_serve_on_both_sides_and_leave_no_file(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in.sock", tmp_path / "out.sock"
    backend = Backend("a", address=f"unix:{inside}")
    gateway = GatewayProcess(backend.flag, address=f"unix:{outside}")
    gateway.wait_usable(1)
    made: Any = Client(gateway.url)
    with made as client:
        stream = client.stream()
        stream.send(request("u", chunks=30))
        assert indices(stream.rest(), "u") == list(range(30))
    gateway.stop()
    backend.stop()
    assert not outside.exists()


def test_a_socket_file_that_nobody_serves_is_replaced_and_one_that_is_served_is_not(tmp_path: Path) -> None:
    path = tmp_path / "out.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    gateway = GatewayProcess("127.0.0.1:1", address=f"unix:{path}")
    command = [sys.executable, "-m", "gateway", "--grpc-address", f"unix:{path}", "--instance", "127.0.0.1:1"]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    assert (second.returncode, second.stdout) == (1, "")
    assert "cannot start" in second.stderr
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
    gateway.stop()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_any_address_of_ipv6_is_also_any_of_ipv4(workers: str) -> None:
    backend = Backend("a")
    gateway = GatewayProcess(backend.flag, address="[::]:0", flags=("--workers", workers, "--http-address", "[::1]:0"))
    gateway.wait_usable(1)
    port = gateway.url.removeprefix("[::]:")
    for url in (f"127.0.0.1:{port}", f"[::1]:{port}"):
        with Client(url) as client:
            stream = client.stream()
            stream.send(request("r"))
            assert indices(stream.rest(), "r") == [0]
    gateway.stop()
    backend.stop()
