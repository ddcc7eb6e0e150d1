"""Ranks as processes: the engine says the same on them; one that dies or hangs costs a restart and leaves nothing."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from engine.offline import generate
from engine.sampling_params import SamplingParams
from engine.task_params import TaskParams
from tests.conftest import TinyModel
from tests.models.adapters import make_adapter
from tests.models.checks import core_for
from tests.models.test_embeddings import embeddings
from tests.parallel.greedy_text import check_greedy_text, ranks_for
from tests.parallel.harness import LONG, TIMEOUT, Harness

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # PEFT reads it
]


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


@pytest.fixture(scope="module")
def harness(tiny_llama: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    folder = tmp_path_factory.mktemp("adapters")
    make_adapter(tiny_llama, folder, "a")
    harness = Harness(tiny_llama.path, rank_timeout_seconds=5.0, adapters=folder)
    harness.client.start()
    yield harness
    rank = harness.rank()
    harness.client.close()
    rank.wait(TIMEOUT)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_ends_requests_with_an_error_and_is_replaced(
    harness: Harness, tiny_llama: TinyModel, number: signal.Signals
) -> None:
    harness.client.manage_adapter("a")
    assert '"a"' in (harness.until_final()[-1].adapters or "")
    harness.check_serves(tiny_llama)
    rank, old_pid = harness.rank(), harness.client.pid
    harness.client.submit([5, 6, 7], LONG, time.monotonic())
    rank.send_signal(number)
    harness.check_ends_with_an_error()
    rank.wait(TIMEOUT)
    harness.wait_until_up_again(old_pid)
    harness.client.manage_adapter()
    assert '"a": {"state": "ready"' in (harness.until_final()[-1].adapters or "")  # nobody has asked for it
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
