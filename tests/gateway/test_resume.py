"""A stream whose instance dies goes on at another one: no token is lost, doubled or changed."""

import random
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.tape import NotResumable, Tape, continuation
from gateway.wire.messages import frame_message
from gateway.wire.recording import FRAMES_BYTES
from tests.gateway import backend as backend_module
from tests.gateway import fake_llm
from tests.gateway.backend import Backend
from tests.gateway.cable import Cable
from tests.gateway.clients import Client
from tests.gateway.conftest import Start
from tests.gateway.fake_llm import Completion, make_request, make_response, read_inputs, tokens_of
from tests.gateway.process import GatewayProcess
from tests.gateway.protos import pb

pytestmark = pytest.mark.process

NUM_CLIENTS = 8
NUM_EACH = 8
NUM_TOKENS = 250
MAX_KILLED = 5  # so that never all three are left alone


@pytest.fixture(autouse=True)
def llm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module._Service, "_answer", fake_llm.answer)


def ask(url: str, requests: list[object]) -> dict[str, Completion]:
    """Send all on one stream and return what became of each."""
    done: dict[str, Completion] = defaultdict(Completion)
    with Client(url) as client:
        stream = client.stream()
        stream.send(*requests)
        for message in stream.rest():
            done[message.infer_response.id].take(message)
    return done


class Killer:
    """Ends one backend after another and starts a new one at the same port."""

    def __init__(self, backends: list[Backend], rng: random.Random) -> None:
        self.backends = backends
        self.rng = rng
        self.over = threading.Event()
        self.num_killed = 0

    def run(self) -> None:
        index = 0
        while not self.over.is_set() and self.num_killed < MAX_KILLED:
            index = (index + self.rng.randint(1, 2)) % 3  # one that has not just been started, so that it has streams
            victim = self.backends[index]
            target = victim.sent + self.rng.randint(20, 600)
            if not victim.wait_for(lambda: victim.sent >= target or self.over.is_set(), 2.0):  # noqa: B023
                continue
            if self.over.is_set():
                return
            victim.stop()
            self.num_killed += 1
            self.backends[index] = Backend(victim.name, metrics=False, port=victim.port)


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[tuple[GatewayProcess, Killer]]:
    backends = [Backend(name, metrics=False) for name in "abc"]
    config = tmp_path / "gateway.yaml"
    config.write_text("max_deaths: 10\n")  # of one more the requests are no cause here
    gateway = GatewayProcess(
        *(backend.flag for backend in backends), flags=("--max-retries", "10", "--config", str(config))
    )
    gateway.wait_usable(3)
    killer = Killer(backends, random.Random(5))
    thread = threading.Thread(target=killer.run)
    thread.start()
    yield gateway, killer
    killer.over.set()
    for backend in killer.backends:
        backend.note()
    thread.join()
    gateway.stop()
    for backend in killer.backends:
        backend.stop()


def test_64_streams_under_instances_that_die_say_what_an_undisturbed_run_says(
    killed: tuple[GatewayProcess, Killer],
) -> None:
    gateway, killer = killed
    done: dict[str, Completion] = {}

    def work(client: int) -> None:
        ids = [f"{client}-{number}" for number in range(NUM_EACH)]
        done.update(ask(gateway.url, [make_request(name, NUM_TOKENS, typed=bool(client % 2)) for name in ids]))

    threads = [threading.Thread(target=work, args=(client,)) for client in range(NUM_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    killer.over.set()
    assert len(done) == NUM_CLIENTS * NUM_EACH
    for name, completion in done.items():
        assert completion.errors == []
        assert completion.token_ids == tokens_of(name, NUM_TOKENS)
        assert completion.text == "".join(f"<{token}>" for token in completion.token_ids)
        assert completion.finish_reasons == ["length"]
    assert killer.num_killed >= 3
    assert gateway.metric("gateway_resumes_total") >= 20


def test_a_core_that_restarts_ends_no_stream_and_keeps_the_seed(start: Start) -> None:
    gateway, backends = start()
    done = ask(gateway.url, [make_request(f"r{n}", 60, die_after=7 + n) for n in range(10)])
    for name, completion in done.items():
        assert (completion.errors, completion.token_ids) == ([], tokens_of(name, 60))
    sent = [item for backend in backends for item in backend.requests if item.id == "r3"]
    assert sorted("resume_token_ids" in read_inputs(item) for item in sent) == [False, True]
    keys = [{name: item.parameters[name].string_param for name in ("request_key", "seed_key")} for item in sent]
    key = min(given["request_key"] for given in keys)
    assert sorted(keys, key=str) == [{"request_key": key, "seed_key": ""}, {"request_key": f"{key}.2", "seed_key": key}]
    assert gateway.metric("gateway_ttft_seconds_count") == 10


def test_a_stream_that_falls_silent_goes_on_elsewhere_and_is_aborted(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text("stall_timeout_s: 0.5\n")
    gateway, backends = start(2, "--config", str(config))
    done = ask(gateway.url, [make_request("r", 60, silent_after=9)])
    assert (done["r"].errors, done["r"].token_ids) == ([], tokens_of("r", 60))
    silent = next(b for b in backends if not any("resume_token_ids" in read_inputs(item) for item in b.requests))
    assert silent.wait_for(lambda: len(silent.aborted) == 1)


def test_an_engine_that_hangs_keeps_not_even_requests_that_it_has_not_answered(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text("{stall_timeout_s: 0.5, routing: {policy: round_robin}}")
    gateway, backends = start(2, "--config", str(config))
    hung: list[Backend] = []

    def hang_once(service: Any, request: Any, context: Any) -> Iterator[Any]:
        if not hung:
            hung.append(service.backend)
            service.backend.waiting = 1
            gone = threading.Event()
            context.add_callback(gone.set)
            gone.wait(20)
            return
        yield from fake_llm.answer(service, request, context)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(backend_module._Service, "_answer", hang_once)
        done = ask(gateway.url, [make_request("r", 60)])
    assert (done["r"].errors, done["r"].token_ids) == ([], tokens_of("r", 60))
    (other,) = set(backends) - set(hung)
    assert gateway.health() == {hung[0].grpc_address: "dead", other.grpc_address: "ready"}
    hung[0].waiting = 0
    gateway.wait_usable(2)


def test_a_copy_whose_connection_broke_is_aborted_once_its_instance_can_be_reached_again() -> None:
    backend = Backend("a", metrics=False)
    with Cable(backend.port) as cable:
        gateway = GatewayProcess(f"127.0.0.1:{cable.port}", flags=("--queue-timeout-s", "10"))
        gateway.wait_usable(1)
        with Client(gateway.url) as client:
            stream = client.stream()
            stream.send(make_request("r", 60, silent_after=9))
            assert backend.wait_for(lambda: bool(backend.sent))
            done = Completion()
            done.take(stream.read())
            cable.cut()
            for message in stream.rest():
                done.take(message)
        assert (done.errors, done.token_ids) == ([], tokens_of("r", 60))
        old, new = (item.parameters["request_key"].string_param for item in backend.requests)
        assert new == f"{old}.2"
        assert backend.wait_for(lambda: backend.aborted == [old])
        gateway.stop()
    backend.stop()


@pytest.mark.parametrize(
    ("model", "flags"), [("other", ()), ("llm", ("--resume", "false"))], ids=["another model", "switched off"]
)
def test_what_cannot_go_on_elsewhere_ends_in_one_error(start: Start, model: str, flags: tuple[str, ...]) -> None:
    gateway, _ = start(2, *flags)
    done = ask(gateway.url, [make_request("r", 60, model=model, die_after=9)])
    assert done["r"].errors == ["in ensemble 'llm', UNAVAILABLE: the engine core ended unexpectedly"]
    assert done["r"].token_ids == tokens_of("r", 60)[: len(done["r"].token_ids)]


def test_several_sequences_end_in_the_error_that_broke_them(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(service: Any, request: Any, context: Any) -> Iterator[Any]:
        for message in fake_llm.answer(service, request, context):
            message.infer_response.outputs.add(name="sequence_index", datatype="INT32", shape=[1])
            message.infer_response.raw_output_contents.append(bytes(4))
            yield message

    monkeypatch.setattr(backend_module._Service, "_answer", answer)
    gateway, _ = start()
    done = ask(gateway.url, [make_request("r", 60, die_after=9)])
    assert done["r"].errors == ["in ensemble 'llm', UNAVAILABLE: the engine core ended unexpectedly"]


def frames_of(name: str, num_tokens: int) -> list[bytes]:
    ids = tokens_of(name, num_tokens)
    last = num_tokens - 1
    made = [make_response(name, i, [token], "stop" if i == last else "") for i, token in enumerate(ids)]
    return [frame_message(message.SerializeToString()) for message in made]


def test_a_tape_holds_every_token_in_little_memory_however_its_pieces_are_cut() -> None:
    recorded = b"".join(frames_of("x", 3000))
    for step in (1000, 7919):
        tape = Tape()
        for begin in range(0, len(recorded), step):
            tape.take(recorded[begin : begin + step])
        delivered = tape.read()
        assert list(delivered.token_ids) == tokens_of("x", 3000)
        assert delivered.is_finished
        assert sum(map(len, tape.frames)) < FRAMES_BYTES + len(recorded) / 50
        assert tape.packed_bytes < len(recorded) / 4


def test_a_tape_whose_last_response_has_no_reason_is_not_finished() -> None:
    tape = Tape()
    for frame in frames_of("x", 5)[:-1]:
        tape.take(frame)
    assert not tape.read().is_finished


def test_responses_without_token_ids_cannot_be_resumed() -> None:
    response = pb.ModelInferResponse()
    response.outputs.add(name="text_output")
    response.raw_output_contents.append(b"abc")
    tape = Tape()
    tape.take(frame_message(pb.ModelStreamInferResponse(infer_response=response).SerializeToString()))
    with pytest.raises(NotResumable, match="which tokens"):
        tape.read()


@pytest.mark.parametrize("typed", [False, True])
def test_a_continuation_is_read_as_one_more_input(typed: bool) -> None:
    request = make_request("x", 9, typed=typed).SerializeToString()
    extended = pb.ModelInferRequest.FromString(request + continuation(request, (0, 5, 2**31 - 1)))
    assert read_inputs(extended) == {"max_tokens": [9], "resume_token_ids": [0, 5, 2**31 - 1]}


@pytest.mark.parametrize("reason", ["another model", "resume_token_ids", "cannot be read"])
def test_a_request_that_cannot_be_continued_says_why(reason: str) -> None:
    made = make_request("x", 9, model="other" if reason == "another model" else "llm")
    if reason == "resume_token_ids":
        made.inputs.add(name="resume_token_ids")
    encoded = made.SerializeToString()
    with pytest.raises(NotResumable, match=reason):
        continuation(encoded[:-1] if reason == "cannot be read" else encoded, (1,))
