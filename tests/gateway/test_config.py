"""Configuration, headers and statuses: read as meant or refused with a reason."""

import ast
import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.__main__ import parse_arguments
from gateway.call import BadCall, parse_call, parse_timeout, upstream_headers
from gateway.config import ConfigError, GatewayConfig, make_config, make_instances, read_fields
from gateway.config_help import describe
from gateway.discovery.config import FileDiscovery
from gateway.discovery.sources import watch_file
from gateway.request_stages import TRANSITIONS, Stage, Step
from gateway.status import Code, failure_of_reset, failure_of_trailers, trailers_of
from gateway.strict import in_folder_of
from tests.gateway.process import ROOT
from tests.gateway.wires import REQUEST


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)


def test_a_yaml_file_is_read_and_flags_override_it(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("grpc_address: 127.0.0.1:9001\ninstances:\n- {grpc: 'h:1', metrics: 'h:2', name: one}\n")
    config = parse_arguments(["--config", str(file), "--http-address", "127.0.0.1:0", "--max-retries", "5"])
    assert (config.grpc_address, config.http_address, config.max_retries) == ("127.0.0.1:9001", "127.0.0.1:0", 5)
    assert [(i.name, i.grpc, i.metrics) for i in config.instances] == [("one", "h:1", "h:2")]


def test_a_json_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "gateway.json"
    file.write_text('{"instances": [{"grpc": "h:1"}]}')
    assert parse_arguments(["--config", str(file)]).instances[0].name == "h:1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("instances: []", "instances"),
        ("instances: [{grpc: 'h:1'}]\nunknown_field: 1", "unknown_field"),
        ("instances: [{grpc: 'no port'}]", "instances.0.grpc"),
        ("instances: [{grpc: 'h:1'}, {grpc: 'h:1'}]", "same name"),
        ("instances: [{grpc: 'h:70000'}]", "above 65535"),
        ("instances: [{grpc: 'h:1'}]\nqueue_timeout_s: -1\nmax_retries: x", "queue_timeout_s.*max_retries"),
        ("- a list", "not a mapping"),
        ("a: [", "gateway.yaml"),
        ("max_retries: 2023-13-45", "gateway.yaml: month must be"),
    ],
)
def test_a_wrong_configuration_is_refused_as_a_whole(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        parse_arguments(["--config", str(file)])


def test_a_list_of_instances_has_the_same_limits() -> None:
    with pytest.raises(ConfigError, match=r"0\.grpc: .*h:70000 has a port above 65535"):
        make_instances([{"grpc": "h:70000"}])


def test_a_refusal_names_field_limit_and_value() -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({"instances": [{"grpc": "h:1"}], "workers": 65, "hedging": {"max_share": "much"}, "extra": 3})
    assert str(caught.value).split("; ") == [
        "hedging.max_share: Input should be a valid number, unable to parse string as a number, not 'much'",
        "workers: Input should be less than or equal to 64, not 65",
        "extra: Extra inputs are not permitted, not 3",
    ]


def test_the_example_in_the_docs_is_valid() -> None:
    config = parse_arguments(["--config", str(ROOT / "docs" / "gateway.yaml")])
    assert [instance.name for instance in config.instances] == ["left", "right"]


BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "protocol.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split(":")[0])
def test_every_piece_of_configuration_in_the_docs_is_valid(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SCALELLM_KEYS", f"guests sha256:{'1' * 64}")
    (tmp_path / "my_module.py").write_text("class MyCheck: pass")
    (tmp_path / "keys.txt").write_text(f"staff sha256:{'0' * 64}\n")
    for name in re.findall(r"[\w.]+\.(?:pem|key)", block):
        (tmp_path / name).touch()
    file = tmp_path / "gateway.yaml"
    file.write_text(block.replace("/var/lib/scalellm", str(tmp_path)))
    fields = {"instances": [{"grpc": "h:1"}]} | read_fields(file)
    assert make_config(fields, in_folder_of(file)).model_fields_set == fields.keys()


def test_every_relative_path_is_in_the_folder_of_its_file(tmp_path: Path) -> None:
    """Here the current folder is another one."""
    (tmp_path / "others").mkdir()
    for name in ("a.pem", "a.key", "keys.txt", "others/b.pem"):
        (tmp_path / name).touch()
    (tmp_path / "plan.json").write_text('{"thresholds": [{"low": "tp2", "high": "2 x tp1", "in_flight": 9}]}')
    (tmp_path / "others" / "list.yaml").write_text("[{grpc: 'h:1', tls: {ca: b.pem}}]")
    file = tmp_path / "gateway.yaml"
    file.write_text("""
        tls: {certificate: a.pem, key: a.key}
        discovery: {kind: file, path: others/list.yaml}
        instances: [{grpc: "h:2", tls: {ca: a.pem}}]
        safety: {keys_file: keys.txt}
        observe: {journal: {path: journal.db}}
        routing: {levels: {low_pool: a, high_pool: b, plan: {file: plan.json, low: tp2, high: 2 x tp1}}}
    """)
    config = parse_arguments(["--config", str(file)])
    discovery = config.discovery
    assert isinstance(discovery, FileDiscovery)
    assert config.observe.journal is not None
    assert config.observe.journal.path == tmp_path / "journal.db"
    assert config.routing.levels is not None
    assert config.routing.levels.rule().threshold == 9

    async def found() -> Path | None:
        (instance,) = await anext(watch_file(discovery))
        return instance.tls.ca if instance.tls else None

    assert asyncio.run(found()) == tmp_path / "others" / "b.pem"


def test_a_field_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("instances: [{grpc: 'h:1'}]\nresume: true\nhedging: {max_share: 1, max_share: 0.5}\n")
    with pytest.raises(ConfigError, match=r"the field 'max_share' is given twice(.|\n)*line 3"):
        parse_arguments(["--config", str(file)])


def test_the_help_names_every_field_with_its_meaning_limits_and_default() -> None:
    lines = list(describe(GatewayConfig))
    assert not [line for line in lines if line.count(":") == 0 or line.endswith(":")]
    assert not [line for line in lines if re.search(r": \(", line)]
    assert "limits.resets.burst: events at once, at least 1 (default 4096)" in lines
    assert "instances[].patience.keepalive_s: seconds of silence, then a ping (default null)" in lines
    assert "workers: processes on the gRPC port" in "\n".join(lines)
    assert "hedging.max_share: share of requests that may have a second copy (> 0; <= 1; default 0.05)" in lines
    assert any(line.startswith("routing.policy:") and "one of queue_depth, least_kv" in line for line in lines)
    done = run_python("-m", "gateway", "--help-config")
    assert (done.returncode, done.stdout.splitlines()) == (0, lines)
    assert "seconds that a request waits for a usable instance" in run_python("-m", "gateway", "--help").stdout


def test_the_command_says_what_is_wrong_and_exits_with_2() -> None:
    done = run_python("-m", "gateway")
    assert done.returncode == 2
    assert done.stderr.endswith("there are neither instances nor discovery\n")


def test_the_gateway_imports_neither_torch_nor_grpc() -> None:
    code = (
        "import sys, gateway.server; print([m for m in ('torch', 'grpc', 'tritonclient', 'numpy') if m in sys.modules])"
    )
    done = run_python("-c", code)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("value", "seconds"), [(b"5S", 5.0), (b"250m", 0.25), (b"2M", 120.0), (b"1H", 3600.0)])
def test_a_timeout_is_read_in_its_unit(value: bytes, seconds: float) -> None:
    assert parse_timeout(value) == seconds
    assert parse_timeout(None) is None


@pytest.mark.parametrize("value", [b"", b"S", b"5", b"-1S", b"123456789S", b"5x"])
def test_a_malformed_timeout_is_refused(value: bytes) -> None:
    with pytest.raises(BadCall, match="malformed"):
        parse_timeout(value)


def test_what_is_no_grpc_call_is_refused() -> None:
    with pytest.raises(BadCall, match="POST"):
        parse_call(((b":method", b"GET"), *REQUEST[1:]))
    with pytest.raises(BadCall, match="content type"):
        parse_call((*REQUEST[:-1], (b"content-type", b"text/html")))


def test_a_routed_call_goes_on_with_the_clients_metadata_and_asks_for_statuses() -> None:
    extra = ((b"authorization", b"x"), (b"triton_grpc_error", b"true"), (b"grpc-timeout", b"9S"), (b"te", b"trailers"))
    call = parse_call((*REQUEST, *extra))
    assert (call.is_routed, call.wants_status, call.timeout) == (True, True, 9.0)
    headers = upstream_headers(call, b"http", b"there:1")
    assert headers.count((b"triton_grpc_error", b"true")) == 0
    assert dict(headers)[b":authority"] == b"there:1"
    assert b"grpc-timeout" not in dict(headers)
    assert dict(headers)[b"authorization"] == b"x"


def test_a_status_message_survives_its_way_through_trailers() -> None:
    failure = failure_of_trailers(trailers_of(Code.NOT_FOUND, "100% of 'ü'\n is gone"))
    assert failure is not None
    assert (failure.code, failure.message) == (Code.NOT_FOUND, "100% of 'ü'\n is gone")
    assert failure_of_trailers(trailers_of(Code.OK)) is None


def test_unknown_codes_and_answers_that_are_not_grpc_are_failures() -> None:
    for headers, code in (
        (((b"grpc-status", b"99"),), Code.UNKNOWN),
        (((b":status", b"503"),), Code.UNAVAILABLE),
        (((b":status", b"200"),), Code.UNKNOWN),
    ):
        failure = failure_of_trailers(headers)
        assert failure is not None
        assert failure.code is code
        assert failure.trailers == (headers if headers[0][0] == b"grpc-status" else ())
    assert failure_of_reset(7, "a").code is Code.UNAVAILABLE
    assert failure_of_reset(77, "a").code is Code.INTERNAL


def test_a_request_that_is_done_stays_done() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] is Stage.DONE]
    assert {TRANSITIONS[stage, Step.END] for stage in Stage if stage is not Stage.DONE} == {Stage.DONE}


PURE = [
    *sorted((ROOT / "gateway" / "wire").glob("*.py")),
    *(ROOT / "gateway" / f"{n}.py" for n in ("endpoint", "loads", "patience")),
]


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.stem)
def test_pure_files_know_no_sockets_and_no_clock(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert not imported & {"asyncio", "socket", "ssl", "time", "uvloop", "select"}
