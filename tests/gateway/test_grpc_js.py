"""grpc-js of npm, unchanged, through the gateway. Skipped where node, npm or the npm registry is missing."""

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

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
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = ROOT / ".serve" / "grpc-js"
    if not (folder / "node_modules" / "@grpc" / "grpc-js" / "package.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
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
    done = subprocess.run(
        ["node", str(SCRIPT), pair[0].url, str(grpc_js)],
        input=json.dumps(sent), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["unary"] > len(body)
    assert result["code"] == 0
    responses = [pb.ModelStreamInferResponse.FromString(base64.b64decode(item)) for item in result["responses"]]
    for name in wishes:
        assert indices(responses, name) == list(range(20))
