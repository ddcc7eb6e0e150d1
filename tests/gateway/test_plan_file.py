"""A plan's table as the threshold between workload levels: taken, or refused with all of the configuration."""

import json
import random
from pathlib import Path

import pytest

from gateway.config import ConfigError, GatewayConfig, make_config
from gateway.routing.config import RoutingConfig
from gateway.routing.router import Router

THRESHOLDS = [{"low": "tp8", "high": "4 x tp2", "in_flight": 453}, {"low": "tp8", "high": "2 x tp4", "in_flight": 247}]


def write(folder: Path, document: object) -> Path:
    file = folder / "plan.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return file


def config_with(file: Path, high: str = "2 x tp4", **levels: object) -> GatewayConfig:
    plan = {"file": str(file), "low": "tp8", "high": high}
    routing = {"levels": {"low_pool": "wide", "high_pool": "narrow", "plan": plan, **levels}}
    instances = [{"grpc": f"h:{port}", "pool": pool} for port, pool in ((1, "wide"), (2, "narrow"))]
    return make_config({"instances": instances, "routing": routing})


def test_the_threshold_is_the_plans(tmp_path: Path) -> None:
    file = write(tmp_path, {"thresholds": THRESHOLDS})
    router = Router(config_with(file, hysteresis=0.2).routing, random.Random(0))
    assert router.status()["threshold"] == 247
    assert router.levels is not None
    assert router.levels.rule.hysteresis == 0.2


def test_another_plan_in_the_same_file_is_another_configuration(tmp_path: Path) -> None:
    before = config_with(write(tmp_path, {"thresholds": THRESHOLDS}))
    same = config_with(write(tmp_path, {"thresholds": THRESHOLDS, "date": "today"}))
    after = config_with(write(tmp_path, {"thresholds": [THRESHOLDS[1] | {"in_flight": 100}]}))
    assert before == same != after


def test_routing_that_is_written_out_reads_the_same_plan_wherever_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"thresholds": THRESHOLDS})
    monkeypatch.chdir(tmp_path)
    written = config_with(Path("plan.json")).routing.model_dump(mode="json", exclude_unset=True)
    monkeypatch.chdir("/")
    levels = RoutingConfig.model_validate(written).levels
    assert levels is not None
    assert levels.rule().threshold == 247


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("{", "is no plan"),
        ([], "is no plan"),
        ({"thresholds": [{"low": "tp8", "high": "2 x tp4"}]}, "is no plan"),
        ({"thresholds": [THRESHOLDS[0]]}, "no threshold from 'tp8' to '2 x tp4'; it has 'tp8' to '4 x tp2'"),
        ({"thresholds": [THRESHOLDS[1] | {"in_flight": 0}]}, "threshold 0, which is not above 0"),
    ],
)
def test_a_file_that_gives_no_threshold_is_refused(tmp_path: Path, document: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_with(write(tmp_path, document))
    assert says in str(caught.value)
    assert str(caught.value).startswith("routing.levels.plan")


def test_a_plan_that_is_not_there_or_beside_a_threshold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"levels\.plan\.file"):
        config_with(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="both a threshold and a plan"):
        config_with(write(tmp_path, {"thresholds": THRESHOLDS}), threshold=64)
