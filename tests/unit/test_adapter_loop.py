"""Adapters in the core's loop: loaded beside it, waited for, refused, unloaded, and let go of with every request."""

import json
import queue
import shutil
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.core_process import CoreLoop, Event, _load_again
from engine.errors import ModelError
from engine.lora import adapter_service
from engine.lora.adapter_service import AdapterService
from engine.messages import AbortCommand, AdapterCommand, AddCommand
from engine.outputs import EngineStats, FinishReason, RequestOutput
from engine.sampling_params import SamplingParams
from engine.scheduling_params import SchedulingParams
from engine.task_params import TaskParams
from tests.conftest import TinyModel
from tests.models.adapters import TinyAdapter, make_adapter

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT reads it
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def adapters(tiny_llama: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyAdapter]:
    folder = tmp_path_factory.mktemp("adapters")
    made = {name: make_adapter(tiny_llama, folder, name, seed=seed) for seed, name in enumerate(NAMES)}
    (folder / "broken").mkdir()
    (folder / "broken" / "adapter_config.json").write_text('{"peft_type": "LORA", "use_dora": true}')
    return made


@pytest.fixture(scope="module")
def core(tiny_llama: TinyModel, adapters: dict[str, TinyAdapter]) -> EngineCore:
    folder = adapters["a"].path.parent
    config = EngineConfig(model=tiny_llama.path, block_size=4, num_blocks=200, num_threads=1, adapters=folder)
    return EngineCore(config)


class Gate:
    """Holds loads back until the test lets them go."""

    def __init__(self, load: Callable[..., Any]) -> None:
        self._load = load
        self._passes: queue.SimpleQueue[None] = queue.SimpleQueue()

    def __call__(self, *args: Any) -> Any:
        self._passes.get()
        return self._load(*args)

    def open(self) -> None:
        self._passes.put(None)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(adapter_service.load_adapter)
    monkeypatch.setattr(adapter_service, "load_adapter", made)
    yield made
    for _ in range(4):  # nothing may stay behind on the background thread
        made.open()


class Loop:
    """A core loop fed by hand, with what it has sent."""

    def __init__(self, core: EngineCore, folder: Path, **budget: Any) -> None:
        self.ours, theirs = Pipe()
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        config = EngineConfig(adapters=folder, **budget)
        self.service = AdapterService(folder, config, core.runner.adapter_targets, self.events.put)
        self.loop = CoreLoop(core, theirs, self.events, self.service)
        self.outputs: list[RequestOutput] = []
        self.stats = EngineStats()

    def put(self, *events: Event) -> None:
        for event in events:
            self.events.put(event)

    def turn(self) -> None:
        self.loop.turn()
        while self.ours.poll():
            message = self.ours.recv()
            if isinstance(message, EngineStats):
                self.stats = message
            else:
                self.outputs += message
        self.service.pool.check()

    def finals(self, request_id: int) -> list[RequestOutput]:
        return [o for o in self.outputs if o.request_id == request_id and o.finish_reason is not None]

    def final(self, request_id: int) -> RequestOutput:
        while not self.finals(request_id):
            self.turn()
        (found,) = self.finals(request_id)
        return found

    def tokens(self, request_id: int) -> list[int]:
        self.final(request_id)
        return [token for o in self.outputs if o.request_id == request_id for token in o.token_ids]

    def states(self, request_id: int, name: str = "") -> dict[str, str]:
        """Return the state of each adapter in memory, asking by that request for the load of `name` if there is one."""
        self.put(AdapterCommand(request_id, name))
        return {name: told["state"] for name, told in json.loads(self.final(request_id).adapters or "").items()}


@pytest.fixture
def make_loop(core: EngineCore, adapters: dict[str, TinyAdapter]) -> Callable[..., Loop]:
    return lambda **budget: Loop(core, adapters["a"].path.parent, **budget)


def add(request_id: int, adapter: str, max_tokens: int = 6, **scheduling: Any) -> AddCommand:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    facts = SchedulingParams(**scheduling)
    return AddCommand(request_id, [5, 6, 7], params, time.monotonic(), (), facts, TaskParams(adapter))


def test_requests_wait_for_their_adapter_and_say_what_it_says(
    make_loop: Callable[..., Loop], adapters: dict[str, TinyAdapter], tiny_llama: TinyModel
) -> None:
    loop = make_loop()
    loop.put(*(add(index, name) for index, name in enumerate(["a", "b", "", "a", "c"])))
    for index, name in enumerate(["a", "b", "", "a", "c"]):
        oracle = adapters[name].merged if name else tiny_llama
        assert oracle.confirms([5, 6, 7], loop.tokens(index))
    assert loop.service.num_loads == 3
    loop.turn()
    assert loop.states(9) == dict.fromkeys("abc", "ready")
    assert (len(loop.stats.adapters), loop.stats.num_adapter_loads, loop.stats.num_pending) == (3, 3, 0)
    assert loop.stats.adapter_bytes == loop.service.pool.num_bytes > 0


def test_the_loop_steps_while_an_adapter_is_being_loaded(make_loop: Callable[..., Loop], gate: Gate) -> None:
    loop = make_loop()
    loop.put(add(1, "a"), add(2, ""))
    assert loop.final(2).finish_reason is FinishReason.LENGTH
    loop.turn()
    assert not loop.finals(1)
    assert loop.stats.num_pending == 1
    gate.open()
    assert loop.final(1).finish_reason is FinishReason.LENGTH


def test_an_unknown_name_is_refused_with_those_there_are(make_loop: Callable[..., Loop]) -> None:
    loop = make_loop()
    loop.put(add(1, "b"))
    loop.final(1)
    for request_id, name in enumerate(["d", "../adapters", "a/../b", "."], 2):
        loop.put(add(request_id, name))
        refused = loop.final(request_id)
        assert refused.error_code == "INVALID_ARGUMENT"
        assert refused.error == f"there is no adapter {name!r}; there are: a, b, broken, c; loaded are: b"
    assert not loop.loop.pending


def test_an_adapter_that_cannot_be_served_fails_its_requests_only(make_loop: Callable[..., Loop]) -> None:
    loop = make_loop()
    loop.put(add(1, "broken"), add(2, "a"))
    assert (loop.final(1).error_code, "use_dora" in (loop.final(1).error or "")) == ("FAILED_PRECONDITION", True)
    assert loop.final(2).finish_reason is FinishReason.LENGTH


def test_a_load_that_breaks_is_told_to_all_who_wait_and_may_be_tried_again(
    make_loop: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    load, failures = adapter_service.load_adapter, [OSError("no such disk"), ModelError("cut off")]

    def broken(*given: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return load(*given)

    monkeypatch.setattr(adapter_service, "load_adapter", broken)
    loop = make_loop()
    loop.put(add(1, "a"))
    assert loop.final(1).error == "the adapter could not be loaded: OSError('no such disk')"
    loop.put(add(2, "a"))
    assert loop.final(2).error == "cut off"
    loop.put(add(3, "a"))
    assert loop.final(3).finish_reason is FinishReason.LENGTH


def test_aborts_and_deadlines_end_requests_that_wait(make_loop: Callable[..., Loop], gate: Gate) -> None:
    loop = make_loop()
    loop.put(add(1, "a"), add(2, "a"), add(3, "a", deadline_ms=1), AbortCommand(2))
    assert loop.final(2).finish_reason is FinishReason.CANCELLED
    assert loop.final(3).finish_reason is FinishReason.DEADLINE
    gate.open()
    assert loop.final(1).finish_reason is FinishReason.LENGTH
    loop.turn()
    assert [len(loop.finals(i)) for i in (1, 2, 3)] == [1, 1, 1]
    assert not loop.loop.pending
    assert all(not place.users for place in loop.service.pool.places.values())


def test_more_adapters_than_fit_take_turns(make_loop: Callable[..., Loop], adapters: dict[str, TinyAdapter]) -> None:
    loop = make_loop(max_adapters=1)
    wanted = "abcabcabc"
    loop.put(*(add(index, name) for index, name in enumerate(wanted)))
    for index, name in enumerate(wanted):
        assert adapters[name].merged.confirms([5, 6, 7], loop.tokens(index))
    assert len(loop.states(99)) == 1


def test_an_adapter_larger_than_the_budget_is_refused(make_loop: Callable[..., Loop]) -> None:
    loop = make_loop(adapter_gib=1e-6)
    loop.put(add(1, "a"))
    assert "bytes; the budget is 1073" in (loop.final(1).error or "")


def test_unloading_waits_for_who_uses_it_and_new_requests_load_it_again(make_loop: Callable[..., Loop]) -> None:
    loop = make_loop()
    assert loop.states(1, "a") == {"a": "ready"}
    loop.put(add(2, "a", max_tokens=20))
    loop.turn()
    loop.put(AdapterCommand(3, "a", is_unload=True), add(4, "a"))
    assert json.loads(loop.final(3).adapters or "")["a"]["state"] == "leaving"
    assert not loop.finals(2)
    assert loop.final(4).finish_reason is FinishReason.LENGTH
    assert loop.finals(2)
    assert loop.service.num_loads == 2
    loop.turn()
    loop.put(AdapterCommand(5, "a", is_unload=True))
    assert loop.final(5).adapters == "{}"
    loop.put(AdapterCommand(6, "a", is_unload=True))
    assert loop.final(6).error == "the adapter 'a' is not loaded"


def test_an_adapter_whose_files_have_changed_counts_after_an_unload(
    core: EngineCore, adapters: dict[str, TinyAdapter], tmp_path: Path
) -> None:
    shutil.copytree(adapters["a"].path, tmp_path / "x")
    loop = Loop(core, tmp_path)
    loop.put(add(1, "x"))
    assert adapters["a"].merged.confirms([5, 6, 7], loop.tokens(1))
    shutil.copytree(adapters["b"].path, tmp_path / "x", dirs_exist_ok=True)
    loop.turn()
    loop.put(AdapterCommand(2, "x", is_unload=True), add(3, "x"))
    assert adapters["b"].merged.confirms([5, 6, 7], loop.tokens(3))


def test_an_engine_without_adapters_refuses_to_name_one(core: EngineCore) -> None:
    loop = Loop(core, Path())
    loop.loop.adapters = None
    for request_id, event in ((1, add(1, "a")), (2, AdapterCommand(2, "a"))):
        loop.put(event)
        assert "this engine serves no adapters" in (loop.final(request_id).error or "")


def test_a_new_core_has_what_the_one_before_it_had_if_it_is_still_there(
    core: EngineCore, adapters: dict[str, TinyAdapter]
) -> None:
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    folder = adapters["a"].path.parent
    service = AdapterService(
        folder, EngineConfig(model=Path(), adapters=folder), core.runner.adapter_targets, events.put
    )
    found = _load_again(service, events, ("a", "broken", "gone", "c"))
    assert [adapter.name for adapter in found] == service.loaded == ["a", "c"]
    assert not any(place.users for place in service.pool.places.values())
