"""Several workers on one port: what they share, what is added up, and that none of it ends with one of them."""

import contextlib
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import psutil
import pytest

from gateway.config import ConfigError, GatewayConfig, make_config
from gateway.loads import Load, Report
from gateway.safety.admission import Admission, Ticket
from gateway.safety.config import TenantConfig
from gateway.safety.tenant import Tenant, make_tenant
from gateway.workers.levels import SharedLevels
from gateway.workers.seat import Seat, counted_before, merge
from gateway.workers.supervisor import Supervisor
from gateway.workers.table import Row, SharedTable, TableFull
from tests.gateway.backend import Backend
from tests.gateway.clients import Client, indices, request
from tests.gateway.conftest import Start
from tests.gateway.process import ROOT, GatewayProcess


def test_a_worker_counts_what_the_others_have_in_flight_too() -> None:
    table = SharedTable(3)
    mine, theirs, third = (Load(row=table.row("a", number)) for number in range(3))
    elsewhere = Load(row=table.row("b", 1))
    for load in (mine, theirs, theirs, third, elsewhere):
        load.join()
    assert [load.total(0.0) for load in (mine, theirs, third, elsewhere)] == [4, 4, 4, 1]
    theirs.leave()
    assert mine.total(0.0) == 3
    table.forget(2)
    assert mine.total(0.0) == 2


def test_a_report_leaves_out_what_any_worker_has_sent() -> None:
    table = SharedTable(2)
    mine, theirs = (Load(row=table.row("a", number)) for number in range(2))
    for _ in range(5):
        theirs.join()
    mine.report(Report(waiting=2, running=5), 10.0)
    assert mine.total(10.0) == 7


def test_forked_processes_find_the_same_row_by_name() -> None:
    table = SharedTable(2)
    table.row("first", 0)
    child = os.fork()
    if child == 0:
        table.row("second", 1).set(7)
        os._exit(0)
    os.waitpid(child, 0)
    assert table.row("second", 0).others() == 7
    assert table.row("first", 0).others() == 0


def test_metrics_of_workers_are_added_up_and_states_are_not() -> None:
    up = b"# TYPE gateway_instance_up gauge\ngateway_instance_up %d.0\n"
    first = b'# TYPE x counter\nx_total{a="1"} 2.0\nx_total{a="2"} 1.0\n' + up % 1
    second = b'# TYPE x counter\nx_total{a="1"} 40.0\n' + up % 0
    merged = merge([first, second]).decode().splitlines()
    assert 'x_total{a="1"} 42.0' in merged
    assert 'x_total{a="2"} 1.0' in merged
    assert "gateway_instance_up 0.0" in merged


def test_a_successor_goes_on_from_what_was_counted_and_not_from_states(tmp_path: Path) -> None:
    table, levels = SharedTable(2), SharedLevels()
    own = b"# TYPE x_total counter\nx_total 2.0\n# TYPE up gauge\nup 1.0\n"
    Seat(1, table, levels, tmp_path).publish(own, b"")
    for expected in (4.0, 6.0):
        Seat(1, table, levels, tmp_path, before=counted_before(tmp_path, 1)).publish(own, b"")
        assert f"x_total {expected}\n" in Seat(0, table, levels, tmp_path).render(b"").decode()
        assert "up 1.0" in Seat(0, table, levels, tmp_path).render(b"").decode()
    assert counted_before(tmp_path, 0) == b""


def test_no_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match="workers"):
        make_config({"instances": [{"grpc": "127.0.0.1:1"}], "workers": 0})


def test_a_shared_bucket_has_one_level_for_all_and_for_who_comes_later() -> None:
    levels = SharedLevels()
    mine, theirs = levels.bucket("one", 10, 1.0, 5.0), levels.bucket("one", 10, 1.0, 5.0)
    mine.take(6, 5.0)
    theirs.take(3, 5.0)
    assert mine.wait(2, 5.0) == 1.0
    assert levels.bucket("one", 10, 1.0, 6.0).wait(2, 6.0) == 0.0
    assert levels.bucket("other", 10, 1.0, 6.0).wait(10, 6.0) == 0.0


def test_slots_are_counted_over_all_workers() -> None:
    table, levels = SharedTable(2), SharedLevels()
    config = TenantConfig(name="one", max_concurrent=2)
    mine, theirs = (make_tenant(config, 0.0, Seat(number, table, levels, Path())) for number in range(2))
    for tenant in (mine, theirs):
        assert tenant.has_room
        tenant.take(0, 0.0)
    assert not mine.has_room
    theirs.settle(0, 0, 0.0)
    assert mine.has_room


def _hammer(admission: Admission, tenant: Tenant, row: Row, start: Barrier) -> bool:
    """Take and leave the only slot many times; return whether somebody else ever had it as well."""
    start.wait()
    for number in range(10_000):
        ticket = Ticket(tenant, 0, float(number))
        assert admission.enter(ticket, float(number)) is None
        if ticket.admitted_at is not None and row.others():
            return True
        admission.leave(ticket, 0, float(number))
    return False


@pytest.mark.parametrize("whose", ["tenant", "gateway"])
def test_workers_that_admit_at_once_never_exceed_a_limit(whose: str) -> None:
    context = multiprocessing.get_context("fork")
    table, levels, start = SharedTable(2), SharedLevels(), context.Barrier(2)
    config = TenantConfig(name="one", max_concurrent=1 if whose == "tenant" else None)

    def work(number: int) -> None:
        tenant = make_tenant(config, 0.0, Seat(number, table, levels, Path()))
        rows = {"gateway": table.row("all", number), "tenant": table.row("\0tenant one", number)}
        admission = Admission(1 if whose == "gateway" else None, 10, 5.0, rows["gateway"])
        os._exit(_hammer(admission, tenant, rows[whose], start))

    workers = [context.Process(target=work, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.parametrize("is_unix", [False, True])
def test_workers_share_limits_and_journal_and_limits_outlive_them(tmp_path: Path, is_unix: bool) -> None:
    backend = Backend("a")
    journal, config = tmp_path / "journal.db", tmp_path / "gateway.json"
    limits = [{"what": "requests", "amount": 10, "per_s": 3600}]
    safety = {"anonymous_tenant": "all", "max_wait_s": 0, "tenants": [{"name": "all", "limits": limits}]}
    config.write_text(json.dumps({"workers": 2, "safety": safety, "observe": {"journal": {"path": str(journal)}}}))
    address = f"unix:{tmp_path}/socket" if is_unix else "127.0.0.1:0"
    flags = ("--config", str(config))
    try:
        for asked, expected in ((16, 6), (2, 2)):  # what the first gateway has used up is used up for the second
            gateway = GatewayProcess(backend.flag, flags=flags, address=address)
            try:
                gateway.wait_usable(1)
                refused = 0
                for number in range(asked):
                    with Client(gateway.url) as client:
                        stream = client.stream()
                        stream.send(request(str(number)))
                        refused += sum(bool(answer.error_message) for answer in stream.rest())
                assert refused == expected
                gateway.terminate()
                assert gateway.process.wait(10) == 0
            finally:
                gateway.stop()
    finally:
        backend.stop()
    with contextlib.closing(sqlite3.connect(journal)) as connection:
        rows = connection.execute("SELECT outcome, count(*) FROM requests GROUP BY outcome ORDER BY outcome").fetchall()
    assert rows == [("ok", 10), ("resource_exhausted", 8)]
    assert not (tmp_path / "socket").exists()


def test_workers_share_a_port_and_one_that_dies_is_replaced(start: Start) -> None:
    gateway, backends = start(2, "--workers", "2")

    def call(count: int) -> None:
        clients = [Client(gateway.url) for _ in range(count)]
        streams = [client.stream() for client in clients]
        for number, stream in enumerate(streams):
            stream.send(request(f"r{number}", chunks=10))
        for number, stream in enumerate(streams):
            assert indices(stream.rest(), f"r{number}") == list(range(10))
        for client in clients:
            client.channel.close()

    def shown() -> float:
        return json.loads(gateway.get("/dashboard/data")[1])["history"][-1]["requests"]

    call(24)
    gateway.wait_until(lambda: shown() == 24)
    gateway.wait_until(lambda: gateway.metric("gateway_relayed_messages_total") == 240)
    gateway.wait_until(lambda: gateway.metric("gateway_calls_total") >= 24)  # a call ends after its last message
    workers = psutil.Process(gateway.process.pid).children()
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    workers[1].wait(5)
    call(4)
    gateway.wait_until(lambda: len(psutil.Process(gateway.process.pid).children()) == 2)
    call(24)
    gateway.wait_until(lambda: gateway.metric("gateway_relayed_messages_total") == 520)  # the dead one's included
    gateway.wait_until(lambda: shown() == 52)
    gateway.get(f"/instances/{backends[0].grpc_address}/drain", "POST")
    gateway.wait_until(lambda: gateway.metric(f'gateway_instance_up{{instance="{backends[0].grpc_address}"') == 0)
    gateway.terminate()
    assert gateway.process.wait(10) == 0
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]


def test_workers_take_a_changed_configuration_and_so_do_their_successors(tmp_path: Path) -> None:
    backends = [Backend("a"), Backend("b")]
    file, log = tmp_path / "gateway.json", tmp_path / "log"

    def write(backend: Backend, **fields: object) -> None:
        instance = {"grpc": backend.grpc_address, "metrics": backend.flag.partition(",")[2], "name": backend.name}
        file.write_text(json.dumps({"instances": [instance], "workers": 2} | fields))

    def call() -> set[str]:
        for backend in backends:
            backend.requests.clear()
        for number in range(8):
            with Client(gateway.url) as client:
                stream = client.stream()
                stream.send(request(f"r{number}"))
                assert indices(stream.rest(), f"r{number}") == [0]
        return {backend.name for backend in backends if backend.requests}

    write(backends[0])
    gateway = GatewayProcess(flags=("--config", str(file)), log=log)
    gateway.wait_usable(1)
    assert call() == {"a"}
    write(backends[1])
    gateway.process.send_signal(signal.SIGHUP)
    gateway.wait_until(lambda: log.read_text().count("config_applied") == 2)
    assert call() == {"b"}
    write(backends[1], workers=5)
    gateway.process.send_signal(signal.SIGHUP)
    gateway.wait_until(lambda: log.read_text().count("config_refused") >= 2)
    write(backends[1])
    worker = psutil.Process(gateway.process.pid).children()[1]
    worker.kill()
    worker.wait(5)
    gateway.wait_until(lambda: log.read_text().count("config_applied") == 3)
    assert call() == {"b"}
    gateway.stop()
    for backend in backends:
        backend.stop()


def test_a_table_has_rows_for_many_names_and_says_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.workers.table.MAX_ROWS", 50)
    table = SharedTable(1)
    starts = {table.row(f"instance {number}", 0).start for number in range(50)}
    assert len(starts) == 50
    assert table.row("instance 7", 0).start in starts
    with pytest.raises(TableFull, match="memory for 50 names"):
        table.row("one more", 0)


def test_workers_on_a_port_that_is_taken_do_not_start(start: Start) -> None:
    gateway, _ = start(1, "--workers", "2")
    command = [sys.executable, "-m", "gateway", "--workers", "2", "--grpc-address", gateway.url]
    second = subprocess.run(
        [*command, "--http-address", "127.0.0.1:0", "--instance", "127.0.0.1:1"],
        cwd=ROOT, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert (second.returncode, second.stdout) == (1, "")
    assert "cannot start" in second.stderr


def test_a_worker_that_cannot_start_again_is_tried_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gateway.workers.supervisor.RESTART_SECONDS", 0.01)
    monkeypatch.setattr("gateway.workers.supervisor.POLL_SECONDS", 0.01)
    starts = multiprocessing.get_context("fork").Value("i", 0)  # of the second worker

    def work(_config: GatewayConfig, seat: Seat, announce: Callable[[dict[str, str]], None]) -> int:
        if seat.number == 1:
            starts.value += 1
            if starts.value == 2:
                return 1
        announce({"grpc": "g", "http": "h"})
        if seat.number == 0 or starts.value == 3:
            if seat.number == 1:
                os.kill(os.getppid(), signal.SIGTERM)
            signal.pause()
        return 1

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    config = make_config({"workers": 2, "instances": [{"grpc": "127.0.0.1:1"}]})
    try:
        assert Supervisor(config, work, tmp_path).run() == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert starts.value == 3
    assert capsys.readouterr().err.count("worker_ended") == 1
