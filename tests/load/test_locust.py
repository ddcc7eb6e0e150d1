"""The load test, run headless against a fake backend in a process of its own."""

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.launcher.paths import ROOT


@pytest.fixture
def fake_url() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.load.fake_kserve"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin
        assert server.stdout
        yield f"127.0.0.1:{int(server.stdout.readline())}"
        server.stdin.close()


def run_locust(url: str, folder: Path, *options: str) -> tuple[int, dict[str, dict[str, str]], str]:
    command = [sys.executable, "-m", "locust", "-f", str(ROOT / "scripts" / "locustfile.py"), "--headless"]
    command += ["-u", "4", "-r", "4", "-t", "2s", "--host", url, "--csv", str(folder / "out"), *options]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    with (folder / "out_stats.csv").open() as file:
        rows = {row["Type"]: row for row in csv.DictReader(file)}
    return result.returncode, rows, result.stdout + result.stderr


def test_headless_run_reports_ttft_itl_and_e2e_as_rows_of_their_own(fake_url: str, tmp_path: Path) -> None:
    code, rows, output = run_locust(fake_url, tmp_path, "--max-tokens", "5")
    assert code == 0, output
    num_requests = int(rows["E2E"]["Request Count"])
    assert num_requests > 0
    assert {"TTFT", "ITL", "E2E"} <= rows.keys()
    assert int(rows["E2E"]["Failure Count"]) == 0
    assert float(rows["E2E"]["Average Content Size"]) == 5
    assert num_requests <= int(rows["TTFT"]["Request Count"]) <= num_requests + 4
    assert int(rows["ITL"]["Request Count"]) >= 4 * num_requests


def test_refused_and_broken_streams_count_as_failures(fake_url: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("refuse this\nbreak that\n")
    code, rows, output = run_locust(fake_url, tmp_path, "--prompts", str(prompts), "--rate", "20")
    assert code == 1, output
    assert 0 < int(rows["E2E"]["Request Count"]) == int(rows["E2E"]["Failure Count"])
    assert "the prompt is empty" in output


def test_trace_is_replayed_once_with_its_lengths(fake_url: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,4\n2023-11-16 18:15:46.9805900,10,6\n"
    )
    code, rows, output = run_locust(fake_url, tmp_path, "--trace", str(trace))
    assert code == 0, output
    assert int(rows["E2E"]["Request Count"]) == 2
    assert float(rows["E2E"]["Average Content Size"]) == 5
