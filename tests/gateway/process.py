"""The gateway as a process of its own."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


class GatewayProcess:
    """`python -m gateway` on free ports."""

    def __init__(
        self, *instances: str, flags: tuple[str, ...] = (), log: Path | None = None, address: str = "127.0.0.1:0"
    ) -> None:
        command = [
            sys.executable,
            "-W",
            "error",
            "-m",
            "gateway",
            "--grpc-address",
            address,
            "--http-address",
            "127.0.0.1:0",
        ]
        for instance in instances:
            command += ["--instance", instance]
        self.log_file = log.open("w") if log else None
        self.process = subprocess.Popen(
            [*command, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=self.log_file or None, text=True
        )
        assert self.process.stdout is not None
        addresses = json.loads(self.process.stdout.readline())
        self.url: str = addresses["grpc"]
        self.http: str = addresses["http"]

    def get(self, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, str]:
        request = urllib.request.Request(f"http://{self.http}{path}", method=method, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def health(self) -> dict[str, str]:
        return {item["name"]: item["health"] for item in json.loads(self.get("/healthz")[1])["instances"]}

    def metric(self, series: str) -> float:
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith(series)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def wait_until(self, condition, timeout: float = 10.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.02)  # polls another process, which has no event to wait for

    def wait_usable(self, count: int) -> None:
        self.wait_until(lambda: list(self.health().values()).count("ready") == count)

    def rss(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Cut: two signals, then what is needed."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self.process.send_signal(number)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        if self.log_file:
            self.log_file.close()
