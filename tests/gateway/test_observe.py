"""Ledger, journal and report: what happened to a request can be read afterwards, and costs nothing when not wanted."""

import contextlib
import json
import re
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from openai import OpenAI
from typer.testing import CliRunner

from gateway.metrics import Metrics
from gateway.observe.config import JournalConfig, ObserveConfig
from gateway.observe.journal import Journal, Snapshot, open_journal, prune
from gateway.observe.ledger import STAGES, EngineTimes, durations, make_ledger
from gateway.observe.observation import Observation
from gateway.observe.observer import Observer
from gateway.observe.record import Record
from gateway.routing.levels import Level, LevelRule, LevelTracker
from gateway.wire.messages import frame_message
from scripts.journal_report.summary import TOTAL, group_rows, quantile, read_rows
from scripts.launcher.report_command import app
from tests.gateway import backend as backend_module
from tests.gateway.backend import Backend
from tests.gateway.clients import Client, request
from tests.gateway.process import ROOT, GatewayProcess
from tests.gateway.protos import pb

PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
Started = tuple[GatewayProcess, Backend]
Start = Callable[..., Started]


def record(key: str, at: int, concurrent: int = 1, messages: int | None = 2, engine: bool = True) -> Record:
    times = EngineTimes(at + 30, at + 60, 1e-7, 3e-7, 9e-7) if engine else None
    return Record(
        key, "t", "ModelStreamInfer", "a", "ok", 1, concurrent, messages, 5, 7, 0, at + 500,
        make_ledger(at, at + 10, at + 1200, times),
    )  # fmt: skip


def test_a_ledger_puts_the_engines_durations_behind_its_own_instant() -> None:
    ledger = make_ledger(1000, 1010, 2200, EngineTimes(1030, 1060, 1e-7, 3e-7, 9e-7))
    assert [ledger[stage] for stage in STAGES] == [1000, 1010, 1030, 1060, 1160, 1360, 1960, 2200]
    assert durations(ledger) == dict(zip(STAGES, [10, 20, 30, 100, 200, 600, 240], strict=False))
    assert durations(make_ledger(1, 2, 3, None)) is None
    assert make_ledger(1, 0, 3, None) == {"gateway_in": 1, "gateway_out": 3}


def message(**outputs: bytes) -> bytes:
    response = pb.ModelInferResponse()
    for name, raw in outputs.items():
        response.outputs.add(name=name)
        response.raw_output_contents.append(raw)
    return frame_message(pb.ModelStreamInferResponse(infer_response=response).SerializeToString())


def count_message(completion: int) -> bytes:
    return message(prompt_tokens=struct.pack("<i", 5), completion_tokens=struct.pack("<i", completion))


@pytest.mark.parametrize(("queue", "first_token"), [(0.0, 0.0), (1e-7, 0.0)])
def test_a_ledger_of_what_ended_early_does_not_go_back(queue: float, first_token: float) -> None:
    ledger = make_ledger(1000, 1010, 2200, EngineTimes(1030, 1060, queue, first_token, 9e-7))
    assert [ledger[stage] for stage in STAGES] == sorted(ledger[stage] for stage in STAGES)
    assert ledger["decode"] == ledger["detokenize"] == 1960
    assert "triton_in" not in make_ledger(1000, 1010, 2200, EngineTimes(0, 1060, queue, first_token, 9e-7))


def test_an_observer_reads_the_last_counts_however_the_bytes_are_cut() -> None:
    whole = count_message(1) + count_message(9) + message()
    for size in (1, 7, len(whole)):
        gaps: list[float] = []
        observer = Observer(note_gap=gaps.append)
        for start in range(0, len(whole), size):
            observer.take(whole[start : start + size])
        assert (observer.num_messages, observer.tokens_used()) == (3, 14)
        assert len(gaps) == (0 if size == len(whole) else 2)


def test_the_tokens_of_all_sequences_are_counted() -> None:
    observer = Observer()
    for index, completion, reason in ((0, 1, b""), (1, 1, b""), (0, 4, b"stop"), (1, 9, b"length")):
        raw = struct.pack("<I", len(reason)) + reason
        counts = {"prompt_tokens": 5, "completion_tokens": completion, "sequence_index": index}
        packed = {name: struct.pack("<i", value) for name, value in counts.items()}
        observer.take(message(finish_reason=raw, **packed))
    assert observer.tokens_used() == 5 + 4 + 9


def test_nothing_answered_costs_nothing_and_an_answer_without_counts_is_not_known() -> None:
    error = frame_message(pb.ModelStreamInferResponse(error_message="it broke").SerializeToString())
    observer = Observer()
    assert observer.tokens_used() == 0
    observer.take(error)
    assert observer.tokens_used() == 0
    observer.take(message(text_output=b"\x01\0\0\0a"))
    assert observer.tokens_used() is None


def test_a_journal_keeps_records_and_snapshots(tmp_path: Path) -> None:
    config = JournalConfig(path=tmp_path / "j.db")
    journal = Journal(config)
    now = time.time_ns()
    for index in range(5):
        journal.write(record(str(index), now + index))
    journal.write(Snapshot([(now, "up", '{"instance": "a"}', 1.0)], [("one 0", 2.5, now)]))
    journal.close()
    assert [row.ledger["gateway_in"] - now for row in read_rows(config.path)] == [0, 1, 2, 3, 4]
    with sqlite3.connect(config.path) as connection:
        assert connection.execute("SELECT name, labels, value FROM metrics").fetchall() == [
            ("up", '{"instance": "a"}', 1.0)
        ]
    connection.close()
    later = Journal(config)
    assert later.saved_levels == {"one 0": (2.5, now)}
    later.close()


def test_a_journal_is_bounded_in_rows_and_age(tmp_path: Path) -> None:
    config = JournalConfig(path=tmp_path / "j.db", max_rows=3, max_age_s=60)
    journal = Journal(config)
    now = time.time_ns()
    for index in range(8):
        journal.write(record(str(index), now + index))
    journal.close()
    assert [row.ledger["gateway_in"] - now for row in read_rows(config.path)] == [5, 6, 7]
    connection = open_journal(config)
    prune(connection, config, now + 61 * 10**9)
    connection.close()
    assert read_rows(config.path) == []


def test_what_cannot_be_written_is_counted_and_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, dropped = JournalConfig(path=tmp_path / "j.db"), threading.Semaphore(0)
    journal = Journal(config, dropped.release)
    with contextlib.closing(sqlite3.connect(config.path)) as connection:
        connection.execute("DROP TABLE requests")
    for name in ("1", "2"):
        journal.write(record(name, time.time_ns()))
        assert dropped.acquire(timeout=10)
    journal.close()
    assert capsys.readouterr().err.count("journal_failed") == 1


def test_a_journal_of_an_earlier_version_gets_what_it_lacks(tmp_path: Path) -> None:
    config = JournalConfig(path=tmp_path / "j.db")
    with contextlib.closing(open_journal(config)) as connection:
        connection.execute("ALTER TABLE requests DROP COLUMN request_id")
        connection.commit()
    journal = Journal(config)
    journal.write(record("1", time.time_ns()))
    journal.close()
    assert len(read_rows(config.path)) == 1


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("not a database, but long enough to be looked at as one" * 100)
    with pytest.raises(OSError, match="cannot be used"):
        Journal(JournalConfig(path=file))
    assert CliRunner().invoke(app, [str(file)]).exit_code == 2


def test_the_documented_queries_run_on_a_journal(tmp_path: Path) -> None:
    config = JournalConfig(path=tmp_path / "j.db")
    journal, now = Journal(config), time.time_ns()
    journal.write(record("1", now))
    for at, value in ((now, 10.0), (now + 2 * 10**9, 16.0)):
        journal.write(Snapshot([(at, "gateway_relayed_messages_total", "", value)], []))
    journal.close()
    block = re.findall(r"```sql\n(.*?)```", PROTOCOL, flags=re.DOTALL)[0]
    slowest, by_tenant, rates = (query for query in block.split(";") if query.strip())
    with contextlib.closing(sqlite3.connect(config.path)) as connection:
        assert connection.execute(slowest).fetchall() == [("", "t", "a", "ok", 7, 0.0012, 0.0005, 0.0001, 0.0006)]
        assert [row[1:] for row in connection.execute(by_tenant)] == [("t", 1, 0, 12)]
        assert [rate for _, rate in connection.execute(rates)] == [None, 3.0]


def test_every_metric_is_documented_with_its_kind_and_labels() -> None:
    metrics = Metrics()
    Observation(ObserveConfig(), metrics.registry)
    metrics.level = lambda: LevelTracker(LevelRule({Level.LOW: "a", Level.HIGH: "b"}, threshold=2, window_s=0))
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        row = next(line for line in PROTOCOL.splitlines() if line.startswith("| `") and f"`{name}" in line)
        assert f"| {family.type} |" in row
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels <= set(re.split(r"[{},`]", row))


def test_a_report_groups_by_concurrency_and_streaming(tmp_path: Path) -> None:
    config = JournalConfig(path=tmp_path / "j.db")
    journal = Journal(config)
    now = time.time_ns()
    for index, (concurrent, messages) in enumerate([(1, 2), (1, 1), (64, 2), (100, 9), (3, 2)]):
        journal.write(record(str(index), now, concurrent, messages))
    journal.write(record("unwatched", now, engine=False, messages=None))
    journal.close()
    groups = group_rows(read_rows(config.path))
    assert [(group.level, group.streamed, group.count) for group in groups] == [
        ("1", False, 1), ("1", True, 1), ("2-7", True, 1), ("64+", True, 2),
    ]  # fmt: skip
    assert groups[0].stages[TOTAL] == [1200]
    assert groups[0].ttft == [500]
    shown = CliRunner().invoke(app, [str(config.path)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert "64+ in flight, streamed: 2 requests" in shown.output
    assert "decode" in shown.output


def test_a_report_draws_where_matplotlib_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    config = JournalConfig(path=tmp_path / "j.db")
    journal = Journal(config)
    journal.write(record("1", time.time_ns()))
    journal.close()
    picture = tmp_path / "plot.png"
    assert CliRunner().invoke(app, [str(config.path), "--plot", str(picture)]).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_quantile_is_a_value_that_occurred() -> None:
    assert [quantile([5, 1, 3], share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 3, 5, 5]


def told(service: Any, asked: Any, context: Any) -> Iterator[Any]:
    """Answer three tokens as the engine does, in 2 ms of queue, 3 ms of prefill and 5 ms of decode."""
    received = time.time_ns()
    for index in range(3):
        last = index == 2
        response = pb.ModelInferResponse(id=asked.id, model_name="llm")
        for name, raw in {
            "text_output": b"\x01\0\0\0a",
            "finish_reason": b"\x06\0\0\0length" if last else b"\0\0\0\0",
            "prompt_tokens": struct.pack("<i", 5),
            "completion_tokens": struct.pack("<i", index + 1),
            "cached_tokens": struct.pack("<i", 0),
            "queue_seconds": struct.pack("<f", 0.002),
            "ttft_seconds": struct.pack("<f", 0.005),
            "e2e_seconds": struct.pack("<f", 0.010 if last else 0.0),
            "clock_ns": struct.pack("<2q", received, received + 1_000_000),
        }.items():
            response.outputs.add(name=name)
            response.raw_output_contents.append(raw)
        service.backend.stopped.wait(0.006)
        yield pb.ModelStreamInferResponse(infer_response=response)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    ended: list[Started] = []

    def run(**observe: Any) -> Started:
        config = tmp_path / "gateway.yaml"
        config.write_text(yaml.safe_dump({"observe": observe}))
        backend = Backend("a")
        gateway = GatewayProcess(backend.flag, flags=("--config", str(config)), log=tmp_path / "log")
        ended.append((gateway, backend))
        gateway.wait_usable(1)
        return gateway, backend

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_module._Service, "_answer", told)
        yield run
        for gateway, backend in ended:
            gateway.stop()
            backend.stop()


def test_every_request_is_journaled_and_survives_the_gateways_death(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    gateway, _ = start(sample=1.0, journal={"path": str(path), "snapshot_interval_s": 0.1})
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(request("1"), request("2"))
        assert len(stream.rest()) == 6
    gateway.wait_until(lambda: len(read_rows(path)) == 2)
    gateway.wait_until(lambda: _count(path, "metrics") > 0)
    gateway.process.kill()  # no goodbye
    gateway.process.wait()
    rows = read_rows(path)
    assert [(row.outcome, row.messages, row.prompt_tokens, row.completion_tokens) for row in rows] == [
        ("ok", 3, 5, 3)
    ] * 2
    assert [row.concurrent for row in rows] == [1, 2]
    for row in rows:
        spent = durations(row.ledger)
        assert spent is not None
        assert (spent["queued"], spent["triton_in"]) == (pytest.approx(2e6, rel=1e-3), 1_000_000)
        assert (spent["prefill"], spent["decode"]) == (pytest.approx(3e6, rel=1e-3), pytest.approx(5e6, rel=1e-3))
        assert all(value >= 0 for value in spent.values())


def test_what_http_answers_at_once_is_journaled_as_one_message(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    gateway, _ = start(sample=1.0, journal={"path": str(path)}, log_requests=True)
    with OpenAI(base_url=f"http://{gateway.http}/v1", api_key="none", max_retries=0) as client:
        given = client.completions.create(model="llm", prompt="Hi", extra_headers={"x-request-id": "mine"})
        made = client.completions.create(model="llm", prompt="Hi")
        with pytest.raises(openai.NotFoundError) as refused:
            client.completions.create(model="other", prompt="Hi")
    ids = [given._request_id, made._request_id]
    assert ids[0] == "mine"
    assert str(refused.value.request_id).startswith("req_")
    gateway.wait_until(lambda: len(read_rows(path)) == 2)
    assert [row.messages for row in read_rows(path)] == [1, 1]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert [row for (row,) in connection.execute("SELECT request_id FROM requests")] == ids
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    told = [line for line in lines if line["event"] == "request"]
    assert [line["request_id"] for line in told] == ids
    assert all(0 < line["routed_ms"] < line["gateway_out_ms"] and line["completion_tokens"] == 3 for line in told)


def test_a_ledger_is_told_to_who_asks_for_it(start: Start) -> None:
    gateway, _ = start()
    with Client(gateway.url) as client:
        stream = client.stream(metadata=(("x-ledger", "true"),))
        stream.send(request("1"), request("2"))
        stream.rest()
        ledgers = json.loads(dict(stream.call.trailing_metadata())["x-ledger"])
        assert [list(ledger) for ledger in ledgers] == [["key", *STAGES]] * 2
        plain = client.stream()
        plain.send(request("3"))
        plain.rest()
        assert "x-ledger" not in dict(plain.call.trailing_metadata())


def test_openais_answers_carry_the_ledger_where_asked_for(start: Start) -> None:
    gateway, _ = start()
    headers = {"x-ledger": "true"}
    with OpenAI(base_url=f"http://{gateway.http}/v1", api_key="none", max_retries=0) as client:
        whole = client.completions.create(model="llm", prompt="Hi", extra_headers=headers)
        assert whole.model_extra is not None
        assert list(whole.model_extra["ledger"]) == ["key", *STAGES]
        events = list(client.completions.create(model="llm", prompt="Hi", extra_headers=headers, stream=True))
        assert events[-1].model_extra is not None
        assert set(STAGES) <= set(events[-1].model_extra["ledger"])
        assert not (client.completions.create(model="llm", prompt="Hi").model_extra or {})


def test_metrics_tell_waits_gaps_and_tokens_of_watched_requests(start: Start) -> None:
    gateway, backend = start(sample=0.5)
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(*(request(str(index)) for index in range(4)))
        stream.rest()
    assert gateway.metric('gateway_tenant_requests_total{outcome="ok",tenant=""}') == 4
    assert gateway.metric("gateway_wait_seconds_count") == 4
    assert gateway.metric("gateway_first_answer_seconds_count") == 4
    name = f'instance="{backend.grpc_address}"'
    assert gateway.metric(f'gateway_tokens_total{{{name},kind="completion",tenant=""}}') == 6
    assert gateway.metric("gateway_gap_seconds_count") == 4


def _count(path: Path, table: str) -> int:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    finally:
        connection.close()
