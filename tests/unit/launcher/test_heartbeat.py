"""When an instance counts as dead."""

from scripts.launcher.heartbeat import Pulse, parse_beats, scrape
from scripts.launcher.ports import free_ports

PAGE = """\
# HELP llm_heartbeat beats
# TYPE llm_heartbeat gauge
llm_heartbeat{model="llm_engine"} 17
llm_heartbeat{other="a",model="preprocessing"} 4.5
llm_heartbeat_other{model="no"} 1
nv_inference_count{model="llm",version="1"} 3
"""


def beating(pulse: Pulse, seconds: int, models: dict[str, float], rate: float = 1.0) -> None:
    for _ in range(seconds):
        models = {name: value + rate for name, value in models.items()}
        pulse.observe(models, 1.0)


def test_metrics_page_gives_each_models_beat() -> None:
    assert parse_beats(PAGE) == {"llm_engine": 17.0, "preprocessing": 4.5}


def test_moving_beats_are_no_trouble() -> None:
    pulse = Pulse(60)
    beating(pulse, 100, {"a": 0, "b": 0})
    assert pulse.trouble() is None


def test_one_beat_that_stands_still_is_trouble_that_names_its_model() -> None:
    pulse = Pulse(60)
    for second in range(7):
        pulse.observe({"moves": second, "stands": 3}, 1.0)
    assert "stands" in (pulse.trouble() or "")
    assert "moves" not in (pulse.trouble() or "")


def test_five_seconds_are_not_yet_trouble() -> None:
    pulse = Pulse(60)
    pulse.observe({"a": 1}, 1.0)
    beating(pulse, 5, {"a": 1}, rate=0)
    assert pulse.trouble() is None


def test_beat_that_vanishes_from_the_page_stands_still() -> None:
    pulse = Pulse(60)
    pulse.observe({"a": 1, "b": 1}, 1.0)
    beating(pulse, 6, {"a": 1})
    assert "heartbeat of b " in (pulse.trouble() or "")


def test_page_without_beats_is_never_trouble() -> None:
    pulse = Pulse(60)
    beating(pulse, 100, {})
    assert pulse.trouble() is None


def test_long_pause_of_the_watcher_counts_as_one_short_step() -> None:
    pulse = Pulse(60)
    pulse.observe({"a": 1}, 1.0)
    pulse.observe({"a": 1}, 3600.0)
    assert pulse.trouble() is None


def test_silence_before_the_first_answer_is_allowed_for_the_time_of_a_start() -> None:
    pulse = Pulse(60)
    for _ in range(60):
        pulse.observe(None, 1.0)
    assert pulse.trouble() is None
    pulse.observe(None, 1.0)
    assert "60 s of its start" in (pulse.trouble() or "")


def test_silence_after_an_answer_is_trouble_after_twenty_seconds() -> None:
    pulse = Pulse(600)
    pulse.observe({"a": 1}, 1.0)
    for _ in range(20):
        pulse.observe(None, 1.0)
    assert pulse.trouble() is None
    pulse.observe(None, 1.0)
    assert "not answered for 21 s" in (pulse.trouble() or "")


def test_address_where_nothing_listens_gives_no_beats() -> None:
    assert scrape(f"127.0.0.1:{free_ports(1)[0]}") is None
