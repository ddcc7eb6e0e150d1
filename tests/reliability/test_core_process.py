"""The same traffic through the core process, from several threads at once."""

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.errors import InvalidRequest
from engine.outputs import EngineStats, RequestOutput
from tests.conftest import TinyModel
from tests.polling import PAUSE_SECONDS
from tests.reliability.random_requests import MAX_MODEL_LEN, random_request

NUM_THREADS = 4
NUM_REQUESTS = 300  # of each thread
TIMEOUT = 60.0


@pytest.fixture
def outputs() -> "queue.SimpleQueue[list[RequestOutput]]":
    return queue.SimpleQueue()


@pytest.fixture
def client(
    make_llama: Callable[..., TinyModel], outputs: "queue.SimpleQueue[list[RequestOutput]]"
) -> Iterator[EngineClient]:
    path = make_llama(num_hidden_layers=1, max_position_embeddings=MAX_MODEL_LEN).path
    sizes: dict[str, Any] = {
        "block_size": 4,
        "num_blocks": 90,
        "max_num_seqs": 24,
        "max_num_batched_tokens": 80,
        "num_threads": 1,
    }
    client = EngineClient(EngineConfig(model=path, draft_model=path, max_waiting=48, **sizes), outputs.put)
    client.start()
    yield client
    client.close()


def send(client: EngineClient, seed: int, sent: list[int]) -> None:
    """Send requests, and abort some of them."""
    rng = random.Random(seed)
    for _ in range(NUM_REQUESTS):
        request = random_request(rng)
        arrived = time.monotonic()
        where = request.prompt_ids, request.params, arrived, request.resume_ids
        try:
            sent.append(client.submit(*where, scheduling=request.scheduling))
        except InvalidRequest:
            assert not request.is_valid
            continue
        if rng.random() < 0.1:
            client.abort(rng.choice(sent))


def wait_for_idle(client: EngineClient) -> EngineStats:
    deadline = time.monotonic() + TIMEOUT
    while (stats := client.stats).num_running or stats.num_waiting or stats.kv_usage:
        assert time.monotonic() < deadline, stats
        time.sleep(PAUSE_SECONDS)
    return stats


@pytest.mark.slow
def test_every_submitted_request_has_one_final_output_and_the_gauges_fall_to_zero(
    client: EngineClient, outputs: "queue.SimpleQueue[list[RequestOutput]]"
) -> None:
    pid, sent = client.pid, [list[int]() for _ in range(NUM_THREADS)]
    threads = [threading.Thread(target=send, args=(client, seed, ids)) for seed, ids in enumerate(sent)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [request_id for each in sent for request_id in each]
    finals: list[int] = []
    seen: list[int] = []
    while len(finals) < len(ids):
        batch = outputs.get(timeout=TIMEOUT)
        seen += [output.request_id for output in batch]
        finals += [output.request_id for output in batch if output.ends_request]
    assert sorted(finals) == sorted(ids)
    assert len(ids) > NUM_THREADS * NUM_REQUESTS * 0.9
    assert set(seen) == set(ids)
    stats = wait_for_idle(client)
    assert outputs.empty()
    assert stats.num_waiting_tokens == 0
    assert stats.num_draft_tokens > 0
    assert client.pid == pid, "the core died on the way"
