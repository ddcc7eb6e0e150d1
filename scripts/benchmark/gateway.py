"""The gateway against nginx, HAProxy, Envoy and a grpc.aio proxy, alternating in one run.

Knows what is measured and how it is summed up. Does not know how proxies or load are started.

Held equal for all: two backends and the clients in one C process on a core of their own, every proxy one process (or
worker) on another; 8 client connections, or one for each stream, with the largest HTTP/2 windows; the same header
blocks; 200-byte responses in DATA frames of their own; routing to the backend with the fewest streams. Not equal:
windows towards backends, buffers and connection pools, which are each proxy's own. CPU is user and system time of the
proxy's threads (Linux' schedstat, in nanoseconds), divided by messages. "Added" is the client's latency less that of
the same load without a proxy.
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from scripts.benchmark.load import Generator, Load, Result
from scripts.benchmark.peers import NotInstalled, peers, running
from scripts.benchmark.report import Report, Series

MIB = 2**20
STALL_SECONDS = 5.0
SATURATED, STALLED = Load("saturate", 64), Load("stall", 64)
PACED, TICKS = Load("paced", 64, 50), Load("ticks", 64, 50)
SPREADS = {8: "", 64: ", a connection each"}  # of the 64 streams; what the rows are called
CHURN, TTFT, HELD = Load("churn", 64), Load("ttft", 64, 50), Load("hold", 1024)


class Comparison(Report):
    """A report whose series are named `PROXY: QUANTITY`, shown as one column for each proxy."""

    def show(self) -> None:
        """Print the table: medians, with the lowest and highest run where there are several."""
        names = list(dict.fromkeys(series.name.partition(": ")[0] for series in self.series))
        rows = list(dict.fromkeys((series.name.partition(": ")[2], series.unit) for series in self.series))
        table = Table(title=self.title, caption=f"held equal: {self.held_equal}")
        for column in ("quantity", *names):
            table.add_column(column)
        for what, unit in rows:
            cells = (next((_cell(s) for s in self.series if s.name == f"{name}: {what}"), "") for name in names)
            table.add_row(f"{what}, {unit}", *cells)
        console = Console(width=40 + 26 * len(names))
        console.print(table)
        for name, ratio in self.ratios.items():
            console.print(f"{name}: {ratio:.3g}")


def _cell(series: Series) -> str:
    numbers = [series.median] if len(series.samples) == 1 else [series.median, *series.spread]
    first, *rest = [f"{number:,.3g}" if abs(number) < 1000 else f"{number:,.0f}" for number in numbers]
    return first + (f" ({'-'.join(rest)})" if rest else "")


class Meter:
    """CPU time and memory of a proxy."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        """Measure these."""
        self._processes = processes
        self._cpu_before = 0.0

    def begin(self) -> None:
        """Note the CPU time so far."""
        self._cpu_before = self._cpu()

    def cpu_us(self) -> float:
        """Return the CPU time since `begin`, in microseconds."""
        return 1e6 * (self._cpu() - self._cpu_before)

    def rss_mib(self) -> float:
        """Return the resident memory."""
        return sum(process.memory_info().rss for process in self._processes) / MIB

    def _cpu(self) -> float:
        files = (file for process in self._processes for file in Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
        return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def _direct(generator: Generator, seconds: float) -> dict[Load, Result]:
    """Return the latencies without a proxy, of the first backend."""
    port = generator.backends[0]
    loads = [*(replace(load, connections=spread) for spread in SPREADS for load in (PACED, TICKS)), TTFT]
    return {load: generator.run(load, port, seconds, lambda: None) for load in loads}


class _Bench:
    """One proxy under each load."""

    def __init__(self, name: str, generator: Generator, port: int, meter: Meter, report: Report) -> None:
        """Measure the proxy at `port`."""
        self.name, self.generator, self.port, self.meter, self.report = name, generator, port, meter, report

    def measure(self, direct: dict[Load, Result], seconds: float) -> None:
        """Add every quantity to the report."""
        for spread, label in SPREADS.items():
            saturated = self._run(replace(SATURATED, connections=spread), seconds)
            self._add(f"saturated{label}", "messages/s", saturated.messages / saturated.seconds)
            self._add(f"CPU, saturated{label}", "us/message", self.meter.cpu_us() / max(1, saturated.messages))
            for load in (replace(load, connections=spread) for load in (PACED, TICKS)):
                result = self._run(load, seconds)
                self._add(f"CPU, {load.mode}{label}", "us/message", self.meter.cpu_us() / max(1, result.messages))
                self._add(f"added p50, {load.mode}{label}", "us", result.p50_us - direct[load].p50_us)
        first = self._run(TTFT, seconds)
        self._add("added TTFT p50", "us", first.p50_us - direct[TTFT].p50_us)
        self._add("added TTFT p99", "us", first.p99_us - direct[TTFT].p99_us)
        churn = self._run(CHURN, seconds)
        self._add("new streams", "calls/s", churn.calls / churn.seconds)
        self._add("CPU, new streams", "us/call", self.meter.cpu_us() / max(1, churn.calls))
        self._run(HELD, 1.0)
        self._add("RSS, 1,024 open streams", "MiB", self.meter.rss_mib())
        self._run(STALLED, STALL_SECONDS)
        self._add("RSS, clients that do not read", "MiB", self.meter.rss_mib())

    def _run(self, load: Load, seconds: float) -> Result:
        result = self.generator.run(load, self.port, seconds, self.meter.begin)
        if result.errors:
            self.report.ratios[f"errors: {self.name}, {load.mode}"] = float(result.errors)
        return result

    def _add(self, what: str, unit: str, value: float) -> None:
        self.report.add(f"{self.name}: {what}", unit, value)


def run(seconds: float, repeats: int, progress: Progress, only: tuple[str, ...] = ()) -> Report:
    """Measure every proxy that is installed `repeats` times for `seconds` a quantity, alternating."""
    report = Comparison(
        "gateway and others, 64 streams, 200-byte messages",
        "C backends and clients on one core, the proxy's one process on another, streams, header blocks, messages",
    )
    cores = sorted(os.sched_getaffinity(0))
    chosen = [peer for peer in peers() if not only or peer.name in only]
    task = progress.add_task("gateway", total=repeats * len(chosen))
    with tempfile.TemporaryDirectory() as folder, Generator(Path(folder), cores[-1]) as generator:
        for _ in range(repeats):
            direct = _direct(generator, min(seconds, 2.0))
            for peer in chosen:
                try:
                    with running(peer, generator.backends, Path(folder) / peer.name, cores[0]) as (port, processes):
                        _Bench(peer.name, generator, port, Meter(processes), report).measure(direct, seconds)
                except NotInstalled as missing:
                    progress.console.print(f"left out: {missing}")
                progress.advance(task)
    return report
