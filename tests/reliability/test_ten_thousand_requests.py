"""Ten thousand random requests against the engine core, with aborts, deadlines, faults and too little of everything."""

import gc
import logging
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.draft_model import DraftModel
from engine.errors import InvalidRequest, QueueFull
from engine.offline import generate
from engine.outputs import FinishReason
from engine.sequence import Sequence
from engine.step_plan import StepPlan
from tests.conftest import TinyModel
from tests.reliability.ledger import Account, Ledger
from tests.reliability.random_requests import MAX_MODEL_LEN, random_request

SHAPE: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "head_dim": 16,  # as most tests' heads, so that attention is compiled but once
    "intermediate_size": 48,
    "max_position_embeddings": MAX_MODEL_LEN,
}
SIZES: dict[str, Any] = {"block_size": 4, "num_blocks": 90, "num_threads": 1, "kv_cache_gib": 0.01}
LIMITS: dict[str, Any] = {"max_num_seqs": 24, "max_num_batched_tokens": 80, "max_waiting": 48, "ageing_seconds": 0.05}


class Faults:
    """Breaks what is computed for some requests, and for all in some steps."""

    def __init__(self, core: EngineCore, rng: random.Random) -> None:
        self.run = core.runner.run
        self.model = core.runner.model
        self.rng = rng
        core.runner.run = self.run_with_faults  # pyright: ignore[reportAttributeAccessIssue]
        core.runner.model = self.compute  # pyright: ignore[reportAttributeAccessIssue]

    @staticmethod
    def raises(request_id: int) -> bool:
        return request_id % 89 == 7

    @staticmethod
    def is_poisoned(request_id: int) -> bool:
        return request_id % 97 == 11

    def run_with_faults(self, plan: StepPlan) -> Any:
        if any(self.raises(item.sequence.request_id) and item.sequence.num_output_tokens for item in plan.scheduled):
            raise ArithmeticError("a request that cannot be computed")
        if plan.num_tokens > 60 and self.rng.random() < 0.3:
            raise MemoryError
        return self.run(plan)

    def compute(self, batch: Any, cache: Any) -> torch.Tensor:
        logits = self.model(batch, cache)
        for row, sequence in enumerate(batch.sampling):
            if self.is_poisoned(sequence.request_id) and sequence.num_output_tokens >= 2:
                logits[row, 3] = torch.nan
        return logits


def num_sequences_alive() -> int:
    gc.collect()
    return sum(type(thing) is Sequence for thing in gc.get_objects())


class Traffic:
    """Sends requests in bursts and aborts some while the core steps, until everything has been answered."""

    def __init__(self, core: EngineCore, rng: random.Random, number: int) -> None:
        self.core = core
        self.number = number
        self.rng = rng
        self.ledger = Ledger()
        self.num_sent = self.num_invalid = self.num_full = 0

    def run(self) -> None:
        while self.num_sent < self.number or self.core.has_work:
            is_busy = self.num_sent // 500 % 2 == 0
            if self.num_sent < self.number:
                for _ in range(self.rng.choice((0, 1, 2, 3, 12) if is_busy else (0, 0, 0, 1))):
                    self.send()
            if self.ledger.open and self.rng.random() < 0.15:
                self.ledger.take_all(self.core.abort(self.rng.choice(list(self.ledger.open))))
            if self.core.has_work:
                self.ledger.take_all(self.core.step())
            self.core.scheduler.check()

    def send(self) -> None:
        self.num_sent += 1
        request = random_request(self.rng)
        self.ledger.open[self.num_sent] = Account(request)
        where = self.num_sent, request.prompt_ids, request.params, time.monotonic(), request.resume_ids
        try:
            self.ledger.take_all(self.core.add(*where, scheduling=request.scheduling))
            assert request.is_valid
        except InvalidRequest:
            assert not request.is_valid
            self.num_invalid += 1
            del self.ledger.open[self.num_sent]
        except QueueFull:
            self.num_full += 1
            del self.ledger.open[self.num_sent]


def assert_nothing_is_left(core: EngineCore) -> None:
    stats = core.read_stats()
    assert (stats.num_running, stats.num_waiting, stats.num_waiting_tokens, stats.kv_usage) == (0, 0, 0, 0)
    assert core.scheduler.kv.pool.num_used == 0
    assert not core.scheduler.shares.num_active
    assert not len(core.scheduler.deadlines)
    assert core.speculation._proposers.keys() == {"ngram", "draft"}
    for proposer in core.speculation._proposers.values():
        proposer.propose([])
        if isinstance(proposer, DraftModel):
            proposer._kv.check([])
            assert proposer._kv.pool.num_used == 0


@pytest.fixture(autouse=True)
def no_logs() -> Iterator[None]:
    """Keep pytest from keeping each logged traceback, and with it the sequences that its frames know."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def model(make_llama: Callable[..., TinyModel]) -> Path:
    return make_llama(**SHAPE).path


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "number"), [("max_utilization", 10_000), ("guaranteed_no_evict", 2_000)])
def test_every_request_has_one_final_answer_and_nothing_is_left(model: Path, policy: str, number: int) -> None:
    core = EngineCore(EngineConfig(model=model, draft_model=model, scheduler_policy=policy, **SIZES, **LIMITS))
    alive, rng = num_sequences_alive(), random.Random(policy)
    faults, traffic = Faults(core, rng), Traffic(core, rng, number)
    traffic.run()

    ledger = traffic.ledger
    assert not ledger.open
    assert len(ledger.ended) + traffic.num_invalid + traffic.num_full == traffic.num_sent >= number
    assert_nothing_is_left(core)
    assert num_sequences_alive() - alive <= 1  # the scheduler remembers whom it refused last

    some = number // 200
    assert traffic.num_full > some
    assert all(ledger.reasons[reason] > some for reason in FinishReason), ledger.reasons
    stats = core.read_stats()
    assert (stats.num_preemptions > some) == (policy == "max_utilization")
    assert stats.num_draft_tokens > stats.num_accepted_draft_tokens > 10 * some
    assert stats.num_finished == len(ledger.ended)
    assert_only_the_broken_failed(faults, ledger)
    assert_survivors_say_what_they_say_alone(core, faults, ledger)


def assert_only_the_broken_failed(faults: Faults, ledger: Ledger) -> None:
    for request_id, error in ledger.errors.items():
        if faults.raises(request_id):
            assert "a request that cannot be computed" in error
        else:
            assert faults.is_poisoned(request_id), error
            assert error.startswith("the model's logits are not finite")


def assert_survivors_say_what_they_say_alone(core: EngineCore, faults: Faults, ledger: Ledger) -> None:
    core.runner.run, core.runner.model = faults.run, faults.model
    by_themselves = {FinishReason.STOP, FinishReason.LENGTH}
    comparable = [
        account
        for account in ledger.ended.values()
        if set(account.reasons.values()) <= by_themselves
        and not account.request.resume_ids
        and (account.request.params.seed is not None or account.request.params.effective_temperature == 0)
    ]
    assert len(comparable) > len(ledger.ended) / 5
    for account in comparable[::20]:
        completions = generate(core, [account.request.prompt_ids], [account.request.params])
        assert [c.token_ids for c in completions] == [account.token_ids[i] for i in range(len(completions))]
        assert [c.finish_reason for c in completions] == [account.reasons[i] for i in range(len(completions))]
