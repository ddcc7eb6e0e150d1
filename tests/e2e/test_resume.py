"""Instances die at random points under 64 seeded streams: each stream says what it says undisturbed."""

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from scripts.launcher.cluster import Cluster
from scripts.launcher.instance import TritonInstance
from tests.e2e.kserve import Answer, Countdown, ask_all, make_request, read_metrics
from tests.e2e.test_faults import kill_core, kill_instance, wait_for_load, wait_for_recovery

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
NUM_STREAMS = 64
MAX_TOKENS = 200
OPENINGS = ["Once upon a time", "The king", "Alice was", "In the forest"]


def seeded_requests() -> list[Any]:
    kinds: list[dict[str, Any]] = [{}, {"temperature": 0.8}, {"temperature": 1.0, "top_p": 0.9}]
    return [
        make_request(
            OPENINGS[index % len(OPENINGS)],
            request_id=str(index),
            max_tokens=MAX_TOKENS,
            ignore_eos=True,
            **(kinds[index % 3] | ({"random_seed": index} if index % 3 else {})),
        )
        for index in range(NUM_STREAMS)
    ]


def num_resumed(cluster: Cluster) -> float:
    values = read_metrics(cluster.gateway.http_url)
    return sum(value for name, value in values.items() if name.startswith("gateway_resumes_total"))


@pytest.fixture(scope="module")
def undisturbed(healing_cluster: Cluster) -> list[Answer]:
    return ask_all(healing_cluster.gateway.grpc_url, seeded_requests())


@pytest.mark.parametrize("kill", [kill_core, kill_instance])
def test_a_death_changes_nothing_that_a_client_sees(
    healing_cluster: Cluster, undisturbed: list[Answer], kill: Callable[[TritonInstance], None]
) -> None:
    before = num_resumed(healing_cluster)
    answers: list[Answer] = []
    num_responses = sum(len(answer.texts) for answer in undisturbed)
    countdown = Countdown(int(num_responses * random.uniform(0.1, 0.4)))  # so that each instance still has streams
    url = healing_cluster.gateway.grpc_url
    load = threading.Thread(target=lambda: answers.extend(ask_all(url, seeded_requests(), countdown)))
    load.start()
    countdown.wait()
    kill(wait_for_load(healing_cluster))
    load.join(timeout=120)
    assert not load.is_alive(), "a stream hangs"
    for answer, expected in zip(answers, undisturbed, strict=True):
        assert not answer.errors
        answer.check_order()
        assert answer.token_ids == expected.token_ids
        assert answer.text == expected.text
    assert num_resumed(healing_cluster) > before
    wait_for_recovery(healing_cluster)
