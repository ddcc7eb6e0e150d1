"""Every token once, in order, one final reply each; and nobody waits for a slow sink but its own request."""

import threading
from collections.abc import Iterator

import pytest

from engine.outputs import FinishReason, RequestOutput
from engine.reply_stream import Delivery, Reply
from engine.responder import Responder
from engine.response_budget import seconds_per_response
from engine.text.detokenizer import chunk_text
from engine.text.tokenizer import Tokenizer
from tests.tokenizer_folders import make_byte_level

WAIT = 10.0


class CollectingSink:
    """Keeps replies; `gate` closed makes every send wait."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.done = threading.Event()
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def send(self, reply: Reply) -> None:
        self.entered.set()
        assert self.gate.wait(WAIT)
        self.replies.append(reply)
        if reply.is_final:
            self.done.set()

    @property
    def token_ids(self) -> list[int]:
        return [i for reply in self.replies for i in reply.chunk.token_ids]


class BrokenSink(CollectingSink):
    """Fails on every reply."""

    def send(self, reply: Reply) -> None:
        super().send(reply)
        raise ConnectionError("the client is gone")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_dir(make_byte_level(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def seen() -> list[RequestOutput]:
    return []


@pytest.fixture
def responder(tokenizer: Tokenizer, seen: list[RequestOutput]) -> Iterator[Responder]:
    made = Responder(tokenizer, num_threads=2, on_output=seen.append)
    yield made
    made.close(WAIT)


def output(request_id: int, *token_ids: int, end: FinishReason | None = None, **facts: object) -> RequestOutput:
    made = RequestOutput(request_id, list(token_ids), finish_reason=end)
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def test_replies_of_many_requests_cover_their_tokens_in_order_with_one_final_each(
    responder: Responder, tokenizer: Tokenizer
):
    ids = tokenizer.encode("the cat 世界 😀 sat on the mat and the dog")
    sinks = {n: CollectingSink() for n in range(40)}
    for n, sink in sinks.items():
        responder.open(n, sink, stream=True)
    for token_id in ids:
        responder.push([output(n, token_id) for n in sinks])
    responder.push([output(n, end=FinishReason.LENGTH) for n in sinks])
    for sink in sinks.values():
        assert sink.done.wait(WAIT)
        assert sink.token_ids == ids
        assert [r.is_final for r in sink.replies] == [False] * (len(sink.replies) - 1) + [True]
        texts = [chunk_text(tokenizer, r.chunk.token_ids, r.chunk.context_ids) for r in sink.replies]
        assert "".join(texts) == tokenizer.decode(ids)
    responder.close(WAIT)
    assert responder.num_open == 0


def test_what_piles_up_during_a_send_leaves_in_one_reply(responder: Responder, tokenizer: Tokenizer):
    sink = CollectingSink()
    sink.gate.clear()
    ids = tokenizer.encode("the cat sat on the mat")
    responder.open(1, sink, stream=True)
    responder.push([output(1, ids[0])])
    assert sink.entered.wait(WAIT)
    for token_id in ids[1:]:
        responder.push([output(1, token_id)])
    responder.push([output(1, end=FinishReason.STOP)])
    sink.gate.set()
    assert sink.done.wait(WAIT)
    assert [r.chunk.token_ids for r in sink.replies] == [ids[:1], ids[1:]]
    assert [r.token_index for r in sink.replies] == [0, 1]


def test_a_slow_sink_delays_only_its_own_request(responder: Responder):
    slow, quick = CollectingSink(), CollectingSink()
    slow.gate.clear()
    responder.open(1, slow, stream=True)
    responder.open(2, quick, stream=True)
    responder.push([output(1, 90)])
    assert slow.entered.wait(WAIT)
    responder.push([output(2, 90, end=FinishReason.STOP)])
    assert quick.done.wait(WAIT)
    slow.gate.set()


def test_without_streaming_everything_comes_in_one_reply_at_the_end(responder: Responder):
    sink = CollectingSink()
    responder.open(1, sink, stream=False)
    for token_id in (90, 91, 92):
        responder.push([output(1, token_id, log_probs=[-1.0])])
    responder.push([output(1, end=FinishReason.LENGTH, num_completion_tokens=3)])
    assert sink.done.wait(WAIT)
    assert [(r.chunk.token_ids, r.log_probs, r.token_index) for r in sink.replies] == [([90, 91, 92], [-1.0] * 3, 0)]


def test_outputs_that_come_before_the_sink_is_known_are_kept(responder: Responder):
    responder.push([output(1, 90), output(1, 91, end=FinishReason.STOP)])
    sink = CollectingSink()
    responder.open(1, sink, stream=True)
    assert sink.done.wait(WAIT)
    assert sink.token_ids == [90, 91]


def test_half_a_character_waits_for_its_other_half_with_its_log_probs(responder: Responder, tokenizer: Tokenizer):
    ids = tokenizer.encode("amb မ", add_special_tokens=False)
    sink = CollectingSink()
    responder.open(1, sink, stream=True)
    for index, token_id in enumerate(ids):
        responder.push([output(1, token_id, log_probs=[-float(index)])])
    responder.push([output(1, end=FinishReason.STOP)])
    assert sink.done.wait(WAIT)
    texts = [chunk_text(tokenizer, r.chunk.token_ids, r.chunk.context_ids) for r in sink.replies]
    assert "".join(texts) == "amb မ"
    assert not any("\ufffd" in text for text in texts)
    assert [p for r in sink.replies for p in r.log_probs] == [-float(i) for i in range(len(ids))]
    assert all(len(r.log_probs) == len(r.chunk.token_ids) for r in sink.replies)


def test_a_sink_that_fails_does_not_stop_the_others(responder: Responder, caplog: pytest.LogCaptureFixture):
    broken = [BrokenSink() for _ in range(4)]
    for n, sink in enumerate(broken):
        responder.open(n, sink, stream=True)
        responder.push([output(n, 90, end=FinishReason.STOP)])
    good = CollectingSink()
    responder.open(9, good, stream=True)
    responder.push([output(9, 90, end=FinishReason.STOP)])
    assert good.done.wait(WAIT)
    assert all(sink.done.wait(WAIT) for sink in broken)
    responder.close(WAIT)
    assert sum("could not be sent" in record.message for record in caplog.records) == len(broken)


def test_an_error_is_the_final_reply(responder: Responder):
    sink = CollectingSink()
    responder.open(1, sink, stream=True)
    responder.push([output(1, end=FinishReason.ERROR, error="broken", error_code="INTERNAL")])
    assert sink.done.wait(WAIT)
    assert [(r.is_error, r.last.error) for r in sink.replies] == [(True, "broken")]


def test_every_output_is_seen_for_measuring(responder: Responder, seen: list[RequestOutput]):
    responder.push([output(5, 90), output(6, 91)])
    assert [o.request_id for o in seen] == [5, 6]


def test_a_resting_request_sends_its_end_at_once_and_all_in_between_together(tokenizer: Tokenizer):
    responder = Responder(tokenizer, num_threads=1, on_output=lambda _: None)
    responder.seconds_per_response = 1000.0
    ids = tokenizer.encode("the cat sat on the mat")
    sink = CollectingSink()
    responder.open(1, sink, stream=True)
    responder.push([output(1, ids[0])])
    assert sink.entered.wait(WAIT)
    for token_id in ids[1:]:
        responder.push([output(1, token_id)])
    responder.push([output(1, end=FinishReason.STOP)])
    assert sink.done.wait(WAIT)
    assert sink.token_ids == ids
    assert len(sink.replies) <= 3
    responder.close(WAIT)


def test_a_resting_request_is_woken_when_its_rest_is_over(tokenizer: Tokenizer):
    responder = Responder(tokenizer, num_threads=1, on_output=lambda _: None)
    responder.seconds_per_response = 0.02
    sink = CollectingSink()
    responder.open(1, sink, stream=True)
    responder.push([output(1, 90)])
    assert sink.entered.wait(WAIT)
    sink.entered.clear()
    responder.push([output(1, 91)])
    assert sink.entered.wait(WAIT)
    responder.close(WAIT)
    assert sink.token_ids == [90, 91]


def test_closing_sends_what_is_resting(tokenizer: Tokenizer):
    responder = Responder(tokenizer, num_threads=2, on_output=lambda _: None)
    responder.seconds_per_response = 1000.0
    sink = CollectingSink()
    responder.open(1, sink, stream=True)
    responder.push([output(1, 90)])
    assert sink.entered.wait(WAIT)
    responder.push([output(1, 91)])
    responder.close(WAIT)
    assert sink.token_ids == [90, 91]


def test_a_resumed_request_goes_on_at_the_same_character_and_token(responder: Responder, tokenizer: Tokenizer):
    ids = tokenizer.encode("the cat 世界 😀 sat on the mat")
    cuts = [n for n in range(1, len(ids)) if "\ufffd" not in tokenizer.decode(ids[:n])]
    for number, cut in enumerate(cuts):
        sink = CollectingSink()
        responder.open(number, sink, stream=True, delivery=Delivery(ids[:cut]))
        responder.push([output(number, *ids[cut:], end=FinishReason.STOP)])
        assert sink.done.wait(WAIT)
        texts = [chunk_text(tokenizer, r.chunk.token_ids, r.chunk.context_ids) for r in sink.replies]
        assert tokenizer.decode(ids[:cut]) + "".join(texts) == tokenizer.decode(ids)
        assert sink.replies[0].token_index == cut


def test_beside_a_gpu_requests_rest_less_and_with_more_cores_too() -> None:
    assert seconds_per_response(2, on_gpu=False) == pytest.approx(8e-3)
    assert seconds_per_response(16, on_gpu=True) == pytest.approx(2e-4)  # 64 of them rest 13 ms, about a step
    assert seconds_per_response(16, on_gpu=False) == pytest.approx(1e-3)
