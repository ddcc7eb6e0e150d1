"""The operations view in a real browser: it shows what the gateway knows, from this page alone."""

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import yaml

from gateway.dashboard import feed as feed_module
from gateway.dashboard.feed import MAX_TENANTS, Feed, level_facts
from gateway.dashboard.share import Share, Totals, write_share
from gateway.routing.levels import Level, LevelRule, LevelTracker
from gateway.safety.config import TenantConfig
from gateway.safety.tenant import Tenant, make_tenant
from tests.gateway import backend as backend_module
from tests.gateway.backend import Backend
from tests.gateway.browser import Page, page
from tests.gateway.clients import Client, request
from tests.gateway.process import GatewayProcess
from tests.gateway.test_observe import told

PICTURE = os.environ.get("SCALELLM_DASHBOARD_PICTURE")  # where to put a screenshot for the docs


@pytest.fixture
def busy(tmp_path: Path):
    """A gateway with two instances and one that is gone, a tenant, and twenty finished requests."""
    config = tmp_path / "gateway.yaml"
    tenants = [{"name": "guests", "limits": [{"what": "requests", "amount": 1000, "per_s": 60}]}]
    safety = {"tenants": tenants, "anonymous_tenant": "guests"}
    config.write_text(yaml.safe_dump({"observe": {"sample": 1.0}, "safety": safety}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_module._Service, "_answer", told)
        backends = [Backend("a"), Backend("b")]
        flags = ("--config", str(config))
        gateway = GatewayProcess(*(backend.flag for backend in backends), "127.0.0.1:1", flags=flags)
        gateway.wait_usable(2)
        with Client(gateway.url) as client:
            stream = client.stream()
            stream.send(*(request(str(index)) for index in range(20)))
            stream.rest()
        gateway.wait_until(lambda: len(json.loads(gateway.get("/dashboard/data")[1])["history"]) > 2)
        yield gateway
        gateway.stop()
        for backend in backends:
            backend.stop()


@contextlib.contextmanager
def browse(gateway: GatewayProcess, folder: Path) -> Iterator[Page]:
    """Show the dashboard after some updates, and fail on anything that its console says."""
    with page(folder / "profile", 1280, 860) as dashboard:
        dashboard.open(f"http://{gateway.http}/dashboard")
        dashboard.wait_for("Number(document.body?.dataset.updates) >= 2")
        yield dashboard
        assert not dashboard.said


def test_a_browser_shows_instances_rates_breakdown_and_tenants(busy: GatewayProcess, tmp_path: Path) -> None:
    with browse(busy, tmp_path) as dashboard:
        shown = dashboard.value("document.documentElement.outerHTML")
    facts = json.loads(busy.get("/dashboard/data")[1])
    assert "2 of 3 instances in use" in shown
    assert all(item["name"] in shown for item in facts["instances"])
    assert "starting, not used" in shown
    assert "the latest 20 watched requests" in shown
    assert facts["stages"][5]["stage"] == "decode"
    assert facts["stages"][5]["mean"] == pytest.approx(5.0, rel=0.01)
    assert '<td class="n">5.0</td>' in shown
    assert "guests" in shown
    assert "of 1000 requests left" in shown


def test_nothing_on_the_page_overflows_at_1280_pixels(busy: GatewayProcess, tmp_path: Path) -> None:
    with browse(busy, tmp_path) as dashboard:
        raw = dashboard.screenshot()
        assert dashboard.value("document.documentElement.scrollWidth") == 1280
    if PICTURE:
        Path(PICTURE).write_bytes(raw)
    assert raw.startswith(b"\x89PNG")
    assert int.from_bytes(raw[16:20], "big") == 1280
    assert len(raw) > 20_000  # an empty page is smaller


def test_the_level_is_told_with_the_reason_of_its_latest_switch() -> None:
    assert level_facts(None) is None
    tracker = LevelTracker(LevelRule({Level.LOW: "deep", Level.HIGH: "wide"}, threshold=2, window_s=0))
    assert level_facts(tracker) == {"name": Level.LOW.value, "pool": "deep", "reason": "since the start"}
    tracker.observe(9, 1.0)
    facts = level_facts(tracker)
    assert facts is not None
    assert (facts["name"], facts["pool"]) == (Level.HIGH.value, "wide")
    assert "9.0 requests in flight" in facts["reason"]


def test_the_page_loads_nothing_from_elsewhere(busy: GatewayProcess) -> None:
    status, page = busy.get("/dashboard")
    assert status == 200
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "src=" not in page


def test_totals_of_all_workers_never_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = (Share(1, Totals(requests=requests), [0.5], []) for requests in (10, 5))
    monkeypatch.setattr(feed_module, "share_of", lambda *_: own)
    told = [
        other,
        Share(0, Totals(requests=7), [], []),
        Share(0, Totals(requests=2), [], []),
    ]  # the last one began anew
    dispatcher = SimpleNamespace(instances={})
    feed = Feed(dispatcher, Mock(), Mock(), lambda: {1: write_share(told.pop(0))})  # type: ignore[arg-type]
    samples = [feed.sample() for _ in range(3)]
    assert [sample.totals.requests for sample in samples] == [15, 17, 19]
    assert [sample.waiting for sample in samples] == [2, 1, 1]


def test_of_many_tenants_the_busiest_and_those_with_the_least_left_are_shown() -> None:
    def make(name: str) -> Tenant:
        limits = [{"what": "requests", "amount": 10, "per_s": 1e9}]
        return make_tenant(TenantConfig.model_validate({"name": name, "limits": limits}), 0.0)

    async def run() -> list[str]:
        tenants = {name: make(name) for name in (f"t{number}" for number in range(2 * MAX_TENANTS))}
        tenants["t60"].take(0, 0.0)
        tenants["t70"].take(0, 0.0)
        tenants["t70"].settle(0, 0, 0.0)
        dispatcher = SimpleNamespace(guard=SimpleNamespace(tenants=tenants))
        return [item["name"] for item in Feed(dispatcher, Mock(), Mock())._tenants()]  # type: ignore[arg-type]

    shown = asyncio.run(run())
    assert shown == ["t60", "t70", *(f"t{number}" for number in range(MAX_TENANTS - 2))]
