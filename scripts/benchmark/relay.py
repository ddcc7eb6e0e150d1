"""The relay against a grpc.aio bytes proxy, alternating in one run: messages a second, CPU a message, added latency.

Held equal on both sides: two backends, 64 streams over 8 client connections, one request a stream, responses of 200
bytes (205 with gRPC's prefix) in DATA frames of their own, one of each stream in turn, without pace; clients with the
largest HTTP/2 windows; one process for the proxy on one core, backends and clients together in this process on another,
both with the same code for either side. Not equal: the proxies' own windows towards the backends (64 KiB a stream in
the relay, gRPC's own estimate in the other). A message counts when its bytes have arrived at a client.
"""

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import uvloop
from rich.progress import Progress

from gateway.address import split_address
from scripts.benchmark.pumps import ECHO_MODEL, PUMP_MODEL, RESPONSE, BackendPump, ClientPump
from scripts.benchmark.report import Report

ROOT = Path(__file__).resolve().parents[2]
NUM_CONNECTIONS, STREAMS_EACH, NUM_BACKENDS = 8, 8, 2
WARM_UP_SECONDS = 0.5
ROUND_TRIPS = 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one side."""

    messages_per_s: float
    cpu_us: float  # of the proxy, a message


@contextlib.contextmanager
def proxy_process(command: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """Start a proxy on a core of its own, where there is more than one; yield its address and process."""
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        if process.stdout is None:
            raise RuntimeError("the proxy has no output")
        address = json.loads(process.stdout.readline())["grpc"]
        handle = psutil.Process(process.pid)
        cores = sorted(os.sched_getaffinity(0))
        handle.cpu_affinity(cores[:1])
        yield address, handle
    finally:
        process.terminate()
        process.terminate()  # a second signal cuts where the first one drains
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def relay_command(backends: list[str]) -> list[str]:
    """Return the command of the gateway in front of these backends."""
    command = [
        "-m",
        "gateway",
        "--grpc-address",
        "127.0.0.1:0",
        "--http-address",
        "127.0.0.1:0",
        "--drain-timeout-s",
        "0",
    ]
    return [*command, *(part for backend in backends for part in ("--instance", backend))]


def aio_command(backends: list[str]) -> list[str]:
    """Return the command of the grpc.aio proxy."""
    return ["-m", "scripts.benchmark.aio_proxy", *backends]


async def start_backends() -> tuple[list[asyncio.Server], list[str]]:
    """Listen with as many backends as the benchmark has; return them and their addresses."""
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(BackendPump, "127.0.0.1", 0) for _ in range(NUM_BACKENDS)]
    return servers, [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]


async def connect(address: str) -> ClientPump:
    """Return a client connected to `host:port`."""
    _, client = await asyncio.get_running_loop().create_connection(ClientPump, *split_address(address))
    return client


async def saturate(address: str, proxy: psutil.Process, seconds: float) -> Sample:
    """Count what comes through in `seconds` on all streams."""
    clients = [await connect(address) for _ in range(NUM_CONNECTIONS)]
    for client in clients:
        for stream_id in range(1, 2 * STREAMS_EACH, 2):
            client.open_stream(stream_id)
            client.send_request(stream_id, PUMP_MODEL, end_stream=True)
    await asyncio.gather(*(client.arrived.wait() for client in clients))
    await asyncio.sleep(WARM_UP_SECONDS)
    begin, bytes_before, cpu_before = time.perf_counter(), _received(clients), _cpu(proxy)
    await asyncio.sleep(seconds)
    elapsed, num_bytes, cpu = time.perf_counter() - begin, _received(clients) - bytes_before, _cpu(proxy) - cpu_before
    for client in clients:
        client.close()
    await asyncio.sleep(WARM_UP_SECONDS)
    messages = num_bytes / len(RESPONSE)
    return Sample(messages / elapsed, 1e6 * cpu / messages)


async def round_trips(address: str, count: int) -> float:
    """Return the median time of a request and its one response on one stream, in microseconds."""
    client = await connect(address)
    client.open_stream(1)
    times: list[float] = []
    for _ in range(count):
        client.arrived.clear()
        begin = time.perf_counter()
        client.send_request(1, ECHO_MODEL, end_stream=False)
        await client.arrived.wait()
        times.append(time.perf_counter() - begin)
    client.close()
    return 1e6 * statistics.median(times)


def _received(clients: list[ClientPump]) -> int:
    return sum(client.num_bytes for client in clients)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def _measure(seconds: float, repeats: int, progress: Progress, report: Report) -> None:
    servers, backends = await start_backends()
    commands = {"relay": relay_command(backends), "grpc.aio proxy": aio_command(backends)}
    task = progress.add_task("gateway", total=2 * repeats)
    for _ in range(repeats):
        report.add("no proxy, round trip p50", "us", await round_trips(backends[0], ROUND_TRIPS))
        for name, command in commands.items():
            with proxy_process(command) as (address, process):
                report.add(f"{name}, round trip p50", "us", await round_trips(address, ROUND_TRIPS))
                sample = await saturate(address, process, seconds)
            report.add(name, "messages/s", sample.messages_per_s)
            report.add(f"{name}, proxy CPU", "us/message", sample.cpu_us)
            progress.advance(task)
    for server in servers:
        server.close()


def run(seconds: float, repeats: int, progress: Progress) -> Report:
    """Measure both sides `repeats` times for `seconds` each, alternating."""
    report = Report(
        "relay against a grpc.aio bytes proxy, 64 saturated streams, 200-byte messages",
        "backends, clients, streams, messages; one process for the proxy on a core of its own",
    )
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-1:])
    try:
        uvloop.run(_measure(seconds, repeats, progress, report))
    finally:
        os.sched_setaffinity(0, cores)
    report.ratios["messages/s, relay over grpc.aio proxy"] = report.median("relay") / report.median("grpc.aio proxy")
    return report
