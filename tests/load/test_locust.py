"""The load test, run headless against a fake backend in a process of its own."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.launcher.paths import ROOT

pytestmark = pytest.mark.process


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


def run_locust(url: str, *options: str) -> tuple[int, str]:
    """Return Locust's exit code and what it said."""
    command = [sys.executable, "-m", "locust", "-f", str(ROOT / "scripts" / "locustfile.py"), "--headless"]
    command += ["-u", "4", "-r", "4", "-t", "100s", "--host", url, *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return result.returncode, result.stdout + result.stderr


def read_rows(url: str, folder: Path, *options: str) -> dict[str, dict[str, float]]:
    """Run a test in which nothing may fail and return its final statistics by row."""
    code, output = run_locust(url, "--json-file", str(folder / "out"), *options)
    assert code == 0, output
    return {row["method"]: row for row in json.loads((folder / "out.json").read_text())}


def test_headless_run_reports_ttft_itl_and_e2e_as_rows_of_their_own(fake_url: str, tmp_path: Path) -> None:
    rows = read_rows(fake_url, tmp_path, "--max-tokens", "5", "--requests", "20")
    num_requests = rows["E2E"]["num_requests"]
    assert num_requests == 20
    assert {"TTFT", "ITL", "E2E"} <= rows.keys()
    assert rows["E2E"]["num_failures"] == 0
    assert rows["E2E"]["total_content_length"] == 5 * num_requests
    assert rows["TTFT"]["num_requests"] == num_requests
    assert rows["ITL"]["num_requests"] == 4 * num_requests


def test_refused_and_broken_streams_count_as_failures(fake_url: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("refuse this\nbreak that\n")
    code, output = run_locust(fake_url, "--prompts", str(prompts), "--rate", "20", "--requests", "6")
    assert code == 1, output
    assert re.search(r"E2E +llm +6 +6\(100.00%\)", output)
    assert "the prompt is empty" in output


def test_trace_is_replayed_once_with_its_lengths(fake_url: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,4\n2023-11-16 18:15:46.9805900,10,6\n"
    )
    rows = read_rows(fake_url, tmp_path, "--trace", str(trace))
    assert rows["E2E"]["num_requests"] == 2
    assert rows["E2E"]["total_content_length"] == 10
