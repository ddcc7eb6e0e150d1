"""What OpenAI's API costs in the gateway: server-sent events, the first request, and memory.

Knows HTTP as far as it needs, and what is measured. Does not know how the gateway works. With other checkouts of this
repository beside, each is measured in turn, with the same instance and the same clients.

Held equal: the instance and the clients on one core, the gateway (plain Python or compiled, as it finds itself) on
another; 64 clients, which stream completions of a token a message. CPU is that of all the gateway's threads.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil
import uvloop

from scripts.benchmark.gateway import Comparison, Meter
from scripts.benchmark.report import Progress, Report

ROOT = Path(__file__).resolve().parents[2]
NUM_STREAMS = 64
PACED, FLOOD = 20.0, 1000.0  # messages a second on each stream; the second is more than any gateway can take
FOR_EVER = 10**9
READ_BYTES = 1 << 18
LAST_CHUNK = b"0\r\n\r\n"


@contextmanager
def _process(command: list[str], core: int, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a process on a core; yield it and its first line, and kill it."""
    pinned = ["taskset", "-c", str(core), *command]
    with subprocess.Popen(pinned, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


class Clients:
    """HTTP clients of one gateway."""

    def __init__(self, address: str) -> None:
        """Name the gateway."""
        self._host, _, self._port = address.rpartition(":")
        self.num_events = 0

    async def complete(self, max_tokens: int, times: int = 1) -> None:
        """Stream a completion, counting its events, until it ends; one behind the other where there are several.

        Raises:
            RuntimeError: it did not begin well.
        """
        body = json.dumps({"model": "llm", "prompt": "Hi", "max_tokens": max_tokens, "stream": True})
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection(self._host, int(self._port), limit=READ_BYTES)
        try:
            for _ in range(times):
                writer.write((head + body).encode())
                if not (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200"):
                    raise RuntimeError("the gateway refused a completion")
                await self._read_events(reader)
        finally:
            writer.close()

    async def load(self, max_tokens: int, seconds: float, meter: Meter) -> tuple[float, float]:
        """Have all clients stream; return (events a second, CPU us an event) behind a second of warm-up."""
        tasks = [asyncio.ensure_future(self.complete(max_tokens, FOR_EVER)) for _ in range(NUM_STREAMS)]
        await asyncio.sleep(1.0)
        meter.begin()
        before, began = self.num_events, time.monotonic()
        await asyncio.sleep(seconds)
        num_events, elapsed = self.num_events - before, time.monotonic() - began
        used = meter.cpu_us()
        for task in tasks:
            task.cancel()
        failed = [each for each in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(each, Exception)]
        if failed or not num_events:
            raise RuntimeError(f"{len(failed)} of {NUM_STREAMS} streams failed: {failed[:1]}")
        return num_events / elapsed, used / num_events

    async def _read_events(self, reader: asyncio.StreamReader) -> None:
        data = b""
        while not data.endswith(LAST_CHUNK):
            data = data[-len(LAST_CHUNK) :] + await reader.read(READ_BYTES)
            self.num_events += data.count(b'data: {"')  # is longer than what is kept, so none counts twice


@asynccontextmanager
async def _gateway(folder: Path, cores: tuple[int, int], rate: float) -> AsyncIterator[tuple[Clients, Meter]]:
    """Start an instance of that rate and a gateway in front; yield clients and a meter of the gateway."""
    instance = [sys.executable, "-m", "scripts.benchmark.fake_model", str(rate)]
    flags = ["--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", "--drain-timeout-s", "0"]
    with _process(instance, cores[1], ROOT) as (_, address):
        command = [sys.executable, "-m", "gateway", *flags, "--instance", address]
        with _process(command, cores[0], folder) as (process, line):
            await asyncio.sleep(0.5)  # for the connection to the instance
            yield Clients(json.loads(line)["http"]), Meter([psutil.Process(process.pid)])


async def _measure(name: str, folder: Path, cores: tuple[int, int], seconds: float, report: Report) -> None:
    async with _gateway(folder, cores, PACED) as (clients, meter):
        began = time.monotonic()
        await clients.complete(max_tokens=1)
        report.add(f"{name}: first request", "ms", 1000 * (time.monotonic() - began))
        report.add(f"{name}: RSS after it", "MiB", meter.rss_mib())
        _, cpu_us = await clients.load(FOR_EVER, seconds, meter)
        report.add(f"{name}: CPU, {NUM_STREAMS * PACED:,.0f} events/s", "us/event", cpu_us)
    async with _gateway(folder, cores, FLOOD) as (clients, meter):
        await clients.complete(max_tokens=1)
        for what, max_tokens, unit in (("saturated", FOR_EVER, "event"), ("completions of one token", 1, "completion")):
            per_second, cpu_us = await clients.load(max_tokens, seconds, meter)
            report.add(f"{name}: {what}", f"{unit}s/s", per_second)
            report.add(f"{name}: CPU, {what}", f"us/{unit}", cpu_us)


def run(seconds: float, repeats: int, progress: Progress, beside: tuple[Path, ...] = ()) -> Report:
    """Measure this checkout, and others beside it, `repeats` times, alternating."""
    report = Comparison(
        f"OpenAI's completions, {NUM_STREAMS} streams",
        "instance and clients on one core, the gateway on another; streams, messages",
    )
    *_, first, second = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {second})
    folders = {"this": ROOT} | {str(folder): folder for folder in beside}
    task = progress.add_task("sse", total=repeats * len(folders))
    for _ in range(repeats):
        for name, folder in folders.items():
            uvloop.run(_measure(name, folder, (first, second), seconds, report))
            progress.advance(task)
    return report
