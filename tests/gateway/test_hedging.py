"""A late first answer is asked for twice: one answer reaches the client, the other copy is ended."""

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.hedge_plan import MIN_REMEMBERED, REMEMBERED, HedgePlan, HedgingConfig
from gateway.hedges import Hedges
from tests.gateway import backend as backend_module
from tests.gateway import fake_llm
from tests.gateway.backend import Backend
from tests.gateway.clients import Client
from tests.gateway.fake_llm import Completion, make_request, tokens_of
from tests.gateway.process import GatewayProcess
from tests.gateway.protos import pb
from tests.gateway.test_resume import ask

LATE = 30.0  # seconds: nobody waits for these
FAILS = -1.0  # instead of a delay: an error before the first answer
FAILS_AFTER = -2.0  # the same, once there is another copy
DELAYS: dict[tuple[str, str], float] = {}  # by backend and request
IN_TURN: dict[str, list[float]] = {}  # by request: of its copies as they come, whichever backend they go to


def answer_late(service: Any, request: Any, context: Any) -> Iterator[Any]:
    gone = threading.Event()
    turns = IN_TURN.get(request.id)
    delay = turns.pop(0) if turns else DELAYS.get((service.backend.name, request.id), 0.0)
    while delay == FAILS_AFTER and len(IN_TURN[request.id]) > 1 and context.is_active():
        gone.wait(0.01)
    if delay in {FAILS, FAILS_AFTER}:
        error = "in ensemble 'llm', RESOURCE_EXHAUSTED: the queue is full"
        yield pb.ModelStreamInferResponse(error_message=error, infer_response=pb.ModelInferResponse(id=request.id))
        return
    if not context.add_callback(gone.set) or gone.wait(delay):
        return
    yield from fake_llm.answer(service, request, context)


class Running:
    """Three backends behind a gateway that hedges."""

    def __init__(self, folder: Path, **hedging: float) -> None:
        self.backends = [Backend(name) for name in "abc"]
        file = folder / "gateway.json"
        file.write_text(json.dumps({"hedging": hedging, "max_retries": 5}))
        self.gateway = GatewayProcess(*(b.flag for b in self.backends), flags=("--config", str(file)))
        self.gateway.wait_usable(3)

    def copies(self, name: str) -> dict[str, str]:
        """Return by key the backend that got that copy of a request; one that is ended at once may not arrive."""
        found = [(item, b.name) for b in self.backends for item in b.requests if item.id == name]
        keys = {item.parameters["request_key"].string_param: where for item, where in found}
        assert len(keys) == len(found)
        first = min(keys).partition(".")[0]
        assert {item.parameters["seed_key"].string_param for item, _ in found} <= {"", first}
        return keys

    def aborted(self) -> Counter[str]:
        return Counter(key for backend in self.backends for key in backend.aborted)

    def stop(self) -> None:
        self.gateway.stop()
        for backend in self.backends:
            backend.stop()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(backend_module._Service, "_answer", answer_late)
    DELAYS.clear()
    IN_TURN.clear()
    started: list[Running] = []

    def start(**hedging: float) -> Running:
        started.append(Running(tmp_path, **hedging))
        return started[-1]

    yield start
    for running in started:
        running.stop()


def check(done: Completion, name: str, num_tokens: int) -> None:
    assert (done.errors, done.token_ids, done.finish_reasons) == ([], tokens_of(name, num_tokens), ["length"])


def late_at_first(running: Running, name: str, **wishes: Any) -> tuple[str, Completion]:
    """Have a request be late at whichever instance gets it first; return that one and what the client got."""
    IN_TURN[name] = [LATE]
    done = ask(running.gateway.url, [make_request(name, 40, **wishes)])[name]
    copies = running.copies(name)
    return copies[min(copies)], done


def test_a_second_copy_answers_for_a_late_first_which_is_aborted_by_its_own_key(run: Any) -> None:
    running = run(delay_s=0.3, max_share=1.0)
    first, done = late_at_first(running, "r")
    check(done, "r", 40)
    copies = running.copies("r")
    key, second = sorted(copies)
    assert (copies[key], second) == (first, f"{key}.2")
    (loser,) = (backend for backend in running.backends if backend.name == first)
    assert loser.wait_for(lambda: key in loser.aborted and "r" in loser.ended)
    assert second not in running.aborted()
    for metric in ("gateway_hedges_total", "gateway_hedge_wins_total", "gateway_ttft_seconds_count"):
        assert running.gateway.metric(metric) == 1
    assert running.gateway.metric("gateway_in_flight_requests") == 0


def test_a_winner_whose_instance_fails_later_goes_on_elsewhere(run: Any) -> None:
    running = run(delay_s=0.3, max_share=1.0)
    _, done = late_at_first(running, "r", die_after=9)
    check(done, "r", 40)
    assert len(running.copies("r")) == 3
    assert running.gateway.metric("gateway_resumes_total") == 1


def test_a_second_copy_that_is_late_too_has_another_once_the_first_has_failed(run: Any) -> None:
    running = run(delay_s=0.1, max_share=1.0)
    ask(running.gateway.url, [make_request(f"saves-{number}", 1) for number in range(3)])
    IN_TURN["r"] = [FAILS_AFTER, LATE, 0.0]
    check(ask(running.gateway.url, [make_request("r", 9)])["r"], "r", 9)
    assert len(running.copies("r")) == 3
    assert running.gateway.metric("gateway_in_flight_requests") == 0


def test_a_client_that_leaves_has_both_copies_aborted(run: Any) -> None:
    running = run(delay_s=0.05, max_share=1.0)
    DELAYS.update({(name, "r"): LATE for name in "abc"})
    with Client(running.gateway.url) as client:
        stream = client.stream()
        stream.send(make_request("r", 9))
        running.gateway.wait_until(
            lambda: len(running.copies("r")) == 2 if running.gateway.metric("gateway_hedges_total") else False
        )
        stream.cancel()
        running.gateway.wait_until(lambda: set(running.aborted()) == set(running.copies("r")))
        running.gateway.wait_until(lambda: running.gateway.metric("gateway_in_flight_requests") == 0)
        assert len(set(running.aborted())) == 2


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_late_or_fails_each_request_has_one_answer_and_late_copies_are_ended(run: Any, seed: int) -> None:
    rng = random.Random(seed)
    running = run(delay_s=0.15, max_share=1.0)
    ask(running.gateway.url, [make_request(f"saves-{number}", 1) for number in range(60)])
    names = [f"{seed}-{number}" for number in range(30)]
    DELAYS.update({("a", name): rng.choice([0, 0.02, FAILS, LATE]) for name in names})
    DELAYS.update({(backend, name): rng.choice([0, 0.01, 0.02, 0.03]) for backend in "bc" for name in names})
    wishes: list[dict[str, Any]] = [rng.choice([{}, {"die_after": rng.randint(1, 20)}]) for _ in names]
    done = ask(running.gateway.url, [make_request(name, 25, **wish) for name, wish in zip(names, wishes, strict=True)])
    for name in names:
        check(done[name], name, 25)
    assert running.gateway.metric("gateway_hedges_total") > 0
    assert running.gateway.metric("gateway_requests_total") == len(names) + 60
    assert running.gateway.metric("gateway_in_flight_requests") == 0
    copies = {name: running.copies(name) for name in names}
    never = {key for name in names for key, where in copies[name].items() if DELAYS[where, name] == LATE}
    assert never
    running.gateway.wait_until(lambda: never <= running.aborted().keys())
    assert all(copies[name].keys() - running.aborted().keys() for name in names)


def test_no_more_than_the_share_of_requests_has_a_second_copy(run: Any) -> None:
    running = run(delay_s=0.01, max_share=0.1)
    names = [f"r{number}" for number in range(30)]
    DELAYS.update({(backend, name): 0.1 for backend in "abc" for name in names})
    done = ask(running.gateway.url, [make_request(name, 5) for name in names])
    for name in names:
        check(done[name], name, 5)
    assert 1 <= running.gateway.metric("gateway_hedges_total") <= 3


@given(st.lists(st.booleans(), max_size=400), st.floats(0.01, 1.0))
def test_the_share_holds_at_every_moment(sends: list[bool], share: float) -> None:
    plan, sent, taken = HedgePlan(HedgingConfig(delay_s=1.0, max_share=share)), 0, 0
    for is_send in sends:
        if is_send:
            plan.sent()
            sent += 1
        else:
            taken += plan.take()
        assert taken <= sent * share + 1e-9
        assert plan._credit <= max(1.0, share * REMEMBERED)


def test_the_delay_is_the_95th_percentile_once_enough_answers_are_known() -> None:
    plan = HedgePlan(HedgingConfig())
    for number in range(MIN_REMEMBERED - 1):
        plan.answered(number)
    assert plan.delay is None
    for number in range(MIN_REMEMBERED - 1, 100):
        plan.answered(number)
    assert plan.delay == 91  # of 96 known at the last look
    assert HedgePlan(HedgingConfig(delay_s=2.5)).delay == 2.5


def test_a_second_copy_that_has_answered_first_is_not_waited_for() -> None:
    async def run() -> tuple[int, int]:
        parts = {"observation": MagicMock(), "metrics": MagicMock(), "hub": MagicMock(), "late": MagicMock()}
        hedges = Hedges(HedgingConfig(delay_s=60), MagicMock(), **parts)
        hedge = MagicMock(request=MagicMock(routed_ns=0, instance=None))
        hedges.won(hedge, [])
        after_answer = len(hedges._timers)
        hedge.request.hedge = hedge
        hedges.take_over(hedge.request, None)
        return after_answer, len(hedges._timers)

    assert asyncio.run(run()) == (0, 1)
