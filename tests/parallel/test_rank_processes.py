"""Ranks as processes: the engine says the same on them; one that dies or hangs costs a restart and leaves nothing."""

import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.offline import generate
from engine.outputs import FinishReason, RequestOutput
from engine.sampling_params import SamplingParams
from engine.task_params import TaskParams
from tests.conftest import TinyModel
from tests.models.checks import core_for
from tests.models.test_embeddings import embeddings
from tests.parallel.greedy_text import check_greedy_text, ranks_for

TIMEOUT = 90.0
LONG = SamplingParams(max_tokens=200, ignore_eos=True)
SHORT = SamplingParams(max_tokens=12, ignore_eos=True, temperature=0.0)

pytestmark = pytest.mark.slow


def test_two_ranks_say_what_transformers_says_and_draw_and_pool_as_one_does(tiny_llama: TinyModel) -> None:
    params = SamplingParams(
        max_tokens=32, temperature=1.0, seed=7, top_p=0.9, ignore_eos=True, logprobs=True, prompt_logprobs=True
    )
    whole = core_for(tiny_llama.path)
    with closing(ranks_for(tiny_llama, tensor_parallel=2)) as core:
        check_greedy_text(tiny_llama, core)
        ours, expected = (generate(each, [[5, 6, 7]], [params])[0] for each in (core, whole))
        assert ours.token_ids == expected.token_ids
        assert ours.log_probs == pytest.approx(expected.log_probs, abs=1e-3)
        assert ours.prompt_log_probs == pytest.approx(expected.prompt_log_probs, abs=1e-3)
        (ours,), (expected,) = (embeddings(each, [[5, 6, 7]], [TaskParams(embed="last")]) for each in (core, whole))
        assert ours == pytest.approx(expected, abs=1e-5)


def test_a_grid_of_two_by_two_ranks_says_what_transformers_says(make_model: Callable[..., TinyModel]) -> None:
    model = make_model("Mixtral", num_local_experts=5, num_experts_per_tok=2)
    with closing(ranks_for(model, tensor_parallel=2, expert_parallel=2, expert_replicas=1)) as core:
        check_greedy_text(model, core)


class Harness:
    """A client of a core with two ranks, and what it has said."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.outputs: queue.Queue[RequestOutput] = queue.Queue()
        config = EngineConfig(model=path, block_size=4, num_blocks=256, num_threads=1, tensor_parallel=2, **options)
        self.client = EngineClient(config, self.take)

    def take(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            self.outputs.put(output)

    def until_final(self) -> list[RequestOutput]:
        """Collect outputs until one request has ended."""
        seen = [self.outputs.get(timeout=TIMEOUT)]
        while seen[-1].finish_reason is None:
            seen.append(self.outputs.get(timeout=TIMEOUT))
        return seen

    def rank(self) -> psutil.Process:
        """Return the process of rank 1."""
        (child,) = psutil.Process(self.client.pid).children()
        return child

    def check_serves(self, model: TinyModel) -> None:
        self.client.submit([5, 6, 7], SHORT, time.monotonic())
        assert [t for o in self.until_final() for t in o.token_ids] == model.greedy([5, 6, 7], 12)

    def wait_until_up_again(self, old_pid: int | None) -> None:
        deadline = time.monotonic() + TIMEOUT
        while self.client.pid == old_pid or not self.client.is_up:
            assert time.monotonic() < deadline, "the core did not come back"
            os.sched_yield()


@pytest.fixture(scope="module")
def harness(tiny_llama: TinyModel) -> Iterator[Harness]:
    harness = Harness(tiny_llama.path, rank_timeout_seconds=5.0)
    harness.client.start()
    yield harness
    rank = harness.rank()
    harness.client.close()
    rank.wait(TIMEOUT)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_ends_requests_with_an_error_and_is_replaced(
    harness: Harness, tiny_llama: TinyModel, number: signal.Signals
) -> None:
    harness.check_serves(tiny_llama)
    rank, old_pid = harness.rank(), harness.client.pid
    harness.client.submit([5, 6, 7], LONG, time.monotonic())
    rank.send_signal(number)
    final = harness.until_final()[-1]
    assert (final.finish_reason, final.error_code) == (FinishReason.ERROR, "UNAVAILABLE")
    assert "the engine core ended unexpectedly" in (final.error or "")
    rank.wait(TIMEOUT)
    harness.wait_until_up_again(old_pid)
    harness.check_serves(tiny_llama)


def test_an_idle_cores_rank_that_dies_is_replaced(harness: Harness, tiny_llama: TinyModel) -> None:
    old_pid = harness.client.pid
    harness.rank().kill()
    harness.wait_until_up_again(old_pid)
    harness.check_serves(tiny_llama)


def test_a_core_that_dies_takes_its_ranks_along(harness: Harness) -> None:
    old_pid, rank = harness.client.pid, harness.rank()
    rank.suspend()
    assert old_pid is not None
    os.kill(old_pid, signal.SIGKILL)
    rank.wait(TIMEOUT)
    harness.wait_until_up_again(old_pid)
